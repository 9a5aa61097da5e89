"""The machine, the revision of a checkout, and how its tracked files differ from it."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import iclgd
from iclgd.config import ConfigError
from iclgd.runs import provenance
from iclgd.runs.provenance import measuring_code, user_code


def test_the_environment_holds_versions_and_no_secrets(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "local-0123456789abcdef")
    found = provenance.environment("cpu", "float32", 2)
    assert found["packages"]["torch"] and found["packages"]["hydra-core"] and found["device"]["name"] == "cpu"
    assert found["threads"] == 2
    text = json.dumps(found)
    assert "0123456789abcdef" not in text and os.path.expanduser("~") not in text


@pytest.fixture
def git(tmp_path, monkeypatch):
    """A repository in place of this project's."""

    def call(*arguments):
        author = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *author, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(provenance.paths, "project_root", lambda: tmp_path)
    provenance.source_patch.cache_clear()
    yield call
    provenance.source_patch.cache_clear()


def test_the_difference_from_the_revision_brings_back_what_ran(git, tmp_path):
    assert provenance.revision() == {"revision": None, "dirty": None} and provenance.source_patch() is None
    provenance.source_patch.cache_clear()
    git("init", "-q")
    git("config", "diff.noprefix", "true")
    contents = {"gone.py": b"A = 1\n", "größe.py": b"A = 1\n", "table.bin": bytes(range(256))}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    git("add", ".")
    git("commit", "-qm", "m")
    assert provenance.revision()["dirty"] is False and provenance.source_patch() == ""
    provenance.source_patch.cache_clear()
    (tmp_path / "gone.py").unlink()
    (tmp_path / "größe.py").write_text("B = 'ä'\n")
    (tmp_path / "table.bin").write_bytes(contents["table.bin"][::-1])
    (tmp_path / "untracked.py").write_text("KEY = 'hf_secret'\n")
    revision, patch = provenance.revision(), provenance.source_patch()
    assert revision["dirty"] is True and len(revision["revision"]) == 40 and "hf_secret" not in patch
    git("stash")
    (tmp_path / "change").write_text(patch)
    git("apply", "change")
    assert not (tmp_path / "gone.py").exists() and (tmp_path / "größe.py").read_text() == "B = 'ä'\n"
    assert (tmp_path / "table.bin").read_bytes() == contents["table.bin"][::-1]


def test_a_build_of_a_library_is_no_other_version(monkeypatch):
    monkeypatch.setattr(provenance.metadata, "version", lambda name: "2.13.0+cu128")
    assert provenance.computing_versions()["torch"] == "2.13.0"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with modules of the user's; each test starts as a new process would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("prov_deep.py").write_text("SCALE = 1\n")
    Path("prov_metric.py").write_text("import numpy\nfrom prov_deep import SCALE\n\n\ndef far(icl): ...\n")
    restarted()
    yield tmp_path
    restarted()


def restarted():
    """Forget what was imported, as a new process would."""
    provenance._digests.clear()
    for name in [name for name in sys.modules if name.startswith("prov")]:
        del sys.modules[name]


def test_a_function_counts_by_the_files_that_its_import_brings_in(folder):
    assert set(before := user_code(["prov_metric.far"])) == {"code prov_metric.py", "code prov_deep.py"}
    for file in ("prov_deep.py", "prov_metric.py"):
        Path(file).write_text(Path(file).read_text() + "OTHER = 1\n")
        restarted()
        now = user_code(["prov_metric.far"])
        assert [name for name in now if now[name] != before[name]] == [f"code {file}"]
        before = now


def test_modules_that_another_function_brought_in_packages_and_relative_imports_count(folder):
    Path("prov_second.py").write_text("from prov_deep import SCALE\n\n\ndef far(icl): ...\n")
    user_code(["prov_metric.far"])
    assert set(user_code(["prov_second.far"])) == {"code prov_second.py", "code prov_deep.py"}
    Path("prov_package").mkdir()
    Path("prov_package/__init__.py").write_text("")
    Path("prov_package/inner.py").write_text("from . import constants\nfrom .more import X\n\n\ndef far(icl): ...\n")
    Path("prov_package/constants.py").write_text("A = 1\n")
    Path("prov_package/more.py").write_text("X = 1\n")
    names = ("__init__", "constants", "inner", "more")
    assert sorted(user_code(["prov_package.inner.far"])) == [f"code prov_package/{name}.py" for name in names]


def test_an_edit_counts_once_the_process_has_the_new_code(folder):
    before = user_code(["prov_metric.far"])
    Path("prov_deep.py").write_text("SCALE = 222\n")
    assert user_code(["prov_metric.far"]) == before  # the process computes with what it has
    importlib.reload(sys.modules["prov_deep"])  # as %autoreload does
    assert user_code(["prov_metric.far"]) != before


def test_installed_packages_and_this_one_do_not_count_by_their_files(folder, monkeypatch):
    library = folder / "site-packages" / "prov_library"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("def far(icl): ...\n")
    monkeypatch.syspath_prepend(library.parent)
    named = ["prov_library.far", "iclgd.metrics.updates.sim_aou", "json.dumps"]
    assert user_code([*named, "prov_gone.far", "0.5"]) == {}  # nor does what is no function


def test_a_function_that_lies_in_no_file_is_refused(folder):
    module = types.ModuleType("prov_typed_in")  # as in a notebook: what it reads can change unseen
    exec("def far(icl): ...", module.__dict__)
    sys.modules[module.__name__] = module
    with pytest.raises(ConfigError, match=r"prov_typed_in\.far is not defined in a file.*module"):
        user_code(["prov_typed_in.far"])


def test_only_the_rooms_that_measure_count(tmp_path):
    """A change outside of them computes nothing anew."""
    shutil.copytree(Path(iclgd.__file__).parent, tmp_path / "iclgd", ignore=shutil.ignore_patterns("__pycache__"))
    program = "from iclgd.runs.provenance import measuring_code; print(measuring_code())"

    def digest() -> str:
        environment = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        return ran.stdout

    before = digest()
    assert before.strip() == measuring_code()
    for room in ("report", "cli", "runs", "results", "verify", "tracking"):
        (tmp_path / "iclgd" / room / "__init__.py").write_text("# another comment\n")
    assert digest() == before
    for file in ("experiment.py", "metrics/updates.py", "evidence/__init__.py"):
        with (tmp_path / "iclgd" / file).open("a") as stream:
            stream.write("CHANGED = 1\n")
        now = digest()
        assert now != before, file
        before = now
