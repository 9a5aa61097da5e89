"""The story of one run: load, prompt, record zsl, record icl, finetune, record ft, measure, store."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
import torch

from iclgd import __version__, tracking
from iclgd.choices import Placement, Procedure
from iclgd.config import Config, ConfigError, RuntimeConfig, as_dict
from iclgd.evidence import Laboratory, before_the_end, gather, moved, reference_prompts, repeats, spread
from iclgd.learning import check, instability
from iclgd.learning.parity import certificate
from iclgd.memory import estimate, refuse_too_large
from iclgd.metrics import flipped, measure, required_inputs, summarise, to_frame
from iclgd.models import LanguageModel, load, refuse_unknown_tokens, resolve_device, resolve_dtype
from iclgd.models.placement import check_processes, devices_of
from iclgd.records import Evidence, Recording, Trace, axes_of
from iclgd.runs.environment import environment, source_patch
from iclgd.runs.folder import RunFolder
from iclgd.runs.identity import run_id
from iclgd.runs.progress import Progress
from iclgd.runs.source_code import written_meanwhile
from iclgd.tasks import as_json, draw, encode

log = logging.getLogger(__name__)

_MIXED = written_meanwhile()  # now that all code has been read


def run(config: Config, folder: RunFolder, progress: Progress | None = None) -> dict[str, Any]:
    """Measure one finetuning variant against in-context learning.

    Its caller writes config.yaml and status.json.

    Returns:
        The content of scores.json.

    Raises:
        ConfigError: settings, data or a model that cannot be used; before the model loads where possible.
        RuntimeError: this package's code changed while it was being read.
    """
    if _MIXED:
        raise RuntimeError(f"{', '.join(_MIXED)} changed while iclgd was being loaded; start it again")
    progress = progress or Progress()
    wanted = required_inputs(config.metric.scores)
    resolve_device(config.runtime.device)
    resolve_dtype(config.runtime.dtype, config.model)
    check(config.finetune, config.protocol.exit)
    check_processes(config.runtime)
    _refuse_patches_apart(config, wanted)
    drawn = draw(config)
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    settings = as_dict(config)
    with tracking.tracker(config, folder.path, run_id(settings), folder.path.parent.name) as tracker:
        needs = estimate(replace(config, task=replace(config.task, queries=len(drawn.queries))))  # not the most allowed
        log.info("%s", needs)
        refuse_too_large(needs)
        parity = certificate(config)
        model = load(config.model, config.runtime)
        prompts = encode(drawn, config, model.tokenizer, model.window)
        refuse_unknown_tokens(prompts, model)
        folder.write_json("prompts.json", as_json(prompts, reference_prompts(config, model, prompts)))
        facts = _environment(model, config.runtime)
        folder.write_json("environment.json", {**facts, "estimate": asdict(needs)})
        if parity is not None:
            folder.write_json("parity.json", parity)
        if patch := source_patch():
            folder.write_text("source.patch", patch)
        laboratory = Laboratory(model, prompts, config, wanted, progress)
        trajectory: list[dict[Hashable, Any]] = []
        evidence = gather(laboratory, lambda step, so_far: trajectory.extend(_so_far(config, step, so_far)))
        scores = measure(config.metric.scores, evidence)
        summary = summarise(scores, _flipped(evidence), config.metric.scores)
        frame, norms = to_frame(scores), _gradient_norms(evidence.trace)
        _store(folder, summary, frame, norms, evidence, trajectory)
        facts = _sanity(laboratory, evidence, summary, folder)
        if config.runtime.save_recordings:
            metadata = {"run": folder.path.name, "model": config.model.name, "axes": json.dumps(axes_of(Recording))}
            folder.write_tensors("recordings.safetensors", _tensors(evidence), {"iclgd": __version__, **metadata})
        steps = pd.DataFrame(trajectory) if trajectory else None
        tracker.log_run(summary, facts, gradient_norms=norms, trajectory=steps, losses=evidence.trace.losses.tolist())
    return summary


def _refuse_patches_apart(config: Config, wanted: set[str]) -> None:
    """Refuse what reads whole feed-forward matrices where they may be in parts or elsewhere."""
    patches = config.finetune.procedure in (Procedure.exact_patch, Procedure.static_patch)
    if config.runtime.placement is not Placement.single and (patches or wanted & {"static_changes", "trained_changes"}):
        raise ConfigError(
            f"runtime.placement={config.runtime.placement} does not go with patches of feed-forward weights, nor with "
            "scores that compare them (weight_cosine and the like): set runtime.placement=single"
        )


def _environment(model: LanguageModel, runtime: RuntimeConfig) -> dict[str, Any]:
    facts = environment(
        str(model.device), str(model.identity["dtype"]), torch.get_num_threads(), model.identity["sha256"]
    )
    return {
        **facts,
        "model": {key: model.identity[key] for key in ("name", "revision", "weights", "weights_seed")},
        "placement": {"kind": str(runtime.placement), "devices": list(devices_of(model.network))},
        "notes": list(model.notes),
    }


def _flipped(evidence: Evidence) -> torch.Tensor:
    settings = evidence.recordings
    zsl, icl, ft = (settings[name].label_scores for name in ("zsl", "icl", "ft"))
    return flipped(zsl, icl, ft, evidence.facts["labels"])


def _so_far(config: Config, step: int, evidence: Evidence) -> list[dict[Hashable, Any]]:
    """Means by layer of the scores that make sense before finetuning has ended."""
    frame = to_frame(measure(before_the_end(config.metric.scores), evidence))
    means = frame.groupby(["score", "layer"], sort=False).agg(mean=("value", "mean")).reset_index()
    return means.assign(step=step).to_dict("records")


def _sanity(lab: Laboratory, evidence: Evidence, summary: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Whether finetuning diverged or is unstable: facts for status.json, and the spread over repeats in jitter.json."""
    trace = evidence.trace
    because = instability(trace.losses, trace.untouched_loss) or unfit_reference(lab, evidence)
    if lab.config.runtime.jitter and trace.diverged_at is None:
        specs = before_the_end(lab.config.metric.scores)
        repeated = [summarise(measure(specs, again), _flipped(again), specs) for again in repeats(lab, evidence)]
        spreads = spread(summary, repeated)
        folder.write_json("jitter.json", spreads)
        because = because or moved(spreads)
    if trace.diverged_at is None and because is not None:
        log.warning("%s is unstable: %s", lab.config.finetune.name, because)
    else:
        because = None  # what diverged has no scores to be unstable
    folder.note(diverged=trace.diverged_at is not None, diverged_at=trace.diverged_at)
    folder.note(unstable=because is not None, unstable_because=because)
    return {"diverged": trace.diverged_at is not None, "unstable": because is not None}


def unfit_reference(lab: Laboratory, evidence: Evidence) -> str | None:
    """Why a planted truth is nothing to compare with, in words; None if it is sound, or ICL itself."""
    icl, name = evidence.recordings["icl"], lab.config.reference.name
    if icl.losses is None or icl.untouched_loss is None:
        return None
    if not icl.attention_output.isfinite().all():
        return f"its reference, {name}, diverged"
    because = instability(icl.losses, icl.untouched_loss.item())
    return because and f"its reference, {name}, is unstable: {because}"


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


def _store(
    folder: RunFolder,
    summary: dict[str, Any],
    frame: pd.DataFrame,
    norms: pd.DataFrame,
    evidence: Evidence,
    trajectory: list[dict[Hashable, Any]],
) -> None:
    trace = evidence.trace
    folder.write_json("scores.json", summary)
    folder.write_table("scores.parquet", frame)
    folder.write_table("gradient_norms.parquet", norms)
    updates = {"layer": range(len(trace.update_norms)), "norm": trace.update_norms, "rank": trace.update_ranks}
    folder.write_table(
        "weight_updates.parquet", pd.DataFrame({key: list(map(float, column)) for key, column in updates.items()})
    )
    losses = {"step": range(len(trace.losses)), "loss": trace.losses.tolist()}
    folder.write_table("losses.parquet", pd.DataFrame(losses))
    if trajectory:
        folder.write_table("trajectory.parquet", pd.DataFrame(trajectory))


def _tensors(evidence: Evidence) -> dict[str, torch.Tensor]:
    """The recordings of all settings, as SETTING.FIELD, and the finetuned queries at the demonstrations if taken."""
    found = {name: tensor.clone() for name, tensor in evidence.tensors().items()}
    if "training_query_vectors" in evidence.facts:
        found["training_query_vectors"] = evidence.facts["training_query_vectors"].clone()
    return found
