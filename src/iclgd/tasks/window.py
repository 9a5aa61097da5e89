"""Prompts fitted into the model's window: what is too long is refused, or demonstrations are dropped."""

from __future__ import annotations

import logging
from dataclasses import replace

from iclgd.common.records import PromptSet
from iclgd.config import Config, ConfigError
from iclgd.config.enumerations import DropFrom, OnOverflow, RecordAt
from iclgd.tasks.draw import Drawn
from iclgd.tasks.examples import DataError, Example

log = logging.getLogger(__name__)


def fitted(prompts: PromptSet, drawn: Drawn, config: Config, window: int) -> PromptSet:
    """The prompts if they fit, or those that do, as `task.on_overflow` says.

    Dropping keeps the first demonstrations, as many as leave room for the longest query, as the published code does.

    Raises:
        ConfigError: a context that does not fit.
        DataError: an example that is longer than the window by itself.
    """
    appended = int(config.protocol.record_at is RecordAt.first_label_token)
    room = len(prompts.bos)
    recorded = zip((*prompts.queries, *prompts.calibration), (*drawn.queries, *drawn.calibration), strict=True)
    for item, example in recorded:
        tail = max(appended, *(len(option) - 1 for option in prompts.options(item)))
        room = max(room, _refuse_longer(len(prompts.bos) + len(item.token_ids) + tail, window, example))
    needed = len(prompts.context()) - len(prompts.bos) + room
    if needed > window:
        prompts = _dropped(prompts, config, needed, window, room)
    trained = (prompts.demonstrations, drawn.demonstrations), (prompts.training or (), drawn.training or ())
    for items, examples in trained:
        for item, example in zip(items, examples, strict=False):  # dropping leaves the first
            _refuse_longer(len(prompts.bos) + len(item.token_ids), window, example)
    return prompts


def _refuse_longer(length: int, window: int, example: Example) -> int:
    if length > window:
        raise DataError(
            f"{example.where}: this example alone needs {length:,} tokens but the model has {window:,} positions; "
            "shorten or remove the row, or take a model with a longer window"
        )
    return length


def _dropped(prompts: PromptSet, config: Config, needed: int, window: int, room: int) -> PromptSet:
    shots = len(prompts.demonstrations)
    if config.task.on_overflow is OnOverflow.error:
        raise ConfigError(
            f"task.shots={shots} needs {needed:,} tokens but the model has {window:,} positions; "
            "lower task.shots or set task.on_overflow=drop"
        )
    count, used = 0, room
    for item in prompts.demonstrations:
        used += len(item.token_ids) + len(prompts.separator)
        if used > window:
            break
        count += 1
    if count == 0:
        raise ConfigError(
            f"not even one demonstration fits beside the longest query: {window:,} positions, of which queries take "
            f"{room:,}; take a model with a longer window or shorter rows"
        )
    both = config.protocol.drop_from is DropFrom.both
    log.warning(
        "%d of %d demonstrations fit into the model's %s positions (all need %s); the rest are dropped from %s",
        *(count, shots, f"{window:,}", f"{needed:,}", "ICL and finetuning alike" if both else "ICL only"),
    )
    if not both:
        return replace(prompts, in_context=tuple(range(count)))
    return replace(
        prompts,
        demonstrations=prompts.demonstrations[:count],
        in_context=tuple(range(count)),
        training=None if prompts.training is None else prompts.training[:count],
    )
