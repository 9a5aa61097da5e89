"""Finetuning the model on its demonstrations, one variant at a time."""

from iclgd.mechanisms.activation_match import activation_matched
from iclgd.mechanisms.finetuning import check, finetuned, training_sequences
from iclgd.mechanisms.patches import ExactPatch, statically_patched
from iclgd.mechanisms.stability import instability, jittered

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
