"""The hub, asked once whether it answers, so that without a network all that needs it fails at once."""

from __future__ import annotations

import functools
import logging
import sys

log = logging.getLogger(__name__)

_SECONDS = 5.0


@functools.cache
def settle() -> None:
    """Ask the hub once a process; if it does not answer, only what was fetched before is used from then on.

    Without this, each file is asked for five times, with growing pauses. The hub's library has a handler of its own
    beside this program's, and would say everything twice.
    """
    from huggingface_hub import constants, get_session

    logging.getLogger("huggingface_hub").handlers.clear()
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # the hub's library uses requests or httpx, whose errors share no base
        log.warning(
            "%s cannot be reached (%s): only what was fetched before is used", constants.ENDPOINT, type(error).__name__
        )
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
