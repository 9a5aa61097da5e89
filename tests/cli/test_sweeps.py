"""Every point of every file in sweeps/ composes and validates, and its first line tells how many there are."""

import math
import re

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from command_line import ROOT, iclgd
from configs import by_hydra, composed
from iclgd.cli import hydra_setup
from iclgd.config import ConfigError, as_dict, typed
from iclgd.runs.inputs import run_id

SWEEPS = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
ASKED = {
    *("first_look", "smoke", "paper_table1", "paper_table2", "paper_figure3", "learning_rates", "shots", "layers"),
    *("exit_layers", "models", "lr_search", "full_grid"),
}
pytestmark = pytest.mark.filterwarnings("ignore:[\\s\\S]*is validated against ConfigStore schema:UserWarning")


def test_a_point_is_what_hydra_composes():
    point = ("sweeps=full_grid", "finetune=gd", "finetune.layers=0-9", "finetune.lr=1e-4", "task.shots=4")
    assert composed(point) == by_hydra(point)


def test_every_question_has_a_file():
    assert set(SWEEPS) >= ASKED


@pytest.mark.parametrize("most", [5, pytest.param(10**6, marks=pytest.mark.soak)], ids=["some", "all"])
@pytest.mark.parametrize("name", SWEEPS)
def test_points_compose_and_validate(name, most):
    first, asks = (ROOT / "sweeps" / f"{name}.yaml").read_text().splitlines()[:2]
    stated = re.search(r"\? .*= (\d+) (?:small )?runs", asks)
    assert first == "# @package _global_" and stated, asks
    config = composed([f"sweeps={name}"], with_hydra=True)
    with open_dict(config):
        config.hydra.overrides.task = [f"sweeps={name}"]
    assert config.hydra.mode.name == "MULTIRUN" and hydra_setup.count_points(config) == int(stated[1])
    points = hydra_setup.points(config)
    if points is None:
        assert name == "lr_search"
        points = [[f"sweeps={name}", "finetune=gd", "task.rates.gd=1e-3"], [f"sweeps={name}", "finetune=lcgd"]]
    taken = points[:: -(-len(points) // most)]
    found = {run_id(as_dict(typed(composed(point)))) for point in taken}
    repeated = re.search(r"of which (\d+) repeat", asks)  # variants for which a swept setting means nothing
    assert len(taken) < len(points) or len(found) == len(points) - int(repeated[1] if repeated else 0)


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


def test_a_sweep_s_name_is_its_folder():
    config = composed(["sweeps=shots"], with_hydra=True)
    OmegaConf.set_readonly(config.hydra, None)
    HydraConfig.instance().set_config(config)
    assert str(config.hydra.sweep.dir) == "outputs/shots"
    assert str(composed(with_hydra=True).hydra.sweep.dir) == "outputs/multirun"


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
        rate = trial.params[f"task.rates.{variant}"]
        assert 1e-5 <= rate <= 1.0
        study.tell(trial, -abs(math.log(rate / best[variant])) - (variant == "gd") * 100)
    for variant, rate in best.items():
        rates = [t.params[f"task.rates.{variant}"] for t in study.trials if t.params["finetune"] == variant]
        assert len(rates) == 20 and min(abs(math.log(r / rate)) for r in rates) < 1


def test_a_search_started_again_makes_the_same_choices(tmp_path):
    arguments = ("sweeps=lr_search", "hydra.sweeper.n_trials=2")
    first = iclgd(tmp_path, *arguments)
    assert first.returncode == 0 and "2 done" in first.stdout, first.stderr
    best = (tmp_path / "outputs" / "lr_search" / "optimization_results.yaml").read_text()
    again = iclgd(tmp_path, *arguments)
    assert "2 skipped" in again.stdout
    assert (tmp_path / "outputs" / "lr_search" / "optimization_results.yaml").read_text() == best
    all_failed = iclgd(tmp_path, *arguments, "seed=13")
    assert all_failed.returncode == 1 and "2 failed" in all_failed.stdout and "Traceback" not in all_failed.stderr
