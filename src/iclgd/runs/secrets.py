"""Keys and passwords that an error of a library quotes are struck out of logs, statuses and messages."""

from __future__ import annotations

import logging
import os
import re

_KEYS = re.compile(r"\bwandb_v\d+_\w+|\bhf_[A-Za-z0-9]{20,}|(?<=//)[^/@\s]+(?=@)")
_SET = re.compile(  # by its name, in code, settings and messages; a value without a digit is a word
    r"""\b( \w* (?:key|token|secret|password)
    (?: ["'], | ["'\])]*[ \t]* (?: :[\w.|\[\] \t]*= | [:=]+ ) )  # "NAME", or NAME: or ["NAME"] = or NAME: str =
    [ \t]* (?:[bfru]*["']+)? ) (?=[\w-]*\d)[\w-]{16,}""",
    re.IGNORECASE | re.VERBOSE,
)
_VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def without_secrets(text: str) -> str:
    """The text with W&B's and the hub's keys, and the user's part of URLs, replaced by `***`."""
    for name in _VARIABLES:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return _SET.sub(r"\1***", _KEYS.sub("***", text))


class Formatter(logging.Formatter):
    """Formats log lines, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines."""
        return without_secrets(super().format(record))
