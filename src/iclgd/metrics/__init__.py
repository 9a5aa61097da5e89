"""Scores of recordings: pure functions of tensors, unaveraged out; `summary` averages."""

from iclgd.metrics.registry import measure, needs_all_examples, required_inputs
from iclgd.metrics.summary import flipped, summarise, to_frame
