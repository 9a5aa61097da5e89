"""The inputs of a run: the id of its settings, all that its numbers depend on by content, and keys of recordings.

`iclgd.evidence.preparation` draws the rows and reads the files that they are made from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iclgd.common.digests import digest_of_text
from iclgd.config import Config, ReferenceConfig, as_dict
from iclgd.config.bounds import parse_layers
from iclgd.runs.provenance import device_name

INPUTS = "fingerprint.json"
SCIENCE = ("model", "task", "finetune", "protocol", "metric", "seed")
LOOKS = {
    "finetune": ("label", "role", "order", "against", "color"),
    "score": ("label", "limits", "headline", "better", "share"),
}
_ICL = dataclasses.asdict(ReferenceConfig())
_USUAL_MATMUL = "highest"  # any other rounds inputs, and is part of what a run measures
OWN_CODE = "code of iclgd"
_ROUNDING = ("placement", "device_map", "max_memory", "matmul", "batch_tokens")  # of runtime
# What tells apart whether a run was repeated elsewhere from whether it is another run.
CIRCUMSTANCES = ("version", "device", "dtype", "code")
# The kind of an input is the first word of its name. Each kind may differ between runs whose settings of these differ.
SETTINGS_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "code": (),
    "version": (),
    "device": (),
    "dtype": ("model.", "runtime.dtype"),
    "model": ("model.",),
    "wording": ("model.", "task.", "protocol."),
    "queries": ("task.",),
    "demonstrations": ("task.", "seed"),
    "training": ("task.", "finetune.", "reference.", "metric.", "seed"),
    "calibration": ("task.", "finetune.", "metric.", "seed"),
}


def canonical(content: Any) -> str:
    """JSON that is the same text for the same content: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(content: Any) -> str:
    """The SHA-256 of plain values."""
    return digest_of_text(canonical(content))


def kind_of(part: str) -> str:
    """The kind of an input, such as `model` for `model config.json`."""
    return part.partition(" ")[0]


def science(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that decides what is measured.

    Args:
        config: plain values, as `config.as_dict` gives them.

    Returns:
        model, task, finetune, protocol, metric, seed and runtime.dtype; `finetune.layers` as a list or "all", whichever
        way it was written; without the settings that only place the work on a machine, and without the seed of
        untrained weights where the weights are pretrained.
    """
    chosen = {key: config[key] for key in SCIENCE}
    chosen["task"] = _without(config["task"], ("rates",))  # the rate that counts is finetune.lr
    if chosen["model"].get("weights") == "pretrained":
        chosen["model"] = _without(chosen["model"], ("weights_seed",))  # nothing is drawn
    if chosen["metric"].get("compare_with") is not None:  # whose rate is among the task's
        chosen["task"] = config["task"]
    reference = _without(config.get("reference") or _ICL, ("label",))
    if reference != _without(_ICL, ("label",)):  # a run against ICL itself is named as before there was a choice
        chosen["reference"], chosen["task"] = reference, config["task"]
    layers = parse_layers(chosen["finetune"]["layers"])
    chosen["finetune"] = {**chosen["finetune"], "layers": "all" if layers is None else list(layers)}
    chosen["finetune"] = _without(chosen["finetune"], LOOKS["finetune"])
    scores = (chosen["metric"].get("scores") or {}).items()
    chosen["metric"] = {**chosen["metric"], "scores": {name: _without(s, LOOKS["score"]) for name, s in scores}}
    chosen["dtype"] = config["runtime"]["dtype"]
    if config["runtime"].get("matmul", _USUAL_MATMUL) != _USUAL_MATMUL:
        chosen["matmul"] = config["runtime"]["matmul"]
    return chosen


def _without(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def run_id(config: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that name a run by its settings: two configs that ask the same question have one id."""
    return hashlib.sha256(canonical(science(config)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Inputs:
    """All that a run's numbers depend on."""

    parts: Mapping[str, str]  # the content of fingerprint.json: a digest, or a plain value, by part
    # what a part is called where its name does not say it, such as "the rows of sst2/train.jsonl"
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def only(self, *kinds: str) -> Inputs:
        """The inputs of these kinds."""
        return Inputs({name: value for name, value in self.parts.items() if kind_of(name) in kinds}, self.words)

    def changes(self, before: Mapping[str, Any]) -> list[str]:
        """The parts in which stored inputs differ from these, in words."""
        names = [name for name in {**self.parts, **before} if before.get(name) != self.parts.get(name)]
        return [self._change(name, before.get(name)) for name in names]

    def _change(self, name: str, before: Any) -> str:
        kind, _, rest = name.partition(" ")
        word = self.words.get(name) or (rest if kind == "code" else f"the {name}")
        if kind in ("dtype", "device", "version"):
            return f"{word} ({before}, now {self.parts.get(name)})"
        if before is None or name not in self.parts:
            return f"{word} ({'new' if before is None else 'no longer there'})"
        return word

    def recording_key(self, config: Config, device: str, learned: bool = False, **of: Any) -> str:
        """The name of a recording that runs share: a digest of all that it depends on, and of what may round otherwise.

        Args:
            config: the run; of a learned recording, with the variant that learned.
            device: where the model is, such as `cuda:0`.
            learned: whether the model was finetuned; then the variant and the user's functions count too.
            of: plain values that say what is recorded: tokens of the prompts, tensors, batches.
        """
        kinds = ("model", "dtype", "device", "version", *(("code",) if learned else ()))
        runtime = {name: str(getattr(config.runtime, name)) for name in _ROUNDING}
        settings = science(as_dict(config))
        chosen = {name: settings[name] for name in ("model", *(("finetune", "protocol", "seed") if learned else ()))}
        parts = {**self.only(*kinds).parts, OWN_CODE: self.parts.get(OWN_CODE)}
        return digest([parts, runtime, chosen, device_name(device), of])[:32]
