"""What a run will need, before anything of the model but its config.json is read: memory, disk and time.

Sizes are counted on a network without weights. Times are floors (products over the machine's rate, weights over the
bus) times what recordings and steps were measured to take above their floors (BENCHMARKS.md); they are estimates.
"""

from __future__ import annotations

import functools
import shutil
import time
from dataclasses import dataclass, field

import psutil
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from iclgd.common.paths import cache_folder
from iclgd.config import Config, ConfigError
from iclgd.config.bounds import parse_layers
from iclgd.config.enumerations import CacheMode, Placement
from iclgd.mechanisms.parameters import trained_parameters
from iclgd.models.anatomy import dissect
from iclgd.models.half_precision_storage import stored_dtype
from iclgd.models.language_model import LanguageModel
from iclgd.models.loading import read_config, resolve_device, resolve_dtype

GB = 1e9
_ABOVE_FLOOR = {"record": 1.4, "step": 2.7}
_BUS = {"cpu": 12.0, "disk": 1.5}  # GB/s at which weights that wait there come to a GPU
_LENGTH = 40  # tokens of a query or demonstration: before a tokenizer is read, a sentence or two
_LAUNCH = 1e-3  # seconds that a block costs on a GPU however few its tokens: kernel launches


@dataclass(frozen=True)
class Machine:
    """Where a run will be."""

    kind: str  # cpu or cuda
    memory: tuple[float, ...]  # GB that are free on each device
    host: float  # GB of CPU memory that are free
    disk: float  # GB that are free for the cache
    rate: float  # products a second on one device, in FLOP, in the dtype that the run computes in

    @classmethod
    def here(cls, config: Config) -> Machine:
        """This machine, as `config.runtime` uses it; the rate is measured on one product."""
        device = resolve_device(config.runtime.device)
        dtype = resolve_dtype(config.runtime.dtype, config.model)
        host = psutil.virtual_memory().available / GB
        folder = next(place for place in (cache_folder(), *cache_folder().parents) if place.exists())
        memory = (host,)
        if device.type == "cuda":
            one = device.index if device.index is not None else 0
            several = config.runtime.placement is not Placement.single
            chosen = range(torch.cuda.device_count()) if several else (one,)
            memory = tuple(torch.cuda.mem_get_info(number)[0] / GB for number in chosen)
        return cls(device.type, memory, host, shutil.disk_usage(folder).free / GB, _rate(str(device), dtype))


@functools.cache
def _rate(device: str, dtype: torch.dtype) -> float:
    size = 1024 if device == "cpu" else 4096
    square = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        (square @ square)[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


@dataclass(frozen=True)
class Estimate:
    """What a run needs; sizes in GB."""

    weights: float  # of the model as it rests
    trained: float  # copies, gradients and optimiser state of what is trained
    activations: float  # of the largest pass, the shared context's keys and values and the logits among them
    devices: dict[str, float]  # all of that on each device, with what waits in CPU memory or on disk
    records: float  # recordings in CPU memory
    cache: float  # recordings on disk
    minutes: float  # of computation
    missing: tuple[str, ...] = field(default=())  # what does not fit, in words; empty if all does

    def __str__(self) -> str:
        """One line."""
        on = ", ".join(f"{device} {_short(size)} GB" for device, size in self.devices.items())
        return (
            f"estimate: {on} (weights {_short(self.weights)}, training {_short(self.trained)}, activations "
            f"{_short(self.activations)}), recordings {_short(self.records)} GB, cache {_short(self.cache)} GB, "
            f"about {_short(self.minutes)} min"
        )


def _short(number: float) -> str:
    if 0 < number < 0.001:
        return "<0.001"
    return f"{number:.1f}" if number >= 0.1 else f"{number:.1g}"


def _width(model: LanguageModel) -> int:
    """How many numbers one token has in a block at once, at most: its states, and what each matrix makes of it."""
    matrices = [weight for weight in model.anatomy.blocks[0].parameters() if weight.ndim == 2]
    return 4 * model.network.config.hidden_size + sum(max(weight.shape) for weight in matrices)


def estimate(config: Config) -> Estimate:
    """What a run needs on this machine, from its settings and the model's config.json."""
    return estimate_of(read_config(config.model), config, Machine.here(config))


def refuse_too_large(found: Estimate) -> None:
    """Refuse a run of which the weights alone do not fit."""
    if found.missing:
        raise ConfigError(
            f"{'; '.join(found.missing)}: set runtime.placement=auto (several GPUs, CPU memory, disk) or "
            "runtime.dtype=float32_from_bfloat16"
        )


def estimate_of(settings: PretrainedConfig, config: Config, machine: Machine) -> Estimate:
    """The same for an architecture, on any machine."""
    counted = _counted(settings, config)
    used = resolve_dtype(config.runtime.dtype, config.model)
    rest = stored_dtype(config.runtime.dtype, used)
    weights = counted.parameters * rest.itemsize / GB
    trained = counted.trained * _bytes_trained(config, used, rest) / GB
    activations = _activations(counted, config, machine, used) / GB
    # Three recordings: attention outputs and scores of every query and layer, in float32.
    records = 3 * 4.0 * config.task.queries * counted.layers * (counted.d_model + counted.heads * _LENGTH) / GB
    devices, missing, waiting = _dealt(config, machine, weights, trained, activations)
    cached = min(records * 2 / 3, config.runtime.cache_gb) if config.runtime.cache is CacheMode.auto else 0.0
    seconds = _seconds(counted, config, machine, waiting)
    return Estimate(weights, trained, activations, devices, records, cached, seconds / 60, missing)


@dataclass(frozen=True)
class _Counted:
    """Numbers of a network, without its numbers."""

    layers: int
    parameters: int
    blocks: int  # parameters of all blocks
    trained: int  # of the parameters that hold what is trained
    width: int  # numbers that one token has in a block at once
    key_values: int  # numbers of one token's keys and values in a block
    heads: int
    d_model: int
    vocabulary: int


def _network(settings: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings, attn_implementation="eager")


def _counted(settings: PretrainedConfig, config: Config) -> _Counted:
    network = _network(settings)
    anatomy = dissect(network)
    model = LanguageModel(network, anatomy, None)
    trained = 0
    if config.finetune.mechanism in ("gradient_descent", "activation_match"):
        chosen = trained_parameters(model, config.finetune.trainable, parse_layers(config.finetune.layers))
        trained = sum(item.parameter.numel() for item in chosen)
    shape = anatomy.shape
    return _Counted(
        layers=len(anatomy.blocks),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        blocks=sum(parameter.numel() for block in anatomy.blocks for parameter in block.parameters()),
        trained=trained,
        width=_width(model),
        key_values=2 * shape.key_value_heads * shape.head_dim,
        heads=shape.heads,
        d_model=network.config.hidden_size,
        vocabulary=network.config.vocab_size,
    )


def _bytes_trained(config: Config, used: torch.dtype, rest: torch.dtype) -> int:
    """Of one trained number: what it was, its gradient, its change at the end; a float32 copy; Adam's moments."""
    copy = 4 if rest.itemsize == 2 else 0
    moments = 0 if config.finetune.optimizer == "sgd" else 8
    return 2 * used.itemsize + 4 + copy + moments


def _activations(counted: _Counted, config: Config, machine: Machine, used: torch.dtype) -> float:
    on_cpu = machine.kind == "cpu"
    tokens = config.runtime.batch_tokens or (512 if on_cpu else 16384)
    context = config.task.shots * _LENGTH * counted.layers * counted.key_values * used.itemsize
    logits = 2 * max(1, tokens // _LENGTH) * counted.vocabulary * 4
    upcast = counted.vocabulary * counted.d_model * 4 if used.itemsize == 2 else 0
    recording = tokens * counted.width * used.itemsize + context + logits + upcast
    deep = 1 if config.finetune.objective == "lcgd" else counted.layers
    kept = max(deep * _LENGTH, 512) * counted.width * used.itemsize
    training = 2 * kept + 3 * 4 * (2**21 if on_cpu else 2**26)
    return max(recording, training)


def _dealt(
    config: Config, machine: Machine, weights: float, trained: float, activations: float
) -> tuple[dict[str, float], tuple[str, ...], dict[str, float]]:
    """Needs by device, what is missing, and which weights wait elsewhere."""
    names = [f"{machine.kind}:{number}" if machine.kind == "cuda" else "cpu" for number in range(len(machine.memory))]
    if config.runtime.placement is not Placement.auto:
        name, room = names[0], machine.memory[0]
        missing = (f"{name} has {room:.1f} GB free, but {weights:.1f} GB of weights are to lie there",)
        return {name: weights + trained + activations}, missing if weights > room else (), {}
    left, needs = weights + trained, {}
    for name, room in zip(names, machine.memory, strict=True):
        part = min(left, max(0.0, 0.9 * room - activations))
        needs[name] = part + activations
        left -= part
    waiting = {"cpu": min(left, 0.9 * machine.host)} if machine.kind == "cuda" else {}
    waiting["disk"] = left - waiting.get("cpu", 0.0)
    waiting = {name: size for name, size in waiting.items() if size > 1e-9}
    on_disk = waiting.get("disk", 0.0)
    missing = (f"{on_disk:.1f} GB of weights would wait on a disk with {machine.disk:.1f} GB free",)
    return needs | waiting, missing if on_disk > machine.disk else (), waiting


def _seconds(counted: _Counted, config: Config, machine: Machine, waiting: dict[str, float]) -> float:
    on_gpu = machine.kind == "cuda"
    rate = machine.rate
    brought = sum(size / _BUS[name] for name, size in waiting.items())
    per_pass = (_LAUNCH * counted.layers if on_gpu else 0.0) + brought
    tokens = config.runtime.batch_tokens or (16384 if on_gpu else 512)
    read = 3 * config.task.queries * _LENGTH + config.task.shots * _LENGTH
    unembedded = 3 * config.task.queries * counted.vocabulary * counted.d_model
    recording = 2 * (read * counted.blocks + unembedded) / rate + read / tokens * per_pass
    exits = counted.layers if config.finetune.objective == "lcgd" else 1
    step = 4 * _LENGTH * (counted.blocks + exits * counted.vocabulary * counted.d_model) / rate
    steps = config.task.shots * config.finetune.epochs if counted.trained else 0
    return _ABOVE_FLOOR["record"] * recording + steps * (_ABOVE_FLOOR["step"] * step + 2 * per_pass)
