"""The story of one run: draw, load, encode, record zsl and icl, let the mechanism act, record ft, score, write."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from iclgd import __version__
from iclgd.common.records import Evidence, Recording, Score, axes_of
from iclgd.config import Config, ConfigError, RuntimeConfig
from iclgd.config.enumerations import Placement
from iclgd.evidence.gather import gather
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.memory import refuse_too_large, weights_size
from iclgd.evidence.output import result_files, sanity
from iclgd.evidence.preparation import Prepared, prepare
from iclgd.metrics import measure, required_inputs
from iclgd.models.loading import load, read_config, resolve_device
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
    weights = weights_size(read_config(config.model), config)
    refuse_too_large(weights, config)
    with _threads(config.runtime, weights):
        model = load(config.model, config.runtime)
        prompts = encode(prepared.drawn, config, model.tokenizer, model.window)
        refuse_unknown_tokens(prompts, model)
        lab = Laboratory(model, prompts, config, wanted, progress or Progress(), prepared)
        _describe(folder, lab)
        evidence = gather(lab)  # zsl and icl are recorded, the mechanism acts, ft is recorded
        return _write(folder, lab, evidence, measure(config.metric.scores, evidence))


def _refuse_early(config: Config, wanted: set[str]) -> None:
    """Refuse what can be refused before anything is read."""
    resolve_device(config.runtime.device)
    check_placement(config.runtime)
    # Whole feed-forward matrices are read, which may be in parts or elsewhere.
    patches = config.finetune.mechanism in ("exact_patch", "static_patch")
    if config.runtime.placement is not Placement.single and (patches or wanted & {"static_changes", "trained_changes"}):
        raise ConfigError(
            f"runtime.placement={config.runtime.placement} does not go with patches of feed-forward weights, nor with "
            "scores that compare them (weight_cosine and the like): set runtime.placement=single"
        )


@contextmanager
def _threads(runtime: RuntimeConfig, weights: float) -> Iterator[None]:
    """Within, as many CPU threads as the run is to have.

    A small model has one: threads that wait for one another take longer than its products, and beside another process
    several times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(runtime.threads or (1 if weights < _SMALL else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _describe(folder: RunFolder, lab: Laboratory) -> None:
    """Write what the run shows to the model, and on what it is made."""
    folder.write("prompts.json", as_json(lab.prompts, lab.planted_prompts))
    model, runtime = lab.model, lab.config.runtime
    notes = [*lab.prompts.notes, *lab.window_notes()]
    for note in notes:
        log.info("%s", note)
    content = environment(str(model.device), str(model.identity["dtype"]), torch.get_num_threads()) | {
        "model": {key: model.identity[key] for key in ("name", "revision", "weights", "weights_seed")},
        "model_files": dict(model.identity["sha256"]),
        "notes": [*model.notes, *notes],
        "placement": {"kind": str(runtime.placement), "devices": list(devices_of(model.network))},
    }
    folder.write("environment.json", content)
    if patch := source_patch():
        folder.write("source.patch", patch)


def _write(folder: RunFolder, lab: Laboratory, evidence: Evidence, scores: Mapping[str, Score]) -> dict[str, Any]:
    """Write the run's results; returns the content of scores.json."""
    files, facts = result_files(lab.config, evidence, scores), sanity(lab.config, evidence)
    for name, content in files.items():
        folder.write(name, content)
    if facts["unstable"]:
        log.warning("%s is unstable: %s", lab.config.finetune.name, facts["unstable_because"])
    folder.note(**facts)
    if lab.config.runtime.save_recordings:
        tensors = evidence.tensors()
        if "training_query_vectors" in evidence.facts:
            tensors["training_query_vectors"] = evidence.facts["training_query_vectors"]
        copies = {name: tensor.clone() for name, tensor in tensors.items()}  # a file of tensors that share memory fails
        axes = json.dumps(axes_of(Recording))
        metadata = {"iclgd": __version__, "run": folder.path.name, "model": lab.config.model.name, "axes": axes}
        folder.write_tensors("recordings.safetensors", copies, metadata)
    return files["scores.json"]
