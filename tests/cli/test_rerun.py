"""A run again from its folder alone, through the command line."""

import json

import pytest
import yaml

from iclgd.cli import command, rerun
from iclgd.common import paths

SMALL = (
    *("model=toy", "task=toy", "tracking=none", "task.queries=3", "task.shots=3"),
    *("metric=[sim_aou]", "finetune=lcgd", "finetune.lr=0.05", "+task.template_labels={1:[B,A]}"),
    "task.templates=['{{ text }} ->', '{{ text }} {{ \"\\${x}\" }} ->']",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return start("task.template=1", *SMALL)[0].folder


def start(*arguments):
    ran = command.run(arguments, tell=False)
    assert ran.code == 0, ran.message
    return ran.results()


def settings(outcome):
    return yaml.safe_load((outcome.folder / "config.yaml").read_text())


def test_the_same_run_again_and_with_changes(folder, tmp_path):
    [again] = start("--rerun", str(folder))
    assert again.folder.name == folder.name and again.folder.parent.name == "rerun"
    assert (again.folder / "scores.json").read_bytes() == (folder / "scores.json").read_bytes()
    made, before = settings(again), yaml.safe_load((folder / "config.yaml").read_text())
    assert made == before and before["task"]["template_labels"] == {1: ["B", "A"]}
    assert "${x}" in json.loads((again.folder / "prompts.json").read_text())["queries"][0]["text"]

    [changed] = start("--rerun", str(folder), "finetune=gd", "seed=2")
    made = settings(changed)
    assert (made["finetune"]["name"], made["finetune"]["lr"], made["seed"]) == ("gd", before["task"]["rates"]["gd"], 2)
    assert (made["task"], made["model"]) == (before["task"], before["model"])
    swept = start("--rerun", str(folder), "-m", "finetune.lr=0.01,0.02")
    assert [settings(outcome)["finetune"]["lr"] for outcome in swept] == [0.01, 0.02]
    assert {outcome.folder.parent.name for outcome in swept} == {"rerun"}


def test_a_folder_of_ones_own_settings_serves_there_too(folder, tmp_path):
    (tmp_path / "own" / "finetune").mkdir(parents=True)
    text = (paths.config_folder() / "finetune" / "gd.yaml").read_text().replace("name: gd", "name: mine")
    (tmp_path / "own" / "finetune" / "mine.yaml").write_text(text)
    [again] = start("--rerun", str(folder), "finetune=mine", "--config-dir=own")
    assert settings(again)["finetune"]["name"] == "mine"
    for option in (["--config-dir", "own"], ["-cd", "own"], ["-cd=own"]):
        made = rerun.composed_from(["--rerun", str(folder), *option, "seed=1"], tmp_path)
        assert made == ["--config-dir", str(tmp_path), "--config-name", "rerun", "seed=1"]
        assert yaml.safe_load((tmp_path / "rerun.yaml").read_text())["hydra"]["searchpath"][-1].endswith("/own")


def test_a_folder_of_settings_without_a_name_is_refused(folder, capsys):
    for before in ([], ["--rerun", str(folder)]):
        for option in (["-cd"], ["--config-dir"], ["--config-dir="], ["--config-dir", "-m"]):
            assert command.run([*before, "seed=1", *option]).code == 2
            assert f"iclgd: {option[0].rstrip('=')} needs a folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--rerun",), ("--rerun", "nowhere")])
def test_without_a_run_it_is_refused(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.run(arguments).code == 2
    assert "run" in capsys.readouterr().err
