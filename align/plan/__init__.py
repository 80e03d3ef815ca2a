"""A recipe rehearsed without weights: what it needs, whether that fits, and what to change where it does not."""

from align.plan.meter import Peak
from align.plan.rehearsal import Rehearsal, rehearse
from align.plan.verdict import plan

__all__ = ["Peak", "Rehearsal", "plan", "rehearse"]
