"""What the evaluation of one case yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BoundaryMetrics:
    """Surface metrics of one class in one boundary definition; NaN where a value is undefined.

    Attributes:
        nsd: Normalised surface distance (surface Dice) by tolerance in mm.
        assd_mm: Mean distance over the elements of both surfaces, pooled.
        reference_to_prediction_mm: Mean distance from the reference's surface.
        prediction_to_reference_mm: Mean distance from the prediction's surface.
        hd95_mm: The larger of the two directed 95th percentiles.
        hd_mm: Hausdorff distance.
    """

    nsd: dict[float, float]
    assd_mm: float
    reference_to_prediction_mm: float
    prediction_to_reference_mm: float
    hd95_mm: float
    hd_mm: float

    @property
    def masd_mm(self) -> float:
        """Mean of the two directed means."""
        return (self.reference_to_prediction_mm + self.prediction_to_reference_mm) / 2


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class (a label or a region) in one case.

    Attributes:
        labels: The labels that make up the class.
        tp: Voxels in reference and prediction.
        fp: Voxels in the prediction only.
        fn: Voxels in the reference only.
        tn: Voxels in neither; ignored voxels are in none of the four.
        dsc: Dice similarity coefficient.
        iou: Intersection over union.
        voxel: Surface metrics on boundary voxels.
        surfel: Surface metrics on surface elements weighted by area.
        voxel_volume_ml: Volume of a voxel.
    """

    labels: tuple[int, ...]
    tp: int
    fp: int
    fn: int
    tn: int
    dsc: float
    iou: float
    voxel: BoundaryMetrics
    surfel: BoundaryMetrics
    voxel_volume_ml: float

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
        """The prediction holds the class and the reference does not: everything is NaN, the voxels are counted."""
        return self.n_ref == 0 and self.n_pred > 0

    @property
    def false_positive_volume_ml(self) -> float:
        """Volume that is predicted and not in the reference."""
        return self.fp * self.voxel_volume_ml

    def as_dict(self) -> dict[str, float | int]:
        """Return one flat row, nnU-Net's own keys among them; undefined values are NaN."""
        row: dict[str, float | int] = {
            "Dice": self.dsc,
            "IoU": self.iou,
            "TP": self.tp,
            "FP": self.fp,
            "FN": self.fn,
            "TN": self.tn,
            "n_pred": self.n_pred,
            "n_ref": self.n_ref,
        }
        for name, metrics in (("voxel", self.voxel), ("surfel", self.surfel)):
            row |= {f"NSD_{name}_{tolerance:g}mm": value for tolerance, value in metrics.nsd.items()}
            row[f"ASSD_{name}_mm"] = metrics.assd_mm
            row[f"MSD_ref_to_pred_{name}_mm"] = metrics.reference_to_prediction_mm
            row[f"MSD_pred_to_ref_{name}_mm"] = metrics.prediction_to_reference_mm
            row[f"HD95_{name}_mm"] = metrics.hd95_mm
            row[f"HD_{name}_mm"] = metrics.hd_mm
        return row


@dataclass(frozen=True)
class CaseMetrics:
    """Metrics of one case.

    Attributes:
        classes: Metrics by name of the class.
        dimensions: 2 where the case is a single slice and was measured by the 2D definitions, else 3.
        diagonal_mm: Diagonal of the volume, or of the slice: a penalty for missed classes, where one is wanted.
        undeclared_labels: Labels other than 0 that occur in either volume and are in no class, ascending; the ignore
            label is declared.
    """

    classes: dict[str, ClassMetrics]
    dimensions: int
    diagonal_mm: float
    undeclared_labels: tuple[int, ...]
