"""A run that several processes compute together: the first decides and writes, the others follow it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from iclgd.common import ranks
from iclgd.config import Config, ConfigError, TrackingConfig, as_dict
from iclgd.runs.execute import Experiment
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import run_id
from iclgd.runs.progress import Progress

log = logging.getLogger(__name__)


@contextmanager
def announced(experiment: Experiment) -> Iterator[Experiment]:
    """The same experiment, whose start the other processes hear of; they also hear when the block ends without one."""
    started = False

    def together(*arguments: object) -> object:
        nonlocal started
        started = True
        ranks.told(True)
        return experiment(*arguments)  # pyright: ignore[reportArgumentType]

    try:
        yield together  # pyright: ignore[reportReturnType]
    finally:
        if not started:
            ranks.told(False)


def follow(config_of: Callable[[], Config], experiment: Experiment) -> None:
    """Compute a run with the first process if it does; what this process writes is thrown away.

    Settings that are refused are refused in all processes alike; any other error ends this one, and torchrun the rest.
    """
    if not ranks.told(False):
        return
    try:
        config = replace(config_of(), tracking=TrackingConfig())
        with tempfile.TemporaryDirectory(prefix="iclgd-") as place:
            folder = RunFolder(Path(place))
            folder.start(run_id(as_dict(config)))
            experiment(config, folder, Progress(), None)
    except ConfigError as error:
        log.debug("refused: %s", error)
