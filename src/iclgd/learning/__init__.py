"""Finetuning the model on its demonstrations, one variant at a time."""

from iclgd.learning.activation_match import activation_matched
from iclgd.learning.finetuning import finetuned, training_sequences

__all__ = ["activation_matched", "finetuned", "training_sequences"]
