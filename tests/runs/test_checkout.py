"""The revision of a checkout, and how its files differ from it."""

import os
import subprocess

import pytest

from command_line import ROOT
from iclgd.runs import checkout


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_the_revision_is_the_checkout_s():
    found = checkout.revision()
    assert found["revision"] is None or len(found["revision"]) == 40
    assert found["dirty"] in (True, False, None)


def test_the_revision_is_unknown_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(checkout.paths, "project_root", lambda: tmp_path)
    checkout._checkout.cache_clear()
    assert checkout.revision() == {"revision": None, "dirty": None, "untracked": None}
    assert checkout.source_patch() == ""
    checkout._checkout.cache_clear()


def test_what_differs_from_the_revision_is_kept_without_secrets(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init", "-q")
    for name, text in {"a.py": "A = 1\n", ".gitignore": "ignored.py\n"}.items():
        (tmp_path / name).write_text(text)
    git("add", ".")
    git("-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "m")
    monkeypatch.setattr(checkout.paths, "project_root", lambda: tmp_path)
    checkout._checkout.cache_clear()
    assert checkout.revision()["dirty"] is False and checkout.source_patch() == ""
    token = "hf_" + "a" * 30
    for name, text in {
        "a.py": f"A = 2  # {token}\n",
        "new.py": "B = 3",
        "ignored.py": "C = 4\n",
        ".env": "KEY=5\n",
        "large.py": "D = 6\n" * 200_000,
    }.items():
        (tmp_path / name).write_text(text)
    checkout._checkout.cache_clear()
    assert {**checkout.revision(), "revision": None} == {"revision": None, "dirty": True, "untracked": True}
    patch = checkout.source_patch()
    assert "+A = 2  # ***" in patch and "+B = 3" in patch and token not in patch
    assert not any(word in patch for word in ("C = 4", "KEY", "D = 6"))
    git("checkout", "-q", "a.py")
    (tmp_path / "new.py").unlink()
    (tmp_path / "change").write_text(patch)
    git("apply", "change")
    assert (tmp_path / "new.py").read_text() == "B = 3"
    checkout._checkout.cache_clear()


def test_the_difference_brings_back_whatever_git_can_hold(tmp_path, monkeypatch):
    def git(*arguments, at):
        author = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(at), *author, *arguments], check=True, capture_output=True)

    def content(folder):
        files = [p for p in folder.rglob("*") if ".git" not in p.parts and (p.is_symlink() or not p.is_dir())]
        return {
            path.relative_to(folder).as_posix(): (
                path.lstat().st_mode,
                os.readlink(path) if path.is_symlink() else path.read_bytes(),
            )
            for path in files
        }

    root, clean = tmp_path / "root", tmp_path / "clean"
    root.mkdir()
    git("init", "-q", at=root)
    git("config", "diff.noprefix", "true", at=root)
    for name in ("old.py", "gone.py", "script.sh", "a*.py", "ab.py"):
        (root / name).write_text(f"# {name}\n" * 9)
    (root / "table.bin").write_bytes(bytes(range(256)))
    git("add", ".", at=root)
    git("commit", "-qm", "m", at=root)
    git("clone", "-q", str(root), str(clean), at=tmp_path)
    git("mv", "old.py", "renamed.py", at=root)
    (root / "gone.py").unlink()
    (root / "script.sh").chmod(0o755)
    (root / "table.bin").write_bytes(bytes(range(255, -1, -1)))
    (root / "a*.py").write_text("B = 1\n")
    for name in ("with space.py", 'quote".py', "größe.py", "empty.py"):
        (root / name).write_text("" if name == "empty.py" else "C = 1")
    (root / "run.sh").write_text("echo\n")
    (root / "run.sh").chmod(0o755)
    (root / "windows.py").write_bytes(b"E = 1\r\n\x0c\rF = 1\n\n")
    for name, target in {"link": "ab.py", 'to a "folder\\': "../größe", "to nothing": "nowhere"}.items():
        (root / name).symlink_to(target)
    (tmp_path / "größe").mkdir()
    expected = content(root)
    (root / "latin.py").write_bytes("# größe\n".encode("latin-1"))
    (root / "image.bin").write_bytes(bytes(99))
    (root / "my_tokens.py").write_text("D = 1\n")
    (root / "nul.txt").write_bytes(b"text\0")
    (root / "broken").symlink_to("two\nlines")
    git("init", "-q", "nested", at=root)
    (root / "keys.sh").write_text(f"export WANDB_API_KEY={'0a' * 20}\n")
    monkeypatch.setattr(checkout.paths, "project_root", lambda: root)
    checkout._checkout.cache_clear()
    patch = checkout.source_patch()
    checkout._checkout.cache_clear()
    assert "0a0a" not in patch and "+export WANDB_API_KEY=***" in patch
    reasons = {"latin.py": "UTF-8", "image.bin": "no text", "nul.txt": "no text", "broken": "no text"}
    for name, why in {**reasons, "my_tokens.py": "may hold keys", "nested/": "a repository of its own"}.items():
        assert any(name in line and why in line for line in patch.splitlines() if line.startswith("#"))
    (tmp_path / "source.patch").write_text(patch)
    git("apply", str(tmp_path / "source.patch"), at=clean)
    (clean / "keys.sh").unlink()
    assert content(clean) == expected


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with nine committed files, all that git is asked of it, and its difference as it is now."""

    def git(*arguments, at="root"):
        author = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path / at), *author, *arguments], check=True, capture_output=True)

    def patch():
        checkout._checkout.cache_clear()
        return checkout.source_patch()

    def ask(*arguments, **options):
        asked.append(arguments)
        return real(*arguments, **options)

    asked, real, root = [], checkout._git, tmp_path / "root"
    root.mkdir()
    git("init", "-q")
    for number in range(9):
        (root / f"{number}.py").write_text("".join(f"A{line} = 1\n" for line in range(9)))
    (root / "2.py").write_text(f'API_KEY = "{"0a" * 20}"\nA = 1\n')
    (root / "3.py").write_text(f'API_KEY = "{"0a" * 20}"\nA = 1\n')
    git("add", ".")
    git("commit", "-qm", "m")
    git("clone", "-q", "root", "clean", at=".")
    monkeypatch.setattr(checkout.paths, "project_root", lambda: root)
    monkeypatch.setattr(checkout, "_git", ask)
    yield root, patch, git, asked
    checkout._checkout.cache_clear()


def test_a_key_in_lines_that_are_not_new_keeps_its_file_out(repository, tmp_path):
    root, patch, git, _ = repository
    (root / "1.py").write_text(f'API_KEY = "{"0b" * 20}"\n')
    (root / "2.py").write_text((root / "2.py").read_text() + "B = 1\n")
    (root / "3.py").write_text("A = 1\n")
    made = patch()
    assert '+API_KEY = "***"' in made and "0a0a" not in made and "0b0b" not in made
    why = "differs, but is not here: keys stand in lines that are not new"
    assert made.startswith(f"# '2.py' {why}\n# '3.py' {why}\ndiff --git")
    (tmp_path / "source.patch").write_text(made)
    git("apply", str(tmp_path / "source.patch"), at="clean")


def test_git_is_not_asked_of_every_one_of_thousands_of_files(repository, monkeypatch):
    root, patch, _, asked = repository
    for number in range(1500):
        (root / f"new_{number}.txt").touch()
    made = patch()
    assert len(asked) == 3 and made.startswith("# and 500 more\ndiff --git")  # revision, tracked, untracked files
    for number in range(9):
        (root / f"{number}.py").write_text("B = 1\n" * 50)
    whole = len(patch().partition("diff --git a/1.py")[0].partition("diff --git")[2])
    monkeypatch.setattr(checkout, "_PATCH", 3 * whole + 50)
    asked.clear()
    made = patch()
    assert len(asked) == 3 + 5 and made.count("diff --git") == 3  # 2.py and 3.py hold keys
    assert "\n# and 1504 more\ndiff --git" in made


def test_what_is_left_out_is_listed_in_whole_lines(repository, monkeypatch):
    root, patch, _, _ = repository
    monkeypatch.setattr(checkout, "_PATCH", 10_000)
    for number in range(99):
        (root / f"token_{number}.txt").touch()
    (root / "zoo.py").write_text("C = 1\n")
    notes, _, change = patch().partition("diff --git")
    *lines, last = notes.splitlines()
    assert notes.endswith("\n") and len(notes) < 1020 and "+C = 1\n" in change
    assert all(line.endswith("by its name it may hold keys") for line in lines)
    assert last == f"# and {99 - len(lines)} more"
