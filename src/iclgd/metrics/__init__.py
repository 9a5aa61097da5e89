"""Scores of recordings: pure functions of tensors, unaveraged out; `summary` averages.

Bare names in conf/metric are looked up among the functions of the modules imported here.
"""

from iclgd.metrics import attention_maps, distributions, geometry, predictions, training_attention, updates
from iclgd.metrics.predictions import flipped
from iclgd.metrics.registry import find, measure, metric, needs_all_examples, required_inputs
from iclgd.metrics.summary import summarise, to_frame
