"""Errors of libraries, turned into errors that name the model and a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from iclgd.common.printable import printable
from iclgd.config import ConfigError

ELSEWHERE = (
    "without access to the hub, name a local folder: model=hf model.name=FOLDER (config, tokenizer and *.safetensors; "
    "pickled weights and a repository's own code are not read)"
)


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Within the block, whatever a library raises on a model's file is a ConfigError that names it.

    Libraries raise anything at all on damaged files, the Rust ones even exceptions that are not an `Exception`.
    """
    try:
        yield
    except (ConfigError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = printable(f"{error or type(error).__name__}", 400)
        raise ConfigError(f"{what}: {reason} -- {remedy}") from error
