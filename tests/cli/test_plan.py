"""The plan of a command: what `--dry-run` lists is what Hydra would compose and the command would do."""

from pathlib import Path

import pytest

from configs import by_hydra, config
from iclgd.__main__ import main
from iclgd.cli import new, plan
from iclgd.config import ConfigError, as_dict, typed
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import run_id

TOY = ("model=toy", "task=toy")


def test_a_plan_lists_runs_and_counts_those_done_and_refused(tmp_path: Path, capsys):
    arguments = ["-m", *TOY, "seed=0,1", "finetune=gd,lcgd", "finetune.layers=1,2-9", f"paths.outputs={tmp_path}"]
    runs = plan.plan(arguments)
    assert runs[0].overrides == ("seed=0", "finetune=gd", "finetune.layers=1")
    assert len({run.folder for run in runs if not run.refused}) == 4 and runs[0].folder.parent == tmp_path / "multirun"
    finished = RunFolder(runs[0].folder)
    with finished.claim():
        finished.start(finished.path.name)
        finished.write("config.yaml", as_dict(config(*TOY)))
        finished.finish()
    capsys.readouterr()
    assert main(["--dry-run", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err == "composing 8 runs\n"
    assert shown.out.count("to do  ") == 3 and shown.out.count("names layer 9, but the model's layers are 0 to 3") == 4
    assert shown.out.splitlines()[-1] == "8 runs: 1 done, 3 to do, 4 refused"
    assert main(["--dry-run", *TOY, f"paths.outputs={tmp_path}"]) == 0 and capsys.readouterr().out.endswith(
        "1 run: 0 done, 1 to do\n"
    )
    assert main(["--dry-run", "sweeps=smoke", "nonsense"]) == 2
    assert "nonsense cannot be read" in capsys.readouterr().err


def test_a_planned_run_is_the_one_that_hydra_composes():
    fixed = ["sweeps=learning_rates", "+task.rates.own=0.5", "task.lm_eval=null"]
    runs = plan.plan([*fixed, "seed=0", "finetune.lr='${task.rates.own}',1e-3"])
    assert len(runs) == 4
    for run in runs[::3]:
        assert run.folder.name == run_id(as_dict(typed(by_hydra([*fixed, *run.overrides]))))
        assert run.folder.parent.name == "learning_rates"


def test_a_folder_of_ones_own_is_known_and_a_search_cannot_be_listed(tmp_path: Path):
    new.new("task", "mine", tmp_path)
    runs = plan.plan(["--config-dir", str(tmp_path / "conf"), "-m", "task=mine,toy", "model=toy"])
    assert [run.overrides for run in runs] == [("task=mine",), ("task=toy",)]
    with pytest.raises(ConfigError, match="cannot be listed"):
        plan.plan(["hydra/sweeper=optuna", "-m", "seed=range(3)"])
