"""Further orders of a run's demonstrations."""

from __future__ import annotations

import math
from dataclasses import replace

from iclgd.config import Config
from iclgd.records import PromptSet
from iclgd.seeding import permuted


def orders(prompts: PromptSet, config: Config) -> list[PromptSet]:
    """The demonstrations in the run's own order and in `metric.orders` others, no two alike.

    There are fewer where so few demonstrations do not have as many orders.
    """
    count, items = len(prompts.in_context), prompts.training_items()
    by_rank = {tuple(range(count)): prompts}
    step, wanted = config.task.permutation, config.metric.orders + 1
    while len(by_rank) < wanted and (count > 8 or len(by_rank) < math.factorial(count)):
        step += 1
        rank = tuple(permuted(count, config.seed, step))
        training = tuple(items[i] for i in permuted(len(items), config.seed, step))
        reordered = replace(prompts, in_context=tuple(prompts.in_context[i] for i in rank), training=training)
        by_rank.setdefault(rank, reordered)
    return list(by_rank.values())
