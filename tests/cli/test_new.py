"""Skeletons for users' own files, and the list of keys."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from command_line import ROOT, environment
from iclgd.cli import keys, new
from iclgd.config import Config


def test_every_key_of_the_schema_is_listed_once_with_its_meaning():
    listed = keys.keys()
    names = [key.name for key in listed]
    assert len(names) == len(set(names))
    assert {name.split(".")[0] for name in names} == {field.name for field in dataclasses.fields(Config)}
    assert all(key.comment for key in listed)


def test_the_command_for_skeletons_says_what_it_wrote_and_loses_no_file(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind in new.KINDS:
        assert new.cli([kind, f"my_{kind}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        written = [Path(line.removeprefix("wrote ")) for line in lines if line.startswith("wrote ")]
        assert written and all(path.is_file() and "NAME" not in path.read_text() for path in written)
        assert f"try it: python -m pytest test_my_{kind}.py" in lines
    files = sorted(tmp_path.rglob("*"))
    refused = {
        "task": f"usage: iclgd new {'|'.join(new.KINDS)} NAME",
        "task my_task": "test_my_task.py: there already",
        "metric My-Metric": "'My-Metric' is not a plain name",
        "metric ../up": "is not a plain name",
        "nothing mine": "none of",
        "variant gd": "finetune=gd is built in: choose another name",
    }
    for arguments, message in refused.items():
        assert new.cli(arguments.split()) == 2 and message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == files


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
    own = ("--config-dir", "conf", "+metric=my_metric", "-m", "finetune=my_objective,gd", "task=toy,my_task")
    small = (
        "model=toy",
        "task.queries=4",
        "task.labels=[A,B]",
        "paths.data_dir=data",
        "task.shots=2",
        "sweep_name=own",
    )
    done = python("-c", entry, *own, *small, "tracking=none")
    assert done.returncode == 0, done.stderr
    scores = [file.read_text() for file in (mine / "outputs" / "own").glob("*/scores.json")]
    assert len(scores) == 4 and all("my_metric" in text for text in scores)
