"""A finished run is never taken for one that was made of something else, and only then made anew."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from command_line import ROOT, environment

MODES = ("one", "two")

pytestmark = pytest.mark.timeout(1800)  # some eighty runs, on a machine that may be busy


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each change led to, by mode: everything in one process, and each change in a process of its own."""
    processes = {}
    for mode in MODES:
        place = tmp_path_factory.mktemp(mode)
        for name in ("src", "conf", "sweeps"):
            shutil.copytree(ROOT / name, place / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
        variant = place / "copy" / "conf" / "finetune" / "other_task.yaml"
        variant.write_text(variant.read_text().replace("other_task: headlines", "other_task: toy_other"))
        own = {
            **environment(fake=False),
            "PYTHONPATH": str(place / "copy" / "src"),
            "ICLGD_CACHE_DIR": str(place / "cache"),
            "HOME": os.environ.get("HOME", str(place)),
        }
        command = [sys.executable, str(ROOT / "tests" / "mutations.py"), str(place / "world"), mode]
        processes[mode] = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = {}
    for mode, process in processes.items():
        out, err = process.communicate(timeout=1700)
        assert process.returncode == 0, err[-3000:]
        lines[mode] = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return lines


@pytest.mark.parametrize("mode", MODES)
def test_every_change_of_an_input_is_noticed_and_named(told, mode):
    changes = [line for line in told[mode] if line["expected"]]
    assert len(changes) >= 28
    for line in changes:
        assert (line["ending"], line["kept"]) == ("done", True), line
        assert f"changed: {line['expected']}" in line["told"] or f", {line['expected']}" in line["told"], line
        assert line["changed"] or not line["must_change"], line


@pytest.mark.parametrize("mode", MODES)
def test_what_changes_no_input_computes_nothing(told, mode):
    harmless = [line for line in told[mode] if not line["expected"]]
    assert len(harmless) >= 12
    for line in harmless:
        assert (line["ending"], line["changed"], line["kept"]) == ("skipped", False, False), line
