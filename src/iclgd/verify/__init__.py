"""Whether a finished run holds: its files, its inputs, and its numbers, computed again in two ways."""

from iclgd.verify.check import Verdict, verify

__all__ = ["Verdict", "verify"]
