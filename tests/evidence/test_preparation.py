"""Rows are drawn and inputs digested before a run; a finished run is taken for another as soon as one has changed."""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from configs import config
from iclgd.common import paths
from iclgd.config import Config
from iclgd.evidence import preparation
from iclgd.evidence.preparation import Session, prepare
from iclgd.runs import provenance
from iclgd.runs.execute import Ending, Outcome, execute
from iclgd.runs.inputs import Inputs
from iclgd.tasks.draw import read_pool

SHOTS, ROWS = 4, 16
METRIC = "def far(icl, ft, zsl):\n    return (icl - ft).norm(dim=-1)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model, a task and a function of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "prov_metric", raising=False)
    monkeypatch.setenv("ICLGD_CACHE_DIR", str(tmp_path / "cache"))
    shutil.copytree(paths.toy_model_folder(), "model")
    for task in ("mine", "other"):
        Path("data", task).mkdir(parents=True)
        for split in ("train", "validation"):
            rows = [{"sentence": f"{task} {split} {number}", "label": number % 2} for number in range(ROWS)]
            Path("data", task, f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("prov_metric.py").write_text(METRIC)
    text = (paths.config_folder() / "task" / "sst2.yaml").read_text()
    Path("other.yaml").write_text(text.replace("name: sst2", "name: other"))
    return tmp_path


@cache
def run(*overrides: str) -> Config:
    """A run with the folder's model and task."""
    mine = (
        *("model=hf", "model.name=model", "task=sst2", "task.name=mine", "paths.data_dir=data", "runtime.device=cpu"),
        *(f"task.shots={SHOTS}", "task.queries=8", "metric.scores.sim_aou.function=prov_metric.far"),
        "finetune.lr=0.1",
    )
    return config(*mine, *overrides)


def inputs(*overrides: str) -> Inputs:
    return prepare(run(*overrides)).inputs


def changed(edit: Callable[[], object], *overrides: str) -> list[str]:
    """The inputs that an edit changes, in words."""
    before = inputs(*overrides)
    edit()
    return inputs(*overrides).changes(before.parts)


def flip(path: str) -> Callable[[], object]:
    """Another content of the same size and time stamp."""

    def edit() -> None:
        stamp = Path(path).stat()
        content = bytearray(Path(path).read_bytes())
        content[-3] ^= 1
        Path(path).write_bytes(content)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    return edit


def reword(path: str, old: str, new: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(Path(path).read_text().replace(old, new))


def rows_that_count(task: str, *overrides: str) -> int:
    """How many rows of a task's train split change the inputs when they are worded otherwise."""
    before, counted = inputs(*overrides), 0
    for number in range(ROWS):
        reword(f"data/{task}/train.jsonl", f'"{task} train {number}"', f'"{task} train {number} again"')()
        now = inputs(*overrides)
        counted += bool(now.changes(before.parts))
        before = now
    return counted


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.mechanism=prov_gone.act", "finetune.mechanism=prov_gone.act cannot be imported"),
        ("finetune.objective=math.pi", "finetune.objective=math.pi is a float: name a function"),
        ("finetune.layers=[0,4]", "names layer 4, but the model's layers are 0 to 3"),
        ("task.shots=1000", "task.shots=1000"),
        ("model.name=gone", "model.name=gone cannot be read: it is not a folder here"),
    ],
)
def test_what_cannot_run_is_refused_before_a_run_has_a_folder(folder, override, message):
    refused = outcome(override)
    assert refused.ending is Ending.refused and message in refused.message and not Path("run").exists()


def test_the_runs_of_a_command_read_a_tasks_rows_once(folder, monkeypatch):
    session, reads = Session(), []
    module = sys.modules[read_pool.__module__]
    monkeypatch.setattr(module, "read_pool", lambda config: reads.append(1) or read_pool(config))
    chosen = [(), ("seed=1", "task.shots=2"), ("task.description=Label.",), ("finetune.lr=0.2",)]
    parts = [prepare(run(*overrides), session).inputs.parts for overrides in chosen]
    assert len(reads) == 2 and parts == [prepare(run(*overrides)).inputs.parts for overrides in chosen]


READ = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
NEW = ("merges.txt", "special_tokens_map.json", "chat_template.jinja")
OTHERS = ("generation_config.json", "README.md", "optimizer.safetensors")


@pytest.mark.parametrize("name", [*READ, *NEW, *OTHERS])
def test_files_count_that_a_model_is_read_from(folder, name):
    path, new = Path("model", name), " (new)" if name in NEW else ""
    edit = flip(str(path)) if name in READ else lambda: path.write_text("{}")
    assert changed(edit) == ([] if name in OTHERS else [f"the model's {name}{new}"])


OTHER = ("finetune=other_task", "finetune.other_task=other.yaml", "finetune.lr=0.1", "task.rates={lcgd: 0.1}")


@pytest.mark.parametrize(
    ("task", "overrides", "samples"),
    [
        ("mine", (), 1),
        ("mine", ("reference.draw=1",), 2),
        ("mine", ("reference=gd", "reference.lr=0.1", "reference.draw=2"), 2),
        ("other", OTHER, 1),
        ("other", (*OTHER, "reference=other_task", "reference.draw=1"), 2),
    ],
)
def test_the_rows_that_are_drawn_count_and_the_references_own(folder, task, overrides, samples):
    assert rows_that_count(task, *overrides) == samples * SHOTS


def test_rows_for_calibration_count_where_something_is_fitted_to_them(folder):
    plain, fitted = inputs(), inputs("+metric=weight_cosine")
    assert not any(name.startswith("calibration") for name in plain.parts)
    assert any(name.startswith("calibration") for name in fitted.parts)
    assert "variant static_patch" in fitted.parts


def test_a_variant_that_is_compared_with_counts_by_its_yaml(folder, monkeypatch):
    compared = ("metric=[sim_aou,alpha]", "metric.compare_with=lcgd", "task.rates={lcgd: 0.1}")
    before = inputs(*compared)
    other = run("finetune=lcgd", "finetune.epochs=2")
    monkeypatch.setattr(preparation, "variant", lambda *_: other)
    assert inputs(*compared).changes(before.parts) == ["conf/finetune/lcgd.yaml"]


def test_a_label_or_an_expression_is_no_module(folder):
    Path("prov_trap.py").write_text("raise SystemExit\n")
    inputs("finetune.label=prov_trap.looks", "finetune.trainable=prov_trap.down_proj", "reference.label=prov_trap.x")


# A finished run and the same command again, with an experiment that takes no time.


def outcome(*overrides: str) -> Outcome:
    def experiment(config, folder, progress, prepared):
        folder.write("scores.json", {"sim_aou": {"mean": time.time()}})
        return folder.read_json("scores.json")

    return execute(run(*overrides), Path("run"), experiment, prepare)


def start() -> Ending:
    return outcome().ending


def new_version(monkeypatch, package: str) -> None:
    versions = preparation.computing_versions()
    monkeypatch.setattr(preparation, "computing_versions", lambda: {**versions, package: "9.9"})


def own_function(monkeypatch) -> None:
    reword("prov_metric.py", "norm", "sum")()
    monkeypatch.delitem(sys.modules, "prov_metric")  # as in a process that starts now
    provenance._digests.clear()


CHANGES = {
    "the rows of mine/train.jsonl": lambda _: reword("data/mine/train.jsonl", "train", "practice")(),
    "the rows of mine/validation.jsonl": lambda _: reword("data/mine/validation.jsonl", '"label": 1', '"label": 0')(),
    "the model's model.safetensors": lambda _: flip("model/model.safetensors")(),
    "the model's config.json": lambda _: reword("model/config.json", "10000.0", "20000.0")(),
    "prov_metric.py": own_function,
    "this package's measuring code": lambda patch: patch.setattr(preparation, "measuring_code", lambda: "another"),
    "the dtype (float32, now float64)": lambda patch: patch.setattr(preparation, "dtype_name", lambda *_: "float64"),
    "the device (cpu, now cuda)": lambda patch: patch.setattr(preparation, "_device", lambda _: "cuda"),
    "the version of torch": lambda patch: new_version(patch, "torch"),
    "the version of transformers": lambda patch: new_version(patch, "transformers"),
}


@pytest.mark.parametrize("named", CHANGES)
def test_every_change_of_an_input_is_noticed_and_named_and_old_results_are_kept(folder, named, monkeypatch, caplog):
    assert start() is Ending.done
    before = Path("run/scores.json").read_bytes()
    CHANGES[named](monkeypatch)
    assert start() is Ending.done
    assert f"changed: {named}" in caplog.text and "run/earlier/1" in caplog.text
    assert Path("run/earlier/1/scores.json").read_bytes() == before != Path("run/scores.json").read_bytes()
    assert start() is Ending.skipped


def data_elsewhere() -> None:
    shutil.move("data", "moved")
    Path("data").symlink_to("moved")


@pytest.mark.parametrize(
    "change",
    [
        lambda: [os.utime(path) for path in Path().rglob("*")],
        data_elsewhere,
        lambda: Path("unrelated.py").write_text("A = 1\n"),
    ],
)
def test_what_changes_no_input_computes_nothing(folder, change):
    assert start() is Ending.done
    change()
    assert start() is Ending.skipped


def test_a_finished_run_whose_column_was_renamed_is_refused_and_stays_as_it_is(folder):
    csv = "sentence,label\n" + "".join(f"row {number},{number % 2}\n" for number in range(ROWS))
    for file in Path("data/mine").iterdir():
        file.with_suffix(".csv").write_text(csv)
        file.unlink()
    named = "task.label_values=['0','1']"
    assert outcome(named).ending is Ending.done
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    reword("data/mine/train.csv", "sentence,", "text,")()
    again = outcome(named)
    assert again.ending is Ending.refused
    assert re.search(r"run is done, but its inputs have changed: .*train\.csv, line 2.*sentence", again.message)
    assert before == {path.name: path.read_bytes() for path in Path("run").iterdir()}


@pytest.mark.parametrize("gone", ["data", "model"])
def test_a_finished_run_whose_data_or_model_is_gone_is_skipped_with_a_warning(folder, gone, caplog):
    assert start() is Ending.done
    shutil.move(gone, "elsewhere")
    assert start() is Ending.skipped and "its inputs cannot be read again for comparison" in caplog.text


def test_the_rows_that_were_digested_are_those_that_the_experiment_gets(folder):
    """What changes between drawing and computing has no part in the run."""

    def experiment(config, folder, progress, prepared):
        reword("data/mine/train.jsonl", "train", "practice")()
        shown.extend(prepared.drawn.demonstrations)
        folder.write("scores.json", {})
        return {}

    shown = []
    execute(run(), Path("run"), experiment, prepare)
    assert len(shown) == SHOTS and all("mine train" in example.text for example in shown)
    assert start() is Ending.done and Path("run/earlier/1").is_dir()
