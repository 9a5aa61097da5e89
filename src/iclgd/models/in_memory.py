"""A model that the user has loaded: identified by its content, and measured as a copy, so that it stays as it is."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from iclgd.common.digests import digest_of, digest_of_text
from iclgd.config import ConfigError
from iclgd.models.files import InMemory, in_memory
from iclgd.models.products import HALF
from iclgd.models.proofs import TOLERANCE, relative_error
from iclgd.models.refusals import refusing
from iclgd.models.tracing import some_tokens

_OF_SESSION = {  # fields of files that say how a model was called or last used
    "config.json": ("use_cache", "dtype", "name_or_path", "auto_map"),
    "tokenizer_config.json": ("auto_map", "is_local", "name_or_path", "tokenizer_file", "vocab_file", "merges_file"),
    "tokenizer.json": ("padding", "truncation"),
}
_TEXTS = (  # in which tokenizers of families differ: digits, spaces, case, marks, lines and letters of other scripts
    "year 2011 a11",
    "Review: It's 100% GREAT, isn't it?  Sentiment:\tPositive\n\nQ: naïve café № 5 → été",
    " leading and trailing ",
    "x=3.14;y_2 -> [a,b] {'c': \"d\"} 東京 привет 🙂",
)
_ON_DISK = "save it with save_pretrained and name its folder: model=hf model.name=FOLDER"


@contextmanager
def holding(model: object, tokenizer: Any) -> Iterator[dict[str, str]]:
    """Make a model in memory known while the block lasts.

    Args:
        model: a causal language model of transformers, or a PeftModel, which counts with its active adapters merged.
            Nothing of it is changed, but its weights are held a second time while it is measured (a PeftModel's a third
            time).
        tokenizer: its tokenizer, of transformers.

    Yields:
        The settings of `model` that mean it; its revision is a digest of weights, config and tokenizer.

    Raises:
        ConfigError: it is not such a model, its weights are not all there, or it computes something else than its
            config and weights say (it is hooked or patched, or its adapters are off).
    """
    if tokenizer is None:
        raise ConfigError("a model in memory needs its tokenizer: iclgd.run(model=MODEL, tokenizer=TOKENIZER)")
    network = _merge_adapters(model)
    with tempfile.TemporaryDirectory(prefix="iclgd-memory-") as temporary:
        folder = Path(temporary)
        _write(network.config, tokenizer, folder)
        _refuse_other_tokens(tokenizer, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        inputs = {path.relative_to(folder).as_posix(): digest_of(path) for path in files}
        inputs["weights"] = _digest(network.state_dict())
        _refuse_other_arithmetic(cast(Any, model), network, folder)
        revision = digest_of_text(json.dumps(inputs))[:16]
        name = getattr(network.config, "_name_or_path", "") or type(network).__name__
        dtype = str(cast(Any, model).dtype).removeprefix("torch.")
        with in_memory(InMemory(network, folder, revision, inputs)):
            yield {"source": "memory", "name": name, "revision": revision, "dtype": dtype}


def _merge_adapters(model: Any) -> PreTrainedModel:
    """The model; a PeftModel as a copy with its adapters merged."""
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel):
        kinds = ", ".join(sorted({str(each.peft_type.value) for each in model.peft_config.values()}))
        with refusing(f"the adapters ({kinds}) cannot be merged into the model's weights", "give a model without them"):
            model = copy.deepcopy(model)
            if model.dtype in HALF:  # a merge in half precision would round the change away
                model = model.float()
            model = model.merge_and_unload(safe_merge=True)
    is_causal = isinstance(model, PreTrainedModel) and type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not is_causal or model.get_output_embeddings() is None:
        raise ConfigError(
            f"iclgd.run(model=...) got a {type(model).__name__}; it takes a causal language model of transformers "
            "(AutoModelForCausalLM), or one in a PeftModel; any other is named: model=hf model.name=HUB_ID_OR_FOLDER"
        )
    return model


def _write(config: PretrainedConfig, tokenizer: Any, folder: Path) -> None:
    """Config and tokenizer as files, without what belongs to this session alone and does not bear on numbers."""
    with refusing("config and tokenizer of the model in memory could not be written to files", _ON_DISK):
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file, dropped in _OF_SESSION.items():
            path = folder / file
            if path.is_file():
                content = json.loads(path.read_text("utf-8"))
                lasting = {key: content[key] for key in content if key not in dropped and not key.startswith("_")}
                path.write_text(json.dumps(lasting), encoding="utf-8")


def _refuse_other_tokens(tokenizer: Any, folder: Path) -> None:
    """Refuse a tokenizer that is another after it was saved, since what was saved is what is measured.

    For some families transformers makes a tokenizer of its own from the vocabulary that it finds.
    """
    with refusing("the tokenizer of the model in memory could not be loaded again", _ON_DISK):
        other, size = AutoTokenizer.from_pretrained(folder), len(tokenizer)
        words = [tokenizer.decode([token]) for token in range(0, size, max(1, size // 1000))]
        for text in (*_TEXTS, " ".join(words), *words):
            tokens, others = (each(text, add_special_tokens=False)["input_ids"] for each in (tokenizer, other))
            if list(tokens) != list(others):
                raise ConfigError(
                    f"the tokenizer given with the model makes other tokens once it is saved beside it: of {text!r} "
                    f"{len(tokens)}, and {len(others)} as transformers loads it ({type(other).__name__}); load it from "
                    "the saved folder (AutoTokenizer.from_pretrained) and see whether you want what it becomes"
                )


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if tensor.is_meta or hasattr(tensor, "to_local"):
            raise ConfigError(f"the weights of the model are not all in this process's memory ({name}): {_ON_DISK}")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def copy_network(network: PreTrainedModel, arguments: Mapping[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A copy of a model, made of its weights and a config alone, and what `from_pretrained` said of it.

    `arguments` are those of `from_pretrained`, the config among them. The copy is of transformers' class, not the
    user's, which may be their own.
    """
    transformers_logging.disable_progress_bar()
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(network.config)]
    return kind.from_pretrained(None, state_dict=state, **arguments)


def _refuse_other_arithmetic(model: Any, network: PreTrainedModel, folder: Path) -> None:
    """Refuse a model whose copy computes something else, since the copy is what is measured."""
    with refusing("the model in memory could not be copied", _ON_DISK):
        arguments = {"config": AutoConfig.from_pretrained(folder), "dtype": network.dtype}
        arguments |= {"attn_implementation": "eager", "ignore_mismatched_sizes": True, "output_loading_info": True}
        other, info = copy_network(network, arguments)
    if any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return  # which loading refuses with the names of the weights
    tokens, plain = some_tokens(network)[None], {"use_cache": False, "return_dict": True}
    with _evaluated(model), torch.no_grad():  # no inference mode: what the model may cache is used in training
        expected = model(input_ids=tokens.to(network.device), **plain).logits.float().cpu()
        logits = other.eval()(input_ids=tokens, **plain).logits.float()
    error = relative_error(logits, expected)
    if not error <= max(TOLERANCE[model.dtype], TOLERANCE[network.dtype]):
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
