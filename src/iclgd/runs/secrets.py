"""Keys and passwords that an error of a library quotes are replaced in logs, statuses and messages."""

from __future__ import annotations

import logging
import os
import re

_KEYS = re.compile(r"\bwandb_v\d+_\w+|\bhf_[A-Za-z0-9]{20,}|(?<=//)[^/@\s]+(?=@)")
_VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def without_secrets(text: str) -> str:
    """The text with W&B's and the hub's keys, and the user's part of URLs, replaced by `***`."""
    for name in _VARIABLES:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return _KEYS.sub("***", text)


class Formatter(logging.Formatter):
    """Formats log lines, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines."""
        return without_secrets(super().format(record))
