"""The machine, the revision of a checkout, and how its tracked files differ from it."""

import json
import os
import subprocess

import pytest

from iclgd.runs import environment


def test_the_environment_holds_versions_and_no_secrets(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "local-0123456789abcdef")
    found = environment.environment("cpu", "float32", 2)
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

    monkeypatch.setattr(environment.paths, "project_root", lambda: tmp_path)
    environment.source_patch.cache_clear()
    yield call
    environment.source_patch.cache_clear()


def test_the_difference_from_the_revision_brings_back_what_ran(git, tmp_path):
    git("init", "-q")
    git("config", "diff.noprefix", "true")
    for name in ("a.py", "gone.py", "größe.py"):
        (tmp_path / name).write_text("A = 1\n")
    (tmp_path / "table.bin").write_bytes(bytes(range(256)))
    git("add", ".")
    git("commit", "-qm", "m")
    assert environment.revision()["dirty"] is False and environment.source_patch() == ""
    environment.source_patch.cache_clear()
    (tmp_path / "a.py").write_text("A = 2\n")
    (tmp_path / "gone.py").unlink()
    (tmp_path / "größe.py").write_text("B = 'ä'\n")
    (tmp_path / "table.bin").write_bytes(bytes(range(255, -1, -1)))
    (tmp_path / "untracked.py").write_text("KEY = 'hf_secret'\n")
    revision, patch = environment.revision(), environment.source_patch()
    assert revision["dirty"] is True and len(revision["revision"]) == 40 and "hf_secret" not in patch
    git("stash")
    (tmp_path / "change").write_text(patch)
    git("apply", "change")
    assert (tmp_path / "a.py").read_text() == "A = 2\n" and not (tmp_path / "gone.py").exists()
    assert (tmp_path / "größe.py").read_text() == "B = 'ä'\n"
    assert (tmp_path / "table.bin").read_bytes() == bytes(range(255, -1, -1))


def test_outside_a_checkout_nothing_is_known_of_the_revision(git):
    assert environment.revision() == {"revision": None, "dirty": None} and environment.source_patch() is None


def test_a_build_of_a_library_is_no_other_version(monkeypatch):
    monkeypatch.setattr(environment.metadata, "version", lambda name: "2.13.0+cu128")
    assert environment.computing_versions()["torch"] == "2.13.0"
