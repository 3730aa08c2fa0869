"""nnU-Net's moving average of the pseudo Dice, by which it chooses ``checkpoint_best``, without what is undefined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def without_undefined(means: Sequence[float]) -> list[float]:
    """Return the moving average after every epoch; an epoch whose mean is NaN leaves it where it was.

    nnU-Net's weights (0.9 and 0.1), and its values to the last bit where every mean is defined. A validation epoch
    whose patches hold no foreground has a mean of NaN; nnU-Net's average stays NaN from there on.
    """
    averages: list[float] = []
    average = math.nan
    for mean in means:
        if math.isnan(average):
            average = mean
        elif not math.isnan(mean):
            average = average * 0.9 + 0.1 * mean
        averages.append(average)
    return averages


def mend_logged_average(logged: dict[str, list[Any]]) -> None:
    """Compute the moving average in an nnU-Net log anew, in place, where it holds NaN."""
    if any(math.isnan(average) for average in logged["ema_fg_dice"]):
        logged["ema_fg_dice"][:] = without_undefined(logged["mean_fg_dice"])
