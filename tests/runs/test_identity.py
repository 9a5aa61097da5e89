import dataclasses
import re

import pytest
from omegaconf import OmegaConf

from configs import composed, config
from iclgd.config import ReferenceConfig, as_dict
from iclgd.runs.inputs import canonical, run_id, science


def identity(*overrides):
    return run_id(as_dict(config(*overrides)))


@pytest.fixture(scope="module")
def base():
    return config()


def test_an_id_is_twelve_hexadecimal_digits_and_the_resolver_agrees(base):
    assert re.fullmatch(r"[0-9a-f]{12}", run_id(as_dict(base)))
    hydra = composed(with_hydra=True)
    OmegaConf.set_readonly(hydra.hydra, None)
    assert str(hydra.hydra.run.dir).endswith(f"outputs/single/{run_id(as_dict(base))}")


@pytest.mark.parametrize(
    "override",
    ["seed=1", "task.shots=3", "finetune.lr=0.5", "finetune=gd", "metric.every=2", "runtime.dtype=float64"],
)
def test_science_changes_the_id(override, base):
    assert identity(override) != run_id(as_dict(base))


@pytest.mark.parametrize(
    "override",
    [
        *("runtime.device=cpu", "runtime.threads=3", "runtime.cache=off", "runtime.rerun=all", "paths.outputs=x"),
        *("tracking=none", "tracking.mode=disabled", "runtime.save_recordings=true", "runtime.placement=auto"),
    ],
)
def test_machine_paths_and_tracking_do_not(override, base):
    assert identity(override) == run_id(as_dict(base))


def test_layers_and_rates_may_be_written_in_several_ways():
    ways = {identity(f"finetune.layers={way}") for way in ("0-2", "[0,1,2]", "[2,1,0]", "'0-1,2'")}
    assert len(ways) == 1
    assert identity("finetune=gd", "task.rates.gd=0.5") == identity("finetune=gd", "finetune.lr=5e-1")
    assert identity("finetune=gd", "task.rates.lcgd=0.5") == identity("finetune=gd")
    compared = ("finetune=gd", "metric=[alpha]", "metric.compare_with=lcgd")  # at the rate that the task has for it
    assert identity(*compared, "task.rates.lcgd=0.5") != identity(*compared)


def test_canonical_json_is_one_text_for_one_content():
    assert canonical({"b": 1, "a": [1.0, None]}) == canonical({"a": [1.0, None], "b": 1}) == '{"a":[1.0,null],"b":1}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical({"a": float("nan")})


def test_every_scientific_group_is_part_of_it(base):
    found = science(as_dict(base))
    machine = {"tracking", "runtime", "paths", "sweep_name"}
    assert "reference" not in found and "reference" in science(
        as_dict(dataclasses.replace(base, reference=ReferenceConfig("gd")))
    )
    machine.add("reference")  # part of it where anything but ICL plays ICL's part
    assert set(found) - {"dtype"} == {entry.name for entry in dataclasses.fields(base)} - machine


def test_settings_that_cannot_be_run_have_a_name_that_leaves_their_error_to_be_shown():
    hydra = composed(["finetune.lr=-1"], with_hydra=True)
    OmegaConf.set_readonly(hydra.hydra, None)
    assert str(hydra.hydra.run.dir).endswith("single/refused")
