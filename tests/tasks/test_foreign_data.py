"""Strangers' data sets are read as they are, or refused by file and line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from hostile_data import CASES, GOOD
from iclgd.config import ConfigError
from iclgd.tasks import draw
from limits import MEGABYTES, bounded
from task_cases import make_config, write_jsonl


@pytest.mark.timeout(300)  # of a pipe that is waited for
@pytest.mark.parametrize("name", CASES)
def test_a_strangers_rows_are_read_or_refused_by_file(name, tmp_path: Path):
    case, folder = CASES[name], tmp_path / "size=big" / "things"  # a folder's name is no column
    write_jsonl(folder / "validation.jsonl", [{**row, "choices": ["x", "y"]} for row in GOOD])
    case.write(folder / "train")
    before, config = sorted(tmp_path.rglob("*")), make_config(folder.parent, **case.task)
    with bounded():
        if case.refused is None:
            drawn = draw(config)
            assert len(drawn.demonstrations) == 2
            assert case.texts is None or sorted(each.text for each in drawn.demonstrations) == sorted(case.texts)
        else:
            with pytest.raises(ConfigError) as refused:
                draw(config)
            assert re.search(case.refused, str(refused.value)) and str(folder) in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_corpus_is_large_enough():
    assert len(CASES) >= 30


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux only")
def test_what_takes_too_much_memory_or_time_is_noticed():
    with bounded():
        bytearray(MEGABYTES // 5 << 20)
    with pytest.raises(AssertionError, match="MB of memory"), bounded():
        bytearray(2 * MEGABYTES << 20)
    with pytest.raises(AssertionError, match="s of the processor"), bounded(seconds=0.0):
        sum(range(10**6))
