"""Results of one case, and the table of the metrics that reports show."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A metric that tables show."""

    key: str
    """Name in JSON and CSV files."""
    title: str
    """Head of its column."""
    decimals: int
    higher_is_better: bool


def nsd_metric(definition: str, tolerance: str, at: str) -> Metric:
    """Return NSD in a boundary definition; ``tolerance`` ends its key, ``at`` its title."""
    return Metric(f"NSD_{definition}_{tolerance}", f"NSD {definition} {at}", 4, higher_is_better=True)


DICE = Metric("Dice", "DSC", 4, higher_is_better=True)
NSD_VOXEL = nsd_metric("voxel", "1mm", "1 mm")
ASSD_VOXEL = Metric("ASSD_voxel_mm", "ASSD voxel (mm)", 2, higher_is_better=False)
HD95_VOXEL = Metric("HD95_voxel_mm", "HD95 voxel (mm)", 2, higher_is_better=False)


def shown_metrics(tolerance: str, at: str) -> tuple[Metric, ...]:
    """Return the columns of tables: Dice, NSD in both definitions as of ``nsd_metric``, and two distances."""
    nsd = (nsd_metric(definition, tolerance, at) for definition in ("voxel", "surfel"))
    return (DICE, *nsd, ASSD_VOXEL, HD95_VOXEL)


METRICS = shown_metrics("1mm", "1 mm")
"""The metrics of a comparison."""


def _distance(key: str) -> Any:
    return field(default=math.nan, metadata={"key": key})


@dataclass(frozen=True)
class BoundaryMetrics:
    """Surface metrics of one class in one boundary definition; NaN where a value is undefined."""

    nsd: dict[float, float]
    """Normalised surface distance (surface Dice) by tolerance in mm."""
    assd_mm: float = _distance("ASSD")
    """Mean distance over the elements of both surfaces, pooled."""
    reference_to_prediction_mm: float = _distance("MSD_ref_to_pred")
    """Mean distance from the reference's surface."""
    prediction_to_reference_mm: float = _distance("MSD_pred_to_ref")
    """Mean distance from the prediction's surface."""
    hd95_mm: float = _distance("HD95")
    """The larger of the two directed 95th percentiles."""
    hd_mm: float = _distance("HD")
    """Hausdorff distance."""

    def as_dict(self, definition: str) -> dict[str, float]:
        """Return the metrics by key, such as ``NSD_voxel_1mm`` and ``HD95_voxel_mm``."""
        row = {nsd_metric(definition, f"{mm:g}mm", "").key: value for mm, value in self.nsd.items()}
        distances = [f for f in fields(self) if "key" in f.metadata]
        return row | {f"{f.metadata['key']}_{definition}_mm": getattr(self, f.name) for f in distances}


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class (a label or a region) in one case."""

    labels: tuple[int, ...]
    """The labels that make up the class."""
    tp: int
    """Voxels in reference and prediction."""
    fp: int
    """Voxels in the prediction only."""
    fn: int
    """Voxels in the reference only."""
    tn: int
    """Voxels in neither; ignored voxels are in none of the four."""
    dsc: float
    """Dice similarity coefficient."""
    iou: float
    """Intersection over union."""
    voxel: BoundaryMetrics
    """Surface metrics on boundary voxels."""
    surfel: BoundaryMetrics
    """Surface metrics on surface elements weighted by area."""
    voxel_volume_ml: float
    """Volume of a voxel."""

    @property
    def n_ref(self) -> int:
        """Voxels of the reference."""
        return self.tp + self.fn

    @property
    def n_pred(self) -> int:
        """Voxels of the prediction."""
        return self.tp + self.fp

    @property
    def missed(self) -> bool:
        """The reference holds the class and the prediction does not: overlap is 0, distances are NaN."""
        return self.n_ref > 0 and self.n_pred == 0

    @property
    def only_predicted(self) -> bool:
        """The prediction holds the class and the reference does not: all metrics are NaN, voxels are counted."""
        return self.n_ref == 0 and self.n_pred > 0

    @property
    def false_positive_volume_ml(self) -> float:
        """Predicted volume outside the reference."""
        return self.fp * self.voxel_volume_ml

    def as_dict(self) -> dict[str, float | int]:
        """Return one flat row, nnU-Net's own keys among them; undefined values are NaN."""
        row: dict[str, float | int] = {
            DICE.key: self.dsc,
            "IoU": self.iou,
            "TP": self.tp,
            "FP": self.fp,
            "FN": self.fn,
            "TN": self.tn,
            "n_pred": self.n_pred,
            "n_ref": self.n_ref,
        }
        return row | self.voxel.as_dict("voxel") | self.surfel.as_dict("surfel")


@dataclass(frozen=True)
class CaseMetrics:
    """Metrics of one case."""

    classes: dict[str, ClassMetrics]
    """Metrics by name of the class."""
    dimensions: int
    """2 where the case is a single slice and was measured by the 2D definitions, else 3."""
    undeclared_labels: tuple[int, ...]
    """Labels other than 0 in either volume and in no class, ascending; the ignore label is declared."""
