"""Recordings written as the published code writes them, so that the papers' own scripts read them.

One `record_info.jsonl` for each setting: `zs`, `icl` and `ftzs` with one line a query, and `ft` with one line a
demonstration. Shapes are those that the analysis scripts of Dai et al. (microsoft/LMOps, understand_icl/icl_ft)
read: self_attn_out_hiddens [layer][d_model], attn_map [layer][head][key of the query], attn_map_ctx [layer][token of
the context] summed over heads, attn_q [layer][heads x head_dim] for a query and [layer][token][heads x head_dim] for
a demonstration.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from iclgd.results.reading import FinishedRun, ReportError
from iclgd.runs.files import replacing

log = logging.getLogger(__name__)

SETTINGS = {"zs": "zsl", "icl": "icl", "ftzs": "ft"}  # theirs: ours
_TRAINING = "training_query_vectors"


def export_records(run: FinishedRun, out: Path) -> list[Path]:
    """Write a run's recordings under OUT/RUN_ID/SETTING/record_info.jsonl.

    Returns:
        The files written. `ft` is among them only where the attention queries of the training tokens were recorded,
        which the scores of attention to training tokens ask for.

    Raises:
        ReportError: the run kept no recordings, or they cannot be read.
    """
    tensors = _read(run)
    prompts = run.prompts()
    with_label = run.config["protocol"]["record_at"] == "first_label_token"
    written = []
    for theirs, ours in SETTINGS.items():
        path = out / run.name / theirs / "record_info.jsonl"
        _write_lines(path, _query_lines(ours, tensors, prompts, with_label))
        written.append(path)
    if _TRAINING in tensors:
        path = out / run.name / "ft" / "record_info.jsonl"
        _write_lines(path, _demonstration_lines(tensors[_TRAINING], prompts))
        written.append(path)
    else:
        log.info("%s: no ft records, because attention to training tokens was not measured", run.name)
    return written


def _read(run: FinishedRun) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = run.folder / "recordings.safetensors"
    if not path.is_file():
        raise ReportError(
            f"{run.folder} kept no recordings to export: run it again with runtime.save_recordings=true "
            "(and runtime.rerun=all, for it is done)"
        )
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ReportError(f"{path} cannot be read ({error}): run it again with runtime.rerun=all") from error
    needed = [f"{setting}.{name}" for setting in SETTINGS.values() for name in ("attention_output", "attention_scores")]
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ReportError(f"{path} holds no {', '.join(missing)}: it has {', '.join(sorted(tensors))}")
    return tensors


def _query_lines(
    setting: str, tensors: Mapping[str, np.ndarray], prompts: Mapping[str, Any], with_label: bool
) -> Iterator[dict[str, Any]]:
    outputs, scores = tensors[f"{setting}.attention_output"], tensors[f"{setting}.attention_scores"]
    labels = tensors.get(f"{setting}.label_scores")
    contexts, queries = tensors.get(f"{setting}.context_scores"), tensors.get(f"{setting}.query_vectors")
    places = _published_places(prompts)
    appended = int(with_label)  # the published code appends a label's first token, whose key counts
    for example, query in enumerate(prompts["queries"]):
        keys = scores[example][:, :, : len(query["token_ids"]) + appended]
        line: dict[str, Any] = {
            "self_attn_out_hiddens": _plain(outputs[example]),
            "attn_map": _plain(keys),
            "attn_map_ctx": [],
            "attn_q": [],
            "gold_label": int(query["label"]),
            "pred_label": -1 if labels is None else _best(labels[example]),
        }
        if contexts is not None:
            line["attn_map_ctx"] = _plain(_laid_out(contexts[example], places))
        if queries is not None:
            line["attn_q"] = _plain(queries[example])
        yield line


def _demonstration_lines(vectors: np.ndarray, prompts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each demonstration behind one token for bos, whose vector their scripts skip: it is zero here."""
    start = len(prompts["bos"])
    for item in _in_context(prompts):
        end = start + len(item["token_ids"])
        own = vectors[start:end].swapaxes(0, 1)
        yield {"attn_q": _plain(np.pad(own, ((0, 0), (1, 0), (0, 0))))}
        start = end + len(prompts["separator"])


def _published_places(prompts: Mapping[str, Any]) -> list[int | None]:
    """Where, in our context, their tokens lie: one bos, then each demonstration and one separator; None for none."""
    bos, separator = len(prompts["bos"]), len(prompts["separator"])
    places: list[int | None] = [bos - 1 if bos else None]
    start = bos
    for item in _in_context(prompts):
        end = start + len(item["token_ids"])
        places += [*range(start, end), end if separator else None]
        start = end + separator
    return places


def _in_context(prompts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The demonstrations that stand in the context, in its order."""
    everything = prompts["demonstrations"]
    return [everything[index] for index in prompts.get("in_context", range(len(everything)))]


def _laid_out(scores: np.ndarray, places: list[int | None]) -> np.ndarray:
    return np.stack([np.zeros(len(scores)) if at is None else scores[:, at] for at in places], axis=1)


def _best(scores: np.ndarray) -> int:
    return -1 if np.isnan(scores).all() else int(np.nanargmax(scores))


def _plain(values: np.ndarray) -> list[Any]:
    """Nested lists; 0 for what a local layer cannot see, which adds nothing to any of their cosines."""
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).tolist()


def _write_lines(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    with replacing(path, sync=False) as part, part.open("w", encoding="utf-8") as handle:
        for line in lines:
            handle.write(json.dumps(line, allow_nan=False) + "\n")
