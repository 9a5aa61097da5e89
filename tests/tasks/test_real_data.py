"""The six data sets of the papers, from the folder that ICLGD_DATA_DIR names; `make test-data` runs this file."""

import os
from pathlib import Path

import pytest

from task_cases import assert_drawn_as_published

pytestmark = pytest.mark.real_data


@pytest.mark.parametrize("name", ["sst2", "sst5", "mr", "subj", "agnews", "cb"])
def test_local_copies_of_the_papers_data_sets_are_drawn(name: str):
    assert_drawn_as_published(name, Path(os.environ["ICLGD_DATA_DIR"]))
