"""A model that the user has loaded: known by its content, and measured as a copy, so that it stays as it is."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from iclgd.common.digests import digest_of, digest_of_text
from iclgd.config import ConfigError
from iclgd.models.files import InMemory, in_memory
from iclgd.models.half_precision_storage import HALF
from iclgd.models.refusals import refusing
from iclgd.models.self_test import TOLERANCE, some_tokens

_LIBRARIES = ("torch", "transformers", "peft", "accelerate")  # their versions count already
_OF_TRAINING = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
_OF_SESSION = {  # fields of files that say how a model was called or last used
    "config.json": ("use_cache", "dtype", "name_or_path", "auto_map"),
    "tokenizer_config.json": ("auto_map", "is_local", "name_or_path", "tokenizer_file", "vocab_file", "merges_file"),
    "tokenizer.json": ("padding", "truncation"),
}
_ON_DISK = "save it with save_pretrained and name its folder: model=hf model.name=FOLDER"


@contextmanager
def holding(model: object, tokenizer: Any) -> Iterator[dict[str, str]]:
    """Make a model in memory known while the block lasts.

    Args:
        model: a causal language model of transformers, or a PeftModel, which counts with its active adapters merged.
            Nothing of it is changed, but its weights are held a second time while it is measured (a PeftModel's a third
            time).
        tokenizer: a tokenizer of transformers.

    Yields:
        The settings of `model` that mean it; its revision is a digest of weights, modules, config and tokenizer.

    Raises:
        ConfigError: it is no such model, or its weights are not all there.
    """
    if tokenizer is None:
        raise ConfigError("a model in memory needs its tokenizer: iclgd.run(model=MODEL, tokenizer=TOKENIZER)")
    network = _whole(model)
    with tempfile.TemporaryDirectory(prefix="iclgd-memory-") as place:
        folder = Path(place)
        _write(network.config, tokenizer, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        inputs = {path.relative_to(folder).as_posix(): digest_of(path) for path in files}
        inputs |= {"weights": _digest(network.state_dict()), "modules": _built(model, network)}
        revision = digest_of_text(json.dumps(inputs))[:16]
        in_memory[revision] = InMemory(model, network, folder, inputs)
        try:
            name = getattr(network.config, "_name_or_path", "") or type(network).__name__
            dtype = str(cast(Any, model).dtype).removeprefix("torch.")
            yield {"source": "memory", "name": name, "revision": revision, "dtype": dtype}
        finally:
            in_memory.pop(revision, None)


def _whole(model: Any) -> PreTrainedModel:
    """The model with its adapters merged into a copy of it."""
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel):
        kinds = ", ".join(sorted({str(each.peft_type.value) for each in model.peft_config.values()}))
        with refusing(f"the adapters ({kinds}) cannot be merged into the model's weights", "give a model without them"):
            model = copy.deepcopy(model)
            if model.dtype in HALF:  # a merge in half precision would round the change away
                model = model.float()
            model = model.merge_and_unload(safe_merge=True)
    known = isinstance(model, PreTrainedModel) and type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not known or model.get_output_embeddings() is None:
        raise ConfigError(
            f"iclgd.run(model=...) got a {type(model).__name__}; it takes a causal language model of transformers "
            "(AutoModelForCausalLM), or one in a PeftModel; any other is named: model=hf model.name=HUB_ID_OR_FOLDER"
        )
    return model


def _write(config: PretrainedConfig, tokenizer: Any, folder: Path) -> None:
    """Config and tokenizer as files, without what is of this session alone and does not bear on numbers."""
    with refusing("config and tokenizer of the model in memory could not be written to files", _ON_DISK):
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file, dropped in _OF_SESSION.items():
            path = folder / file
            if path.is_file():
                content = json.loads(path.read_text("utf-8"))
                kept = {key: content[key] for key in content if key not in dropped and not key.startswith("_")}
                path.write_text(json.dumps(kept), encoding="utf-8")


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if tensor.is_meta or hasattr(tensor, "to_local"):
            raise ConfigError(f"the weights of the model are not all in this process's memory ({name}): {_ON_DISK}")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _built(model: Any, network: PreTrainedModel) -> str:
    """A digest of what modules are, and of what hangs on the user's own, which neither config nor weights say.

    Whatever of this changes what the model computes is refused when it is loaded, and must not be found done. Code of
    one's own, which may read anything, is new each time.
    """
    lines = []
    for name, module in network.named_modules():
        numbers = [(key, value) for key, value in sorted(vars(module).items()) if _is_number(key, value)]
        lines.append(f"{name} {type(module).__qualname__} {numbers} {_digest(_unsaved(module))}")
    for name, module in model.named_modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        patches = [value for key, value in vars(module).items() if callable(value) and key not in _OF_TRAINING]
        for one in (type(module), *hooks, *patches):
            inner = _inner(one)
            known = _origin(inner).partition(".")[0] in _LIBRARIES
            what = getattr(inner, "__qualname__", type(inner).__qualname__)
            lines.append(f"{name} {what} {getattr(one, 'keywords', '')}" if known else uuid.uuid4().hex)
        lines.append(f"{name} off" if getattr(module, "disable_adapters", False) is True else "")
    return digest_of_text(*lines)


def _is_number(key: str, value: object) -> bool:
    """Whether an attribute of a module is a number that its results may depend on."""
    changing = key.startswith("_") or key in _OF_TRAINING or key.endswith("max_seq_len_cached")
    return isinstance(value, int | float) and not changing


def _unsaved(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's buffers that are not saved; where long prompts change the rotary ones, those that it began with."""
    grows = any(kind in str(getattr(module, "rope_type", "")) for kind in ("dynamic", "longrope"))
    own = {key: module._buffers[key] for key in module._non_persistent_buffers_set if "original" in key or not grows}
    return {key: buffer for key, buffer in own.items() if buffer is not None}


def _inner(one: Any) -> Any:
    """The function in a partial or a method."""
    while isinstance(one, functools.partial):
        one = one.func
    return getattr(one, "__func__", one)


def _origin(one: Any) -> str:
    """The module that code was written in; a wrapper claims that of what it wraps."""
    return getattr(one, "__globals__", {}).get("__name__") or getattr(one, "__module__", None) or ""


def copied(held: InMemory, arguments: Mapping[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A copy of a model in memory, made of its config and weights alone, and what `from_pretrained` said of it.

    `arguments` are those of `from_pretrained`.

    Raises:
        ConfigError: the user's model computes something else: it is patched, hooked, or of a class of its own.
    """
    state = {name: tensor.detach().clone() for name, tensor in held.network.state_dict().items()}
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(held.network.config)]  # not the user's class, which may be their own
    network, info = kind.from_pretrained(None, state_dict=state, **arguments)
    if not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        _refuse_another(held, network)
    return network, info


def _refuse_another(held: InMemory, network: PreTrainedModel) -> None:
    tokens, plain = some_tokens(network)[None], {"use_cache": False, "return_dict": True}
    with _evaluated(held.model), torch.no_grad():  # no inference mode: what the model may cache is used in training
        expected = held.model(input_ids=tokens.to(held.network.device), **plain).logits.float().cpu()
        found = network.eval()(input_ids=tokens.to(network.device), **plain).logits.float().cpu()
    error = ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not error <= max(TOLERANCE[held.model.dtype], TOLERANCE[network.dtype]):
        raise ConfigError(
            "the model in memory computes something else than its config and weights say (logits differ by "
            f"{error:.1e} of their size): remove hooks and patches, enable its adapters, or give the model without them"
        )


@contextmanager
def _evaluated(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off, and every module's mode as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    with contextlib.ExitStack() as stack:
        for module, mode in modes:
            stack.callback(setattr, module, "training", mode)
        model.eval()
        yield
