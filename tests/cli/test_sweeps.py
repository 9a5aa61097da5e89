"""Every point of every file in sweeps/ composes and validates, and its first line tells how many there are."""

import math
import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from command_line import ROOT
from configs import composed
from iclgd.cli import arguments as command_line
from iclgd.cli import command, hydra_setup, plan
from iclgd.common import paths
from iclgd.config import ConfigError, typed

SWEEPS = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
pytestmark = pytest.mark.filterwarnings("ignore:[\\s\\S]*is validated against ConfigStore schema:UserWarning")


@pytest.mark.parametrize("name", SWEEPS)
def test_the_first_lines_tell_how_many_runs_there_are(name):
    first, question = (ROOT / "sweeps" / f"{name}.yaml").read_text().splitlines()[:2]
    stated = re.search(r"\? .*= (\d+) (?:small )?runs", question)
    assert first == "# @package _global_" and stated, question
    hydra_setup.register()
    with initialize_config_dir(str(paths.config_folder()), version_base="1.3"):
        config = compose("config", [f"sweeps={name}"], return_hydra_config=True)
        OmegaConf.update(config, "hydra.overrides.task", [f"sweeps={name}"])
        assert config.hydra.mode.name == "MULTIRUN" and hydra_setup.count_points(config) == int(stated[1])
        points = hydra_setup.points(config) or [[f"sweeps={name}", "finetune=gd", "task.rates.gd=1e-3"]]
    typed(composed(points[-1]))  # `make soak` composes all


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in SWEEPS if name != "lr_search"])
def test_every_point_composes(name):
    runs = plan.plan([f"sweeps={name}"])
    assert not [run.refused for run in runs if run.refused]
    repeated = re.search(r"of which (\d+) repeat", (ROOT / "sweeps" / f"{name}.yaml").read_text())
    assert len({run.folder for run in runs}) == len(runs) - int(repeated[1] if repeated else 0)


# The commands that the comments in sweeps/ name, and their number of runs. $COMMAND is `iclgd sweeps=FILE`.
COMMANDS = [
    ("exit_layers", ["seed=0,1,2,3,4"], 150),
    ("layers", ["finetune.layers=range(0,24)"], 48),
    ("full_grid", ["finetune.layers='0-7','8-15','16-23',all", "task.shots=4", "finetune.lr=0.1"], 8),
    (
        "why_lcgd",
        ["task.rates={gd:0.1,lcgd:0.1},{gd:0.3,lcgd:0.3}", "finetune=gd", "model.weights=random", "seed=0"],
        2,
    ),
    ("would_it_notice", ["task=toy", "finetune.other_task=toy_other", "finetune=gd", "reference=icl", "seed=0,1"], 2),
]


@pytest.mark.parametrize(("name", "more", "count"), COMMANDS)
def test_commands_of_the_comments_are_accepted(name, more, count):
    arguments = command_line.for_hydra([f"sweeps={name}", *more])
    assert arguments[0] == "-m"
    hydra_setup.register()
    with initialize_config_dir(str(paths.config_folder()), version_base="1.3"):
        config = compose("config", [f"sweeps={name}"], return_hydra_config=True)
        OmegaConf.update(config, "hydra.overrides.task", arguments[1:])
        points = hydra_setup.points(config) or []
    assert len(points) == count
    typed(composed(points[-1]))


def test_published_runs_have_the_published_seeds_and_rates():
    points = {
        (name, permutation): typed(
            composed(["sweeps=paper_table2", "finetune=lcgd", f"task={name}", f"task.permutation={permutation}"])
        )
        for name in ("sst2", "subj")
        for permutation in (0, 2)
    }
    assert {key: config.seed for key, config in points.items()} == {
        ("sst2", 0): 2,
        ("sst2", 2): 4,
        ("subj", 0): 4,
        ("subj", 2): 6,
    }
    assert points["sst2", 0].finetune.lr == 5e-4 and points["subj", 2].finetune.lr == 3e-3
    assert points["sst2", 0].task.shots == 32 and "1.3" in points["sst2", 0].model.name
    with pytest.raises(ConfigError, match="task=reviews has no published run"):
        typed(composed(["sweeps=paper_table2", "task=reviews"]))


@pytest.mark.filterwarnings("ignore")  # optuna's own, at import and of its samplers
def test_the_search_takes_variants_in_turn_each_with_rates_of_its_own():
    import optuna

    from iclgd.cli.search import EachVariant, suggest_rate

    study = optuna.create_study(direction="maximize", sampler=EachVariant(seed=0))
    best = {"gd": 1e-3, "lcgd": 1e-1}
    for _ in range(40):
        trial = study.ask()
        variant = trial.suggest_categorical("finetune", ["gd", "lcgd"])
        suggest_rate(OmegaConf.create({}), trial)
        assert set(trial.params) == {"finetune", f"task.rates.{variant}"}
        far = abs(math.log(trial.params[f"task.rates.{variant}"] / best[variant]))
        study.tell(trial, -far - (variant == "gd") * 100)
    for variant, rate in best.items():
        rates = [t.params[f"task.rates.{variant}"] for t in study.trials if t.params["finetune"] == variant]
        assert len(rates) == 20 and min(abs(math.log(r / rate)) for r in rates) < 1


@pytest.mark.filterwarnings("ignore")  # optuna's own
def test_a_search_started_again_makes_the_same_choices(in_process, tmp_path, capsys):
    arguments = ["sweeps=lr_search", "hydra.sweeper.n_trials=2"]
    best = tmp_path / "outputs" / "lr_search" / "optimization_results.yaml"
    assert command.run(arguments).code == 0 and "2 done" in capsys.readouterr().out
    before = best.read_text()
    assert command.run(arguments).code == 0 and "2 skipped" in capsys.readouterr().out
    assert best.read_text() == before
    assert command.run([*arguments, "seed=13"]).code == 1
    shown = capsys.readouterr()
    assert "2 failed" in shown.out and "Traceback" not in shown.err
