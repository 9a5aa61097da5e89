"""The command line as Hydra reads it, mistakes in it, and `--rerun`."""

import json

import pytest
import yaml

from iclgd.cli import arguments as command_line
from iclgd.cli import command
from iclgd.common import paths
from iclgd.config import ConfigError

SMALL = (
    *("model=toy", "task=toy", "tracking=none", "task.queries=3", "task.shots=3"),
    *("metric=[sim_aou]", "finetune=lcgd", "finetune.lr=0.05", "+task.template_labels={1:[B,A]}"),
    "task.templates=['{{ text }} ->', '{{ text }} {{ \"\\${x}\" }} ->']",
)


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (["seed=1", "-m", "task=mr", "-cd", "own"], ["-m", "--config-dir=own", "seed=1", "task=mr"]),
        (["sweeps=smoke", "seed=0,1"], ["-m", "sweeps=smoke", "seed=0,1"]),
        (["--cfg", "job", "sweeps=smoke"], ["--cfg", "job", "sweeps=smoke"]),
        (["metric=[sim_aou]", "tracking=none"], ["metric=[sim_aou]", "tracking=none"]),
    ],
)
def test_options_come_first_and_a_sweeps_file_is_a_sweep(arguments, read):
    assert command_line.for_hydra(arguments) == read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.sweeper.params.task=mr,sst2"], "write task=mr,sst2, and -m or sweeps=NAME beside it"),
        (
            ["sweeps=layers", 'hydra.sweeper.params.finetune.layers="range(0,4)"'],
            r"write finetune.layers=range\(0,4\), and",
        ),
        (["finetune=range(1,3)"], "give the name of a file of conf/finetune"),
        (["task=null"], "give the name of a file of conf/task"),
        (["-m", "task=mr,null"], "task=mr,null: give the name of a file of conf/task"),
        (["+metric=mine", "metric=[sim_aou,accuracy]"], r"write metric=\[sim_aou,accuracy,mine\]"),
        (["seed=1", "-cd"], "-cd needs a folder"),
    ],
)
def test_what_hydra_would_misread_is_refused_with_the_form_that_works(arguments, message):
    with pytest.raises(ConfigError, match=message):
        command_line.for_hydra(arguments)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return start("task.template=1", *SMALL)[0].folder


def start(*arguments):
    ran = command.run(arguments, quiet=True)
    assert ran.code == 0, ran.message
    return ran.outcomes()


def settings(outcome):
    return yaml.safe_load((outcome.folder / "config.yaml").read_text())


def test_a_run_again_from_its_folder_and_with_changes(folder, tmp_path):
    [again] = start("--rerun", str(folder))
    assert again.folder.name == folder.name and again.folder.parent.name == "rerun"
    assert (again.folder / "scores.json").read_bytes() == (folder / "scores.json").read_bytes()
    before = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings(again) == before and before["task"]["template_labels"] == {1: ["B", "A"]}
    assert "${x}" in json.loads((again.folder / "prompts.json").read_text())["queries"][0]["text"]

    own = tmp_path / "own" / "finetune"
    own.mkdir(parents=True)
    gd = (paths.config_folder() / "finetune" / "gd.yaml").read_text()
    (own / "mine.yaml").write_text(gd.replace("name: gd", "name: mine"))
    swept = start("--rerun", str(folder), "-m", "seed=2", "finetune=gd,mine", "--config-dir=own")
    assert [settings(outcome)["finetune"]["name"] for outcome in swept] == ["gd", "mine"]
    assert {settings(outcome)["finetune"]["lr"] for outcome in swept} == {before["task"]["rates"]["gd"]}
    for outcome in swept:
        made = settings(outcome)
        assert (made["task"], made["model"], made["seed"]) == (before["task"], before["model"], 2)
        assert outcome.folder.parent.name == "rerun"


@pytest.mark.parametrize("group", ["task", "hydra/launcher"])
def test_a_file_of_ones_own_with_a_built_in_name_is_refused(group, tmp_path):
    built_in = sorted((paths.config_folder() / group).glob("*.yaml"))[0]
    own = tmp_path / group / built_in.name
    own.parent.mkdir(parents=True)
    own.write_bytes(built_in.read_bytes())
    assert command_line.for_hydra([f"--config-dir={tmp_path}"])  # the same file does no harm
    own.write_text("name: mine\n")
    with pytest.raises(ConfigError, match=rf"{own.name} has the name of a built-in file.*: rename it"):
        command_line.for_hydra(["-cd", str(tmp_path), "task=reviews"])
    own.rename(own.with_name("mine.yaml"))
    assert command_line.for_hydra([f"--config-dir={tmp_path}"])
