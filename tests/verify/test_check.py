"""`iclgd-verify` holds for runs as they were made, finds what was edited, and says what differs here."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import iclgd
from configs import config
from iclgd import experiment
from iclgd.common.digests import sha256
from iclgd.evidence.preparation import prepare
from iclgd.runs.execute import Ending, execute
from iclgd.verify import check
from iclgd.verify.__main__ import cli
from iclgd.verify.check import TOLERANCE, verify

SCORES = (
    "sim_am_delta_by_head,sim_aou,sim_aou_norm,sim_aou_random,sim_am,sim_am_zsl,sim_am_delta,accuracy,gradient_norm,"
    "weight_update_norm,label_agreement,total_variation"
)
SMALL = (
    *("model=toy", "task=toy", "tracking=none", "task.queries=3", "task.shots=3"),
    *("runtime.cache=off", "runtime.dtype=float32", "runtime.device=cpu", f"metric=[{SCORES}]", "finetune.lr=0.05"),
)


def finished_run(path, *overrides):
    outcome = execute(config(*SMALL, *overrides), path, experiment.run, prepare)
    assert outcome.ending is Ending.done, outcome.message
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("original") / "run", "finetune=lcgd")


@pytest.fixture
def folder(original, tmp_path):
    """A copy of the run, to be edited."""
    return shutil.copytree(original, tmp_path / "run")


def sign(folder, name):
    """Write an edited file's digest where the true one was."""
    status = json.loads((folder / "status.json").read_text())
    status["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    (folder / "status.json").write_text(json.dumps(status))


def edited_json(name, change):
    def edit(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
        sign(folder, name)

    return edit


def edited_scores(change):
    def edit(folder):
        frame = pd.read_parquet(folder / "scores.parquet")
        change(frame).to_parquet(folder / "scores.parquet", index=False)
        sign(folder, "scores.parquet")

    return edit


@pytest.mark.parametrize(
    "overrides",
    [
        ("finetune=gd", "finetune.layers=[1,3]", "finetune.loss_on=label"),
        ("finetune=gd", "finetune.objective=short_circuit", "finetune.exit_layer=1", "finetune.batch=full"),
        ("finetune=lcgd", "protocol.exit=attention_output", "finetune.trainable=attention", "finetune.epochs=2"),
        ("finetune=lcgd", "protocol=dai2023", "task.labels=[A B,B A A]"),
        ("finetune=gd", "finetune.lr=1e38", "metric=[sim_am]"),  # whose large scores are no mask
    ],
    ids=["gd", "short circuit", "attention output", "labels of several tokens", "large scores"],
)
def test_a_run_as_it_was_made_holds(tmp_path, overrides):
    verdict = verify(finished_run(tmp_path / "run", *overrides), None)
    assert verdict.problems == [] and all("within rounding" in note for note in verdict.notes)
    assert len(verdict.notes) == (2 if "protocol=dai2023" in overrides else 0)
    for score in verdict.scores:
        assert score.holds and score.own[0] <= TOLERANCE
        # the smallest changes of scores are of few steps of float32
        assert score.naive is None or score.naive[0] <= TOLERANCE * (10 if "delta" in score.score else 1), score
    assert {"sim_am", "accuracy/icl"} & {score.score for score in verdict.scores if score.naive}


def test_a_score_of_rounding_errors_does_not_hold_though_it_comes_out_again(tmp_path):
    """The published code scores layers that the context does not reach, and updates that are too small to be one."""
    published = ("protocol.layer0=published", "metric=[sim_aou,sim_am_delta]")
    verdict = verify(finished_run(tmp_path / "all", "finetune=gd", "finetune.lr=1e-7", *published), None)
    assert "sim_aou" not in {score.score for score in verdict.scores} and verdict.problems == []
    assert "12 values of sim_aou are within rounding, and cannot be verified" in verdict.notes
    verdict = verify(finished_run(tmp_path / "some", "finetune=gd", *published), None)
    assert [(score.score, score.holds) for score in verdict.scores] == [("sim_aou", True), ("sim_am_delta", True)]
    assert verdict.notes == ["3 values of sim_am_delta are within rounding, and cannot be verified"], "layer 0"


def test_half_precision_has_wider_tolerances(tmp_path):
    folder = finished_run(tmp_path / "run", "finetune=lcgd", "runtime.dtype=bfloat16", "task.queries=6")
    verdict = verify(folder, 3)
    assert verdict.problems == [] and max(s.naive[0] for s in verdict.scores if s.naive) > TOLERANCE


def test_what_the_naive_way_does_not_know_and_what_needs_all_queries_is_said(tmp_path):
    scores = "metric=[sim_aou,sim_aou_random,update_cka,sim_block_output_centred]"
    folder = finished_run(tmp_path / "run", "finetune=adam", scores, "task.queries=4")
    verdict = verify(folder, 2)
    assert verdict.problems == [] and [s.score for s in verdict.scores] == ["sim_aou"] and verdict.queries == 2
    assert verdict.notes == [
        "these need all queries (--all): sim_aou_random, sim_block_output_centred, update_cka",
        "the naive way does not know these: finetune.optimizer=adam",
    ]
    placed = config(*SMALL, "protocol.step=token", "runtime.placement=auto", "reference=lcgd")
    assert check.unknown_settings(placed) == [
        "protocol.step=token",
        "runtime.placement=auto",
        "reference=lcgd",
    ]


def test_the_sample_is_another_one_each_time_unless_the_variant_may_learn_from_the_queries():
    run = config("finetune=gd", "model=toy", "task=toy")
    assert len({tuple(check._sample(run, 100, 3)) for _ in range(20)}) > 1
    assert check._sample(config("model=toy", "task=toy", "finetune=activation_match"), 8, 3) == list(range(8))


def one_number(frame):
    row = frame.index[(frame.score == "sim_aou") & (frame.layer == 2)][0]
    frame.loc[row, "value"] += 0.01
    return frame


def another_rate(folder):
    content = yaml.safe_load((folder / "config.yaml").read_text())
    content["finetune"]["lr"] = 0.06
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    sign(folder, "config.yaml")


EDITS = {
    "a number": (edited_scores(one_number), "score sim_aou is off by 0.01"),
    "rows gone": (edited_scores(lambda f: f[(f.score != "accuracy/icl") | (f.example > 0)]), "accuracy/icl is off"),
    "a score gone": (edited_scores(lambda f: f[f.score != "sim_am_zsl"]), "score sim_am_zsl is off by inf"),
    "a prompt": (edited_json("prompts.json", lambda c: c["queries"][1].update(text="heron ->")), "other queries"),
    "the rate": (another_rate, "score gradient_norm is off"),
    "the model's digest": (
        edited_json("fingerprint.json", lambda c: c.update({"model config.json": "0" * 64})),
        "changed since: the model's config.json",
    ),
    "a mean, its digest as it was": (
        lambda folder: (folder / "scores.json").write_text((folder / "scores.json").read_text().replace("1", "2")),
        "scores.json is not what the run wrote",
    ),
    "a file gone": (lambda folder: (folder / "losses.parquet").unlink(), "losses.parquet is not what the run wrote"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_found(folder, name):
    edit, expected = EDITS[name]
    edit(folder)
    problems = verify(folder, None).problems
    assert any(expected in problem for problem in problems), problems


def test_other_versions_code_and_processors_are_named_and_single_values_may_then_differ(folder):
    edited_json("fingerprint.json", lambda c: c.update({"version of torch": "1.0", "code of iclgd": "0"}))(folder)
    edited_json("environment.json", lambda c: c.update(processor="Z80"))(folder)
    edited_scores(one_number)(folder)
    verdict = verify(folder, None)
    assert verdict.problems == []
    notes = " ".join(verdict.notes)
    assert (
        "the version of torch (1.0, now" in notes and "measuring code" in notes and "the processor (Z80, now" in notes
    )


@pytest.mark.parametrize(("exact", "unsteady", "shift", "holds"), [
    (True, 1, 0.0005, True), (True, 1, 0.002, False), (False, 1, 0.002, True), (False, 1, 0.03, False),
    (False, 10, 0.03, True), (False, 10, 0.3, False),
])  # fmt: skip
def test_tolerances(exact, unsteady, shift, holds):
    again = pd.DataFrame({"score": "s", "example": [0, 1], "layer": 0, "value": [0.5, np.nan]})
    stored = again.assign(value=again.value + shift)
    assert check.compare("s", stored, again, None, exact, unsteady).holds is holds
    naive = check.compare("s", stored, stored, again, True, unsteady)
    assert naive.naive == pytest.approx((shift, shift)) and naive.holds is (shift <= 0.01 * unsteady)
    lost = check.compare("s", stored, stored, again.assign(value=np.nan), True, unsteady)
    assert not lost.holds, "the naive way has lost every value"
    assert check.compare("s", stored, stored, again.assign(score="t"), True, 1).holds, "it does not know the score"


def test_data_and_devices_that_are_not_here(tmp_path, monkeypatch):
    bundled = Path(iclgd.__file__).parent / "tasks" / "bundled" / "toy"
    shutil.copytree(bundled, tmp_path / "data" / "toy")
    folder = finished_run(tmp_path / "run", "finetune=gd", "task.source=hub", f"paths.data_dir={tmp_path / 'data'}")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert "it cannot be computed again: task toy names no data set" in verify(folder, 1).problems[0]
    monkeypatch.setenv("ICLGD_DATA_DIR", str(tmp_path / "elsewhere"))
    assert verify(folder, 1).problems == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    verdict = check.Verdict("")
    here = check._on_this_machine(config(*SMALL, "runtime.device=cuda:1"), "float32", verdict)
    assert here.runtime.device == "cpu" and "runtime.device=cuda:1 is not here" in verdict.notes[0]


@pytest.mark.parametrize("module", ["iclgd", "iclgd.report", "iclgd.cli.status", "iclgd.tracking.dashboard"])
def test_every_command_imports_from_the_folder_it_is_called_in(tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "argv", ["command", "--version"])
    (tmp_path / "only_here.py").touch()
    assert importlib.util.find_spec("only_here") is None
    command = importlib.import_module(module if module.count(".") > 1 else f"{module}.__main__").cli
    with pytest.raises(SystemExit):
        command(*([] if module == "iclgd" else [["--help"]]))
    assert importlib.util.find_spec("only_here") is not None


def test_the_command_and_its_exit_code(tmp_path, original, capsys):
    sweep = tmp_path / "sweep"
    shutil.copytree(original, sweep / "a")
    assert cli([str(sweep), "--queries", "2"]) == 0
    output = capsys.readouterr().out
    assert "a: holds" in output and "sim_am_delta" in output and "of 2 queries" in output
    shutil.copytree(original, sweep / "b")
    edited_json("status.json", lambda status: status.update(state="failed"))(sweep / "b")
    assert cli([str(sweep), "--queries", "1"]) == 1
    output = capsys.readouterr().out
    assert "a: holds" in output and "b: DOES NOT HOLD\ndoes not hold: it is failed, not done\n" in output
    assert verify(tmp_path / "nothing").problems == ["it is not a run"]
    for arguments, message in (
        ([str(original), "--queries", "0"], "--queries needs 1"),
        ([str(tmp_path / "c")], "no run"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli(arguments)
        assert message in capsys.readouterr().err
