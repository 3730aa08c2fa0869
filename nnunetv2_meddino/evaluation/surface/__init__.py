"""Distances between the surfaces of segmentations, compiled: ``measure`` is the way in."""

from nnunetv2_meddino.evaluation.surface.elements import ClassSurfaces, DirectedDistances, SurfacePair
from nnunetv2_meddino.evaluation.surface.regions import Measurement, measure

__all__ = ["ClassSurfaces", "DirectedDistances", "Measurement", "SurfacePair", "measure"]
