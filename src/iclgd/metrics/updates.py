"""Likeness of the changes that context and finetuning make to the attention block's output."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.metrics.numerics import by_examples, cosine, difference, norm, unit

Outputs = Float[Tensor, "example layer d_model"]  # of the attention block, at the query's last token
ByLayer = Float[Tensor, "example layer"]


def sim_aou(icl: Outputs, ft: Outputs, zsl: Outputs) -> ByLayer:
    """SimAOU: cosine between the update that context makes and the one that finetuning makes.

    cos(h_ICL - h_ZSL, h_FT - h_ZSL), with h what the attention block adds to the residual stream at the last token of
    the query. Deutch et al. (2024), arXiv 2311.07772, sec. 2.2.

    Returns:
        Values in [-1, 1], unaveraged. NaN where either update is exactly zero: no update is not an orthogonal update.
    """
    return by_examples(lambda i, f, z: cosine(difference(i, z), difference(f, z)), icl, ft, zsl)


def sim_aou_norm(icl: Outputs, ft: Outputs, zsl: Outputs) -> ByLayer:
    """SimAOU as Dai et al. (2023) took it: the same cosine with every h scaled to length 1 first.

    cos(h_ICL/|h_ICL| - h_ZSL/|h_ZSL|, h_FT/|h_FT| - h_ZSL/|h_ZSL|). Inflated: both differences subtract the same
    h_ZSL/|h_ZSL|, and where h has grown too much of it is subtracted, so that unrelated updates share a direction;
    for updates orthogonal to h_ZSL and to each other it is
    sqrt((1 - |h_ZSL|/|h_ICL|)(1 - |h_ZSL|/|h_FT|)) / 2, up to 1/2. arXiv 2212.10559; the criticism is Deutch et al.
    (2024), sec. 3.1.

    Returns:
        Values in [-1, 1], unaveraged. NaN where either update, or an h itself, is exactly zero.
    """

    def similarity(icl: Tensor, ft: Tensor, zsl: Tensor) -> Tensor:
        start = unit(zsl)
        return cosine(unit(icl) - start, unit(ft) - start)

    return by_examples(similarity, icl, ft, zsl)


def sim_aou_random(icl: Outputs, zsl: Outputs, random: Outputs) -> ByLayer:
    """Random SimAOU: cosine between the update that context makes and a random one.

    cos(h_ICL - h_ZSL, r). For zero-mean r it is 0 on average with standard deviation 1/sqrt(d_model); the published
    code of Dai et al. (2023) draws r from U[0, 1), which is nowhere near zero-mean.

    Returns:
        Values in [-1, 1], unaveraged. NaN where the update is exactly zero.
    """
    return by_examples(lambda i, z, r: cosine(difference(i, z), r), icl, zsl, random)


def update_norm_ratio(icl: Outputs, ft: Outputs, zsl: Outputs) -> ByLayer:
    """How hard finetuning pushes, as a multiple of how hard the context does.

    |h_FT - h_ZSL| / |h_ICL - h_ZSL|. A cosine cannot see this: two updates may agree in direction and differ a
    hundredfold in length.

    Returns:
        Values from 0 up, unaveraged; 1 is the same strength. NaN where the context changes nothing.
    """

    def ratio(icl: Tensor, ft: Tensor, zsl: Tensor) -> Tensor:
        context = norm(difference(icl, zsl))
        return norm(difference(ft, zsl)) / context.where(context != 0, float("nan"))

    return by_examples(ratio, icl, ft, zsl)


def sim_centred(icl: Outputs, ft: Outputs, zsl: Outputs) -> ByLayer:
    """Cosine of the two updates with each one's mean over examples taken away: do they treat queries alike?

    A shift that all queries share, as any finetuning has, counts for nothing here.

    Returns:
        Values in [-1, 1], unaveraged. NaN where an update is exactly the mean, as it is for a single example.
    """

    def of_layer(icl: Tensor, ft: Tensor, zsl: Tensor) -> Tensor:
        first, second = difference(icl, zsl), difference(ft, zsl)
        return cosine(first - first.nanmean(0), second - second.nanmean(0))

    return torch.stack([of_layer(icl[:, i], ft[:, i], zsl[:, i]) for i in range(zsl.shape[1])], dim=1)


def identity(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """What a run recorded, as it is: gradient norms, sizes of weight updates, attention to the context.

    Returns:
        The values, unaveraged. NaN where nothing was recorded, as for gradients of layers that are not trained.
    """
    return values
