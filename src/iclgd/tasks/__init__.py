"""From rows to prompts: what is drawn, how it is worded, and which tokens it becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iclgd.tasks.draw import Drawn, draw

if TYPE_CHECKING:
    from iclgd.tasks.encoding import encode
    from iclgd.tasks.prompts_json import as_json

__all__ = ["Drawn", "as_json", "draw", "encode"]


def __getattr__(name: str) -> Any:
    """What needs torch, imported when first used: rows are drawn and refused without it."""
    if name == "encode":
        from iclgd.tasks.encoding import encode

        return encode
    if name == "as_json":
        from iclgd.tasks.prompts_json import as_json

        return as_json
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
