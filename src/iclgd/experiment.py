"""The story of one run: draw, load, encode, record zsl and icl, let the mechanism act, record ft, score, write."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch

from iclgd import __version__
from iclgd.common.records import Evidence, Recording, axes_of
from iclgd.config import Config, ConfigError, RuntimeConfig
from iclgd.config.enumerations import Placement
from iclgd.evidence.gather import collect, record_mechanism, record_untouched
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.memory import Estimate, estimate, refuse_too_large, training
from iclgd.evidence.output import Output, kept_tensors, means_so_far, model_facts, output_of
from iclgd.evidence.preparation import Prepared, prepare
from iclgd.mechanisms.registry import check
from iclgd.metrics import required_inputs
from iclgd.models.anatomy import LanguageModel
from iclgd.models.loading import load, resolve_device
from iclgd.models.placement import check_placement, devices_of
from iclgd.models.refusals import refuse_unknown_tokens
from iclgd.runs.folder import RunFolder
from iclgd.runs.progress import Progress
from iclgd.runs.provenance import environment, source_patch
from iclgd.tasks.encoding import encode
from iclgd.tasks.notes import as_json

log = logging.getLogger(__name__)

_SMALL = 0.05  # GB of weights, of a model whose products are not worth dividing among threads


def run(
    config: Config, folder: RunFolder, progress: Progress | None = None, prepared: Prepared | None = None
) -> dict[str, Any]:
    """Measure one mechanism against in-context learning.

    Its caller writes config.yaml and status.json, and may have prepared the run before.

    Returns:
        The content of scores.json.

    Raises:
        ConfigError: settings, data or a model that cannot be used; before the model loads where possible.
    """
    wanted = required_inputs(config.metric.scores)
    _refuse_early(config, wanted)
    prepared = prepared or prepare(config)  # rows are drawn
    needs = _check_memory(config, prepared)
    with _threads(config.runtime, needs):
        model = load(config.model, config.runtime)
        prompts = encode(prepared.drawn, config, model.tokenizer, model.window)
        refuse_unknown_tokens(prompts, model)
        needs = training(needs, model, config)
        lab = Laboratory(model, prompts, config, wanted, progress or Progress(), prepared)
        _describe(folder, lab, needs)
        untouched = record_untouched(lab)  # zsl and icl
        trajectory: list[dict[Hashable, Any]] = []
        learned = record_mechanism(  # ft
            lab, untouched, lambda step, evidence: trajectory.extend(means_so_far(config, step, evidence))
        )
        evidence = collect(lab, untouched, learned)
        output = output_of(lab, evidence, trajectory)
        _write(folder, lab, evidence, output)
    return output.files["scores.json"]


def _refuse_early(config: Config, wanted: set[str]) -> None:
    """Refuse what can be refused before anything is read."""
    resolve_device(config.runtime.device)
    check(config.finetune, config.protocol.exit)
    check_placement(config.runtime)
    _refuse_patches_apart(config, wanted)


def _check_memory(config: Config, prepared: Prepared) -> Estimate:
    """Estimate the memory that the run needs, and refuse what is too large."""
    queries = len(prepared.drawn.queries)  # not the most allowed
    needs = estimate(replace(config, task=replace(config.task, queries=queries)))
    log.info("%s", needs)
    refuse_too_large(needs, config)
    return needs


@contextmanager
def _threads(runtime: RuntimeConfig, needs: Estimate) -> Iterator[None]:
    """Within, as many CPU threads as the run is to have.

    A small model has one: threads that wait for one another take longer than its products, and beside another process
    several times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(runtime.threads or (1 if needs.weights < _SMALL else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _describe(folder: RunFolder, lab: Laboratory, needs: Estimate) -> None:
    """Write what the run shows to the model, and on what it is made."""
    folder.write("prompts.json", as_json(lab.prompts, lab.planted_prompts))
    facts = _environment(lab.model, lab.config.runtime)
    notes = [*lab.prompts.notes, *lab.window_notes()]
    if needs.trained:
        log.info("training takes %.3f GB beside that", needs.trained)
    for note in notes:
        log.info("%s", note)
    notes = [*facts["notes"], *notes]
    folder.write("environment.json", {**facts, "estimate": asdict(needs), "notes": notes})
    if patch := source_patch():
        folder.write("source.patch", patch)


def _write(folder: RunFolder, lab: Laboratory, evidence: Evidence, output: Output) -> None:
    """Write the run's results."""
    for name, content in output.files.items():
        folder.write(name, content)
    if output.facts["unstable"]:
        log.warning("%s is unstable: %s", lab.config.finetune.name, output.facts["unstable_because"])
    folder.note(**output.facts)
    if lab.config.runtime.save_recordings:
        axes = json.dumps(axes_of(Recording))
        metadata = {"iclgd": __version__, "run": folder.path.name, "model": lab.config.model.name, "axes": axes}
        folder.write_tensors("recordings.safetensors", kept_tensors(evidence), metadata)


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
