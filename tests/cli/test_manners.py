"""The manners of the command line: names, hints, plans, skeletons, and how soon it refuses."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import iclgd as package
from command_line import ROOT, environment, iclgd
from configs import composed, config
from iclgd.cli import early, hydra_setup, keys, new, plan
from iclgd.common import hub
from iclgd.common.records import Recording, axes_of
from iclgd.config import Config, ConfigError, ModelConfig, as_dict
from iclgd.evidence import memory
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.memory import Estimate
from iclgd.models import files
from iclgd.runs.folder import RunFolder


def run_here(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(fake=False),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_version_keys_and_a_reader_who_leaves(tmp_path: Path):
    assert iclgd(tmp_path, "--version").stdout == f"iclgd {package.__version__}\n"
    shown = iclgd(tmp_path, "--keys").stdout
    assert "task.shots: int = 8  # how many demonstrations\n" in shown
    assert "metric.scores.NAME.function: str (to be given)" in shown
    command = f"{sys.executable} -m iclgd --keys | head -1"
    left = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert left.stdout.startswith("model.name: str") and not left.stderr


def test_every_key_of_the_schema_is_listed_once():
    def leaves(schema: type, prefix: str) -> set[str]:
        return {f"{prefix}{field.name}" for field in dataclasses.fields(schema)}

    listed = [key.name for key in keys.keys()]
    assert len(listed) == len(set(listed))
    groups = {key.split(".")[0] for key in listed}
    assert groups == leaves(Config, "")
    assert all(key.comment for key in keys.keys() if key.name.startswith("finetune.") and key.name != "finetune.name")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("seed=0,1", "seed=0,1 names several values: add -m for a sweep over them, or write seed=[0,1]"),
        ("task=MR", "task=MR does not exist: did you mean mr? choose one of agnews"),
        ("sweep_name=../up", "sweep_name=../up is no plain name"),
        ("task.shots=9999", "task.shots=9999 is more than the 96 rows of"),
        ("paths.data_dir=/nowhere", "paths.data_dir=/nowhere is no folder"),
        ("finetune.layers=2-9", "finetune.layers names layer 9, but the model's layers are 0 to 3"),
        ("task.templates=['{text} ->']", "write '{{ text }} ->'"),
    ],
)
def test_what_needs_no_model_is_refused_before_torch_is_imported(tmp_path: Path, argument: str, message: str):
    task = "task=mr" if "data_dir" in argument else "task=toy"
    more = ["-m"] if "sweep_name" in argument else []
    script = (
        "import sys; from iclgd.cli.command import run; code = run(sys.argv[1:]).code; "
        "sys.exit(99 if {'torch', 'transformers', 'pandas', 'datasets'} & sys.modules.keys() else code)"
    )
    done = run_here(tmp_path, "-c", script, "model=toy", task, *more, argument)
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_a_sweep_of_ones_own_has_a_name():
    named = composed(["sweep_name=mine"], with_hydra=True)
    named.hydra.runtime.choices = {}
    assert named.hydra.sweep.dir == "outputs/mine"
    assert "sweep_name" not in hydra_setup.as_dict(config("sweep_name=mine"))


def test_a_plan_lists_runs_what_is_done_and_the_time_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["-m", "model=toy", "task=toy", "seed=0,1,2", "finetune=gd,lcgd", f"paths.outputs={tmp_path}"]
    runs = plan.planned(arguments)
    assert [run.overrides for run in runs[:2]] == [("seed=0", "finetune=gd"), ("seed=0", "finetune=lcgd")]
    assert len({run.folder for run in runs}) == 6 and {run.folder.parent for run in runs} == {tmp_path / "multirun"}
    finished = RunFolder(runs[0].folder)
    with finished.claim():
        finished.start(finished.path.name)
        assert runs[0].config is not None
        finished.write_yaml("config.yaml", as_dict(runs[0].config))
        finished.write_json("scores.json", {})
        finished.finish()
    status = finished.path / "status.json"
    status.write_text(status.read_text().replace('"seconds": ', '"seconds": 20, "was": '))
    assert plan.show(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count("to do  ") == 5 and "done " in shown
    assert "6 runs: 1 done, 5 to do (about 100 s, one after the other)" in shown or "2 min" in shown
    assert plan.show(["-m", "model=toy", "task=toy", "task.shots=0,3"]) == 2
    assert plan.show(["sweeps=smoke", "nonsense"]) == 2


def test_a_plan_says_what_each_model_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    """The largest need of memory, the minutes of all runs; runs of one size are estimated once, nothing is refused."""
    needs = {"gd": Estimate(1, 1, 1, {"cpu": 3.0}, 1, 1, 10), "lcgd": Estimate(2, 2, 1, {"cpu": 5.0}, 1, 1, 20)}
    asked = []

    def estimate(config: Config) -> Estimate:
        asked.append(config.finetune.name)
        return dataclasses.replace(needs[config.finetune.name], missing=("cpu has too little",))

    arguments = ["-m", "model=toy", "task=toy", "seed=0,1,2", "finetune=gd,lcgd", f"paths.outputs={tmp_path}"]
    with monkeypatch.context() as pretended:
        pretended.setattr(memory, "estimate", estimate)
        assert plan.show(arguments) == 0
    assert asked == ["gd", "lcgd"]
    [line] = [line for line in capsys.readouterr().out.splitlines() if "estimate" in line]
    assert line.startswith("toy, runtime.placement=single, runtime.dtype=auto: estimate: cpu 5.0 GB (weights 2.0, ")
    assert line.endswith("about 90.0 min; cpu has too little")
    (tmp_path / "model").mkdir()
    assert plan.show(["model=hf", f"model.name={tmp_path}/model", "task=toy"]) == 0
    assert "/model, runtime.placement=single, runtime.dtype=auto: no estimate, " in capsys.readouterr().out


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    from huggingface_hub import constants

    asked = []

    class Session:
        def head(self, *_, **__):
            asked.append(1)
            raise ConnectionError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", Session)
    hub.settle.cache_clear()
    hub.settle()
    hub.settle()
    assert len(asked) == 1 and constants.HF_HUB_OFFLINE and caplog.text.count("cannot be reached") == 1
    hub.settle.cache_clear()


def test_a_model_that_is_nowhere_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"model\.name=nosuch is no folder here, and the hub does not give it: "):
        files.commit_of(ModelConfig(name="nosuch"))


def test_where_a_recording_comes_from_is_said_once(caplog: pytest.LogCaptureFixture):
    lab = object.__new__(Laboratory)
    with caplog.at_level("INFO"):
        for what, reused in (("zsl", True), ("icl", False), ("icl", True)):
            lab.tell(what, reused)
    assert caplog.messages == ["zsl: taken from an earlier run", "icl: recorded"]


def test_recordings_have_the_users_mode_and_say_their_axes(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    before = os.umask(0o027)
    try:
        folder.write_tensors("recordings.safetensors", {"zsl.label_scores": torch.zeros(2, 3)}, {"run": "x"})
    finally:
        os.umask(before)
    file = folder.path / "recordings.safetensors"
    assert file.stat().st_mode & 0o777 == 0o640
    with safe_open(file, "pt") as stored:
        assert stored.metadata() == {"format": "pt", "run": "x"}
    assert axes_of(Recording)["attention_scores"] == "example layer head key"


def test_skeletons_are_refused_where_files_would_be_lost(tmp_path: Path):
    assert Path("conf/task/mine.yaml") in new.new("task", "mine", tmp_path)
    assert Path("conf/finetune/ours.yaml") in new.new("variant", "ours", tmp_path)
    with pytest.raises(FileExistsError, match=r"test_mine\.py: there already"):
        new.new("task", "mine", tmp_path)
    for kind, name in (("metric", "My Metric"), ("metric", "../up"), ("nothing", "mine")):
        with pytest.raises(ValueError, match=r"none of|no plain name"):
            new.new(kind, name, tmp_path)
    assert not (tmp_path / "conf" / "metric").exists()


def test_the_command_for_skeletons_says_what_it_wrote_and_what_it_takes(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new.cli(["task"]) == 2
    assert capsys.readouterr().err == f"usage: iclgd new {'|'.join(new.KINDS)} NAME\n"
    assert new.cli(["task", "My Task"]) == 2
    assert capsys.readouterr().err.startswith("iclgd new: 'My Task' is no plain name")
    for kind in new.KINDS:
        assert new.cli([kind, f"my_{kind}"]) == 0
        told = capsys.readouterr().out.splitlines()
        wrote = [Path(line.removeprefix("wrote ")) for line in told if line.startswith("wrote ")]
        assert wrote and all(path.is_file() for path in wrote)
        assert f"try it: python -m pytest test_my_{kind}.py" in told
        texts = [path.read_text() for path in wrote]
        assert not any(mark in text for text in texts for mark in ("NAME", "#INPUTS", "#SEQUENCE", "#OPTIONS"))


def test_layers_are_refused_before_anything_heavy_is_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    toy = ("model=toy", "task=toy", "finetune=gd")
    early.refuse(config(*toy, "finetune.layers=0-3"))
    with pytest.raises(ConfigError, match=r"names layer 4, but the model's layers are 0 to 3"):
        early.refuse(config(*toy, "finetune.layers=[0,4]"))
    with pytest.raises(ConfigError, match=r"task\.shots=1000"):
        early.refuse(config(*toy, "task.shots=1000"))
    early.refuse(config(*toy, "model=hf", "model.name=somebody/model", "finetune.layers=[99]"))  # not at hand


@pytest.mark.soak
def test_skeletons_run_at_once_in_any_folder_with_what_a_wheel_holds(tmp_path: Path):
    """As a user does: written by the command, tested by their own tests, and found by the command in this folder."""
    wheel, mine = tmp_path / "wheel", tmp_path / "mine"
    mine.mkdir()
    shutil.copytree(ROOT / "src", wheel)
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, place in target["force-include"].items():
        shutil.copytree(ROOT / source, wheel / place)

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        place = {**environment(fake=False), "PYTHONPATH": str(wheel)}
        return subprocess.run([sys.executable, *arguments], cwd=mine, env=place, capture_output=True, text=True)

    # As the installed command: unlike with `python -m`, the current folder is not on the path yet.
    entry = "import sys; sys.path.remove(''); from iclgd.__main__ import cli; cli()"
    for kind in new.KINDS:
        assert python("-c", entry, "new", kind, f"my_{kind}").returncode == 0
    tested = python("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert tested.returncode == 0, tested.stdout
    swept = (
        "-m",
        "finetune=my_objective,gd",
        "task=toy,my_task",
        "task.labels=[A,B]",
        "paths.data_dir=data",
        "task.shots=2",
    )
    named = (
        "--config-dir",
        "conf",
        "+metric=my_metric",
        "model=toy",
        "task.queries=4",
        "tracking=none",
        "sweep_name=own",
    )
    done = python("-c", entry, *named, *swept)
    assert done.returncode == 0, done.stderr
    scores = [file.read_text() for file in (mine / "outputs" / "own").glob("*/scores.json")]
    assert len(scores) == 4 and all("my_metric" in text for text in scores)


def test_a_folder_of_ones_own_is_known_to_sweeps(tmp_path: Path):
    new.new("task", "mine", tmp_path)
    runs = plan.planned(["--config-dir", str(tmp_path / "conf"), "-m", "task=mine,toy", "model=toy"])
    assert [run.overrides for run in runs] == [("task=mine",), ("task=toy",)]
    with pytest.raises(ConfigError):
        plan.planned(["hydra/sweeper=optuna", "-m", "seed=range(3)"])
