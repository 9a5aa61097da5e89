"""Statistics of scores: intervals, comparisons between variants, choice of rates, power. Pure functions of numbers.

There are two samples. Within a run the queries are the sample, and `mean_interval` and `shares_interval` describe one
draw of demonstrations. Over runs the draws are the sample: a claim about a variant is a claim about demonstrations
not yet drawn, so only `draws_interval`, `compare` and `held_out` support claims. Permutations of one draw's
demonstrations, and repeats of one draw, do not count as further draws.
"""

from iclgd.statistics.comparisons import (
    Comparison,
    compare,
    draws_to_detect,
    held_out,
    holm_corrected,
    smallest_difference,
)
from iclgd.statistics.intervals import (
    Interval,
    choice_factor,
    draws_interval,
    mean_interval,
    mean_of_means,
    nanmean,
    shares_interval,
    t_ends,
)
