"""The command line from its arguments to its exit code, with a fake experiment of milliseconds."""

import json
import os
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

import iclgd as package
from command_line import PATIENCE, environment, iclgd, results
from configs import config
from iclgd.__main__ import main
from iclgd.cli import command
from iclgd.config import ConfigError
from iclgd.runs.execute import Ending, Terminated
from iclgd.runs.folder import RunFolder, State

REFUSED = [
    ("typo=1", "unknown key typo: "),
    ("task.shot=3", "unknown key task.shot: did you mean task.shots?"),
    ("lr=0.1", "unknown key lr: did you mean finetune.lr or reference.lr?"),
    ("model=my_checkpoint", "a folder or hub id is model=hf model.name=my_checkpoint"),
    ("seed=[0,1]", "seed=[0,1]: Value '[0, 1]' of type 'list' could not be converted to Integer; a sweep"),
    ("task=MR", "task=MR does not exist: did you mean mr? choose one of agnews"),
    ("sweeps=nope", "sweeps=nope does not exist: choose one of exit_layers, first_look,"),
    ("finetune.lr=-1", "finetune.lr=-1.0 cannot train: give a positive rate that fits float32"),
    ("model=hf", "model.name is not set: give model.name=..."),
    ("nonsense", "nonsense cannot be read: write KEY=VALUE"),
    ("seed=0,1", "seed=0,1 names several values: add -m to sweep over them, or write seed=[0,1]"),
    ("model.separator=<sep>", "model.separator=<sep> cannot be read: write KEY=VALUE, special characters in quotes"),
]


@pytest.mark.parametrize("name", ["../../escape", ".."])
def test_the_name_of_a_sweep_names_no_other_folder(in_process, tmp_path, capsys, name):
    assert command.run(["-m", "seed=0,1", f"sweep_name={name}"]).code == 2
    assert f"sweep_name={name} is not a plain name" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [] and not (tmp_path.parent.parent / "escape").exists()


@pytest.mark.parametrize(("argument", "message"), REFUSED, ids=[argument for argument, _ in REFUSED])
def test_what_cannot_be_run_is_refused_with_the_key_and_the_remedy(in_process, tmp_path, capsys, argument, message):
    assert command.run([argument]).code == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told and len(told.splitlines()) <= 3
    assert os.listdir(tmp_path) == []


def test_what_needs_no_model_is_refused_before_anything_heavy_is_imported(tmp_path):
    """In one process of its own, as a user would start them one after the other."""
    refused = [
        ("task=toy", "finetune.lr=-1", "cannot train"),
        ("task=toy", "task.shots=9999", "task.shots=9999 is more than the 96 rows of"),
        ("task=mr", "paths.data_dir=/nowhere", "paths.data_dir=/nowhere is"),
        ("task=toy", "finetune.layers=2-9", "finetune.layers names layer 9, but the model's layers are 0 to 3"),
    ]
    commands = [["model=toy", *arguments] for *arguments, _ in refused]
    script = (
        f"import sys; from iclgd.cli.command import run; codes = [run(each).code for each in {commands!r}]\n"
        "heavy = {'torch', 'transformers', 'pandas', 'datasets', 'matplotlib', 'wandb', 'pyarrow', 'optuna'}\n"
        "sys.stdout.write(f'{codes} {heavy & sys.modules.keys()}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(fake=False),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.endswith("[2, 2, 2, 2] set()"), done.stderr
    told = done.stderr.splitlines()
    assert len(told) == len(refused)
    assert all(message in line for line, (*_, message) in zip(told, refused, strict=True))


def test_version_keys_help_completion_and_a_reader_who_leaves(in_process, tmp_path, capsys, monkeypatch):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"iclgd {package.__version__}\n"
    assert command.run(["--help"]).code == 0
    shown = capsys.readouterr().out
    assert "finetune: " in shown and "learning_rates" in shown
    monkeypatch.setenv("COMP_LINE", "iclgd finetune=lc")
    assert command.run(["-sc", "query=bash"]).code == 0
    assert capsys.readouterr().out.split() == ["finetune=lcgd", "finetune=lcgd_norm_matched"]
    script = f"{sys.executable} -m iclgd --keys | head -1"
    left = subprocess.run(script, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert left.stdout.startswith("model.name: str") and not left.stderr


def test_one_run_then_again(in_process, tmp_path, capsys):
    assert command.run(["seed=1"]).code == 0
    first = capsys.readouterr()
    (folder,) = (tmp_path / "outputs" / "single").iterdir()
    assert f"table of {folder.name}" in first.out and f"iclgd-report outputs/single/{folder.name}" in first.out
    assert re.fullmatch(r"[0-9a-f]{12}", folder.name) and RunFolder(folder).is_done()
    written = {path.name for path in folder.iterdir()}
    assert written >= {"config.yaml", "environment.json", "run.log", "scores.json", "status.json"}
    assert not [name for name in written if name.startswith(".")]
    assert command.run(["seed=1", "runtime.threads=1"]).code == 0 and "1 skipped" in capsys.readouterr().out


def test_a_failed_run_says_so_and_keeps_its_traceback(in_process, tmp_path, capsys):
    assert command.run(["seed=13", "hydra.run.dir=here"]).code == 1
    told = capsys.readouterr().err
    assert "failed here: RuntimeError: unlucky seed" in told and "Traceback" not in told
    status = json.loads((tmp_path / "here" / "status.json").read_text())
    assert status["state"] == "failed" and status["error"] == "RuntimeError: unlucky seed"
    assert "Traceback" in (tmp_path / "here" / "run.log").read_text()


def test_a_sweep_goes_on_after_a_failure_lists_it_and_is_resumed(in_process, tmp_path, capsys):
    def sweep(*arguments):
        code = command.run(["-m", *arguments]).code
        return code, *capsys.readouterr()

    code, out, err = sweep("seed=0,13")
    assert code == 1 and "1 done, 1 failed in outputs/multirun" in out
    listed = [line for line in err.splitlines() if line.startswith("failed outputs/multirun/")]
    assert len(listed) == 1 and ": RuntimeError: unlucky seed (sitecustomize.py:" in listed[0]
    code, out, err = sweep("seed=0,13", "runtime.rerun=never")
    assert code == 1 and "1 skipped, 1 failed" in out and " starts" not in err and "rerun=never left it" in err
    code, out, err = sweep("seed=0,1", "runtime.rerun=all")
    assert code == 0 and "2 done in outputs/multirun" in out and "table of 2 runs" in out
    code, out, err = sweep("finetune.lr=-1,0.25")
    assert code == 2 and "1 done, 1 refused" in out and "finetune.lr=-1.0 cannot train" in err
    assert not (tmp_path / "outputs" / "multirun" / "refused").exists()


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.soak)])
def test_other_launchers_make_the_same_runs(in_process, tmp_path, launcher):
    ended = iclgd(tmp_path, "-m", "seed=0,1,13", f"hydra/launcher={launcher}", "sweep_name=other")
    assert ended.returncode == 1 and "2 done, 1 failed" in ended.stdout, ended.stderr
    assert command.run(["-m", "seed=0,1,13", "sweep_name=one"]).code == 1
    assert results(tmp_path / "outputs" / "one") == results(tmp_path / "outputs" / "other")


@pytest.mark.parametrize(
    ("settings", "gpus", "device"),
    [
        ({"launcher": {}, "job": {"num": 3}}, 2, "auto"),
        ({"launcher": {"n_jobs": 2}, "job": {"num": 3}}, 0, "auto"),
        ({"launcher": {"n_jobs": 4}, "job": {"num": 3}}, 2, "cuda:1"),
        ({"launcher": {"n_jobs": -1}, "job": {"num": 4}}, 3, "cuda:1"),
    ],
)
def test_workers_take_gpus_in_turn_and_one_thread_each(monkeypatch, settings, gpus, device):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    given = OmegaConf.create(settings)
    runtime = command.of_worker(config(), given).runtime
    assert (runtime.device, runtime.threads) == (device, 1 if settings["launcher"] else None)
    runtime = command.of_worker(config("runtime.device=cpu", "runtime.threads=3"), given).runtime
    assert (runtime.device, runtime.threads) == ("cpu", 3)


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
    with pytest.raises(RuntimeError, match=r"unlucky seed \(sitecustomize\.py:\d+\); see"):
        in_process.run(seed=13)
    assert {"load", "run", "sweep"} < set(dir(in_process))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = in_process.nothing


def test_from_python_values_are_written_as_hydra_reads_them(in_process, tmp_path):
    arguments = {"enable_thinking": False, "style": "plain text"}
    one = in_process.run(finetune__layers=[0, 2], finetune__exit_layer=None, model__chat_arguments=arguments)
    made = OmegaConf.load(tmp_path / "outputs" / "single" / one.name / "config.yaml")
    assert (list(made.finetune.layers), made.finetune.exit_layer) == ([0, 2], None)
    assert dict(made.model.chat_arguments) == arguments


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_signal_gives_its_code_and_python_its_exception(in_process, tmp_path, monkeypatch, capsys, stop, code):
    def stopped(*_):
        raise stop

    monkeypatch.setattr(sys.modules["iclgd.experiment"], "run", stopped)
    assert command.run(["seed=0"]).code == code
    [folder] = (tmp_path / "outputs" / "single").iterdir()
    assert RunFolder(folder).state() is State.interrupted
    with pytest.raises(KeyboardInterrupt):
        in_process.run(seed=0)
    assert command.run(["-m", "seed=0,1,2"]).code == code
    assert "1 interrupted, 2 not started in outputs/multirun" in capsys.readouterr().out


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


def test_an_agent_makes_one_run_at_a_time(in_process, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert command.run(["-m", "seed=0,1"]).code == 2
    assert "an agent of W&B's sweeps makes one run at a time" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_path_may_hold_what_the_command_line_reads_as_quotes(in_process, tmp_path, monkeypatch):
    place = tmp_path / "o'brien" / 'a "b" c'
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    ended = command.run(["-m", "seed=0,1"])
    assert [outcome.ending for outcome in ended.outcomes()] == [Ending.done] * 2
