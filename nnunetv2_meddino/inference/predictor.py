"""Labels of images from a trained 2D model, slice by slice, in memory that does not grow with the network's output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name everyone gives it)
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunetv2_meddino.errors import ConfigurationError, TrainingError
from nnunetv2_meddino.inference.images import CaseImage, case_of_array, case_of_simpleitk, read_case, read_dicom_case
from nnunetv2_meddino.inference.labels import labels_of, probabilities_of
from nnunetv2_meddino.inference.model import FINAL_CHECKPOINT, Fold, Model, read_model
from nnunetv2_meddino.inference.preprocessing import NetworkSlices, PreprocessedImage
from nnunetv2_meddino.inference.resampling import resampling_of
from nnunetv2_meddino.inference.sliding_window import SlidingWindow
from nnunetv2_meddino.inference.timing import StepTimes

logger = logging.getLogger(__name__)

PATCHES_PX = 4 * 896 * 896
"""Pixels that go through the network of a GPU at a time: four views of a slice of 896 pixels."""

OnSlices = Callable[[int, int], None]
"""Called with the number of finished slices of a case, and of all."""

AnyImage = str | Path | Sequence[str | Path] | sitk.Image | NDArray[Any]
"""A file, the files of several channels, a folder of a DICOM series, an image of SimpleITK, or an array."""


class Probabilities(Protocol):
    """Takes probabilities as they come."""

    def write(self, start: int, values: NDArray[np.float32]) -> None:
        """Take those of slices from ``start`` on, ``(B, K, rows, columns)``, of the cropped and transposed image."""


class Predictor:
    """A trained 2D model that segments images.

    Example::

        predictor = Predictor.from_folder("nnUNet_results/Dataset902_CTSarcoma/MedDINOv3Trainer__nnUNetPlans__2d")
        labels = predictor.predict("patient_0000.nii.gz")  # (z, y, x)
    """

    def __init__(
        self,
        model: Model,
        device: str | torch.device,
        *,
        mirroring: bool = True,
        step_size: float = 0.5,
        on_device: bool = True,
    ) -> None:
        """Put the networks of a model on a device.

        Args:
            model: What predicts.
            device: ``cuda``, ``cpu`` or ``mps``.
            mirroring: Average over mirrored views, if the training allows them.
            step_size: Distance of overlapping tiles as a fraction of the patch.
            on_device: Resample logits on the device as well.

        Raises:
            ConfigurationError: The device is not there, or ``step_size`` is not above 0 and at most 1.
        """
        if not 0 < step_size <= 1:
            raise ConfigurationError(f"The step size must be above 0 and at most 1, not {step_size}.")
        self.model, self.step_size = model, step_size
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise ConfigurationError(f"There is no device {device!r}. Choose 'cuda', 'cpu' or 'mps'.") from error
        self.mirrorings = model.mirrorings if mirroring else [()]
        self.times = StepTimes(self.device)
        self._results_device = self.device if on_device else torch.device("cpu")
        self._in_turn = False
        try:
            self._move(self.device)
        except torch.OutOfMemoryError as error:
            self._move(torch.device("cpu"))
            if len(model.networks) == 1:
                raise ConfigurationError(f"The network does not fit on {self.device}. Predict on the CPU.") from error
            logger.warning("The networks of all folds do not fit on %s together: they take turns.", self.device)
            self._in_turn = True
        except (AssertionError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigurationError(
                f"Device {self.device} cannot be used ({reason}). Choose another, such as cpu."
            ) from error
        rows, columns = model.configuration.patch_size
        self._patch_size = (int(rows), int(columns))
        self._batched = self.device.type != "cpu"  # a CPU gains nothing from larger batches
        self._batch = max(1, PATCHES_PX // (len(self.mirrorings) * rows * columns)) if self._batched else 1

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        folds: str | int | Sequence[Fold] = "all",
        device: str | torch.device = "cuda",
        *,
        checkpoint: str = FINAL_CHECKPOINT,
        mirroring: bool = True,
        step_size: float = 0.5,
    ) -> Predictor:
        """Read a trained model.

        Args:
            folder: ``Trainer__Plans__configuration`` of ``nnUNet_results``, or an exported model.
            folds: A number or several; ``"all"``: every trained fold.
            device: ``cuda``, ``cpu`` or ``mps``.
            checkpoint: File name of the weights in each fold's folder.
            mirroring: Average over mirrored views, if the training allows them.
            step_size: Distance of overlapping tiles as a fraction of the patch.

        Raises:
            ConfigurationError: A fold is not trained, or the device is not there.
            DataError: ``plans.json`` or ``dataset.json`` cannot be used.
            WeightsError: A checkpoint cannot be read.
        """
        chosen = None if folds == "all" else [folds] if isinstance(folds, (int, str)) else list(folds)
        model = read_model(Path(folder), chosen, checkpoint)
        return cls(model, device, mirroring=mirroring, step_size=step_size)

    def predict(self, image: AnyImage, spacing_mm: Sequence[float] | None = None) -> NDArray[Any]:
        """Return the labels of an image, ``(z, y, x)`` uint8 (uint16 for 255 classes and more), on the image's grid.

        Args:
            image: A file, the files of several channels, a folder with a DICOM series, an image of SimpleITK, or an
                array ``(z, y, x)`` or ``(C, z, y, x)``.
            spacing_mm: Voxel size ``(z, y, x)`` of an array.

        Raises:
            DataError: The image cannot be read, or does not suit the model.
        """
        return self.predict_case(self.read(image, spacing_mm))

    def predict_many(self, images: Iterable[AnyImage]) -> Iterator[NDArray[Any]]:
        """Yield the labels of many images in order; the next one is read meanwhile."""
        with ThreadPoolExecutor(1) as reader:
            waiting = None
            for image in images:
                following = reader.submit(self.read, image)
                if waiting is not None:
                    yield self.predict_case(waiting.result())
                waiting = following
            if waiting is not None:
                yield self.predict_case(waiting.result())

    def read(self, image: AnyImage, spacing_mm: Sequence[float] | None = None) -> CaseImage:
        """Read an image as ``predict`` takes it."""
        if spacing_mm is not None and not isinstance(image, np.ndarray):
            raise ConfigurationError("spacing_mm is for arrays; files and images of SimpleITK have their own.")
        with self.times("read"):
            reader = self.model.plans.image_reader_writer_class
            if isinstance(image, (list, tuple)):
                return read_case([Path(file) for file in image], reader)
            if isinstance(image, (str, Path)) and not Path(image).is_dir():
                return read_case([Path(image)], reader)
            if reader.__name__.endswith("WithReorient"):
                msg = f"The model was trained on images that {reader.__name__} turns as it reads them: give it a file."
                raise ConfigurationError(msg)
            if isinstance(image, (str, Path)):
                return read_dicom_case(Path(image))
            if isinstance(image, sitk.Image):
                return case_of_simpleitk(image)
            if spacing_mm is None:
                raise ConfigurationError("An array needs spacing_mm, its voxel size (z, y, x).")
            return case_of_array(np.asarray(image), spacing_mm)

    def predict_case(
        self, image: CaseImage, probabilities: Probabilities | None = None, on_slices: OnSlices | None = None
    ) -> NDArray[Any]:
        """Return the labels of a case that has been read, ``(z, y, x)``."""
        return self.predict_slices(self.preprocessed(image), probabilities, on_slices)

    def preprocessed(self, image: CaseImage) -> NetworkSlices:
        """Return the slices of a case as the network sees them.

        Raises:
            DataError: The image has another number of channels than the network.
        """
        with self.times("preprocess"):
            return PreprocessedImage(image, self.model.plans, self.model.configuration, self.device)

    @torch.inference_mode()
    def predict_slices(
        self, slices: NetworkSlices, probabilities: Probabilities | None = None, on_slices: OnSlices | None = None
    ) -> NDArray[Any]:
        """Return the labels of preprocessed slices on the image's own grid, ``(z, y, x)``."""
        plans, properties = self.model.plans, slices.properties
        depth, *size = slices.shape
        spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
        cropped = properties["shape_after_cropping_and_before_resampling"]
        resample = resampling_of(
            self.model.configuration.configuration,
            "probabilities",
            slices.shape,
            cropped,
            [spacing[0], *self.model.configuration.spacing],
            spacing,
        )
        window = SlidingWindow((size[0], size[1]), self._patch_size, self.step_size, self.device)
        regions = self.model.regions
        many = len(self.model.labels.foreground_labels) >= 255
        labels = np.zeros(properties["shape_before_cropping"], np.uint16 if many else np.uint8)
        inside = labels[tuple(slice(start, stop) for start, stop in properties["bbox_used_for_cropping"])]
        done = 0
        while done < depth:
            stop = min(done + self._batch, depth)
            with self.times("preprocess"):
                batch = slices.read(done, stop)
            try:
                with self.times("network"):
                    logits = window.logits(batch, self._forward)
            except torch.OutOfMemoryError:
                if self._batch == 1:
                    raise
                self._batch = max(1, self._batch // 2)
                continue
            with self.times("resample"):
                logits = resample(logits.to(self._results_device))
                inside[done:stop] = labels_of(logits, regions).cpu().numpy()
                if probabilities is not None:
                    probabilities.write(done, probabilities_of(logits, regions).cpu().numpy())
            done = stop
            if on_slices is not None:
                on_slices(done, depth)
        return labels.transpose(plans.transpose_backward)

    def _move(self, device: torch.device) -> None:
        for network in self.model.networks:
            network.to(device)

    def _forward(self, patches: Tensor) -> Tensor:
        """Return logits ``(B, K, rows, columns)`` float32, averaged over mirrored views and folds."""
        total: Tensor | None = None
        autocast = torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()
        with autocast:
            for network in self.model.networks:
                if self._in_turn:
                    network.to(self.device)
                for logits in self._views(network, patches):
                    total = logits if total is None else total.add_(logits)
                if self._in_turn:
                    network.to("cpu")
        assert total is not None
        total /= len(self.model.networks) * len(self.mirrorings)
        if not bool(torch.isfinite(total.sum())):
            raise TrainingError("The network returns values that are not finite; its training has failed.")
        return total

    def _views(self, network: nn.Module, patches: Tensor) -> Iterator[Tensor]:
        """Yield the logits of each mirrored view, mirrored back; on a GPU all views go through the network at once."""
        axes = [tuple(axis + 2 for axis in mirrored) for mirrored in self.mirrorings]
        if not self._batched:
            for mirrored in axes:
                yield _flipped(network(_flipped(patches, mirrored)).float(), mirrored)
            return
        together = network(torch.cat([_flipped(patches, mirrored) for mirrored in axes])).float()
        for mirrored, logits in zip(axes, together.chunk(len(axes)), strict=True):
            yield _flipped(logits, mirrored)


def _flipped(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    return values.flip(axes) if axes else values
