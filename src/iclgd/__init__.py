"""iclgd measures how alike in-context learning and other mechanisms are inside a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iclgd.api import figures, load, run, sweep

__version__ = "0.1.0"
__all__ = ["figures", "load", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """The functions of `iclgd.api`, imported when first used: the command line starts without them."""
    if name in __all__:
        from iclgd import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
