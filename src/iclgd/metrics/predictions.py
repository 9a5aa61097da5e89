"""Scores of which label each setting chooses, and whether the settings choose alike.

A prediction is the option with the highest score; options that are NaN (a query with fewer) cannot be chosen, and of
equal scores the first option is. Where all options are NaN there is no prediction, and what needs one is NaN.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iclgd.metrics.distributions import LEAST_EFFECT
from iclgd.metrics.numerics import by_examples, cosine, predicted

LEAST_MOVEMENT = 1e-3  # total variation; rounding moves label probabilities by 1e-5, in bfloat16 by 1e-4
Options = Float[Tensor, "example label"]  # the score of every label option, NaN where a query has fewer
Labels = Int[Tensor, " example"]
ByExample = Float[Tensor, " example"]


def accuracy(label_scores: Options, labels: Labels) -> ByExample:
    """Accuracy: 1 where the best-scored option is the right one, 0 where not.

    Returns:
        0 or 1, unaveraged. NaN where no option has a score.
    """
    return _right(predicted(label_scores), labels)


def log_odds(scores: Options, right: Labels) -> ByExample:
    """Log-odds of the right option, log p - log(1 - p), with p from the softmax of the scores.

    If every demonstration is a like piece of evidence for what the task is, log-odds grow in a straight line with the
    number of demonstrations (Bigelow et al. 2025, arXiv 2511.00617).

    Args:
        scores: of the label options, or log-probabilities of all tokens.
        right: index of the right option or token.

    Returns:
        Values in nats, unaveraged. NaN where the right option has no score or is the only one that has.
    """

    def odds(scores: Tensor, right: Tensor) -> Tensor:
        scores, index = scores.double(), right[:, None]
        others = scores.scatter(-1, index, -torch.inf)
        others = others.masked_fill(others.isnan(), -torch.inf).logsumexp(-1)
        return (scores.gather(-1, index)[:, 0] - others).masked_fill(others.isneginf(), torch.nan)

    return by_examples(odds, scores, right)


def rec2ftp(zsl: Options, icl: Options, ft: Options, labels: Labels) -> ByExample:
    """Rec2FTP: of what finetuning corrects, the share that ICL gets right too.

    Over examples that ZSL has wrong and FT right: 1 where ICL is right, 0 where it is wrong. Dai et al. (2023),
    arXiv 2212.10559.

    Returns:
        0 or 1, unaveraged. NaN for all other examples, so that the mean is undefined if finetuning corrects none.
    """
    corrected = (accuracy(zsl, labels) == 0) & (accuracy(ft, labels) == 1)
    return accuracy(icl, labels).masked_fill(~corrected, torch.nan)


def label_agreement(a: Options, b: Options) -> ByExample:
    """Agreement: 1 where two settings choose the same label option or the same next token, right or wrong, 0 where not.

    After Shen, Mishra and Khashabi (2024), arXiv 2310.08540, who compare the behaviour of ICL and GD.

    Returns:
        0 or 1, unaveraged. NaN where either has no prediction.
    """
    return by_examples(lambda a, b: _right(predicted(a), predicted(b)), a, b)


def vocabulary_accuracy(
    next_token_log_probs: Float[Tensor, "example vocabulary"], first_label_token: Labels
) -> ByExample:
    """Full-vocabulary accuracy: 1 where the likeliest of all next tokens is the first token of the right label.

    Stricter than accuracy, which looks at the label options alone. Shen, Mishra and Khashabi (2024), arXiv 2310.08540.

    Returns:
        0 or 1, unaveraged. NaN where a log-probability is NaN.
    """

    def right(log_probs: Tensor, token: Tensor) -> Tensor:
        return _right(log_probs.argmax(-1).masked_fill(log_probs.isnan().any(-1), -1), token)

    return by_examples(right, next_token_log_probs, first_label_token)


def answer_accuracy(option_is_greedy: Options, labels: Labels) -> ByExample:
    """Accuracy of open answers: 1 where greedy decoding over the whole vocabulary writes the right answer, 0 where not.

    Every token of the answer counts; `vocabulary_accuracy` looks at the first one alone.

    Returns:
        0 or 1, unaveraged. NaN where the answer was not recorded.
    """
    return option_is_greedy.gather(-1, labels[:, None])[:, 0].double()


def order_sensitivity(orders: Float[Tensor, "order example label"]) -> ByExample:
    """How often a query's prediction leaves the most common one as the demonstrations are permuted.

    1 - (orders that predict the most common option) / orders, the variation ratio of a nominal variable. After the
    comparison of order sensitivity in Shen, Mishra and Khashabi (2024), arXiv 2310.08540.

    Returns:
        Values in [0, 1 - 1/labels], unaveraged; 0 means that order never matters. Orders without a prediction are left
        out; NaN where fewer than two are left.
    """
    choices, labels = predicted(orders), orders.shape[-1]
    votes = torch.stack([(choices == label).sum(0) for label in range(labels)], -1)
    count = votes.sum(-1)
    return (1 - votes.amax(-1).double() / count).masked_fill(count < 2, torch.nan)


def order_spread(orders: Float[Tensor, "order example label"]) -> ByExample:
    """How far a query's label probabilities move as the demonstrations are permuted.

    Mean over options of the standard deviation over orders of the option's probability, softmax(scores). It sees
    movement that changes no prediction.

    Returns:
        Values in [0, 0.5], unaveraged. Orders without a score are left out; NaN where fewer than two are left.
    """
    missing = orders.isnan()
    defined = ~missing.all(-1, keepdim=True)
    probabilities = orders.double().masked_fill(missing, -torch.inf).softmax(-1).where(defined, 0)
    count = defined.sum(0)
    centred = (probabilities - probabilities.sum(0) / count).where(defined, 0)
    deviation = (centred.square().sum(0) / count).sqrt()
    options = (~missing).any(0)
    mean = deviation.where(options, 0).sum(-1) / options.sum(-1)
    return mean.masked_fill(count[..., 0] < 2, torch.nan)


def movement(altered: Float[Tensor, "alteration example label"], at: int | None = None) -> ByExample:
    """How far a query's label probabilities move when the demonstrations are altered, as a total variation.

    Args:
        altered: label scores with the demonstrations as they are, then with each alteration of them.
        at: the alteration that counts; null: the mean over all.

    Returns:
        Values in [0, 1], unaveraged; 0 means that the alteration does not matter. NaN where no alteration has scores.
    """
    return _changes(altered, at).abs().sum(-1).nanmean(0) / 2


def movement_cosine(
    icl: Float[Tensor, "alteration example label"], ft: Float[Tensor, "alteration example label"], at: int | None = None
) -> ByExample:
    """Cosine between the ways in which two settings' label probabilities move when the demonstrations are altered.

    The changes of all alterations, or of alteration `at`, make one vector for each query.

    Returns:
        Values in [-1, 1], unaveraged. NaN where ICL moves by less than `LEAST_EFFECT`, FT by less than
        `LEAST_MOVEMENT`, or the two were altered differently.
    """
    if len(icl) != len(ft):
        return torch.full((icl.shape[1],), torch.nan, dtype=torch.float64)
    of_icl, of_ft = _changes(icl, at), _changes(ft, at)
    likeness = cosine(*(change.transpose(0, 1).flatten(1) for change in (of_icl, of_ft)))
    moves = (of_icl.abs().sum(-1).mean(0) / 2 >= LEAST_EFFECT) & (of_ft.abs().sum(-1).mean(0) / 2 >= LEAST_MOVEMENT)
    return likeness.where(moves, torch.nan)


def _changes(
    altered: Float[Tensor, "alteration example label"], at: int | None
) -> Float[Tensor, "change example label"]:
    """What the alterations change of the label probabilities; an option that a query lacks does not move."""
    if len(altered) < 2:
        return torch.full_like(altered, torch.nan)
    missing = altered.isnan()
    probabilities = altered.double().masked_fill(missing, -torch.inf).softmax(-1)
    changes = (probabilities[1:] - probabilities[0]).where(~missing[1:], 0)
    undefined = missing.all(-1)
    changes = changes.masked_fill((undefined[1:] | undefined[0])[..., None], torch.nan)
    return changes if at is None else changes[at : at + 1]


def _right(choice: Labels, target: Labels) -> ByExample:
    return (choice == target).double().masked_fill((choice < 0) | (target < 0), torch.nan)
