"""One family: a tiny model of it run by the program and by the naive implementation, and how far the two are apart."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from families.parts import parts_of
from families.tiny import VOCABULARY, tiny_network
from iclgd.common.records import OPTIONAL_RECORDS, Item, PromptSet, Recording
from iclgd.config import Config, ConfigError, ModelConfig, RuntimeConfig
from iclgd.evidence.memory import weights_size
from iclgd.mechanisms.bench import Bench
from iclgd.mechanisms.finetuning import gradient_descent
from iclgd.models.anatomy import LanguageModel
from iclgd.models.feed_forward import refuse_without_exact_form
from iclgd.models.loading import load
from iclgd.models.recorder import Question, RecordPlan, record
from iclgd.verify.naive import Naive
from learning_cases import learning

TOLERANCE = 1e-5
BOS = (1,)
LABELS = ((5,), (6, 7))
DEMONSTRATIONS = ((11, 23, 35, 47, 59, 5), (36, 48, 60, 72, 84, 9, 21, 6))
QUERIES = ((13, 25, 37, 49, 61, 73, 85, 12, 24), (14, 26, 38))
_RATE = 0.002  # at which the steps change much, and do not blow rounding up
_SETTINGS = ("zsl", "icl", "gd", "lcgd")


@dataclass
class Result:
    """What became of a family.

    Attributes:
        state: `works`, `refused`, `wrong` (accepted, but further from the naive code than allowed), `failed` (accepted,
            and then an error), `unknown` (accepted, but the naive code does not know its parts), or `not built`.
        reason: why, where it does not work.
        differences: the largest difference of each recorded tensor in any layer, relative to the layer's largest value.
    """

    name: str
    state: str
    reason: str = ""
    architecture: str = ""
    differences: dict[str, float] = field(default_factory=dict)
    layers: int = 0
    layers_with_scores: int = 0
    patches: bool = False
    shared_prefix: bool = False

    @property
    def difference(self) -> float:
        """The largest of all."""
        return max(self.differences.values(), default=0.0)

    def summary(self) -> dict[str, Any]:
        """Plain values, with the largest difference for all."""
        values = {**asdict(self), "difference": float(f"{self.difference:.1e}")}
        return {name: value for name, value in values.items() if name != "differences"}


def compare(name: str) -> Result:
    """What becomes of a family of this name in transformers' registry; nothing raises."""
    try:
        network = tiny_network(name)
        with torch.no_grad():
            network(input_ids=torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10]]), use_cache=False)
    except Exception as error:
        return Result(name, "not built", _line(error))
    result = Result(name, "failed", architecture=type(network).__name__)
    try:
        with _saved(network) as folder:
            model = load(ModelConfig(name=str(folder)), RuntimeConfig(device="cpu"))
        _compare(model, network, result)
    except ConfigError as error:
        result.state, result.reason = "refused", _line(error)
    except LookupError as error:
        result.state, result.reason = "unknown", _line(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        result.reason = f"{_line(error)} ({Path(where.filename).name}:{where.lineno})"
    return result


def _compare(model: LanguageModel, network: PreTrainedModel, result: Result) -> None:
    parts, queries = parts_of(network), tuple(Item("", tokens, 0) for tokens in QUERIES)
    items = tuple(Item("", tokens, number, 1) for number, tokens in enumerate(DEMONSTRATIONS))
    prompts = PromptSet(BOS, (2,), items, queries, ("a", "b"), LABELS, tuple(range(len(items))))
    for setting in _SETTINGS:
        objective = setting if setting in ("gd", "lcgd") else "gd"
        trainable = "attn_kv" if any(parts.key_value) else "attention"
        config = learning(f"finetune.trainable={trainable}", objective=objective, lr=_RATE)
        weights_size(network.config, config)  # as every run does first
        naive = Naive(network, config, prompts, parts)
        ours, truth = _both(model, naive, setting, config)
        scores = truth["attention_scores"]
        for tensor, expected in truth.items():
            least = scores if tensor == "context_scores" else expected  # sums over heads, which may cancel
            result.differences[f"{setting}.{tensor}"] = _difference(ours[tensor], expected, least)
    result.state = "works" if result.difference <= TOLERANCE else "wrong"
    if result.state == "wrong":
        worst = max(result.differences, key=lambda each: result.differences[each])
        result.reason = f"{worst} is off by {result.difference:.1e}"
    result.layers = model.layers
    result.layers_with_scores = int(ours["attention_scores"].isfinite().flatten(2).any(-1).any(0).sum())
    result.patches = _has_patches(model)
    result.shared_prefix = model.shares_prefix


def _both(
    model: LanguageModel, naive: Naive, setting: str, config: Config
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """What the program records in a setting, and what the naive implementation does."""
    prompts = naive.prompts
    if setting in ("zsl", "icl"):
        context = prompts.bos if setting == "zsl" else prompts.context()
        return _recorded(model, prompts, context).tensors(), naive.record(context).tensors()
    with gradient_descent(Bench(model, prompts, config, icl=lambda: None)) as trace:
        ours = {**_recorded(model, prompts, prompts.bos).tensors(), "losses": trace.losses}
        ours |= {"gradient_norms": trace.gradient_norms, "update_norms": trace.update_norms}
    with naive.finetuned() as trace:
        truth = {**naive.record(prompts.bos).tensors(), "losses": trace.losses}
        truth |= {"gradient_norms": trace.gradient_norms, "update_norms": trace.update_norms}
    return ours, truth


def _recorded(model: LanguageModel, prompts: PromptSet, context: tuple[int, ...]) -> Recording:
    questions = [Question(query.token_ids, prompts.options(query)) for query in prompts.queries]
    plan = RecordPlan(frozenset(OPTIONAL_RECORDS) - {"option_is_greedy"}, bos=len(prompts.bos))
    return record(model, questions, context, plan)


def _difference(ours: Tensor, truth: Tensor, scale: Tensor) -> float:
    """The largest over layers (axis 1, where there are several axes) of |ours - truth| by the layer's largest |scale|.

    Infinite where the two are not defined in the same places.
    """
    if ours.shape != truth.shape or not torch.equal(ours.isnan(), truth.isnan()):
        return float("inf")
    layers = [(ours, truth, scale)]
    if truth.ndim > 2:
        layers = list(zip(ours.unbind(1), truth.unbind(1), scale.unbind(1), strict=True))
    return max(_relative(*(tensor.double().nan_to_num() for tensor in each)) for each in layers)


def _relative(ours: Tensor, truth: Tensor, scale: Tensor) -> float:
    if not truth.numel():
        return 0.0
    largest = max(truth.abs().max().item(), scale.abs().max().item())
    return (ours - truth).abs().max().item() / largest if largest else (float("inf") if ours.any() else 0.0)


def _has_patches(model: LanguageModel) -> bool:
    try:
        refuse_without_exact_form(model, "exact_patch")
    except ConfigError:
        return False
    return True


@contextmanager
def _saved(network: PreTrainedModel) -> Iterator[Path]:
    """The model as a folder, with a tokenizer of as many words."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", bos_token="w1", eos_token="w2")
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield Path(folder)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
