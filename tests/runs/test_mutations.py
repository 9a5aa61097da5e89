"""A finished run is never taken for one that was made of something else, and only then made anew."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from command_line import ROOT, environment

MODES = ("one", "two")
AMOUNTS = {"few": (11, 5), "all": (28, 12)}  # changes of inputs and harmless ones, at least

pytestmark = pytest.mark.timeout(3000)  # up to eighty runs, on a machine that may be busy


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.soak)])
def told(request, tmp_path_factory):
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
        command = [sys.executable, str(ROOT / "tests" / "mutations.py"), str(place / "world"), mode, request.param]
        processes[mode] = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    changes, harmless = AMOUNTS[request.param]
    lines = []
    for mode, process in processes.items():
        out, err = process.communicate()
        assert process.returncode == 0, err[-3000:]
        found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert sum(bool(line["expected"]) for line in found) >= changes
        assert sum(not line["expected"] for line in found) >= harmless
        lines += [{**line, "mode": mode} for line in found]
    return lines


def test_every_change_of_an_input_is_noticed_and_named(told):
    for line in [line for line in told if line["expected"]]:
        assert (line["ending"], line["kept"]) == ("done", True), line
        assert f"changed: {line['expected']}" in line["told"] or f", {line['expected']}" in line["told"], line
        assert line["changed"] or not line["must_change"], line


def test_what_changes_no_input_computes_nothing(told):
    for line in [line for line in told if not line["expected"]]:
        assert (line["ending"], line["changed"], line["kept"]) == ("skipped", False, False), line
