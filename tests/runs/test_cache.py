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


def recording(seed=0, examples=3):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(examples, 2, 2, 5, generator=draw)
    scores[0, :, :, 3:] = torch.nan
    return Recording(
        torch.randn(examples, 2, 4, generator=draw),
        scores,
        torch.randn(examples, 2, generator=draw),
        query_vectors=torch.randn(examples, 2, 6, generator=draw),
    )


def equal(one, other):
    first, second = ({k: v.nan_to_num(9).tolist() for k, v in each.tensors().items()} for each in (one, other))
    return first == second


def never():
    raise AssertionError("must not be computed again")


def test_a_recording_is_computed_once_and_comes_back_the_same(tmp_path):
    made, known = RecordingsCache(tmp_path, 10**9).get_or_compute(KEY, recording)
    assert not known and equal(made, recording())
    again, known = RecordingsCache(tmp_path, 10**9).get_or_compute(KEY, never)
    assert known and equal(again, made)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_off_keeps_nothing(tmp_path):
    store = RecordingsCache(tmp_path / "none", 0)
    assert store.get_or_compute(KEY, recording)[1] is False
    assert store.get_or_compute(KEY, recording)[1] is False
    assert not (tmp_path / "none").exists()


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "huge header": lambda content: b"\xff" * 8 + content[8:],
    "other file": lambda _: b"\x02\0\0\0\0\0\0\0{}",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_computed_again_and_the_log_says_so(tmp_path, damage, caplog):
    RecordingsCache(tmp_path, 10**9).get_or_compute(KEY, recording)
    [path] = tmp_path.glob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    again, known = RecordingsCache(tmp_path, 10**9).get_or_compute(KEY, recording)
    assert not known and equal(again, recording())
    assert "is damaged" in caplog.text and "computed again" in caplog.text
    assert RecordingsCache(tmp_path, 10**9).get_or_compute(KEY, never)[1]


def test_the_least_recently_used_goes_first(tmp_path):
    limit = 2000  # bytes: two entries fit, three do not
    store = RecordingsCache(tmp_path, limit)
    for number in range(2):
        store.get_or_compute(str(number), recording)
    paths = {path.stat().st_mtime_ns: path for path in tmp_path.glob("*.safetensors")}
    assert limit > sum(path.stat().st_size for path in paths.values()) > limit * 2 / 3
    for age, path in enumerate(paths.values()):
        os.utime(path, (1000 - age, 1000 - age))
    RecordingsCache(tmp_path, limit).get_or_compute("1", never)  # used now
    RecordingsCache(tmp_path, limit).get_or_compute("2", recording)
    fresh = RecordingsCache(tmp_path, limit)
    assert fresh.get_or_compute("1", never)[1] and not fresh.get_or_compute("0", recording)[1]


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    RecordingsCache(tmp_path, 100).get_or_compute(KEY, recording)
    assert list(tmp_path.iterdir()) == [] and "is not kept" in caplog.text


def test_a_full_disk_costs_time_only(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    made, known = RecordingsCache(tmp_path, 10**9).get_or_compute(KEY, recording)
    assert not known and equal(made, recording()) and "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_time_only(tmp_path, caplog):
    (tmp_path / "file").touch()
    made, known = RecordingsCache(tmp_path / "file" / "cache", 10**9).get_or_compute(KEY, recording)
    assert not known and equal(made, recording()) and "cannot be shared" in caplog.text


def test_one_computes_and_the_others_wait(tmp_path):
    computed = []

    def slow():
        computed.append(1)
        time.sleep(0.3)
        return recording()

    def ask():
        results.append(RecordingsCache(tmp_path, 10**9).get_or_compute(KEY, slow)[1])

    results = []
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed == [1] and sorted(results) == [False, True, True, True]


def test_a_killed_computer_does_not_keep_the_others_waiting(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from iclgd.runs.cache import RecordingsCache\n"
        "def compute(): print('computing', flush=True); time.sleep(60)\n"
        f"RecordingsCache(Path({str(tmp_path)!r}), 10**9).get_or_compute({KEY!r}, compute)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], env=environment(fake=False), stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"computing\n"
    child.kill()
    child.wait()
    child.stdout.close()
    assert RecordingsCache(tmp_path, 10**9).get_or_compute(KEY, recording)[1] is False
