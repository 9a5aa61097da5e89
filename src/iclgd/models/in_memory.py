"""A model that the user has loaded: saved to a temporary folder and measured from there, so that it stays as it is."""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from iclgd.common.digests import digest_of_text
from iclgd.config import ConfigError, ModelConfig
from iclgd.models.files import in_memory, model_inputs
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
def holding(model: Any, tokenizer: Any) -> Iterator[dict[str, str]]:
    """Save a model in memory to a temporary folder, from which it can be measured within the block.

    Args:
        model: a causal language model of transformers, or a PeftModel, which counts with its active adapters merged.
            Nothing of it is changed. TMPDIR says where temporary folders lie.
        tokenizer: its tokenizer, of transformers.

    Yields:
        The settings of `model` that mean it; its revision is a digest of weights, config and tokenizer.

    Raises:
        ConfigError: it is not such a model, it cannot be saved, or it computes something other than its config and
            weights say (it is hooked or patched, or its adapters are off).
    """
    if tokenizer is None:
        raise ConfigError("a model in memory needs its tokenizer: iclgd.run(model=MODEL, tokenizer=TOKENIZER)")
    transformers_logging.disable_progress_bar()
    network = _merge_adapters(model)
    with tempfile.TemporaryDirectory(prefix="iclgd-memory-") as temporary:
        folder = Path(temporary)
        with refusing("the model in memory could not be saved and loaded again", _ON_DISK):
            _save(network, tokenizer, folder)
            _refuse_other_tokens(tokenizer, folder)
            _refuse_other_arithmetic(model, network.dtype, folder)
        revision = digest_of_text(json.dumps(model_inputs(ModelConfig(name=str(folder)))))[:16]
        name = getattr(network.config, "_name_or_path", "") or type(network).__name__
        with in_memory(revision, folder):
            yield {
                "source": "memory",
                "name": name,
                "revision": revision,
                "dtype": str(model.dtype).removeprefix("torch."),
            }


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


def _save(network: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write the model's files, without what belongs to this session alone and does not bear on numbers.

    An empty model of transformers' class saves the weights, for saving changes a model's config, and the user's class
    may be their own.
    """
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(network.config)]
    with torch.device("meta"):
        empty = kind(copy.deepcopy(network.config))
    empty.save_pretrained(folder, state_dict=network.state_dict())
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


def _refuse_other_arithmetic(model: Any, dtype: torch.dtype, folder: Path) -> None:
    """Refuse a model that computes something else than what was saved does, since that is what is measured."""
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    tokens, modes = some_tokens(cast(Any, saved))[None], [(module, module.training) for module in model.modules()]
    plain = {"use_cache": False, "return_dict": True}
    try:
        model.eval()
        with torch.no_grad():  # no inference mode: what the model may cache is used in training
            expected = model(input_ids=tokens.to(model.device), **plain).logits.float().cpu()
            error = relative_error(saved(input_ids=tokens, **plain).logits.float(), expected)
    finally:
        for module, mode in modes:
            module.training = mode
    if not error <= max(TOLERANCE[model.dtype], TOLERANCE[dtype]):
        raise ConfigError(
            "the model in memory computes something other than its config and weights say (logits differ by "
            f"{error:.1e} of their size): remove hooks and patches, enable its adapters, or give the model without them"
        )
