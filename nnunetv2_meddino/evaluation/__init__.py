"""Segmentation metrics of one case: Dice, normalised surface distance, surface distances, in two named definitions."""

from nnunetv2_meddino.evaluation.metrics import BoundaryMetrics, CaseMetrics, ClassMetrics, evaluate_case

__all__ = ["BoundaryMetrics", "CaseMetrics", "ClassMetrics", "evaluate_case"]
