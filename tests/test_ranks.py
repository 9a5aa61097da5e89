"""Two processes tell each other and join what `iclgd.common.ranks` promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from command_line import PATIENCE, environment
from iclgd.common import ranks
from two_ranks import both


@pytest.mark.filterwarnings("ignore")  # torch's own, of gloo and of the names of hosts
@pytest.mark.parametrize("own", [0, 1])
def test_two_processes_share_what_they_hold(tmp_path, monkeypatch, own):
    """This process is one of the two, with what torchrun sets."""
    store, there = TCPStore("localhost", 0, is_master=True, wait_for_workers=False), tmp_path / "other.json"
    variables = {
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    for name, value in (variables | {"RANK": str(own), "LOCAL_RANK": str(own)}).items():
        monkeypatch.setenv(name, value)
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("support") / "two_ranks.py", there],
        env=environment(fake=False) | variables | {"RANK": str(1 - own), "LOCAL_RANK": str(1 - own)},
    )
    try:
        assert (ranks.count(), ranks.own(), ranks.local()) == (2, own, own)
        here = both()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
    assert not torch.distributed.is_initialized()
    for rank, given in ((own, here), (1 - own, json.loads(there.read_text()))):
        rows, first, end = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]], *((0, 3), (3, 5))[rank]
        assert (
            json.loads(json.dumps(given))
            == {
                "told": "from 0",
                "once, kept": ["kept", True],
                "once, lacking": ["made", False],
                "asked": [] if rank else [0],  # the first process alone has the store
                "computed": [rank],
                "anyone": [True, False],
                "summed": [2, 1],
                "largest": [1, 0],
                "split": [True, False],
                "mine": [rows[first:end], first],
                "whole": rows,
                "joined": [list(column) for column in zip(*rows, strict=True)],
            }
        )


def test_one_process_keeps_its_own(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    tensor = torch.zeros(2)
    ranks.put(tensor, torch.ones(2))
    assert tensor.tolist() == [1, 1] and ranks.mine(tensor) == (tensor, 0) and ranks.whole(tensor) is tensor
    assert (ranks.count(), ranks.own(), ranks.local(), ranks.told("x"), ranks.anyone(False)) == (1, 0, 0, "x", False)
    assert ranks.joined(tensor, 0, 2) is tensor
    assert ranks.once(lambda compute: (compute(), False), lambda: 3) == (3, False)
