"""Finetuning the model on its demonstrations, one variant at a time."""

from iclgd.learning.activation_match import activation_matched
from iclgd.learning.finetuning import check, finetuned, training_sequences
from iclgd.learning.patches import ExactPatch, statically_patched
from iclgd.learning.stability import instability, jittered

__all__ = [
    "ExactPatch",
    "activation_matched",
    "check",
    "finetuned",
    "instability",
    "jittered",
    "statically_patched",
    "training_sequences",
]
