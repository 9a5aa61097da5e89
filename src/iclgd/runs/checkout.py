"""The git checkout that a run was made in: its revision, and how its files differ from it."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iclgd.common import paths
from iclgd.runs.secrets import without_secrets

_PATCH = 1_000_000  # bytes of a difference from the revision, at most
_LARGEST = 10_000_000  # bytes of a file of which git is asked
_FILES = 1000  # looked at, at most: git is asked of each one that it knows
_SECRET = re.compile(r"(^|/)(\.env|\.netrc|id_[a-z0-9]+|credentials)|\.(pem|key|p12)$|secret|token", re.IGNORECASE)


def revision() -> dict[str, Any]:
    """The git revision of this checkout and whether files differ from it; None outside a checkout.

    Returns:
        `revision`; `dirty`, whether any file differs that git does not ignore; `untracked`, whether such are among them
        that git does not know.
    """
    return dict(_checkout()[0])


def source_patch() -> str:
    """How this checkout differs from its revision, as `git apply` reads it; empty where it does not.

    Files that git ignores are left out, as are, with a word at the top, new ones that may hold keys or are no text, and
    what would exceed a megabyte or a thousand files. Keys are struck out of lines that were added; a file that holds
    them beside these is left out.
    """
    return _checkout()[1]


@functools.cache
def _checkout() -> tuple[Mapping[str, Any], str]:
    unknown = {"revision": None, "dirty": None, "untracked": None}, ""
    root = paths.project_root()
    if not (root / ".git").exists():
        return unknown
    try:
        head = _git("rev-parse", "HEAD").strip()
        tracked = _git("diff", "HEAD", "--name-only", "--no-renames", "-z").split("\0")[:-1]
        untracked = _git("ls-files", "--others", "--exclude-standard", "-z").split("\0")[:-1]
        patch = _patch(root, sorted(tracked), sorted(untracked))
    except (OSError, subprocess.SubprocessError):
        return unknown
    return {"revision": head, "dirty": bool(tracked or untracked), "untracked": bool(untracked)}, patch


def _patch(root: Path, tracked: list[str], untracked: list[str]) -> str:
    names = [*tracked, *untracked]
    patch, notes, size, looked_at = list[str](), list[str](), 0, 0
    for looked_at, name in enumerate(names[:_FILES], 1):
        change, left_out = _change(root / name, name, looked_at > len(tracked), _PATCH - size)
        patch.append(change)
        size += len(change.encode())
        notes += [f"# {name!a} differs, but is not here: {left_out}\n"] if left_out else []
        if size > 0.9 * _PATCH:
            break
    text = "".join(notes)
    text = text[: text.rfind("\n", 0, _PATCH // 10) + 1]
    if more := len(names) - looked_at + len(notes) - text.count("\n"):
        text += f"# and {more} more\n"
    return "".join([without_secrets(text), *patch])


def _change(path: Path, name: str, untracked: bool, room: int) -> tuple[str, str]:
    """How a file differs, as a patch of at most `room` bytes, and why it is left out if it is."""
    if untracked and _SECRET.search(name):
        return "", "by its name it may hold keys"
    if name.endswith("/"):
        return "", "it is a repository of its own"
    try:
        if path.is_file() and path.lstat().st_size > (room if untracked else _LARGEST):
            return "", "too large"
        # Nothing of the user's configuration may change what `git apply` reads.
        plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
        change = _added(path, name) if untracked else _git("diff", *plain, "HEAD", "--", name, errors="strict")
        if len(change.encode()) > room:
            return "", "too large"
    except UnicodeError:
        return "", "it is no text in UTF-8"
    except OSError:
        return "", "it cannot be read"
    lines = change.split("\n")
    struck = [without_secrets(line) for line in lines]
    if any(new != old and not old.startswith("+") for new, old in zip(struck, lines, strict=True)):
        return "", "keys stand in lines that are not new"
    return "\n".join(struck), ""


def _added(path: Path, name: str) -> str:
    """A new file as a patch, without a git process for each: there may be thousands."""
    link = path.is_symlink()
    text = os.readlink(path) if link else path.read_bytes().decode()
    if not (text.isprintable() if link else "\0" not in text):
        raise UnicodeError("no text")
    mode = 120000 if link else 100755 if path.stat().st_mode & 0o100 else 100644
    quoted = "".join(chr(b) if 31 < b < 127 and chr(b) not in '"\\' else f"\\{b:03o}" for b in os.fsencode(name))
    patch = f'diff --git "a/{quoted}" "b/{quoted}"\nnew file mode {mode}\n'
    if text:
        lines = text.removesuffix("\n").split("\n")
        patch += f'--- /dev/null\n+++ "b/{quoted}"\n@@ -0,0 +1,{len(lines)} @@\n'
        patch += "".join(f"+{line}\n" for line in lines)
        patch += "" if text.endswith("\n") else "\\ No newline at end of file\n"
    return patch


def _git(*arguments: str, errors: str = "surrogateescape") -> str:
    command = ["git", "--literal-pathspecs", "-C", str(paths.project_root()), *arguments]
    done = subprocess.run(command, capture_output=True, timeout=10, check=True)
    return done.stdout.decode("utf-8", errors)
