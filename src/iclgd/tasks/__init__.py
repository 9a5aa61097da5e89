"""From rows to prompts: what is drawn, how it is worded, and which tokens it becomes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from iclgd.tasks.draw import Drawn, draw

if TYPE_CHECKING:
    from iclgd.tasks.encoding import encode
    from iclgd.tasks.prompts_json import as_json

__all__ = ["Drawn", "as_json", "draw", "encode"]


def __getattr__(name: str) -> Any:
    """What needs torch, imported when first used: rows are drawn and refused without it."""
    modules = {"encode": "encoding", "as_json": "prompts_json"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"iclgd.tasks.{modules[name]}"), name)
