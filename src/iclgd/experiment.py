"""The story of one run: load, prompt, record zsl, record icl, finetune, record ft, measure, store."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable
from dataclasses import asdict, replace
from typing import Any

import torch

from iclgd import __version__, tracking
from iclgd.common.records import Recording, axes_of
from iclgd.config import Config, ConfigError, RuntimeConfig, as_dict
from iclgd.config.enumerations import Placement
from iclgd.evidence.gather import gather
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.memory import estimate, refuse_too_large
from iclgd.evidence.outcome import kept_tensors, means_so_far, model_facts, outcome
from iclgd.evidence.preparation import Prepared, prepare
from iclgd.evidence.reference import reference_prompts
from iclgd.mechanisms.registry import check
from iclgd.metrics import required_inputs
from iclgd.models.completeness import refuse_unknown_tokens
from iclgd.models.language_model import LanguageModel
from iclgd.models.loading import load, resolve_device, resolve_dtype
from iclgd.models.placement import check_placement, devices_of
from iclgd.runs.environment import environment, source_patch
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import run_id
from iclgd.runs.progress import Progress
from iclgd.tasks import as_json, encode

log = logging.getLogger(__name__)


def run(
    config: Config, folder: RunFolder, progress: Progress | None = None, prepared: Prepared | None = None
) -> dict[str, Any]:
    """Measure one finetuning variant against in-context learning.

    Its caller writes config.yaml and status.json, and may have prepared the run before.

    Returns:
        The content of scores.json.

    Raises:
        ConfigError: settings, data or a model that cannot be used; before the model loads where possible.
    """
    progress = progress or Progress()
    wanted = required_inputs(config.metric.scores)
    resolve_device(config.runtime.device)
    resolve_dtype(config.runtime.dtype, config.model)
    check(config.finetune, config.protocol.exit)
    check_placement(config.runtime)
    _refuse_patches_apart(config, wanted)
    prepared = prepared or prepare(config)
    drawn = prepared.drawn
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    settings = as_dict(config)
    with tracking.tracker(config, folder.path, run_id(settings), folder.path.parent.name) as tracker:
        needs = estimate(replace(config, task=replace(config.task, queries=len(drawn.queries))))  # not the most allowed
        log.info("%s", needs)
        refuse_too_large(needs)
        model = load(config.model, config.runtime)
        prompts = encode(drawn, config, model.tokenizer, model.window)
        refuse_unknown_tokens(prompts, model)
        folder.write_json(
            "prompts.json", as_json(prompts, reference_prompts(config, model, prompts, prepared.reference))
        )
        facts = _environment(model, config.runtime)
        for note in prompts.notes:
            log.info("%s", note)
        folder.write_json(
            "environment.json", {**facts, "estimate": asdict(needs), "notes": [*facts["notes"], *prompts.notes]}
        )
        if patch := source_patch():
            folder.write_text("source.patch", patch)
        laboratory = Laboratory(model, prompts, config, wanted, progress, prepared)
        so_far: list[dict[Hashable, Any]] = []
        evidence = gather(laboratory, lambda step, now: so_far.extend(means_so_far(config, step, now)))
        made = outcome(laboratory, evidence, so_far)
        for name, content in made.files.items():
            write = folder.write_table if name.endswith(".parquet") else folder.write_json
            write(name, content)
        if made.facts["unstable"]:
            log.warning("%s is unstable: %s", config.finetune.name, made.facts["unstable_because"])
        folder.note(**made.facts)
        if config.runtime.save_recordings:
            metadata = {"run": folder.path.name, "model": config.model.name, "axes": json.dumps(axes_of(Recording))}
            folder.write_tensors("recordings.safetensors", kept_tensors(evidence), {"iclgd": __version__, **metadata})
        tracker.log_run(
            made.files["scores.json"],
            {name: made.facts[name] for name in ("diverged", "unstable")},
            gradient_norms=made.files["gradient_norms.parquet"],
            trajectory=made.files.get("trajectory.parquet"),
            losses=evidence.trace.losses.tolist(),
        )
    return made.files["scores.json"]


def _refuse_patches_apart(config: Config, wanted: set[str]) -> None:
    """Refuse what reads whole feed-forward matrices where they may be in parts or elsewhere."""
    patches = config.finetune.mechanism in ("exact_patch", "static_patch")
    if config.runtime.placement is not Placement.single and (patches or wanted & {"static_changes", "trained_changes"}):
        raise ConfigError(
            f"runtime.placement={config.runtime.placement} does not go with patches of feed-forward weights, nor with "
            "scores that compare them (weight_cosine and the like): set runtime.placement=single"
        )


def _environment(model: LanguageModel, runtime: RuntimeConfig) -> dict[str, Any]:
    facts = environment(str(model.device), str(model.identity["dtype"]), torch.get_num_threads())
    return {
        **facts,
        **model_facts(model),
        "placement": {"kind": str(runtime.placement), "devices": list(devices_of(model.network))},
    }
