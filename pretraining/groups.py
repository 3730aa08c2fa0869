"""Groups of slices that a step looks at together, and how processes and micro-batches share them.

All that depends on which slices are together depends on the group alone: the neighbours of KoLeo, how many patches are
masked in which crop, the samples that stochastic depth leaves out, the scale of the patch coordinates. The number of
processes only decides who holds which part of a group.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """The slices of a micro-batch among those of its group."""

    start: int
    """Position of the first in the group."""
    count: int
    """Slices of the micro-batch."""
    group: int
    """Slices of the group."""
    stratum: int
    """Slices among which stochastic depth chooses."""

    @classmethod
    def whole(cls, count: int) -> Share:
        """Return the share of a micro-batch that is a group of its own."""
        return cls(0, count, count, count)


@dataclass(frozen=True)
class Division:
    """How a step is divided; ``RunConfig.division`` makes it."""

    group: int
    """Slices of a group."""
    stratum: int
    """Slices among which stochastic depth chooses."""
    micro_batch: int
    """Slices that a process holds at once."""
    micro_batches: int
    """Of each process in a step."""
    processes: int
    """Consecutive processes that share a group; 1 if a process has whole groups."""
    parts: int
    """Consecutive micro-batches of a process that belong to one group."""

    def share(self, first: int) -> Share:
        """Return which part of its group a micro-batch is, given the global index of its first slice."""
        return Share(first % self.group, self.micro_batch, self.group, self.stratum)
