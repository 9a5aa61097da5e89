"""What a dotted path names: the user's own functions and classes, from the current folder or any installed package."""

from __future__ import annotations

import importlib
from typing import Any

from iclgd.config.bounds import ConfigError


def imported(path: str, key: str) -> Any:
    """The object at `package.module.NAME`.

    Raises:
        ConfigError: it cannot be imported; the message says where it was looked for.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f"{key}={path} cannot be imported ({error}): give module.NAME of an installed package or of a file in the "
            "current folder"
        ) from error
