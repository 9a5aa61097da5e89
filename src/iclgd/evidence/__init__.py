"""Everything that the scores of one run need, recorded: only what some score names."""

from iclgd.evidence.gather import gather
from iclgd.evidence.laboratory import Laboratory

__all__ = ["Laboratory", "gather"]
