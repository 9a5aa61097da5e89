"""Shapes and types of every annotated function are checked while tests run; nothing is fetched from a hub."""

import functools
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import vl_convert
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Before anything of the package is imported. Benchmarks time the program as it is used, without checks, and where
# coverage is counted they cost a third more.
if os.environ.get("ICLGD_TYPE_CHECKS") != "0":
    install_import_hook("iclgd", "type_checking.checked")


# The scripts of a report's page are the same for every page, and take seconds to put together.
vl_convert.javascript_bundle = functools.cache(vl_convert.javascript_bundle)

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


def pytest_configure(config):
    """OmegaConf's own base classes are of the deprecated kind that beartype warns of."""
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Half a surrogate pair that a test logged cannot be sent from a test worker."""
    report = (yield).get_result()
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]


def _enable_own_loggers():
    """Some libraries' set-up disables every logger there is, or sets its level."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("iclgd") and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def own_logging():
    """Hydra configures logging for the whole process; the next test should not hear of it."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    _enable_own_loggers()
    yield
    for handler in root.handlers[:]:
        if handler not in before and not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)
    root.setLevel(level)
    _enable_own_loggers()


@pytest.fixture
def read_only(tmp_path):
    """A folder that not even root can write to, where the machine lets us make one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting needs privileges; another test has a file in the way of the folder")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def in_process(tmp_path, monkeypatch):
    """The Python interface, with the fake experiment, in an empty folder."""
    import iclgd as package

    faked = ("iclgd.experiment", "iclgd.report.console", "iclgd.tracking", "iclgd.evidence.preparation")
    stood = {name: sys.modules.get(name) for name in faked}
    runpy.run_path(str(Path(__file__).with_name("support") / "fake_experiment" / "sitecustomize.py"))
    for name in ("experiment", "tracking"):
        monkeypatch.setattr(package, name, sys.modules[f"iclgd.{name}"], raising=False)
    monkeypatch.setattr("iclgd.report.console", sys.modules["iclgd.report.console"], raising=False)
    monkeypatch.chdir(tmp_path)
    yield package
    monkeypatch.undo()
    for name, module in stood.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module
