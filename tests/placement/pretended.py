"""Run by torchrun in the place of iclgd: the same command, with a fault in the second process.

`PRETEND=memory` refuses it room for more than a few sequences, `PRETEND=crash` ends its first recording.
"""

import os

import torch

from iclgd.__main__ import cli
from iclgd.common import ranks
from iclgd.models import recorder

ROOM = 60_000  # bytes: two or three sequences of the toy model


def scarce(*size, **how):
    if how.get("dtype") is torch.uint8 and size[0] > ROOM:
        raise torch.OutOfMemoryError("pretended")
    return empty(*size, **how)


def crash(*_):
    raise RuntimeError("pretended")


if __name__ == "__main__":
    empty = torch.empty
    if ranks.own() == 1 and os.environ["PRETEND"] == "memory":
        torch.empty = scarce
    elif ranks.own() == 1:
        recorder._run_batch = crash
    cli()
