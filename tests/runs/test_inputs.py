"""What a run's fingerprint covers: every input that can change a number, and no other."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import iclgd
from configs import config
from iclgd.common import paths
from iclgd.config import Config, ConfigError
from iclgd.runs import source_code
from iclgd.runs.environment import made_with
from iclgd.runs.fingerprint import Fingerprint, changes, fingerprint
from iclgd.runs.source_code import own_code, user_code

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


def parts(*overrides: str) -> Fingerprint:
    """What it is made of now."""
    return fingerprint(run(*overrides))


def changed(edit: Callable[[], object], *overrides: str) -> list[str]:
    """What the fingerprint says has changed after an edit, in words."""
    before = parts(*overrides)
    edit()
    return changes(before.parts, parts(*overrides))


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
        counted += bool(changes(before.parts, now))
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


def test_the_users_functions_with_what_they_import(folder):
    assert changed(reword("prov_deep.py", "1", "2")) == ["prov_deep.py"]
    assert changed(reword("prov_metric.py", "norm", "sum")) == ["prov_metric.py"]
    assert changed(reword("prov_metric.py", "def far", "# a comment\ndef far")) == []


@pytest.mark.parametrize("module", ["prov-hyphen", "2_prov"])
def test_a_file_of_the_users_may_have_any_name_that_python_imports(folder, module):
    Path(f"{module}.py").write_text(Path("prov_metric.py").read_text())
    score = f"metric.scores.sim_aou.function={module}.far"
    assert changed(reword(f"{module}.py", "norm", "sum"), score) == [f"{module}.py"]


def test_the_package_that_a_function_lies_in_is_executed_and_counts(folder):
    Path("prov_package").mkdir()
    Path("prov_package/__init__.py").write_text("import torch\n\ntorch.prov_scale = 1\n")
    Path("prov_package/inner.py").write_text("def far(icl, ft, zsl):\n    return icl[..., 0]\n")
    init = reword("prov_package/__init__.py", "1", "2")
    assert changed(init, "metric.scores.sim_aou.function=prov_package.inner.far") == ["prov_package/__init__.py"]


@pytest.mark.parametrize("root", ["prov_metric", "prov_library"])
def test_an_installed_package_counts_by_what_was_installed(folder, root, monkeypatch):
    place, record = folder / "site-packages", folder / "site-packages" / "prov_else-1.0.dist-info"
    for path in (place / "prov_library", record):
        path.mkdir(parents=True)
    (place / "prov_library" / "__init__.py").write_text("from prov_library.inner import far\n")
    (place / "prov_library" / "inner.py").write_text(Path("prov_metric.py").read_text())
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: prov-else\nVersion: 1.0\n")
    (record / "RECORD").write_text("prov_library/__init__.py,sha256=a,1\nprov_library/inner.py,sha256=b,1\n")
    Path("prov_metric.py").write_text("import prov_library\n" + Path("prov_metric.py").read_text())
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "prov_library", raising=False)
    for known in (source_code.as_installed, source_code._distributions):
        known.cache_clear()

    def again(path: Path, old: str, new: str) -> Callable[[], None]:
        def edit() -> None:
            reword(str(path), old, new)()
            for known in (source_code.as_installed, source_code._distributions):
                known.cache_clear()  # as another process would see it
            source_code._loaded.clear()

        return edit

    score = f"metric.scores.sim_aou.function={root}.far"
    installed = ["prov_library, as installed"]
    assert changed(again(record / "RECORD", "=b", "=c"), score) == installed
    assert not any(name.startswith("code torch") for name in parts(score).parts)
    by_hand = changed(again(place / "prov_library" / "__init__.py", "\n", "\nSCALE = 2\n"), score)
    assert by_hand == (["prov_library/__init__.py"] if root == "prov_library" else [])
    (record / "RECORD").unlink()
    assert changed(again(place / "prov_library" / "inner.py", "norm", "sum"), score) == installed
    shutil.rmtree(record)
    assert changed(again(place / "prov_library" / "inner.py", "sum", "norm"), score) == installed


def test_every_distribution_counts_that_brings_an_installed_package(folder, monkeypatch):
    for name in ("prov-space", "prov_one", "prov_two"):  # the first is called as the package and brings nothing of it
        record = folder / f"{name}-1.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        own = "" if name == "prov-space" else f"prov_space/{name}.py,sha256=a,1\n"
        (record / "RECORD").write_text(f"{own}{name}-1.0.dist-info/METADATA,,\n")
    source_code._distributions.cache_clear()
    found = source_code.as_installed.__wrapped__("prov_space")
    for name in ("prov_one", "prov_two"):
        reword(f"{name}-1.0.dist-info/METADATA", "1.0", "1.1")()
        before, found = found, source_code.as_installed.__wrapped__("prov_space")
        assert before != found


def test_a_module_without_source_counts_by_its_bytes(folder):
    Path("prov_metric.py").write_text("from prov_compiled import far\n")

    def compiled(scale: int) -> None:
        Path("text.txt").write_text(f"def far(icl, ft, zsl):\n    return icl[..., 0] * {scale}\n")
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH  # else it holds the time
        py_compile.compile("text.txt", "prov_compiled.pyc", invalidation_mode=mode)
        source_code._loaded.clear()  # as another process would see it

    compiled(1)
    for module in ("prov_metric", "prov_compiled"):
        score = f"metric.scores.sim_aou.function={module}.far"
        assert changed(lambda: compiled(2), score) == ["prov_compiled.pyc"]
        assert changed(lambda: Path("prov_compiled.pyc").write_bytes(b""), score) == []  # this process has the old one
        compiled(1)


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
    assert changes(parts().parts, parts(f"metric.scores.sim_aou.{setting}")) == ["the limits and shares of scores"]


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


def test_a_module_of_the_users_is_executed_once_and_again_after_a_change(folder):
    Path("prov_once.py").write_text(
        "from prov_deep import SCALE\n\n\ndef typed(x: int): ...\n\n\n"
        "open('told', 'a').write(f\"{SCALE} {typed.__annotations__['x'].__name__}, \")\n"  # a type, not its name
    )
    for _ in range(2):
        user_code(["prov_once.typed"])
    assert Path("told").read_text() == "1 int, "
    Path("prov_deep.py").write_text("SCALE = 2\n")
    for _ in range(2):
        user_code(["prov_once.typed"])
    assert Path("told").read_text() == "1 int, 2 int, "


def test_code_that_only_shows_or_places_a_run_does_not_count():
    files = own_code()
    assert {"iclgd/ranks.py", "iclgd/variants.py", "iclgd/seeding.py", "iclgd/metrics/updates.py"} <= files.keys()
    assert not any(file.startswith(("iclgd/report/", "iclgd/runs/", "iclgd/command")) for file in files)


def test_all_code_that_recording_imports_is_in_the_key_of_recordings():
    imported = "import sys, iclgd.models.loading; print(*(name for name in sys.modules if name.startswith('iclgd.')))"
    names = subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True, check=True).stdout.split()
    files = {f"{name.replace('.', '/')}.py" for name in names} & own_code().keys()
    assert "iclgd/models/recorder.py" in files and files <= made_with("cpu")["code"].keys()


@pytest.mark.parametrize(
    ("before", "ahead", "mixed"),
    [
        ("iclgd.config.enumerations", 0, True),
        ("iclgd.metrics", 0, True),
        ("iclgd.config.enumerations", 10**12, True),  # ns: the time of its content lies ahead, but its entry's is now
        ("iclgd", 0, False),  # nothing that counts has been read
        ("iclgd.common.printable", 0, False),
    ],
)
def test_nothing_is_computed_with_code_that_changed_while_it_was_read(tmp_path, before, ahead, mixed):
    shutil.copytree(Path(iclgd.__file__).parent, tmp_path / "iclgd", ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        f"import os, time, {before}\n"
        "time.sleep(0.05)\n"  # a file system's clock ticks coarsely
        f"os.utime('iclgd/ranks.py', ns=(0, time.time_ns() + {ahead}))\n"
        "from iclgd import api, experiment\n"
        "experiment.run(None, None)"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    refused = ran.stderr.endswith("RuntimeError: iclgd/ranks.py changed while iclgd was being loaded; start it again\n")
    assert refused == mixed and "Error: " in ran.stderr.splitlines()[-1]


def test_a_run_reads_all_code_that_counts_at_once():
    program = "import sys, iclgd.experiment; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    counted = {file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in own_code()}
    assert counted <= {*names}
