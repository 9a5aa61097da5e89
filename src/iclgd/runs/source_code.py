"""The code that makes numbers, by content: this package's own, and the user's functions named by a dotted path.

Comments, docstrings and layout do not count. Of a user's function its module's file counts, and every module of the
user's that this one imports, directly or not, a compiled one too; installed packages count by what was installed,
the standard library not at all. Files that code opens by itself are not seen.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import marshal
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence, Set
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from types import ModuleType

import iclgd
from iclgd.common.digests import digest_of, digest_of_text
from iclgd.config import ConfigError

_PACKAGE = Path(iclgd.__file__).resolve().parent
# What only places, shows or starts a run; everything else, a room that is new included, makes its numbers.
_NO_NUMBERS = ("__init__", "__main__", "api", "cli", "report", "results", "runs", "tracking", "verify")
COMPUTING = ("torch", "transformers", "tokenizers", "numpy", "scipy")  # count by their versions, in every run
_STANDARD = sys.stdlib_module_names - {"__main__"}
_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_MOST_FILES = 5000  # of a package that are read

_loaded: dict[str, str] = {}  # by module, the digest of what this process has executed


def normal(source: str, name: str) -> str:
    """The digest of a Python source without comments, docstrings and layout."""
    tree = _parsed(source, name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return digest_of_text(ast.unparse(tree))


def _parsed(source: str, name: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read: {error}") from error


@functools.cache
def own_code() -> dict[str, str]:
    """Digests by file of this package's code that draws, records, trains and scores, as this process found it."""
    return {name: normal(path.read_text("utf-8"), name) for name, path in _own_files().items()}


def _own_files() -> dict[str, Path]:
    every = {path.relative_to(_PACKAGE): path for path in sorted(_PACKAGE.rglob("*.py"))}
    return {f"iclgd/{p.as_posix()}": q for p, q in every.items() if p.with_suffix("").parts[0] not in _NO_NUMBERS}


def user_code(functions: Sequence[str]) -> dict[str, str]:
    """Digests by file of what defines the user's functions; afterwards this process has executed exactly that source.

    Args:
        functions: dotted paths. One that cannot be imported is passed over: whoever calls it says so better.

    Raises:
        ConfigError: a function lies in no file, or the file is not Python or fails when executed after a change.
    """
    digests: dict[str, str] = {}
    for path in functions:
        module, _, name = path.rpartition(".")
        before, top = set(sys.modules), module.split(".")[0]
        if top == _PACKAGE.name or not _import(module):
            continue
        sources, others, packages = _sources(module)
        counted = packages - _STANDARD - {*COMPUTING}
        if top in counted and (file := _file(module)) is not None:
            others[module] = file  # it may have been edited where it is installed
        if hasattr(sys.modules[module], name) and module not in {*sources, *others} and top not in packages | _STANDARD:
            raise ConfigError(
                f"{path} is not defined in a file, so a change to it cannot be detected: put it into a module beside "
                "the notebook or in the current folder"
            )
        _loaded.update(_just_executed(sources, before))
        _execute_changed(sources)
        digests |= {_label(name, file): normal(text, str(file)) for name, (file, text) in sources.items()}
        # as this process found them, for it does not load them again
        digests |= {_label(name, file): _loaded.setdefault(name, digest_of(file)) for name, file in others.items()}
        digests |= {f"{package}, as installed": as_installed(package) for package in counted}
    return digests


def _import(module: str) -> bool:
    try:
        importlib.invalidate_caches()
        importlib.import_module(module)
    except Exception:  # it is the user's code, which may raise anything; whoever calls it says so better
        return False
    return True


def _label(module: str, file: Path) -> str:
    parts = module.count(".") + 1 + (file.stem == "__init__")
    return "/".join(file.parts[-parts:])


_distributions = functools.cache(metadata.packages_distributions)  # takes up to a second


@functools.cache
def as_installed(package: str) -> str:
    """The versions of the distributions that an installed package comes from, and a digest of its source."""
    names = _distributions().get(package, ())
    found = [metadata.distribution(name) for name in sorted({*names})]
    records = [[line for line in (each.read_text("RECORD") or "").splitlines() if ".py," in line] for each in found]
    lines = sorted(chain(*records)) if records and all(records) else _files_of(package)
    return " ".join([*(each.version for each in found), digest_of_text(*lines)[:16]])


def _files_of(package: str) -> list[str]:
    """The source files of an installed package that nobody has listed, each with a digest."""
    spec = importlib.util.find_spec(package)
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    files = [file for place in places for file in sorted(islice(place.rglob("*.py"), _MOST_FILES))]
    if spec is not None and not places and spec.origin:
        files = [Path(spec.origin)]
    return [f"{file.name} {digest_of(file)}" for file in files]


def _sources(root: str) -> tuple[dict[str, tuple[Path, str]], dict[str, Path], set[str]]:
    """What the root's code consists of.

    Returns:
        By module, file and text of the root, its packages and the user's modules below, each after those it imports;
        the files of modules among these that have no source, such as compiled ones; the names of installed packages.
    """
    found: dict[str, tuple[Path, str]] = {}
    compiled: dict[str, Path] = {}
    packages: set[str] = set()
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        top, file = name.split(".")[0], _file(name)
        if _is_installed(_file(top)) or _is_installed(file):
            packages.add(top)
        elif file is not None and file.suffix != ".py":
            compiled[name] = file
        elif file is not None:
            text = file.read_text("utf-8")
            package = name if file.stem == "__init__" else name.rpartition(".")[0]
            for imported in _imported(text, package, str(file)):
                visit(imported)
            found[name] = (file, text)

    for name in _with_packages(root):
        visit(name)
    return found, compiled, packages


def _file(name: str) -> Path | None:
    """The file of a module, without executing anything but the packages that it lies in."""
    if name.split(".")[0] == _PACKAGE.name:
        return None
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None)
    if module is None:
        try:
            spec = importlib.util.find_spec(name)
        except Exception:  # finding a module executes the packages that it lies in, which may raise anything
            return None
        origin = spec.origin if spec is not None else None
    path = Path(origin).resolve() if origin else None
    return path if path is not None and path.is_file() else None


def _is_installed(file: Path | None) -> bool:
    return file is not None and (
        any(file.is_relative_to(folder) for folder in _INSTALLED)
        or not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
    )


def _imported(text: str, package: str, file: str) -> Iterator[str]:
    for node in ast.walk(_parsed(text, file)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module or ""]))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from _with_packages(name)


def _with_packages(module: str) -> Iterator[str]:
    """The packages that a module lies in, outermost first, and the module."""
    parts = module.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _just_executed(sources: Mapping[str, tuple[Path, str]], before: Set[str]) -> dict[str, str]:
    """Digests of modules that were imported only now, from their source or from bytecode that says the same."""
    return {
        name: digest_of_text(text)
        for name, (file, text) in sources.items()
        if name not in before and name in sys.modules and _says_the_same(file, text)
    }


def _says_the_same(file: Path, text: str) -> bool:
    """Whether a module's bytecode file, if there is one, is that of this source.

    Python itself compares their times in whole seconds and their sizes only.
    """
    try:
        compiled = Path(importlib.util.cache_from_source(str(file))).read_bytes()[16:]
        return marshal.loads(compiled) == compile(text, str(file), "exec", dont_inherit=True)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, NotImplementedError):
        return False


def _execute_changed(sources: dict[str, tuple[Path, str]]) -> None:
    """Execute the modules' sources where the process has, or may have, executed others."""
    texts = {name: digest_of_text(text) for name, (_, text) in sources.items()}
    if all(_loaded.get(name) == digest for name, digest in texts.items()):
        return
    for name, (file, text) in sources.items():
        module = sys.modules.get(name)
        if module is not None and name != "__main__":
            _execute(module, file, text)
    _loaded.update(texts)


def _execute(module: ModuleType, file: Path, text: str) -> None:
    try:
        exec(compile(text, str(file), "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        raise ConfigError(f"{file} fails: {type(error).__name__}: {error}") from error
