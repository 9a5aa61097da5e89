"""A model from a config into memory: from safetensors or GGUF only, without any code but transformers' own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from iclgd.common.printable import printable
from iclgd.common.seeding import torch_stream
from iclgd.config import ConfigError, ModelConfig, RuntimeConfig
from iclgd.config.enumerations import Dtype, Matmul, ModelSource, Placement, Weights
from iclgd.models.anatomy import LanguageModel, UnsupportedModelError
from iclgd.models.discovery import discover
from iclgd.models.files import (
    convert,
    dtype_name,
    hub_folder,
    local_folder,
    model_inputs,
    read_object,
    refuse_missing_weights,
)
from iclgd.models.layer_discovery import Description
from iclgd.models.placement import loading_arguments, refuse_quantised
from iclgd.models.products import HALF
from iclgd.models.refusals import ELSEWHERE, refuse_incomplete, refusing
from iclgd.models.self_test import check, first_layer_sees_context

_HALF = (
    "measured in {dtype}: gradients in bfloat16 were measured to differ by 26 to 30 % from float32's, and scores of "
    "small steps by a factor of two (SmolLM2, 4 shots); runtime.dtype=float32 measures without that"
)
_DTYPES = (Dtype.float32, Dtype.float64, Dtype.bfloat16, Dtype.float16)  # of a model's files
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LAST: dict[str, LanguageModel] = {}  # the model that this process loaded last, by all that it depends on
_ELSEWHERE = ("use_kernels", "kernel_config", "transformers_weights")  # fields of config.json
_DAMAGED = "its files are damaged, or are not what they say: get them again, or name another model"


def resolve_device(name: str) -> torch.device:
    """The device that `runtime.device` means; `auto` is the GPU if there is one.

    Raises:
        ConfigError: an unknown name, or CUDA asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"runtime.device={name} is not a device: write auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"runtime.device={name} was asked for, but this machine has {torch.cuda.device_count()} CUDA devices that "
            "PyTorch can use; set runtime.device=cpu or auto"
        )
    return device


def resolve_dtype(name: str, model: ModelConfig) -> torch.dtype:
    """The dtype in which `runtime.dtype` computes; `auto` is float32 everywhere, `model` the precision of its files."""
    own = dtype_name(name, model)
    if own not in _DTYPES:
        raise ConfigError(f"model.dtype={own} is not known: write {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}")
    return getattr(torch, own)


def load(model: ModelConfig, runtime: RuntimeConfig) -> LanguageModel:
    """A model, checked, on its device; the last one loaded is kept for the next run of the same process.

    What is kept belongs to the content of its files: when one of them has changed, the model is loaded anew.

    Raises:
        ConfigError: it is not there, or not in a form that is safe to read.
        UnsupportedModelError: its parts were not found, or its self-test failed.
    """
    device = resolve_device(runtime.device)
    dtype = resolve_dtype(runtime.dtype, model)
    torch.set_float32_matmul_precision("highest" if runtime.matmul is Matmul.highest else "high")
    try:
        digests = model_inputs(model)
    except OSError:  # whatever is amiss, loading says it better
        digests = {}
    key = repr((model, runtime, digests))
    if key not in _LAST:
        _LAST.clear()  # two models may not fit into memory
        _LAST[key] = _load(model, runtime, device, dtype, digests)
    return _LAST[key]


def _load(
    model: ModelConfig, runtime: RuntimeConfig, device: torch.device, dtype: torch.dtype, digests: dict[str, str]
) -> LanguageModel:
    transformers_logging.disable_progress_bar()  # the run has a bar of its own
    files = _locate(model, digests.get("commit") or model.revision)
    config = _config(model, files)
    refuse_quantised(model, config)
    network = _weights(model, files, dtype, runtime, config)
    if runtime.placement is Placement.single:
        network = cast(PreTrainedModel, cast(nn.Module, network).to(device))
    with refusing(f"the tokenizer of model.name={model.name} could not be loaded", _DAMAGED):
        tokenizer = AutoTokenizer.from_pretrained(**files)
    identity = {
        "name": model.name,
        "revision": digests.get("commit") or model.revision,
        "weights": str(model.weights),
        "weights_seed": model.weights_seed if model.weights is not Weights.pretrained else None,
        "dtype": str(dtype).removeprefix("torch."),
        "device_type": device.type,
        "sha256": {name: digest for name, digest in digests.items() if name != "commit"},
    }
    with refusing(f"model.name={model.name} failed its self-test", _DAMAGED):
        return assemble(network.eval(), tokenizer, identity, model.anatomy)


def assemble(
    network: PreTrainedModel,
    tokenizer: Any,
    identity: dict[str, Any] | None = None,
    description: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Make a transformers model recordable, and refuse it if its self-test fails.

    Raises:
        UnsupportedModelError: its parts were not found, or its self-test failed.
    """
    network.requires_grad_(False)
    anatomy, passed = discover(network, description)
    notes = []
    if anatomy.unembedding.weight is network.get_input_embeddings().weight:
        notes.append("input and output embeddings are tied")
    if network.dtype in HALF:
        notes.append(_HALF.format(dtype=str(network.dtype).removeprefix("torch.")))
    model = LanguageModel(network, anatomy, tokenizer, identity or {}, tuple(notes))
    check(model, passed)
    return dataclasses.replace(model, first_layer_sees_context=first_layer_sees_context(model))


def _locate(model: ModelConfig, revision: str | None, weights: bool = True) -> dict[str, Any]:
    """Where a model's files lie, as arguments for transformers' loaders; files of the hub are downloaded."""
    folder = convert(model) if model.source is ModelSource.package else local_folder(model)
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(model.name) or ".." in model.name:
            raise ConfigError(
                f"model.name={model.name} is neither an existing folder nor a hub id such as openai-community/gpt2"
            )
        with refusing(f"model.name={model.name} could not be loaded", ELSEWHERE):
            folder = hub_folder(model, revision, weights and model.weights is not Weights.random)
    arguments = {"pretrained_model_name_or_path": str(folder), "trust_remote_code": False}
    is_gguf = model.file is not None and model.source is not ModelSource.package
    return {**arguments, "gguf_file": model.file} if is_gguf else arguments


def read_config(model: ModelConfig) -> PretrainedConfig:
    """The model's config.json; no weight is fetched.

    Raises:
        ConfigError: it is not there, or of a family that is not known.
    """
    return _config(model, _locate(model, model.revision, weights=False))


def _config(model: ModelConfig, files: dict[str, Any]) -> PretrainedConfig:
    if "gguf_file" not in files:
        _check_config(model.name, Path(files["pretrained_model_name_or_path"]))
    with refusing(f"model.name={model.name} could not be loaded: its config.json", ELSEWHERE):
        return AutoConfig.from_pretrained(**files)


def _check_config(name: str, folder: Path) -> None:
    """Refuse a config.json that is missing, of an unknown family, or that asks for code or weights from elsewhere."""
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model.name={name} has no config.json; a model consists of config.json, a tokenizer and model.safetensors"
        )
    content = read_object(folder / "config.json", f"{name}: config.json")
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"model.name={name} is of the family {printable(repr(kind))}, of which transformers "
            f"{version('transformers')} has no causal language model: name another model"
        )
    elsewhere = [key for key in _ELSEWHERE if content.get(key)]
    if elsewhere:
        raise ConfigError(
            f"model.name={name}: its config.json asks for code or weights from elsewhere ({', '.join(elsewhere)}), "
            "which are not used: remove these fields"
        )
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"model.name={name} holds an adapter (adapter_config.json): merge it into its model, or give the PeftModel "
            "to iclgd.run(model=...)"
        )


def _weights(
    model: ModelConfig, files: dict[str, Any], dtype: torch.dtype, runtime: RuntimeConfig, config: PretrainedConfig
) -> PreTrainedModel:
    with refusing(f"model.name={model.name} could not be loaded", _DAMAGED):
        if model.weights is Weights.random:
            return untrained(config, dtype, model.weights_seed)
        settings: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager"}
        if model.weights is Weights.pretrained:
            settings |= loading_arguments(runtime)
        if "gguf_file" not in files:
            refuse_missing_weights(Path(files["pretrained_model_name_or_path"]), model.name)
            settings |= {"use_safetensors": True, "config": config}
        settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # so that both can be named
        network, info = cast(Any, AutoModelForCausalLM).from_pretrained(**files, **settings)
        refuse_incomplete(network, info, model.name)
        network.config._name_or_path = model.name
        if model.weights is Weights.keep_embeddings:
            return untrained(network.config, dtype, model.weights_seed, network, model.anatomy)
        return network


def untrained(
    config: PretrainedConfig,
    dtype: torch.dtype,
    seed: int,
    keep: PreTrainedModel | None = None,
    description: Description | None = None,
) -> PreTrainedModel:
    """A freshly initialised model ("No Training"), or one that keeps its embeddings ("Trained Embeddings").

    Deutch et al. (2024), sec. 3.2. With `keep`, the input, position and output embeddings and every layer norm are
    copied from it and all else is fresh. Where input and output embeddings are tied, they stay so.

    Args:
        config: the architecture; its own initialisation is used.
        dtype: of the weights; they are drawn in float32, so that every dtype sees the same numbers.
        seed: of these numbers.
        keep: the pretrained model.
        description: `model.anatomy`, of both models.
    """

    def build(dtype: torch.dtype) -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_stream("untrained weights", seed).initial_seed())
        drawn = fresh = build(torch.float32)
        if dtype is not torch.float32:
            fresh = build(dtype)  # whose buffers are as the architecture makes them (rotary frequencies stay float32)
            _copy(drawn.parameters(), fresh.parameters())
    fresh.eval().config._name_or_path = config._name_or_path
    if keep is not None:
        (old, _), (new, _) = discover(keep, description), discover(fresh, description)
        pairs = zip((*old.embeddings(), *old.norms()), (*new.embeddings(), *new.norms()), strict=True)
        for source, target in pairs:
            _copy(source.parameters(), target.parameters())
    return fresh


@torch.no_grad()
def _copy(sources: Iterable[nn.Parameter], targets: Iterable[nn.Parameter]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
