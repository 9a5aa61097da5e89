"""Everything that the scores of one run need, recorded: only what some score names."""

from iclgd.evidence.facts import LATE_FACTS
from iclgd.evidence.gather import gather
from iclgd.evidence.jitter import before_the_end, moved, repeats, spread
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.reference import reference_prompts

__all__ = ["LATE_FACTS", "Laboratory", "before_the_end", "gather", "moved", "reference_prompts", "repeats", "spread"]
