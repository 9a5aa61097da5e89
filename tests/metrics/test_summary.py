"""What scores.json and the long table say of tables of scores whose answers are known."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iclgd.common.records import Score
from iclgd.config import ScoreConfig
from iclgd.metrics import summarise, to_frame

NAN = math.nan
NONE = torch.zeros(3, dtype=torch.bool)
KEYS = {"mean", "layers", "n", "undefined", "ci", "flipped"}


def score(values, *axes: str) -> Score:
    return Score(torch.as_tensor(values), axes or ("example", "layer"))


TABLE = score([[1.0, 2.0, NAN], [3.0, NAN, NAN], [5.0, 6.0, NAN]])


def test_mean_is_over_examples_then_over_layers():
    summary = summarise({"s": TABLE}, torch.tensor([True, False, True]))["s"]
    assert summary["layers"] == [3, 4, None]
    assert summary["mean"] == 3.5, "not the mean of all values, 3.4"
    assert (summary["n"], summary["undefined"]) == (3, 4)
    # what the queries say is 1, 3.5 and 6: 3.5 +- 4.3027 (1 + 1/6) * 2.5 / sqrt(3)
    assert summary["ci"] == pytest.approx([3.5 - 7.2454, 3.5 + 7.2454], abs=1e-3)
    flipped = summary["flipped"]
    assert flipped["layers"] == [3, 4, None] and (flipped["n"], flipped["undefined"]) == (2, 2)
    assert set(summary) == KEYS and set(flipped) == KEYS - {"flipped"}


def test_too_few_examples_for_an_interval_and_wholly_undefined():
    summary = summarise({"s": TABLE}, torch.tensor([False, True, False]))["s"]
    assert summary["flipped"]["ci"] is None and summary["flipped"]["mean"] == 3
    nobody = summarise({"s": TABLE}, NONE)["s"]["flipped"]
    assert nobody == {"mean": None, "layers": [None] * 3, "n": 0, "undefined": 0, "ci": None}
    undefined = summarise({"s": score([[NAN, NAN], [math.inf, NAN]])}, NONE[:2])["s"]
    assert undefined["mean"] is None and undefined["layers"] == [None, None] and undefined["ci"] is None
    assert undefined["undefined"] == 4


def test_heads():
    values = torch.tensor([[[1.0, 2.0, NAN], [3.0, 3.0, 3.0]], [[5.0, NAN, NAN], [1.0, 1.0, 1.0]]])
    by_head = summarise({"s": score(values, "example", "layer", "head")}, NONE[:2])["s"]
    assert by_head["heads"] == [[3, 2, None], [2, 2, 2]]
    assert by_head["undefined"] == 3
    pooled = summarise({"s": score(values.nanmean(-1))}, NONE[:2])["s"]
    for key in ("mean", "layers", "ci"):
        assert by_head[key] == pooled[key], "as if the heads had been averaged in the metric"


def test_scores_without_examples_or_without_layers():
    scores = {
        "gradient": score([[1.0, NAN], [3.0, NAN]], "demonstration", "layer"),
        "cka": score([0.25, 0.75, NAN], "layer"),
        "rec2ftp": score([1.0, 0.0, NAN], "example"),
    }
    summary = summarise(scores, NONE)
    assert summary["gradient"] == {
        "mean": 2, "layers": [2, None], "n": None, "undefined": 2, "ci": None, "flipped": None,
    }  # fmt: skip
    assert summary["cka"]["mean"] == 0.5 and summary["cka"]["layers"] == [0.25, 0.75, None]
    assert summary["rec2ftp"]["mean"] == 0.5 and summary["rec2ftp"]["layers"] == []
    assert summary["rec2ftp"]["n"] == 3 and summary["rec2ftp"]["undefined"] == 1


def test_intervals_are_as_the_scores_specification_says():
    right = score([1.0] * 20, "example")
    specs = {"share": ScoreConfig(share=True, limits=[0, 1]), "mean": ScoreConfig(limits=[0, 1])}
    summary = summarise({"share": right, "mean": right}, torch.zeros(20, dtype=torch.bool), specs)
    assert summary["share"]["ci"] == pytest.approx([0.8316, 1], abs=1e-4), "20 of 20 is not 100 % for sure"
    assert summary["mean"]["ci"] is None, "no spread to judge by"
    near = score([0.9, 0.95, 1.0, 1.0], "example")
    low, high = summarise({"mean": near}, torch.zeros(4, dtype=torch.bool), specs)["mean"]["ci"]
    assert 0 < low < 0.9 and high == 1


holes = st.one_of(st.floats(-10, 10, width=32), st.just(NAN), st.just(math.inf))


@given(arrays("float32", st.tuples(st.integers(1, 6), st.integers(1, 3)), elements=holes), st.data())
def test_strict_json_bounds_and_axes_in_any_order(values, data):
    table = torch.from_numpy(values)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    summary = summarise({"s": score(table)}, mask)["s"]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    defined = values[np.isfinite(values)]
    assert summary["undefined"] == values.size - defined.size
    if defined.size:
        assert defined.min() - 1e-5 <= summary["mean"] <= defined.max() + 1e-5
    else:
        assert summary["mean"] is None
    if summary["ci"]:
        assert summary["ci"][0] <= summary["mean"] <= summary["ci"][1]
    turned = Score(table.T, ("layer", "example"))
    assert summarise({"s": turned}, mask)["s"] == summary and to_frame({"s": turned}).equals(
        to_frame({"s": score(table)})
    )


def test_long_table():
    scores = {
        "s": TABLE,
        "accuracy/zsl": score([1.0, 0.0, NAN], "example"),
        "cka": score([0.5, 0.25], "layer"),
        "heads": score([[[1.0, 3.0]]], "example", "layer", "head"),
    }
    frame = to_frame(scores)
    assert list(frame.columns) == ["score", "example", "layer", "value"]
    assert frame["example"].dtype == np.int64 and frame["layer"].dtype == np.int64
    parts = {name: part.drop(columns="score").to_numpy().tolist() for name, part in frame.groupby("score")}
    assert parts["s"][:2] == [[0, 0, 1], [0, 1, 2]] and len(parts["s"]) == 9
    assert [row[:2] for row in parts["accuracy/zsl"]] == [[0, -1], [1, -1], [2, -1]]
    assert parts["cka"] == [[-1, 0, 0.5], [-1, 1, 0.25]]
    assert parts["heads"] == [[0, 0, 2]]
    means = frame[frame["score"] == "s"].groupby("layer")["value"].mean()
    assert means[:2].tolist() == summarise({"s": TABLE}, NONE)["s"]["layers"][:2]
    assert list(to_frame({}).columns) == list(frame.columns)
