"""From rows to prompts: what is drawn, how it is worded, and which tokens it becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iclgd.tasks.draw import Drawn, draw

if TYPE_CHECKING:
    from iclgd.tasks.encoding import encode
    from iclgd.tasks.prompts_json import as_json, from_json

__all__ = ["Drawn", "as_json", "draw", "encode", "from_json"]


def __getattr__(name: str) -> Any:
    """What needs torch, imported when first used: rows are drawn and refused without it."""
    if name == "encode":
        from iclgd.tasks.encoding import encode

        return encode
    if name in ("as_json", "from_json"):
        from iclgd.tasks import prompts_json

        return getattr(prompts_json, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
