"""Text from outside, made fit for a terminal, a table or a figure, and output whose reader may go away."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_KEYS = re.compile(r"\bwandb_v\d+_\w+|\bhf_[A-Za-z0-9]{20,}|(?<=//)[^/@\s]+(?=@)")
_VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def printable(text: str, most: int = 60) -> str:
    """One line, no control or direction characters, not too long."""
    if len(text) <= most and text.isprintable():
        return text
    clean = "".join(" " if character.isspace() else character for character in text)
    clean = "".join(character if character.isprintable() else "�" for character in clean)
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def without_secrets(text: str) -> str:
    """The text with W&B's and the hub's keys, and the user's part of URLs, replaced by `***`."""
    for name in _VARIABLES:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return _KEYS.sub("***", text)


@contextmanager
def pipe_may_close() -> Iterator[None]:
    """Within this block, a closed standard output (as of `| head`) ends the command with exit code 141."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it exits
        sys.exit(141)  # as a shell says it of a program that the closed pipe's signal ends
