"""Skeletons for users' own files, and the list of keys."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import environment
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
        "nothing mine": "is not one of",
        "variant gd": "finetune=gd is built in: choose another name",
    }
    for arguments, message in refused.items():
        assert new.cli(arguments.split()) == 2 and message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.soak
def test_skeletons_pass_their_own_tests(tmp_path: Path):
    for kind in new.KINDS:
        new.new(kind, f"my_{kind}", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tested = subprocess.run(command, cwd=tmp_path, env=environment(fake=False), capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout
