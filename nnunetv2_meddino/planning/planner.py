"""Adds a high-resolution 2d configuration for the ViT to a dataset's nnU-Net plans, and makes the plans if need be."""

from __future__ import annotations

import io
import logging
import math
import os
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset
from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases, verify_labels
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, find_candidate_datasets
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_meddino import __version__
from nnunetv2_meddino.environment import (
    NNUNET_N_PROC_DA,
    NNUNET_PREPROCESSED,
    NNUNET_RAW,
    changed_environment,
    nnunet_folders,
)
from nnunetv2_meddino.errors import DataError, PlanError
from nnunetv2_meddino.files import is_of_the_disk, naming, read_json, write_json
from nnunetv2_meddino.imaging.io import read_grid
from nnunetv2_meddino.planning.lazy_resampling import resampled_while_training
from nnunetv2_meddino.planning.presets import (
    SAME_FIELD_OF_VIEW,
    TOKEN_PX,
    Overlay,
    apply_overlay,
    check_overlay_fits,
    load_overlay,
)

logger = logging.getLogger(__name__)

AXIAL = [0, 1, 2]
PROVENANCE_KEY = "meddino_plan"
COPY_OF_RAW = "Copy dataset.json of the raw dataset there, or plan anew."

# GiB of GPU memory in a training step of ViT-B/16 + token decoder under autocast with AdamW: parameters and optimizer
# once, the rest per image; counted on the network's op stream at 896 px with 14 output channels (docs/planning.md).
STATIC_GIB, ENCODER_GIB, DECODER_GIB, LOSS_GIB = 1.9, 1.21, 1.98, 0.3
REFERENCE_PX, REFERENCE_HEADS = 896, 14
USABLE_FRACTION = 0.925  # 74 of 80 GB; the rest is the CUDA context and fragmentation
MIN_BATCH_SIZE, MAX_DATASET_FRACTION = 2, 0.05  # nnU-Net's own limits


@dataclass(frozen=True)
class PlanResult:
    """What ``plan_dataset`` did and what to run next. In-plane pairs are ordered (y, x)."""

    plans_file: Path
    configuration: str
    planned: bool
    """The plans file did not exist and was made."""
    written: bool
    """False: the configuration was there already and nothing was touched."""
    spacing_mm: tuple[float, ...]
    patch_size_px: tuple[int, ...]
    median_image_size_px: tuple[int, ...]
    batch_size: int
    next_commands: tuple[str, ...]

    def __str__(self) -> str:
        """Return the result as a few lines for a terminal."""
        patch, median = (" x ".join(map(str, size)) for size in (self.patch_size_px, self.median_image_size_px))
        spacing = " x ".join(f"{mm:.3g}" for mm in self.spacing_mm)
        lines = [
            f"{self.configuration} {'added to' if self.written else 'already in'} {self.plans_file}",
            f"patches of {patch} px at {spacing} mm (median slice {median} px), batch size {self.batch_size}",
            *("next:", *(f"  {command}" for command in self.next_commands)),
        ]
        return "\n".join(lines)


class MedDINOPlanner(ExperimentPlanner):
    """nnU-Net's default planner with axial slices whatever the spacing: the backbone was pretrained on axial slices."""

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """Return the identity: 2D slices are cut along axis 0 of the array that nnU-Net's reader returns."""
        return list(AXIAL), list(AXIAL)

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Turn the plans into plain JSON types; ``plan_dataset`` writes them, once and complete."""
        recursive_fix_for_json_export(plans)


def plan_dataset(
    dataset: int | str,
    *,
    patch_size: int = 896,
    plans_name: str = "nnUNetPlans",
    gpu_memory_gb: float = 24.0,
    overlay: str | Path | None = None,
    overwrite: bool = False,
    lazy_resample: bool = False,
    num_processes: int | None = None,
) -> PlanResult:
    """Add the configuration ``2d_<patch_size>`` to the plans of a dataset; make the plans first where there are none.

    The field of view of the ``2d`` configuration is kept, in more pixels: per in-plane axis, spacing = 2d spacing x
    2d patch size / patch size (MedDINOv3, arXiv:2509.02379 and its README). The batch size is what ``largest_batch``
    allows, but at most 5 % of the dataset's patches and at least 2. No other configuration is touched, and a second
    run changes nothing.

    Args:
        dataset: Dataset id (``900``) or full name (``Dataset900_CTMini``).
        patch_size: Edge length of the square patch in pixels, a multiple of 16.
        plans_name: Plans file in the dataset's folder of ``nnUNet_preprocessed``, without ``.json``.
        gpu_memory_gb: Memory of the GPU that the batch size is planned for.
        overlay: Name (``amos22``, ``mixed512``) or path of an overlay with settings for a benchmark or any dataset.
        overwrite: Replace a configuration of the same name that differs.
        lazy_resample: Store no data of the configuration; train it with that of ``2d``, resampled slice by slice.
        num_processes: Worker processes for checking the data and extracting its fingerprint; nnU-Net's default if None.

    Raises:
        PlanError: The arguments, the existing plans or the overlay cannot be used; no plans have been written.
        DataError: The dataset is unknown or contradicts its ``dataset.json``; no plans have been written.
    """
    if patch_size <= 0 or patch_size % TOKEN_PX:
        raise PlanError(f"Patch size {patch_size} cannot be cut into 16 px tokens. Give a positive multiple of 16.")
    if not plans_name or "__" in plans_name or Path(plans_name).name != plans_name:
        msg = f"Plans name {plans_name!r} cannot be used: it names a file, and nnU-Net splits result folders at '__'."
        raise PlanError(f"{msg} Give a plain name such as MedDINOPlans.")
    name = f"2d_{patch_size}"
    laid_over = None if overlay is None else load_overlay(overlay)
    workers = num_processes or min(default_num_processes, os.cpu_count() or 1)

    raw, preprocessed = _dataset_folders(dataset)
    dataset_id = convert_dataset_name_to_id(raw.name)
    plans_file = preprocessed / f"{plans_name}.json"
    planned = not plans_file.exists()
    advice = "Restore the file, or move it away to plan anew."
    plans = _make_plans(raw, preprocessed, plans_name, workers) if planned else read_json(plans_file, PlanError, advice)
    base = _usable_2d(plans, plans_file, dataset_id)
    dataset_json = read_json(preprocessed / "dataset.json", DataError, COPY_OF_RAW)
    new = _high_resolution(plans, base, dataset_json, name, patch_size, gpu_memory_gb, laid_over)
    if lazy_resample:
        new = resampled_while_training(new, base, preprocessed / "dataset_fingerprint.json")

    old = plans["configurations"].get(name, {})
    differing = sorted(key for key in {*old, *new} - {PROVENANCE_KEY} if old.get(key) != new.get(key))
    if old and differing:
        msg = f"Configuration {name} in {plans_file} differs from this plan in: {', '.join(differing)}."
        if not overwrite:
            raise PlanError(f"{msg} Keep it, or plan with overwrite and preprocess again.")
        logger.warning("%s It is replaced; preprocess again.", msg)
    if differing:
        plans["configurations"][name] = new
        write_json(plans, plans_file)
    shown = PlansManager(plans).get_configuration(name)
    return PlanResult(
        plans_file=plans_file,
        configuration=name,
        planned=planned,
        written=bool(differing),
        spacing_mm=tuple(shown.spacing),
        patch_size_px=tuple(shown.patch_size),
        median_image_size_px=tuple(shown.median_image_size_in_voxels),
        batch_size=shown.batch_size,
        next_commands=(
            f"nnUNetv2_preprocess -d {dataset_id} -plans_name {plans_name} -c {'2d' if lazy_resample else name} "
            f"-np {workers}",
            ("MEDDINO_LOADER=whole_slice " if lazy_resample else "")
            + f"meddino train {dataset_id} {name} 0 -tr MedDINOv3Trainer -p {plans_name}",
        ),
    )


def largest_batch(patch_size: int, num_heads: int, gpu_memory_gb: float) -> int:
    """Return how many images of ``patch_size`` x ``patch_size`` px one training step fits into a GPU (0: not even one).

    floor((0.925 x gpu_memory_gb - 1.9) / g) with
    g = (1.21 encoder + 1.98 decoder + 0.3 loss x num_heads / 14) x (patch_size / 896)^2 GiB per image: activations grow
    with the number of tokens, (patch_size / 16)^2, for no attention matrix is stored; the loss grows with the output
    channels too. Source of the figures: op-stream count for ViT-B/16 + token decoder (docs/planning.md). nnU-Net's own
    estimate is for its U-Net and does not carry over.
    """
    gib_per_image = ENCODER_GIB + DECODER_GIB + LOSS_GIB * num_heads / REFERENCE_HEADS
    gib_per_image *= (patch_size / REFERENCE_PX) ** 2
    return max(0, math.floor((USABLE_FRACTION * gpu_memory_gb - STATIC_GIB) / gib_per_image))


def _high_resolution(
    plans: Mapping[str, Any],
    base: ConfigurationManager,
    dataset_json: Mapping[str, Any],
    name: str,
    patch_size: int,
    gpu_memory_gb: float,
    overlay: Overlay | None,
) -> dict[str, Any]:
    """Return the new configuration as it goes into the plans, provenance included."""
    labels = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    finer = [patch_size / size for size in base.patch_size]
    configuration: dict[str, Any] = {
        "inherits_from": "2d",
        "data_identifier": f"{plans['plans_name']}_{name}",
        "patch_size": [patch_size, patch_size],
        "spacing": [mm / factor for mm, factor in zip(base.spacing, finer, strict=True)],
        "median_image_size_in_voxels": [
            round(size * factor) for size, factor in zip(base.median_image_size_in_voxels, finer, strict=True)
        ],
    }
    if overlay is not None:
        check_overlay_fits(overlay, name, labels, dataset_json)
        field_of_view_mm = [px * mm for px, mm in zip(base.median_image_size_in_voxels, base.spacing, strict=True)]
        configuration = apply_overlay(configuration, overlay.configuration[name], field_of_view_mm)
    in_memory = largest_batch(patch_size, labels.num_segmentation_heads, gpu_memory_gb)
    slices = dataset_json["numTraining"] * plans["original_median_shape_after_transp"][0]
    patches = slices * math.prod(configuration["median_image_size_in_voxels"]) / patch_size**2
    in_dataset = round(MAX_DATASET_FRACTION * patches)
    configuration.setdefault("batch_size", max(MIN_BATCH_SIZE, min(in_memory, in_dataset)))
    if configuration["batch_size"] > in_memory:
        logger.warning(
            "Batch size %d is estimated not to fit into %g GB (%d would). Plan a smaller patch or use a larger GPU.",
            *(configuration["batch_size"], gpu_memory_gb, in_memory),
        )
    provenance = {
        "made_by": f"nnunetv2_meddino {__version__}",
        "overlay": overlay and overlay.name,
        "from_2d": {"spacing": list(base.spacing), "patch_size": list(base.patch_size)},
        "spacing_rule": _spacing_rule(overlay, name),
        "batch_size_rule": "max(2, min(fits_in_memory, 5_percent_of_dataset)), unless the overlay fixes it",
        "memory_rule": "ViT-B/16 + token decoder: nnunetv2_meddino.planning.planner.largest_batch",
        "gpu_memory_gb": gpu_memory_gb,
        "output_channels": labels.num_segmentation_heads,
        "fits_in_memory": in_memory,
        "5_percent_of_dataset": in_dataset,
    }
    return {**configuration, PROVENANCE_KEY: provenance}


def _spacing_rule(overlay: Overlay | None, name: str) -> str:
    """Return, for the provenance, where the spacing is from."""
    rule = overlay and overlay.configuration[name].get("spacing", SAME_FIELD_OF_VIEW)
    if rule is None or rule == SAME_FIELD_OF_VIEW:
        return f"{SAME_FIELD_OF_VIEW}, per axis (arXiv:2509.02379)"
    return f"{rule}, per axis" if isinstance(rule, str) else "fixed by the overlay"


def _usable_2d(plans: Mapping[str, Any], plans_file: Path, dataset_id: int) -> ConfigurationManager:
    """Return the resolved ``2d`` configuration, or say why these plans cannot carry a high-resolution one."""
    manager, fault = PlansManager(dict(plans)), None
    try:
        if "2d" not in manager.available_configurations:
            fault = "has no 2d configuration to start from"
        elif manager.plans_name != plans_file.stem:
            fault = f"calls itself {manager.plans_name}, and nnU-Net needs file name and plans_name to agree"
        elif manager.transpose_forward != AXIAL:
            fault = f"does not cut 2D slices axially (transpose_forward {manager.transpose_forward})"
        else:
            base = manager.get_configuration("2d")
            axes = (base.patch_size, base.spacing, base.median_image_size_in_voxels)
            if [len(axis) for axis in axes] == [2, 2, 2] and len(manager.original_median_shape_after_transp) == 3:
                return base
            fault = f"has a 2d configuration that is not two-dimensional (patch size {base.patch_size})"
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        fault = f"is not a complete nnU-Net v2 plans file ({type(error).__name__}: {error})"
    msg = (
        f"{plans_file} {fault}. It is left as it is, for there may be data preprocessed with it. Plan anew, with axial"
    )
    raise PlanError(f"{msg} slices, under another name: meddino plan -d {dataset_id} -p MedDINOPlans")


def _make_plans(raw: Path, preprocessed: Path, plans_name: str, workers: int) -> dict[str, Any]:
    """Return new plans with axial slices; where there is no fingerprint, check the data and extract it first."""
    dataset_json = read_json(raw / "dataset.json", DataError, "Correct it; nnU-Net's documentation says what it holds.")
    fingerprint = preprocessed / "dataset_fingerprint.json"
    if not fingerprint.exists():
        dataset_id = convert_dataset_name_to_id(raw.name)
        try:
            with naming(fingerprint):
                extract_fingerprint_dataset(
                    dataset_id, num_processes=workers, check_dataset_integrity=True, verbose=False
                )
        except Exception as error:  # nnU-Net reports faulty data with whatever it trips over, asserts included
            if is_of_the_disk(error):
                raise
            msg = f"Dataset {raw} cannot be planned: {error}\n{_first_fault(raw, dataset_json)}"
            raise DataError(f"{msg}\nCorrect the files or dataset.json, then plan again.") from error
    read_json(fingerprint, DataError, "Move it away and plan again, which extracts it anew.")
    # The planner gives this to torch.set_num_threads, which refuses 0, a good value for training on a CPU.
    with changed_environment({NNUNET_N_PROC_DA.name: None}), redirect_stdout(io.StringIO()) as said:
        planner = MedDINOPlanner(raw.name, plans_name=plans_name)
        plans = planner.plan_experiment()
    logger.debug("%s", said.getvalue())
    _warn_unless_axial(next(iter(planner.dataset.values()))["images"][0], plans["image_reader_writer"])
    return plans


def _first_fault(raw: Path, dataset_json: dict[str, Any]) -> str:
    """Name the first case that nnU-Net's integrity check rejects; the check itself only prints it, in a worker."""
    case = ""
    try:
        labels = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
        allowed = labels.all_labels + ([labels.ignore_label] if labels.has_ignore_label else [])
        channels = len(dataset_json["channel_names"])
        for case, files in get_filenames_of_train_images_and_targets(str(raw), dataset_json).items():
            with redirect_stdout(io.StringIO()) as said:
                reader = determine_reader_writer_from_dataset_json(dataset_json, files["images"][0], verbose=False)
                ok = verify_labels(files["label"], reader, allowed)
                ok = ok and check_cases(files["images"], files["label"], channels, reader)
            if not ok:
                return f"Case {case}: {said.getvalue().strip()}"
    except Exception as error:  # an unreadable file, say
        return f"Case {case}: {error}" if case else ""
    return ""


def _warn_unless_axial(image: str, reader: str) -> None:
    """Warn where axis 0 of the array that a reader without reorientation returns does not run from head to foot."""
    if reader not in ("SimpleITKIO", "NibabelIO"):
        return
    _, grid = read_grid(Path(image))
    slice_direction = np.abs(grid.directions[0])
    if not grid.in_plane and slice_direction.max() != slice_direction[2]:
        msg = "%s is not stored in axial slices, so 2D slices will not be axial. If that is not meant, set %s in "
        fix = '"overwrite_image_reader_writer": "NibabelIOWithReorient"'
        logger.warning(msg + "dataset.json before planning.", image, fix)


def _dataset_folders(dataset: int | str) -> tuple[Path, Path]:
    """Return the dataset's folders in ``nnUNet_raw`` and ``nnUNet_preprocessed``; the second may not exist yet."""
    raw, preprocessed = nnunet_folders(NNUNET_RAW, NNUNET_PREPROCESSED)
    names = [str(dataset)] if re.fullmatch(r"Dataset\d{3}_.+", str(dataset)) else []
    if str(dataset).isdecimal():
        names = [name for name in find_candidate_datasets(int(dataset)) if (raw / name).is_dir()]
    if len(names) != 1 or not (raw / names[0] / "dataset.json").is_file():
        msg = f"Dataset {dataset} is not one folder DatasetXXX_Name with a dataset.json in {raw}"
        raise DataError(f"{msg} (found: {', '.join(names) or 'none'}). Correct the id, the folder or nnUNet_raw.")
    return raw / names[0], preprocessed / names[0]
