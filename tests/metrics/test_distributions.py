"""The share of ICL's effect that is recovered, by hand."""

import torch

from iclgd.metrics.distributions import recovered


def test_recovered_by_hand():
    def logs(*rows):
        return torch.tensor(rows, dtype=torch.float64).log()

    zsl, icl = (
        logs([0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.5, 0.5]),
        logs([0.9, 0.1], [0.9, 0.1], [0.905, 0.095], [0.6, 0.4]),
    )
    ft = logs([0.9, 0.1], [0.7, 0.3], [0.5, 0.5], [0.4, 0.6])
    torch.testing.assert_close(
        recovered(icl, ft, zsl), torch.tensor([1, 0.5, torch.nan, -1], dtype=torch.float64), equal_nan=True
    )
