"""The cases of a configuration that stores nothing: slices of another one, resampled as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, determine_do_sep_z_and_axis
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from numpy.typing import NDArray

from nnunetv2_meddino.dataloading.cases import PreprocessedCases
from nnunetv2_meddino.dataloading.zoom import Zoom
from nnunetv2_meddino.errors import ConfigurationError, DataError

RESAMPLED_FROM = "meddino_resampled_from"
"""Key of a configuration in the plans: the one whose preprocessed data it is trained with."""

FUNCTION = "resample_data_or_seg_to_shape"
CUBIC = {"is_seg": False, "order": 3, "force_separate_z": None}
HEAVIEST, NEAREST = ({"is_seg": True, "order": order, "force_separate_z": None} for order in (1, 0))
"""What nnU-Net and our overlays resample with, but for ``order_z``, which no axis of a slice is resampled with."""


@dataclass(frozen=True)
class SliceResampling:
    """What nnU-Net's preprocessing would have made of slices that were stored in another spacing."""

    spacing_mm: tuple[float, float]
    """Rows and columns of the configuration that is trained."""
    axes: tuple[int, ...]
    """nnU-Net's ``transpose_forward``."""
    nearest_labels: bool
    """Whether label maps are resampled with nearest neighbours, not linearly."""

    @classmethod
    def of(cls, configuration: Mapping[str, Any], axes: Sequence[int]) -> SliceResampling:
        """Return that of a configuration.

        Args:
            configuration: Of the plans, complete.
            axes: ``transpose_forward`` of the plans.

        Raises:
            ConfigurationError: It resamples images or label maps in a way that is not done here.
        """
        done = {"data": [CUBIC], "seg": [HEAVIEST, NEAREST]}
        given = {}
        for what, known in done.items():
            function, arguments = (configuration[f"resampling_fn_{what}{more}"] for more in ("", "_kwargs"))
            given[what] = {key: value for key, value in arguments.items() if key != "order_z"}
            if function != FUNCTION or given[what] not in known:
                msg = (
                    f"The plans resample {what} with {function} ({arguments}), which cannot be done while training. "
                    "Plan without --lazy-resample."
                )
                raise ConfigurationError(msg)
        rows_mm, columns_mm = configuration["spacing"]
        return cls((rows_mm, columns_mm), tuple(axes), given["seg"] == NEAREST)

    def shape(self, case: str, properties: Mapping[str, Any]) -> tuple[int, int, int]:
        """Return ``(slices, rows, columns)`` that preprocessing would have given a case.

        Args:
            case: Its name.
            properties: What preprocessing noted of it, in whatever spacing.

        Raises:
            DataError: nnU-Net would resample rows or columns by themselves.
        """
        spacing = self.spacing_of(properties)
        if self.has_coarse_axis(spacing):
            sizes = " x ".join(f"{mm:g}" for mm in spacing)
            msg = f"Voxels of case {case} are {sizes} mm: an axis of its slices is so coarse that nnU-Net resamples it"
            raise DataError(f"{msg} by itself, which is not done while training. Plan without --lazy-resample.")
        before = properties["shape_after_cropping_and_before_resampling"]
        slices, rows, columns = compute_new_shape(before, spacing, (spacing[0], *self.spacing_mm))
        return int(slices), int(rows), int(columns)

    def spacing_of(self, properties: Mapping[str, Any]) -> list[float]:
        """Return the spacing of a case's image in mm, ``(z, y, x)`` of what nnU-Net stores."""
        return [properties["spacing"][axis] for axis in self.axes]

    def has_coarse_axis(self, spacing: Sequence[float]) -> bool:
        """Whether nnU-Net resamples rows or columns apart, with nearest neighbours, in an image of this spacing."""
        apart, axis = determine_do_sep_z_and_axis(None, spacing, (spacing[0], *self.spacing_mm))
        return bool(apart) and axis in (1, 2)


class ResampledCases(PreprocessedCases):
    """Preprocessed cases in another spacing; voxels are counted in that, and a box is read from the whole slice."""

    def __init__(self, dataset: nnUNetBaseDataset, resampling: SliceResampling) -> None:
        super().__init__(dataset)
        self.resampling = resampling
        self._shapes: dict[str, tuple[int, int, int]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Open files stay behind, as there."""
        return ResampledCases, (self.dataset, self.resampling)

    def shape(self, case: str) -> tuple[int, int, int]:
        """Return ``(slices, rows, columns)`` that preprocessing would have given a case.

        Raises:
            DataError: The files of the case cannot be read, or its slices cannot be resampled.
        """
        if case not in self._shapes:
            self._shapes[case] = self.resampling.shape(case, self.properties(case))
        return self._shapes[case]

    def read(
        self, case: str, slice_index: int, rows: tuple[int, int], columns: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Read a box of one slice, as ``PreprocessedCases`` does."""
        (_, *source), (_, *target) = super().shape(case), self.shape(case)
        if source == target:
            return super().read(case, slice_index, rows, columns)
        image, labels = super().read(case, slice_index, (0, source[0]), (0, source[1]))
        zoom = Zoom((source[0], source[1]), (target[0], target[1]), rows, columns)
        return zoom.image(image), zoom.labels(labels, nearest=self.resampling.nearest_labels)

    def _places(self, case: str, voxels: Any) -> tuple[NDArray[np.intp], ...]:
        """Return where the centres of stored voxels lie."""
        places = zip(super()._places(case, voxels), super().shape(case), self.shape(case), strict=True)
        return tuple(((2 * place + 1) * target // (2 * source)) for place, source, target in places)
