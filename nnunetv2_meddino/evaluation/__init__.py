"""Segmentation metrics: Dice, normalised surface distance, surface distances, in two named definitions.

``evaluate_case`` compares two arrays, ``evaluate_pair`` two files, ``evaluate_files`` the files of two folders.
"""

from nnunetv2_meddino.evaluation.cases import CaseResult, Evaluation, evaluate_files, evaluate_pair
from nnunetv2_meddino.evaluation.classes import LabelSet
from nnunetv2_meddino.evaluation.metrics import evaluate_case
from nnunetv2_meddino.evaluation.pairs import Failure, Pair, Pairing, pair_files
from nnunetv2_meddino.evaluation.reports import Summary, summarise, write_reports
from nnunetv2_meddino.evaluation.results import BoundaryMetrics, CaseMetrics, ClassMetrics

__all__ = [
    "BoundaryMetrics",
    "CaseMetrics",
    "CaseResult",
    "ClassMetrics",
    "Evaluation",
    "Failure",
    "LabelSet",
    "Pair",
    "Pairing",
    "Summary",
    "evaluate_case",
    "evaluate_files",
    "evaluate_pair",
    "pair_files",
    "summarise",
    "write_reports",
]
