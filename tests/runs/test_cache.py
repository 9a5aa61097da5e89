import logging
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from command_line import environment
from iclgd.common.records import Recording
from iclgd.runs.cache import RecordingsCache

KEY = "0a1b"


def recording():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 2, 2, 5, generator=draw)
    scores[0, :, :, 3:] = torch.nan
    return Recording(
        torch.randn(3, 2, 4, generator=draw),
        scores,
        torch.randn(3, 2, generator=draw),
        query_vectors=torch.randn(3, 2, 6, generator=draw),
    )


def equal(one, other):
    first, second = ({k: v.nan_to_num(9).tolist() for k, v in each.tensors().items()} for each in (one, other))
    return first == second


def never():
    raise AssertionError("must not be computed again")


@pytest.fixture
def store(tmp_path):
    return RecordingsCache(tmp_path, 10**9)


def test_a_recording_is_computed_once_and_comes_back_the_same(tmp_path, store):
    made, reused = store.get_or_compute(KEY, recording)
    assert not reused and equal(made, recording())
    again, reused = store.get_or_compute(KEY, never)
    assert reused and equal(again, made)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("limit", [0, 100])
def test_off_and_too_small_keep_nothing(tmp_path, limit, caplog):
    caplog.set_level(logging.INFO)
    store = RecordingsCache(tmp_path, limit)
    assert not any(store.get_or_compute(KEY, recording)[1] for _ in range(2))
    assert list(tmp_path.iterdir()) == [] and ("is not kept" in caplog.text) is (limit > 0)


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"\x02\0\0\0\0\0\0\0{}"]
)
def test_a_damaged_entry_is_computed_again_and_the_log_says_so(tmp_path, store, damage, caplog):
    store.get_or_compute(KEY, recording)
    [path] = tmp_path.glob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    again, reused = store.get_or_compute(KEY, recording)
    assert not reused and equal(again, recording())
    assert "is damaged" in caplog.text and "computed again" in caplog.text
    assert store.get_or_compute(KEY, never)[1]


def test_the_least_recently_used_goes_first(tmp_path):
    store = RecordingsCache(tmp_path, 2000)  # bytes: two entries fit, three do not
    for number in range(2):
        store.get_or_compute(str(number), recording)
    for age, path in enumerate(sorted(tmp_path.glob("*.safetensors"), reverse=True)):
        os.utime(path, (1000 + age, 1000 + age))
    store.get_or_compute("1", never)  # used now
    store.get_or_compute("2", recording)
    assert store.get_or_compute("1", never)[1] and not store.get_or_compute("0", recording)[1]


def test_a_full_disk_costs_time_only(tmp_path, store, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    made, reused = store.get_or_compute(KEY, recording)
    assert not reused and equal(made, recording()) and "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_time_only(tmp_path, caplog):
    (tmp_path / "file").touch()
    made, reused = RecordingsCache(tmp_path / "file" / "cache", 10**9).get_or_compute(KEY, recording)
    assert not reused and equal(made, recording()) and "cannot be shared" in caplog.text


def test_one_computes_and_the_others_wait(store):
    computed, results = [], []

    def slow():
        computed.append(1)
        time.sleep(0.3)
        return recording()

    threads = [threading.Thread(target=lambda: results.append(store.get_or_compute(KEY, slow)[1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed == [1] and sorted(results) == [False, True, True, True]


def test_a_killed_computer_does_not_keep_the_others_waiting(tmp_path, store):
    script = (
        "import time; from pathlib import Path; from iclgd.runs.cache import RecordingsCache\n"
        "def compute(): print('computing', flush=True); time.sleep(60)\n"
        f"RecordingsCache(Path({str(tmp_path)!r}), 10**9).get_or_compute({KEY!r}, compute)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], env=environment(fake=False), stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"computing\n"
    child.kill()
    child.wait()
    child.stdout.close()
    assert store.get_or_compute(KEY, recording)[1] is False
