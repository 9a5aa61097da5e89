"""Our recordings in the published code's format, read back the way its analysis scripts read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from iclgd.report import export_records
from iclgd.results import reading
from report_fixtures import write_run

QUERIES, LAYERS, HEADS, KEYS, WIDTH, SHOTS, TOKENS = 6, 3, 2, 3, 8, 2, 4
CONTEXT = 1 + SHOTS * (TOKENS + 1)


def _run(folder: Path, **further: np.ndarray) -> reading.FinishedRun:
    write_run(folder, examples=QUERIES, layers=LAYERS, shots=SHOTS)
    rng = np.random.default_rng(0)
    tensors = {}
    for setting in ("zsl", "icl", "ft"):
        scores = rng.standard_normal((QUERIES, LAYERS, HEADS, KEYS + 1)).astype(np.float32)
        scores[..., KEYS] = np.nan  # queries have 3 tokens, the padding one more
        tensors[f"{setting}.attention_output"] = rng.standard_normal((QUERIES, LAYERS, WIDTH)).astype(np.float32)
        tensors[f"{setting}.attention_scores"] = scores
        tensors[f"{setting}.label_scores"] = np.tile([[-1.0, -2.0]], (QUERIES, 1)).astype(np.float32)
    save_file(tensors | further, folder / "recordings.safetensors")
    return reading.read_run(folder)


def _lines(out: Path, setting: str) -> list[dict]:
    text = (out / "run" / setting / "record_info.jsonl").read_text("utf-8")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_the_published_similarity_is_had_from_the_exported_records(tmp_path):
    run = _run(tmp_path / "run")
    written = export_records.export_records(run, tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == [
        f"run/{setting}/record_info.jsonl" for setting in ("zs", "icl", "ftzs")
    ]
    zs, icl, ft = (_lines(tmp_path / "out", setting) for setting in ("zs", "icl", "ftzs"))
    assert len(zs) == len(icl) == len(ft) == QUERIES
    assert [line["gold_label"] for line in zs] == [0, 1, 0, 1, 0, 1]
    assert {line["pred_label"] for line in zs} == {0}
    # as compute_sim.py takes it, but for its normalisation
    hidden = [np.array([line["self_attn_out_hiddens"] for line in lines]) for lines in (zs, icl, ft)]
    one, other = hidden[1] - hidden[0], hidden[2] - hidden[0]
    cosine = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    raw = load_file(run.folder / "recordings.safetensors")
    a = raw["icl.attention_output"] - raw["zsl.attention_output"]
    b = raw["ft.attention_output"] - raw["zsl.attention_output"]
    expected = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert cosine == pytest.approx(expected, abs=1e-6)
    assert np.array(icl[0]["attn_map"]).shape == (LAYERS, HEADS, KEYS)
    assert np.array(icl[0]["attn_map"]) == pytest.approx(raw["icl.attention_scores"][0, :, :, :KEYS])


def test_training_attention_has_one_bos_and_one_separator_where_the_scripts_expect_them(tmp_path):
    context = np.arange(QUERIES * LAYERS * CONTEXT, dtype=np.float32).reshape(QUERIES, LAYERS, CONTEXT)
    training = np.arange(CONTEXT * LAYERS * 4, dtype=np.float32).reshape(CONTEXT, LAYERS, 4)
    training[[0, 5, 10]] = np.nan  # bos and the two separators
    vectors = np.ones((QUERIES, LAYERS, 4), dtype=np.float32)
    further = {"icl.context_scores": context, "ft.query_vectors": vectors, "training_query_vectors": training}
    export_records.export_records(_run(tmp_path / "run", **further), tmp_path / "out")
    icl, ft, ftzs = (_lines(tmp_path / "out", setting) for setting in ("icl", "ft", "ftzs"))
    assert len(ft) == SHOTS and np.array(ftzs[0]["attn_q"]).shape == (LAYERS, 4)
    # compute_training_example_attn.py: demonstration i has len(attn_q[0]) - 1 tokens; skip one after each
    places, at = [], 1
    for line in ft:
        length = len(line["attn_q"][0]) - 1
        assert length == TOKENS
        places += range(at, at + length)
        at += length + 1
    assert np.array(icl[2]["attn_map_ctx"])[:, places].tolist() == context[2][:, [1, 2, 3, 4, 6, 7, 8, 9]].tolist()
    assert np.array(ft[1]["attn_q"])[:, 1:].tolist() == training[6:10].swapaxes(0, 1).tolist()


def test_missing_and_broken_recordings_say_what_to_do(tmp_path):
    run = reading.read_run(write_run(tmp_path / "none"))
    with pytest.raises(reading.ReportError, match=r"runtime\.save_recordings=true"):
        export_records.export_records(run, tmp_path / "out")
    (run.folder / "recordings.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(reading.ReportError, match="cannot be read"):
        export_records.export_records(run, tmp_path / "out")
    save_file({"zsl.attention_output": np.zeros((1, 1, 1))}, run.folder / "recordings.safetensors")
    with pytest.raises(reading.ReportError, match=r"holds no zsl\.attention_scores"):
        export_records.export_records(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_recordings_that_are_not_those_of_the_prompts_are_refused_by_folder(tmp_path):
    run = _run(tmp_path / "run")
    tensors = {name: tensor.copy() for name, tensor in load_file(run.folder / "recordings.safetensors").items()}
    few, flat = tensors["icl.attention_output"][:2], tensors["icl.attention_scores"][0, 0, 0]
    for changed in ({"icl.attention_output": few}, {"icl.attention_scores": flat}):
        save_file(tensors | changed, run.folder / "recordings.safetensors")
        with pytest.raises(reading.ReportError, match=r"run/recordings\.safetensors does not belong to prompts\.json"):
            export_records.export_records(run, tmp_path / "out")
