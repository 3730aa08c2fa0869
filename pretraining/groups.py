"""Groups of slices that a step looks at together, and how processes and micro-batches share them.

What depends on which slices are together is a matter of the group alone: the neighbours of KoLeo, how many patches are
masked in which crop, the samples that stochastic depth leaves out, the scale of the patch coordinates. The number of
processes only says who holds which part of a group.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """The slices of a micro-batch among those of its group.

    Attributes:
        start: Position of the first in the group.
        count: Slices of the micro-batch.
        group: Slices of the group.
        stratum: Slices among which stochastic depth chooses.
    """

    start: int
    count: int
    group: int
    stratum: int

    @classmethod
    def whole(cls, count: int) -> Share:
        """Return the share of a micro-batch that is a group of its own."""
        return cls(0, count, count, count)


@dataclass(frozen=True)
class Division:
    """How a step is divided; ``RunConfig.division`` makes it.

    Attributes:
        group: Slices of a group.
        stratum: Slices among which stochastic depth chooses.
        micro_batch: Slices that a process holds at once.
        micro_batches: Of each process in a step.
        processes: Consecutive processes that share a group; 1 if a process has whole groups.
        parts: Consecutive micro-batches of a process that belong to one group.
    """

    group: int
    stratum: int
    micro_batch: int
    micro_batches: int
    processes: int
    parts: int

    def share(self, place: int) -> Share:
        """Return what the micro-batch that begins at a place of the step's global batch is of its group."""
        return Share(place % self.group, self.micro_batch, self.group, self.stratum)
