"""Whole folders, changed byte by byte and field by field: read as they were, or refused; never another number.

`ICLGD_FUZZ=10000` tries so many changes instead of a few; `make fuzz` does.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile_runs import CONFIG, ENVIRONMENT, PROMPTS, SCORES, STATUS, VALUES, unseal, write_sealed
from iclgd.results.frame import Results
from iclgd.results.reading import read_run
from iclgd.runs.folder import RunFolder
from iclgd.runs.parsing import DamagedRun

COUNT = int(os.environ.get("ICLGD_FUZZ", "60"))
FUZZ = settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck), database=None)
FILES = (STATUS, SCORES, CONFIG, PROMPTS, ENVIRONMENT, VALUES)
ODD = st.sampled_from(
    [None, True, -1, 0, 10**30, 1e308, "", "x", "0-99999999999", "\x1b[2J", [], [[]], {}, {"a": {"a": []}}, [1, "x"]]
) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_sealed(tmp_path_factory.mktemp("fuzz") / "run")


@pytest.fixture(scope="module")
def whole(run) -> Any:
    return numbers(run)


def numbers(folder: Path) -> Any:
    """All that a report reads of a run."""
    found = read_run(folder)
    values = found.values
    try:
        prompts = found.prompts()
    except DamagedRun:
        prompts = None
    assert len(Results((found,)).frame)
    return found.records, {name: array.tobytes() for name, array in values.items()} or None, prompts


def read(folder: Path, name: str, changed: bytes) -> Any:
    """What is read with one file changed; None where that is refused. The file is put back."""
    before = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(changed)
        RunFolder(folder).state()
        RunFolder(folder).is_done()
        return numbers(folder)
    except DamagedRun as error:
        assert str(error) and "\n" not in str(error)
        return None
    finally:
        (folder / name).write_bytes(before)


@FUZZ
@given(st.data())
def test_a_changed_byte_never_gives_another_number(run: Path, whole: Any, data: st.DataObject):
    name = data.draw(st.sampled_from(FILES))
    content = bytearray((run / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    length, new = data.draw(st.integers(0, 20)), data.draw(st.binary(max_size=20))
    content[at : at + length] = new
    found = read(run, name, bytes(content))
    if found is not None:
        for mine, theirs in zip(found, whole, strict=True):
            assert mine is None or mine == theirs


@FUZZ
@given(st.data())
def test_a_changed_field_is_read_or_refused(run: Path, data: st.DataObject):
    name = data.draw(st.sampled_from([file for file in FILES if file != VALUES]))
    text = (run / name).read_text()
    content = yaml.safe_load(text) if name == CONFIG else json.loads(text)
    inner, steps = content, data.draw(st.integers(1, 5))
    for step in range(steps):
        key = data.draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner))))
        below = inner[key]
        if step == steps - 1 or not isinstance(below, dict | list) or not below:
            inner[key] = data.draw(ODD)
            break
        inner = below
    status = (run / STATUS).read_bytes()
    try:
        if name != STATUS:
            unseal(run)  # so that what is read is not refused for its digest
        made = yaml.safe_dump(content) if name == CONFIG else json.dumps(content)
        read(run, name, made.encode("utf-8", "surrogatepass"))
    finally:
        (run / STATUS).write_bytes(status)
