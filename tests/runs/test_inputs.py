"""The id of a run's settings, its inputs, and the keys of recordings."""

import dataclasses
import re

import pytest
from omegaconf import OmegaConf

from configs import composed, config
from iclgd.config import ReferenceConfig, as_dict
from iclgd.runs.inputs import Inputs, canonical, run_id, science

INPUTS = Inputs(
    {"settings": "0c8d", "dtype": "float32", "device": "cpu", "version of torch": "2.13.0", "code of iclgd": "ab"}
    | {"model config.json": "12", "queries of toy/test": "34", "code my_metrics.py": "56"},
    {"code of iclgd": "this package's measuring code", "model config.json": "the model's config.json"},
)


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
    refused = composed(["finetune.lr=-1"], with_hydra=True)
    OmegaConf.set_readonly(refused.hydra, None)
    assert str(refused.hydra.run.dir).endswith("single/refused")  # its error is shown elsewhere


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "task.shots=3", "finetune.lr=0.5", "finetune=gd", "+finetune.options.own=1", "metric.orders=2"),
        *("runtime.dtype=float64", "runtime.matmul=tf32"),
    ],
)
def test_science_changes_the_id(override, base):
    assert identity(override) != run_id(as_dict(base))


@pytest.mark.parametrize(
    "override",
    [
        *("runtime.device=cpu", "paths.outputs=x", "tracking=none", "runtime.placement=auto"),
        *("model.weights_seed=3", "finetune.label=x", "metric.scores.sim_aou.label=x"),
    ],
)
def test_machine_looks_and_tracking_do_not(override, base):
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


def test_every_scientific_group_is_part_of_the_id(base):
    chosen = science(as_dict(base))
    machine = {"tracking", "runtime", "paths", "sweep_name"}
    planted = dataclasses.replace(base, reference=ReferenceConfig("gd"))
    assert "reference" not in chosen and "reference" in science(as_dict(planted))
    machine.add("reference")  # part of it where anything but ICL plays ICL's part
    assert set(chosen) - {"dtype"} == {group.name for group in dataclasses.fields(base)} - machine


@pytest.mark.parametrize(
    ("part", "before", "words"),
    [
        ("version of torch", "2.12.0", "the version of torch (2.12.0, now 2.13.0)"),
        ("model config.json", "x", "the model's config.json"),
        ("code my_metrics.py", None, "my_metrics.py (new)"),
        ("code other.py", "x", "other.py (no longer there)"),
        ("queries of toy/test", "x", "the queries of toy/test"),
    ],
)
def test_what_changed_is_named(part, before, words):
    stored = {name: value for name, value in {**INPUTS.parts, part: before}.items() if value is not None}
    assert INPUTS.changes(stored) == [words]
    assert INPUTS.changes(INPUTS.parts) == []


@pytest.mark.parametrize(
    ("part", "learned"),
    [
        *((part, False) for part in ("dtype", "device", "version of torch", "code of iclgd", "model config.json")),
        ("code my_metrics.py", True),
    ],
)
def test_recordings_belong_to_model_precision_machine_versions_and_code(base, part, learned):
    changed = Inputs({**INPUTS.parts, part: "x"})
    assert changed.recording_key(base, "cpu", learned) != INPUTS.recording_key(base, "cpu", learned)


def test_runs_share_a_recording_of_the_same_prompts():
    """Its prompts are in the key as tokens: rows, seeds, variants and the user's functions need not be the same."""
    one, other = config("finetune=gd"), config("finetune=lcgd", "seed=3", "runtime.threads=1")
    elsewhere = Inputs({**INPUTS.parts, "queries of toy/test": "x", "code my_metrics.py": "x"})
    assert INPUTS.recording_key(one, "cpu", context=[1]) == elsewhere.recording_key(other, "cpu", context=[1])
    assert INPUTS.recording_key(one, "cpu", context=[1]) != INPUTS.recording_key(one, "cpu", context=[2])
    rounded = config("finetune=gd", "runtime.matmul=tf32")
    assert INPUTS.recording_key(one, "cpu", context=[1]) != INPUTS.recording_key(rounded, "cpu", context=[1])


@pytest.mark.parametrize("override", ["seed=1", "finetune=lcgd", "protocol=dai2023"])
def test_a_learned_recording_belongs_to_its_variant_too(override):
    one, other = config("finetune=gd"), config("finetune=gd", override)
    assert INPUTS.recording_key(one, "cpu", learned=True) != INPUTS.recording_key(other, "cpu", learned=True)
