"""The real command line in processes of its own; only the experiment is a fake of milliseconds."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from command_line import PATIENCE, environment, iclgd, results
from configs import config
from iclgd.cli import command
from iclgd.cli.invocation import Invocation
from iclgd.common import ranks
from iclgd.config import ConfigError
from iclgd.runs.execute import Ending
from iclgd.runs.folder import RunFolder, State
from iclgd.runs.process import Terminated

REFUSED = [
    ("typo=1", "unknown key typo: the keys here are finetune, metric, model"),
    ("+typo=1", "unknown key typo"),
    ("tsk=reviews", "did you mean task?"),
    ("task.shot=3", "unknown key task.shot: did you mean task.shots?"),
    ("+task.shot=3", "unknown key task.shot: did you mean task.shots?"),
    ("seed=[0,1]", "seed=[0,1]: Value '[0, 1]' of type 'list' could not be converted to Integer; a sweep"),
    ("task.shots=many", "task.shots=many: Value 'many' of type 'str' could not be converted to Integer"),
    ("task.shots=0", "task.shots=0 is out of bounds: give 1 to 1,000,000"),
    ("task=nope", "task=nope does not exist: choose one of agnews,"),
    ("sweeps=nope", "sweeps=nope does not exist: choose one of exit_layers, first_look,"),
    ("finetune.trainable=[]", "trains nothing: name something, or use finetune=none"),
    ("finetune.lr=-1", "finetune.lr=-1.0 cannot train: give a positive rate that fits float32"),
    ("finetune.lr=1e39", "finetune.lr=1e+39 cannot train"),
    ("finetune.lr=${nope}", "finetune.lr: Interpolation key 'nope' not found"),
    ("finetune.layers=3-1", "finetune.layers='3-1' cannot be read"),
    ("model=hf", "model.name is not set: give model.name=..."),
    ("nonsense", "nonsense cannot be read: write KEY=VALUE"),
    ("seed=0,1", "seed=0,1 names several values: add -m for a sweep over them, or write seed=[0,1]"),
    ("model.separator=<sep>", "model.separator=<sep> cannot be read: write KEY=VALUE, special characters in quotes"),
]


@pytest.mark.parametrize(("argument", "message"), REFUSED, ids=[argument for argument, _ in REFUSED])
def test_what_cannot_be_run_is_refused_with_the_key_and_the_remedy(in_process, tmp_path, capsys, argument, message):
    assert command.run([argument]).code == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told and len(told.splitlines()) <= 3
    assert os.listdir(tmp_path) == []


def test_a_refusal_is_the_same_in_a_process_of_its_own(tmp_path):
    refused = iclgd(tmp_path, "+task.shot=3")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "iclgd: unknown key task.shot: did you mean task.shots?\n"


@pytest.mark.parametrize("arguments", [("--help",), ("finetune.lr=-1",)])
def test_nothing_heavy_is_imported_before_the_config_is_valid(tmp_path, arguments):
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "iclgd", *arguments],
        cwd=tmp_path,
        env=environment(fake=False),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in told.stderr.splitlines() if "|" in line}
    assert "omegaconf" in imported
    assert not imported & {"torch", "transformers", "pandas", "datasets", "matplotlib", "wandb", "pyarrow", "optuna"}


def test_help_names_groups_and_sweeps(tmp_path):
    told = iclgd(tmp_path, "--help")
    assert told.returncode == 0 and "finetune: " in told.stdout and "learning_rates" in told.stdout


def test_one_run_then_again_then_damaged(tmp_path):
    first = iclgd(tmp_path, "seed=1")
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "outputs" / "single").iterdir()
    assert f"table of {folder.name}" in first.stdout and f"iclgd-report outputs/single/{folder.name}" in first.stdout
    assert re.fullmatch(r"[0-9a-f]{12}", folder.name) and RunFolder(folder).is_done()
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.yaml", "environment.json", "fingerprint.json", "run.log", "scores.json", "status.json")
    ]
    assert "Traceback" not in first.stderr and "Warning" not in first.stderr
    assert "1 skipped" in iclgd(tmp_path, "seed=1", "runtime.threads=1").stdout
    before = (folder / "scores.json").read_bytes()
    (folder / "scores.json").write_bytes(before[:10])
    repaired = iclgd(tmp_path, "seed=1")
    assert "1 done" in repaired.stdout and "is not what the finished run wrote" in repaired.stderr
    assert (folder / "scores.json").read_bytes() == before


def test_a_finished_run_is_skipped_though_its_data_have_gone(tmp_path):
    rows = tmp_path / "data" / "mine"
    rows.mkdir(parents=True)
    for split in ("train", "validation"):
        (rows / f"{split}.jsonl").write_text('{"sentence": "Good.", "label": 1}\n' * 9)
    arguments = ("task=sst2", "task.name=mine", "task.shots=2", "task.rates={lcgd: 0.1}", "paths.data_dir=data")
    assert iclgd(tmp_path, *arguments).returncode == 0
    (rows / "train.jsonl").unlink()
    again, other = iclgd(tmp_path, *arguments), iclgd(tmp_path, *arguments, "seed=1")
    assert again.returncode == 0 and "1 skipped" in again.stdout, again.stderr
    assert other.returncode == 2 and "no train.jsonl" in other.stderr


def test_a_failed_run_says_so_and_keeps_its_traceback(tmp_path):
    failed = iclgd(tmp_path, "seed=13", "hydra.run.dir=here")
    assert failed.returncode == 1
    assert "failed here: RuntimeError: unlucky seed" in failed.stderr and "Traceback" not in failed.stderr
    status = json.loads((tmp_path / "here" / "status.json").read_text())
    assert status["state"] == "failed" and "unlucky seed" in status["traceback"]
    assert "Traceback" in (tmp_path / "here" / "run.log").read_text()


def test_a_sweep_goes_on_after_a_failure_lists_it_and_is_resumed(in_process, tmp_path, capsys):
    def sweep(*arguments):
        code = command.run(["-m", *arguments]).code
        return code, *capsys.readouterr()

    code, out, err = sweep("seed=0,13")
    assert code == 1 and "1 done, 1 failed in outputs/multirun" in out
    listed = [line for line in err.splitlines() if line.startswith("failed outputs/multirun/")]
    assert len(listed) == 1 and listed[0].endswith(": RuntimeError: unlucky seed")
    code, out, err = sweep("seed=0,13", "runtime.rerun=never")
    assert code == 1 and "1 skipped, 1 failed" in out and " starts" not in err and "rerun=never left it" in err
    code, out, err = sweep("seed=0,1", "runtime.rerun=all")
    assert code == 0 and "2 done in outputs/multirun" in out and "table of 2 runs" in out
    code, out, err = sweep("finetune.lr=-1,0.25")
    assert code == 2 and "1 done, 1 refused" in out and "finetune.lr=-1.0 cannot train" in err
    assert not (tmp_path / "outputs" / "multirun" / "refused").exists()


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.soak)])
def test_other_launchers_make_the_same_runs(tmp_path, launcher):
    for folder, given in (("one", ()), ("other", (f"hydra/launcher={launcher}",))):
        (tmp_path / folder).mkdir()
        ended = iclgd(tmp_path / folder, "-m", "seed=0,1,13", *given)
        assert ended.returncode == 1 and "2 done, 1 failed" in ended.stdout, ended.stderr
    assert results(tmp_path / "one" / "outputs" / "multirun") == results(tmp_path / "other" / "outputs" / "multirun")


@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        ({"launcher": {}, "job": {"num": 3}}, 2, (None, "auto")),
        ({"launcher": {"n_jobs": 2}, "job": {"num": 3}}, 0, (3, "auto")),
        ({"launcher": {"n_jobs": 4}, "job": {"num": 3}}, 2, (1, "cuda:1")),
        ({"launcher": {"n_jobs": -1}, "job": {"num": 4}}, 3, (1, "cuda:1")),
        ({"launcher": {"n_jobs": 8}, "job": {"num": 0}}, 1, (1, "cuda:0")),
    ],
)
def test_workers_share_cores_and_take_gpus_in_turn(monkeypatch, settings, gpus, expected):
    import torch

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    placed = command.placed(config(), OmegaConf.create(settings)).runtime
    assert (placed.threads, placed.device) == expected
    chosen = command.placed(config("runtime.threads=5", "runtime.device=cpu"), OmegaConf.create(settings)).runtime
    assert (chosen.threads, chosen.device) == (5, "cpu")


def test_from_python(in_process, tmp_path):
    one = in_process.run("task=headlines", seed=1, finetune__lr=0.5)
    assert one.mean("sim_aou") == 1.0 and one.scores["accuracy/icl"]["mean"] == 0.75
    assert (one.settings["task.name"], one.settings["finetune.lr"]) == ("headlines", 0.5)
    frame = one.frame
    assert set(frame[frame.score == "sim_aou"].layer.dropna()) == {0, 1, 2}
    found = in_process.sweep(finetune=["gd", "lcgd"], seed=[0, 13])
    assert sorted((run.settings["finetune.name"], run.settings["seed"]) for run in found) == [("gd", 0), ("lcgd", 0)]
    assert found.varied == ("finetune.name",) and len(repr(found)) < 200 and len(found.summary)
    assert len(found.left_out) == 2 and "unlucky seed" in found.left_out[0][1]
    assert set(in_process.load(tmp_path / "outputs").frame.run) == {one.name, *(run.name for run in found)}
    with pytest.raises(ConfigError, match=r"did you mean task\.shots"):
        in_process.run(task__shot=1)
    with pytest.raises(RuntimeError, match="unlucky seed; see"):
        in_process.run(seed=13)
    assert {"load", "run", "sweep"} < set(dir(in_process))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = in_process.nothing


def test_from_python_values_are_written_as_hydra_reads_them(in_process, tmp_path):
    optimizer = {"_target_": "torch.optim.AdamW", "weight_decay": 0.1}
    one = in_process.run(finetune__layers=[0, 2], finetune__exit_layer=None, finetune__optimizer=optimizer)
    made = OmegaConf.load(tmp_path / "outputs" / "single" / one.name / "config.yaml").finetune
    assert (list(made.layers), made.exit_layer, dict(made.optimizer)) == ([0, 2], None, optimizer)


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_signal_gives_its_code_and_python_its_exception(in_process, tmp_path, monkeypatch, stop, code):
    def stopped(*_):
        raise stop

    monkeypatch.setattr(sys.modules["iclgd.experiment"], "run", stopped)
    assert command.run(["seed=0"]).code == code
    [folder] = (tmp_path / "outputs" / "single").iterdir()
    assert RunFolder(folder).state() is State.interrupted
    with pytest.raises(KeyboardInterrupt):
        in_process.run(seed=0)
    monkeypatch.setattr(Invocation, "is_own", lambda self: stop is KeyboardInterrupt)
    ended = command.run(["-m", "seed=0,1"])
    if stop is Terminated:  # a worker that is ended alone lets the others go on
        assert [outcome.ending for outcome in ended.results()] == [Ending.interrupted] * 2 and ended.code == 1
    else:
        assert ended.code == code


def test_what_hydra_does_not_explain_is_said_in_a_line_or_raised_on_demand(in_process, monkeypatch, capsys):
    def broken(error):
        def main():
            raise error

        monkeypatch.setattr(command.hydra, "main", lambda **_: lambda job: main)

    broken(OSError("the disk is gone"))
    assert command.run([]).code == 2
    assert capsys.readouterr().err == (
        "iclgd: the results cannot be written: the disk is gone; name another folder with paths.outputs=FOLDER\n"
    )
    broken(RuntimeError("odd"))
    assert command.run([]).code == 1
    assert capsys.readouterr().err == "iclgd: RuntimeError: odd (HYDRA_FULL_ERROR=1 shows where)\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RuntimeError, match="odd"):
        command.run([])
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("seed=0,1", "hydra/launcher=joblib"), "under torchrun all runs are made by its processes together"),
        (("hydra/sweeper=optuna", "seed=0,1"), "under torchrun the runs of a sweep must be known beforehand"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # optuna's own
def test_sweeps_that_torchrun_cannot_make_are_refused(in_process, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "own", lambda: 0)
    assert command.run(["-m", *arguments]).code == 2
    assert said in capsys.readouterr().err and os.listdir(tmp_path) == []


def test_an_agent_makes_one_run_at_a_time(in_process, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert command.run(["-m", "seed=0,1"]).code == 2
    assert "an agent of W&B's sweeps makes one run at a time" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_the_first_process_ends_all_where_its_run_fails(in_process, monkeypatch):
    told = []
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "own", lambda: 0)
    monkeypatch.setattr(ranks, "told", lambda value: told.append(value) or value)
    failed = command.run(["-m", "seed=13,0"])  # the second is not begun: the other processes may wait for the first
    assert failed.code == 1 and told == [True]
    assert [outcome.ending for outcome in failed.results()] == [Ending.failed]


@pytest.mark.parametrize("computes", [True, False])
def test_the_other_processes_compute_with_the_first_and_leave_nothing(
    in_process, tmp_path, monkeypatch, capsys, computes
):
    seen, run = [], sys.modules["iclgd.experiment"].run
    monkeypatch.setattr(
        sys.modules["iclgd.experiment"], "run", lambda *given: seen.append(given[0].seed) or run(*given)
    )
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "own", lambda: 1)
    monkeypatch.setattr(ranks, "told", lambda value: computes)
    try:
        ended = command.run(["-m", "seed=0,1"] if computes else ["seed=7"])
    finally:
        logging.disable(logging.NOTSET)
    assert (ended.code, ended.results()) == (0, [])
    assert seen == ([0, 1] if computes else [])
    assert capsys.readouterr() == ("", "") and not list(tmp_path.rglob("scores.json"))
