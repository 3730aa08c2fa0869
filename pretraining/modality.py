"""What kind of scanner an image is from, and with it what its values mean."""

from __future__ import annotations

from enum import Enum


class Modality(str, Enum):
    """What tables call CT, MR or XR. Fingerprints store the position here: new members go to the end."""

    CT = "CT"
    """Hounsfield units, checked and rounded; padding becomes -1024."""
    MR = "MR"
    """Arbitrary units: whole values that fit into int16 are kept, others are scaled by a recorded factor."""
    XR = "XR"
    """As ``MR``; a single image is a volume of one slice and has no orientation to be checked."""

    __str__ = str.__str__
