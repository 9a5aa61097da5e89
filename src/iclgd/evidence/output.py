"""The contents of a run's result files, as they follow from its evidence."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from iclgd.common.records import Evidence, Trace
from iclgd.config import Config, ScoreConfig
from iclgd.evidence.facts import LATE_FACTS
from iclgd.evidence.laboratory import Laboratory
from iclgd.mechanisms.finetuning import instability
from iclgd.metrics import flipped, measure, summarise, to_frame
from iclgd.models.anatomy import LanguageModel


def model_facts(model: LanguageModel) -> dict[str, Any]:
    """The model's part of environment.json: its name, the SHA-256 of each of its files, and notes for readers."""
    return {
        "model": {key: model.identity[key] for key in ("name", "revision", "weights", "weights_seed")},
        "model_files": dict(model.identity["sha256"]),
        "notes": list(model.notes),
    }


@dataclass(frozen=True)
class Output:
    """What a run leaves."""

    files: dict[str, Any]  # by name, the content of each JSON file and the frame of each table
    facts: dict[str, Any]  # for status.json: whether finetuning diverged or is unstable, and why


def output_of(lab: Laboratory, evidence: Evidence, so_far: Sequence[Mapping[Hashable, Any]] = ()) -> Output:
    """What a run leaves; `so_far` are the rows of `means_so_far` of all steps at which it was measured."""
    specs, trace = lab.config.metric.scores, evidence.trace
    scores = measure(specs, evidence)
    summary = summarise(scores, _flips(evidence), specs)
    files: dict[str, Any] = {
        "scores.json": summary,
        "scores.parquet": to_frame(scores),
        "gradient_norms.parquet": _gradient_norms(trace),
        "weight_updates.parquet": _weight_updates(trace),
        "losses.parquet": pd.DataFrame({"step": range(len(trace.losses)), "loss": trace.losses.tolist()}),
    }
    if so_far:
        files["trajectory.parquet"] = pd.DataFrame(so_far)
    return Output(files, _sanity(lab.config, evidence))


def _weight_updates(trace: Trace) -> pd.DataFrame:
    columns = {"layer": range(len(trace.update_norms)), "norm": trace.update_norms, "rank": trace.update_ranks}
    return pd.DataFrame({name: list(map(float, column)) for name, column in columns.items()})


def _gradient_norms(trace: Trace) -> pd.DataFrame:
    """Long format: step, demonstration, layer, value; layers that are not trained are left out."""
    values = trace.gradient_norms
    steps, layers = torch.meshgrid(*(torch.arange(n) for n in values.shape), indexing="ij")
    demonstrations = torch.tensor(trace.demonstrations or [-1] * len(values), dtype=torch.long)
    frame = pd.DataFrame(
        {
            "demonstration": demonstrations[steps.flatten()].numpy(),
            "layer": layers.flatten().numpy(),
            "value": values.flatten().double().numpy(),
            "step": steps.flatten().numpy(),
        }
    )
    return frame.dropna(subset="value").reset_index(drop=True)


def before_the_end(scores: Mapping[str, ScoreConfig]) -> dict[str, ScoreConfig]:
    """The scores that need nothing but recordings: no trace of the whole training, no training in other orders."""
    return {
        name: spec
        for name, spec in scores.items()
        if not any(path.startswith("trace.") or path in LATE_FACTS for path in spec.inputs.values())
    }


def means_so_far(config: Config, step: int, evidence: Evidence) -> list[dict[Hashable, Any]]:
    """Means by layer of the scores that make sense before finetuning has ended."""
    frame = to_frame(measure(before_the_end(config.metric.scores), evidence))
    means = frame.groupby(["score", "layer"], sort=False).agg(mean=("value", "mean")).reset_index()
    return means.assign(step=step).to_dict("records")


def _flips(evidence: Evidence) -> torch.Tensor:
    """Which queries finetuning and the context both turn from wrong to right."""
    settings = evidence.recordings
    zsl, icl, ft = (settings[name].label_scores for name in ("zsl", "icl", "ft"))
    return flipped(zsl, icl, ft, evidence.facts["labels"])


def _sanity(config: Config, evidence: Evidence) -> dict[str, Any]:
    trace, because = evidence.trace, None
    if trace.diverged_at is None:  # what diverged has no scores to be unstable
        because = instability(trace.losses, trace.untouched_loss) or unfit_reference(config, evidence)
    return {
        "diverged": trace.diverged_at is not None,
        "diverged_at": trace.diverged_at,
        "unstable": because is not None,
        "unstable_because": because,
    }


def unfit_reference(config: Config, evidence: Evidence) -> str | None:
    """Why a planted truth is nothing to compare with, in words; None if it is sound, or ICL itself."""
    icl, name = evidence.recordings["icl"], config.reference.name
    if icl.losses is None or icl.untouched_loss is None:
        return None
    if not icl.attention_output.isfinite().all():
        return f"its reference, {name}, diverged"
    because = instability(icl.losses, icl.untouched_loss.item())
    return because and f"its reference, {name}, is unstable: {because}"


def kept_tensors(evidence: Evidence) -> dict[str, torch.Tensor]:
    """The recordings of all settings, as SETTING.FIELD, and the finetuned model's attention queries if taken."""
    tensors = {name: tensor.clone() for name, tensor in evidence.tensors().items()}
    if "training_query_vectors" in evidence.facts:
        tensors["training_query_vectors"] = evidence.facts["training_query_vectors"].clone()
    return tensors
