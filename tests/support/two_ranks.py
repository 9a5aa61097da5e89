"""What `iclgd.common.ranks` gives in each of two processes: the test is one, this file run as a program the other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.distributed import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from iclgd.common import ranks


def both() -> dict:
    """Plain values of every function that the processes call together; 5 rows are split into 3 and 2."""
    own = ranks.own()
    ranks.connect()
    ranks.connect()  # once is enough
    fetched, made = [], []

    def computed() -> str:
        made.append(own)
        return "made"

    def lacks(compute):
        fetched.append(own)
        return compute(), False

    rows = torch.arange(10.0).view(5, 2)
    split = distribute_tensor(torch.zeros(5, 2), init_device_mesh("cpu", (2,)), [Shard(0)])
    ranks.put(split, rows)
    part, before = ranks.mine(split)
    found = {
        "told": ranks.told(f"from {own}"),
        "once, kept": ranks.once(lambda _: ("kept", True), computed),
        "once, lacking": ranks.once(lacks, computed),
        "asked": fetched,
        "computed": made,
        "anyone": [ranks.anyone(own == 1), ranks.anyone(False)],
        "summed": ranks.summed(torch.tensor([1.0, own])).tolist(),
        "largest": ranks.largest(torch.tensor([own, -own])).tolist(),
        "split": [ranks.is_split(split), ranks.is_split(rows)],
        "mine": [part.tolist(), before],
        "whole": ranks.whole(split).tolist(),
        "joined": ranks.joined(part.T.contiguous(), 1, 5).tolist(),
    }
    ranks.disconnect()
    return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(both()))
