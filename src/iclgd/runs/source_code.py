"""The code that makes numbers: this package's measuring rooms, and the files of the user's functions.

A process runs what it has imported. The files count as they are when this process first asks for them; who edits one
afterwards restarts the process, or reloads the module (`%autoreload`).
"""

from __future__ import annotations

import ast
import functools
import importlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

import iclgd
from iclgd.common.digests import digest_of, digest_of_text
from iclgd.config import ConfigError

_PACKAGE = Path(iclgd.__file__).resolve().parent
# What only places, shows or starts a run; everything else, a room that is new included, makes its numbers.
_NO_NUMBERS = ("__init__", "__main__", "api", "cli", "report", "results", "runs", "tracking", "verify")
_STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))

# By module, its spec, which a reload replaces, and the digest of its file. It belongs to the process, as modules do.
_digests: dict[str, tuple[object, str]] = {}


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
