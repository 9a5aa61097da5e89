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
    """Write a run's recordings under OUT/RUN_ID/SETTING/record_info.jsonl; returns the files.

    `ft` is among them only where the attention queries of the training tokens were recorded, which the scores of
    attention to training tokens ask for.

    Raises:
        ReportError: the run kept no recordings, or they cannot be read, or are not those of its prompts.
    """
    tensors = {name: tensor.numpy() for name, tensor in run.tensors().items()}
    path = run.folder / "recordings.safetensors"
    needed = [f"{setting}.{name}" for setting in SETTINGS.values() for name in ("attention_output", "attention_scores")]
    if missing := [name for name in needed if name not in tensors]:
        raise ReportError(f"{path} holds no {', '.join(missing)}: it has {', '.join(sorted(tensors))}")
    if _TRAINING not in tensors:
        log.info("%s: no ft records, because attention to training tokens was not measured", run.name)
    written = []
    try:
        for setting, lines in _lines(run, tensors).items():
            written.append(out / run.name / setting / "record_info.jsonl")
            with replacing(written[-1]) as part, part.open("w", encoding="utf-8") as handle:
                handle.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ReportError(f"{path} does not belong to prompts.json: run it again with runtime.rerun=all") from error
    return written


def _lines(run: FinishedRun, tensors: Mapping[str, np.ndarray]) -> dict[str, Iterator[dict[str, Any]]]:
    prompts = run.prompts()
    # The published code appends a label's first token, whose key counts.
    appended = int(run.settings.get("protocol.record_at") == "first_label_token")
    lines = {theirs: _query_lines(ours, tensors, prompts, appended) for theirs, ours in SETTINGS.items()}
    return lines | ({"ft": _demonstration_lines(tensors[_TRAINING], prompts)} if _TRAINING in tensors else {})


def _query_lines(
    setting: str, tensors: Mapping[str, np.ndarray], prompts: Mapping[str, Any], appended: int
) -> Iterator[dict[str, Any]]:
    recording = {name.removeprefix(f"{setting}."): values for name, values in tensors.items()}
    labels, contexts, queries = (recording.get(name) for name in ("label_scores", "context_scores", "query_vectors"))
    positions = [0 if at is None else at + 1 for at in _published_positions(prompts)]  # after one token of padding
    for example, query in enumerate(prompts["queries"]):
        keys = recording["attention_scores"][example][:, :, : len(query["token_ids"]) + appended]
        padded = None if contexts is None else np.pad(contexts[example], ((0, 0), (1, 0)))
        yield {
            "self_attn_out_hiddens": _plain(recording["attention_output"][example]),
            "attn_map": _plain(keys),
            "attn_map_ctx": [] if padded is None else _plain(padded[:, positions]),
            "attn_q": [] if queries is None else _plain(queries[example]),
            "gold_label": int(query["label"]),
            "pred_label": -1
            if labels is None or np.isnan(labels[example]).all()
            else int(np.nanargmax(labels[example])),
        }


def _demonstration_lines(vectors: np.ndarray, prompts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each demonstration behind one token for bos, whose vector their scripts skip: it is zero here."""
    for start, end in _spans(prompts):
        yield {"attn_q": _plain(np.pad(vectors[start:end].swapaxes(0, 1), ((0, 0), (1, 0), (0, 0))))}


def _published_positions(prompts: Mapping[str, Any]) -> list[int | None]:
    """Positions in our context of their tokens: one bos, then each demonstration and one separator; None if absent."""
    positions: list[int | None] = [len(prompts["bos"]) - 1 if prompts["bos"] else None]
    for start, end in _spans(prompts):
        positions += [*range(start, end), end if prompts["separator"] else None]
    return positions


def _spans(prompts: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """The first position of each demonstration in our context, and the one after its last."""
    demonstrations, start = prompts["demonstrations"], len(prompts["bos"])
    for index in prompts.get("in_context", range(len(demonstrations))):
        end = start + len(demonstrations[index]["token_ids"])
        yield start, end
        start = end + len(prompts["separator"])


def _plain(values: np.ndarray) -> list[Any]:
    """Nested lists; 0 for what a local layer cannot see, which adds nothing to any of their cosines."""
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).tolist()
