"""The documentation is true: the site builds strictly, its commands and code run, and its faults name their tests."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from command_line import environment
from iclgd import tracking
from iclgd.cli.command import run

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FAULTS = (ROOT / "docs" / "FAULTS.md").read_text()
ROWS = [line for line in FAULTS.splitlines() if line.startswith("| ") and not line.startswith("| Fault |")]
PAGES = [ROOT / "README.md", ROOT / "llms.txt", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
NAMED = re.compile(r"`((?:\w+/)?test_\w+\.py)::(test_\w+)`")


def test_every_fault_names_tests_that_exist():
    assert len(ROWS) > 40
    for row in ROWS:
        _, fault, happens, tests, _ = row.split("|")
        assert fault.strip() and happens.strip()
        for name in tests.strip().split(", "):
            file, test = NAMED.fullmatch(name).groups()
            assert f"\ndef {test}(" in (TESTS / file).read_text(), name


MEASURING = ("common", "config", "runs", "tasks", "models", "mechanisms", "metrics", "statistics", "evidence")
CODE = re.compile(r"`((?:\w+/)*\w+\.py)`")
MAP, RECIPES = (ROOT / "CONTRIBUTING.md").read_text().split("## To change X, touch Y")


def test_the_map_names_every_file_of_the_measuring_rooms_once():
    source = ROOT / "src" / "iclgd"
    named = re.findall(r"^- `(\w+/\w+\.py)`: ", MAP, re.MULTILINE)
    files = [path.relative_to(source).as_posix() for room in MEASURING for path in (source / room).glob("*.py")]
    assert sorted(named) == sorted(file for file in files if not file.endswith("__init__.py"))
    assert [file for file in CODE.findall(MAP) if not any((base / file).exists() for base in (source, ROOT))] == []


def test_the_files_to_touch_for_a_change_exist():
    table = RECIPES.split("\n\n")[1]
    rows = table.splitlines()[2:]
    assert len(rows) == 10
    for row in rows:
        paths = [path for path in re.findall(r"`([\w./]+)`", row) if "/" in path]
        bases = (ROOT, ROOT / "src" / "iclgd")
        assert paths and [path for path in paths if not any((base / path).exists() for base in bases)] == [], row


def test_the_generated_pages_are_current():
    module = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert module is not None and module.loader is not None
    hooks = importlib.util.module_from_spec(module)
    module.loader.exec_module(hooks)
    old = [str(path.relative_to(ROOT)) for path, text in hooks.pages().items() if path.read_text("utf-8") != text]
    assert old == [], "run make pages"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=environment(fake=False), capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_loads_nothing_from_a_network(site: Path):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = re.findall(r"<(?:link|script|img|iframe)\b[^>]*\b(?:src|href)=\"?(https?:[^\" >]+)", page.read_text())
        assert loaded == [], page


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def reader(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, as a reader has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in {"ICLGD_CACHE_DIR": cache, "COLUMNS": 100, "PYTHONPATH": ROOT / "src"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("ICLGD_DATA_DIR", raising=False)
    # Hydra composes each job of a sweep once before all jobs, only to see that it can be.
    monkeypatch.setattr(BasicSweeper, "validate_batch_is_legal", lambda *_: None)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]  # another page may have a file of this name


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [path for path in PAGES if FENCE.search(path.read_text())], ids=lambda path: path.stem)
def test_a_page_is_true(page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Blocks of `bash` and `python` run, one with a title is a file, and `text` is what the block before it printed.

    `console` has commands that need a network, an account or a cluster: only their settings are tried.
    """
    if page.stem != "wandb":  # half of the time
        monkeypatch.setattr(tracking, "is_off", lambda _: True)
    printed, namespace = "", {}
    for language, title, content in FENCE.findall(page.read_text()):
        if title:
            (reader / title).parent.mkdir(parents=True, exist_ok=True)
            (reader / title).write_text(content)
        elif language == "text":
            for line in content.splitlines():
                assert " ".join(line.split()) in printed, line
        elif language == "python":
            exec(compile(content, page.name, "exec"), namespace)
        elif language in ("bash", "console"):
            capsys.readouterr()
            for line in content.splitlines():
                _command(line, language == "bash", monkeypatch)
            output = capsys.readouterr()
            printed = " ".join((output.out + output.err).split())
        else:
            raise AssertionError(f"what is a block of {language}?")


def _command(line: str, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *arguments = shlex.split(line.removeprefix("$ "), comments=True)
    if wanted and name in SCRIPTS:
        module, _, function = SCRIPTS[name].partition(":")
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            code = getattr(importlib.import_module(module), function)()
        except SystemExit as end:
            code = end.code
        assert not code, line
    elif wanted and name == "make":
        subprocess.run(["make", "--dry-run", "-C", str(ROOT), *arguments], check=True)
    elif wanted:
        assert [name, *arguments[:2]] == ["python", "-m", "pytest"], line
        # Plugins that this process already uses would start anew.
        without = [f"-pno:{plugin}" for plugin in ("xdist", "slipcover", "timeout", "cacheprovider")]
        assert pytest.main([*arguments[2:], *without]) == 0, line
    elif name == "iclgd":
        single = [re.sub(r"=([^,\[{(]*),.*", r"=\1", argument) for argument in arguments if argument != "-m"]
        assert run(["--cfg", "job", *single], quiet=True).code == 0, line


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, reader: Path):
    namespace = {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        first, _, rest = source.partition("\n")
        if first.startswith("%%writefile "):
            Path(first.split()[1]).write_text(rest)
        elif cell["cell_type"] == "code":
            assert not cell["outputs"], "strip the outputs"
            exec(compile(source, path.name, "exec"), namespace)
