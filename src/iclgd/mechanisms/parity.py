"""A certificate that a placed model gives the numbers of one device: its first layers, placed and not, side by side."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from iclgd.common import ranks
from iclgd.config import Config
from iclgd.config.enumerations import Placement, Trainable
from iclgd.mechanisms.losses import Sequence
from iclgd.mechanisms.objectives import ObjectiveOptions, gd, lcgd
from iclgd.mechanisms.parameters import layer_norms, trainable, trained_parameters
from iclgd.models.anatomy import UnsupportedModelError
from iclgd.models.half_precision_storage import compute_in_float32, stored_apart, stored_dtype
from iclgd.models.language_model import LanguageModel
from iclgd.models.loading import assemble, read_config, read_prefix, resolve_device, resolve_dtype
from iclgd.models.placement import devices_of, loading_arguments, spread
from iclgd.models.recorder import Question, RecordPlan, record

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}
_RATE = 1e-3


def certificate(config: Config) -> dict[str, Any] | None:
    """The content of parity.json; None where the model lies on one device.

    The first layers of the model (two for each device), with its own embeddings, norm and unembedding, are loaded
    twice: on one device, and placed as the run places the whole. Both record three queries and take a step of gd and
    one of lcgd. This needs little memory, and is done before the whole model is loaded.

    Raises:
        UnsupportedModelError: the two differ by more than rounding.
    """
    runtime = config.runtime
    if runtime.placement is Placement.single:
        return None
    settings = read_config(config.model)
    devices = range(ranks.count()) if runtime.placement is Placement.tensor_parallel else spread(runtime)
    if len(devices) < 2:
        return None
    count = min(settings.num_hidden_layers, 2 * len(devices))
    part, used = first_layers(settings, count), resolve_dtype(runtime.dtype, config.model)
    dtype, device = stored_dtype(runtime.dtype, used), resolve_device(runtime.device)
    arguments = loading_arguments(runtime, part)
    if runtime.placement is Placement.auto:
        arguments["device_map"] = list(devices)
    alone, placed = read_prefix(config.model, part, dtype, {}), read_prefix(config.model, part, dtype, arguments)
    if stored_apart(runtime.dtype):
        compute_in_float32(alone)
        compute_in_float32(placed)
    expected = _facts(assemble(alone.to(device).eval(), None))  # pyright: ignore[reportArgumentType]
    found = _facts(assemble(placed.eval(), None))
    differences = {name: _difference(tensor, found[name]) for name, tensor in expected.items()}
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= _TOLERANCE[used]:
        raise UnsupportedModelError(
            f"runtime.placement={runtime.placement}: the model's first {count} layers give another {worst} than on one "
            f"device (relative difference {differences[worst]:.1e}, allowed {_TOLERANCE[used]:.0e}); it is not measured"
        )
    return {
        "placement": str(runtime.placement),
        "devices": list(devices_of(placed)),
        "compared": f"the first {count} of {settings.num_hidden_layers} layers, with one device ({device})",
        "dtype": runtime.dtype if stored_apart(runtime.dtype) else str(used).removeprefix("torch."),
        "allowed": _TOLERANCE[used],
        "largest_relative_difference": differences,
    }


def first_layers(settings: PretrainedConfig, count: int) -> PretrainedConfig:
    """The config of the same model with its first layers only."""
    part, all_layers = copy.deepcopy(settings), settings.num_hidden_layers
    for name, value in vars(part).items():
        if isinstance(value, list) and len(value) == all_layers:  # a kind for each layer
            setattr(part, name, value[:count])
    part.num_hidden_layers = count
    return part


def _facts(model: LanguageModel) -> dict[str, Tensor]:
    """What three queries and two steps give."""
    size = model.network.config.vocab_size
    tokens = tuple(((torch.arange(1, 25) * 7919) % size).tolist())
    questions = [Question(tokens[10 + i : 14 + 2 * i], ((tokens[20],), (tokens[21], tokens[22]))) for i in range(3)]
    recordings = {"icl": record(model, questions, tokens[:10], RecordPlan())}
    predicted = torch.ones(10, dtype=torch.bool)
    predicted[0] = False
    sequence, layers = Sequence(torch.tensor(tokens[:10]), predicted), tuple(range(model.layers))
    facts: dict[str, Tensor] = {}
    for name, objective in (("gd", gd), ("lcgd", lcgd)):
        trained = trained_parameters(model, Trainable.attn_kv, None)
        with trainable(trained):
            facts[f"{name} loss"] = torch.tensor(objective(model, sequence, ObjectiveOptions(layers)))
            gradients = [item.parameter.grad for item in trained]
            facts[f"{name} gradient norms"] = layer_norms(trained, gradients, model.layers)  # pyright: ignore
            with torch.no_grad():
                for item, gradient in zip(trained, gradients, strict=True):
                    whole = ranks.whole(item.parameter.detach()) - _RATE * ranks.whole(gradient)
                    item.write(item.parameter.data, item.part(whole))
            recordings[f"after {name}"] = record(model, questions, tokens[:1], RecordPlan())
    for name, recording in recordings.items():
        facts[f"{name} attention output"] = recording.attention_output
        facts[f"{name} attention scores"] = recording.attention_scores.nan_to_num()
        facts[f"{name} label scores"] = recording.label_scores
    return facts


def _difference(expected: Tensor, found: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
