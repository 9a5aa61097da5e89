"""The contents of a run's result files, as they follow from its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from iclgd.common.records import Evidence, Score, Trace
from iclgd.config import Config
from iclgd.mechanisms.finetuning import instability
from iclgd.metrics import flipped, summarise, to_frame


def result_files(config: Config, evidence: Evidence, scores: Mapping[str, Score]) -> dict[str, Any]:
    """By name, the content of each JSON file and the frame of each table."""
    trace = evidence.trace
    zsl, icl, ft = (evidence.recordings[name].label_scores for name in ("zsl", "icl", "ft"))
    turned = flipped(zsl, icl, ft, evidence.facts["labels"])  # from wrong to right, by finetuning and context alike
    norms = {"layer": range(len(trace.update_norms)), "norm": trace.update_norms}
    return {
        "scores.json": summarise(scores, turned, config.metric.scores),
        "scores.parquet": to_frame(scores),
        "gradient_norms.parquet": _gradient_norms(trace),
        "weight_updates.parquet": pd.DataFrame({name: list(map(float, column)) for name, column in norms.items()}),
        "losses.parquet": pd.DataFrame({"step": range(len(trace.losses)), "loss": trace.losses.tolist()}),
    }


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


def sanity(config: Config, evidence: Evidence) -> dict[str, Any]:
    """For status.json: whether finetuning diverged or is unstable, and why."""
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
