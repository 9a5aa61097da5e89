"""What a run's fingerprint covers: every input that can change a number, and no other."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from configs import config
from iclgd.common import paths
from iclgd.config import Config, ConfigError
from iclgd.evidence.preparation import prepare
from iclgd.runs.inputs import Inputs

SHOTS, ROWS = 4, 16


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model, a task and functions of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("prov_metric", "prov_deep", "prov_once", "prov_compiled"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setenv("ICLGD_CACHE_DIR", str(tmp_path / "cache"))
    shutil.copytree(paths.toy_model_folder(), "model")
    for task in ("mine", "other"):
        Path("data", task).mkdir(parents=True)
        for split in ("train", "validation"):
            rows = [{"sentence": f"{task} {split} {number}", "label": number % 2} for number in range(ROWS)]
            Path("data", task, f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("prov_deep.py").write_text("SCALE = 1\n")
    Path("prov_metric.py").write_text(
        "import prov_deep\n\n\ndef far(icl, ft, zsl):\n    return (icl - ft).norm(dim=-1) * prov_deep.SCALE\n"
    )
    Path("other.yaml").write_text((paths.config_folder() / "task" / "sst2.yaml").read_text())
    text = Path("other.yaml").read_text().replace("name: sst2", "name: other")
    Path("other.yaml").write_text(text)
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


def parts(*overrides: str) -> Inputs:
    """What it is made of now."""
    return prepare(run(*overrides)).inputs


def changed(edit: Callable[[], object], *overrides: str) -> list[str]:
    """What the fingerprint says has changed after an edit, in words."""
    before = parts(*overrides)
    edit()
    return parts(*overrides).changes(before.parts)


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
    """How many rows of a task's train split change the fingerprint when they are worded otherwise."""
    before, counted = parts(*overrides), 0
    for number in range(ROWS):
        reword(f"data/{task}/train.jsonl", f'"{task} train {number}"', f'"{task} train {number} again"')()
        now = parts(*overrides)
        counted += bool(now.changes(before.parts))
        before = now
    return counted


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_each_file_that_a_model_is_read_from(folder, name):
    assert changed(flip(f"model/{name}")) == [f"the model's {name}"]


@pytest.mark.parametrize("name", ["merges.txt", "special_tokens_map.json", "chat_template.jinja"])
def test_a_tokenizer_file_that_was_not_there(folder, name):
    assert changed(lambda: Path("model", name).write_text("{}")) == [f"the model's {name} (new)"]


@pytest.mark.parametrize(
    "name", ["generation_config.json", "README.md", "token_counts.csv", "optimizer.safetensors", "adapter_config.json"]
)
def test_a_file_that_no_model_is_read_from_does_not_count(folder, name):
    assert changed(lambda: Path("model", name).write_text("{}")) == []


def test_a_function_that_lies_in_no_file_is_refused(folder):
    module = types.ModuleType("prov_typed_in")  # as in a notebook: what it reads can change unseen
    exec("SCALE = 1\ndef far(icl, ft, zsl): return icl[..., 0] * SCALE", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        with pytest.raises(ConfigError, match=r"prov_typed_in\.far is not defined in a file.*module"):
            parts("metric.scores.sim_aou.function=prov_typed_in.far")
    finally:
        del sys.modules[module.__name__]


@pytest.mark.parametrize("setting", ["limits=[0,1]", "share=true"])
def test_what_a_scores_interval_follows_from(folder, setting):
    assert parts(f"metric.scores.sim_aou.{setting}").changes(parts().parts) == ["the limits and shares of scores"]


@pytest.mark.parametrize(
    ("overrides", "samples"),
    [((), 1), (("reference.draw=1",), 2), (("reference=gd", "reference.lr=0.1", "reference.draw=2"), 2)],
)
def test_the_rows_that_are_drawn_and_the_references_own(folder, overrides, samples):
    assert rows_that_count("mine", *overrides) == samples * SHOTS


@pytest.mark.parametrize(("reference", "samples"), [((), 1), (("reference=other_task", "reference.draw=1"), 2)])
def test_the_other_tasks_rows_that_a_run_and_its_reference_train_on(folder, reference, samples):
    other = ("finetune=other_task", "finetune.other_task=other.yaml", "finetune.lr=0.1", "task.rates={lcgd: 0.1}")
    assert rows_that_count("other", *other, *reference) == samples * SHOTS


def test_rows_for_calibration_count_whatever_was_asked_before(folder):
    plain, fitted = parts(), parts("+metric=weight_cosine")
    assert not any(name.startswith("calibration") for name in plain.parts)
    assert any(name.startswith("calibration") for name in fitted.parts)
    assert "variant static_patch" in fitted.parts


def test_a_label_or_an_expression_is_no_module(folder):
    Path("prov_trap.py").write_text("raise SystemExit\n")
    made = parts(
        "finetune.label=prov_trap.looks", "finetune.trainable=prov_trap.down_proj", "reference.label=prov_trap.x"
    )
    assert not any("prov_trap" in name for name in made.parts)
