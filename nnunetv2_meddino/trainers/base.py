"""What every trainer of this package shares: architecture in the plans, weights read once, exact resume, scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunetv2_meddino.commands import VALIDATION
from nnunetv2_meddino.dataloading.loader import BatchLoader
from nnunetv2_meddino.dataloading.resampled_cases import RESAMPLED_FROM, SliceResampling
from nnunetv2_meddino.environment import MEDDINO_FINETUNE, require_unchanged
from nnunetv2_meddino.errors import ConfigurationError, DataError, print_errors_without_traceback
from nnunetv2_meddino.evaluation.validation import LOGGED, evaluate_validation, mean_lines
from nnunetv2_meddino.files import read_json
from nnunetv2_meddino.networks.lora import is_adapter
from nnunetv2_meddino.networks.precision import needs_loss_scaling
from nnunetv2_meddino.trainers.checkpoints import check_other_folds, check_two_dimensional, read_beginning
from nnunetv2_meddino.trainers.fine_tuning import FINE_TUNING, FROZEN, FULL, LORA, choose_fine_tuning, fine_tuned
from nnunetv2_meddino.trainers.gradient_accumulation import restore_rng, rng_state
from nnunetv2_meddino.trainers.lr_schedules import LR_SCALE, LRCurve, LRScheduler, polynomial
from nnunetv2_meddino.trainers.moving_average import mend_logged_average
from nnunetv2_meddino.trainers.stored_data import find_data
from nnunetv2_meddino.trainers.training_input import (
    LOADER,
    SLICES_OF,
    STOCK,
    choose_loader,
    loader_name,
    whole_slice_loaders,
)
from nnunetv2_meddino.trainers.validation import validate, why_not_slicewise
from nnunetv2_meddino.weights.backbones import NO_WEIGHTS, BackboneFamily, choose_backbone
from nnunetv2_meddino.weights.contamination import with_counts
from nnunetv2_meddino.weights.trained import PROVENANCE


class BaseTrainer(nnUNetTrainer):
    """nnU-Net trainer for a 2D network with an ``encoder``, which may be pretrained, and other, new, parameters.

    A subclass names its network, the family of its encoder and the weights that it begins with. They are looked at when
    a fresh training starts and never again: the architecture travels in the plans that nnU-Net saves with the model,
    the provenance of the weights in every checkpoint.
    """

    network_class: ClassVar[str]
    """Where nnU-Net finds the network."""

    family: ClassVar[BackboneFamily]
    """Architectures that its encoder can have."""

    pretrained: ClassVar[Mapping[str, str]]
    """Backbone name and the catalog weights for it, the default first; empty for random initialisation."""

    encoder_lr: ClassVar[float]
    """Learning rate of the encoder."""

    decoder_lr: ClassVar[float]
    """Learning rate of all other, new, parameters: the decoder's, and adapters in the encoder."""

    betas: ClassVar[tuple[float, float]]
    """Of AdamW."""

    decay: ClassVar[float]
    """Weight decay of AdamW."""

    precision: ClassVar[str | None] = None
    """16-bit type on a GPU: ``bfloat16``, ``float16``, or what the hardware does best."""

    loader: ClassVar[str] = STOCK
    """Where batches come from, unless ``MEDDINO_LOADER`` says otherwise; nnU-Net's, so that rows are on equal terms."""

    fine_tuning: ClassVar[str | None] = None
    """How the encoder is fine-tuned, unless ``MEDDINO_FINETUNE`` says otherwise; None: as the network defines it. Of a
    trainer with a choice, the network takes what ``fine_tuned`` returns."""

    epochs = 1000
    iterations_per_epoch = 250
    validation_iterations_per_epoch = 50
    """Length of the training (nnU-Net's)."""

    slice_resampling: SliceResampling | None = None
    """How stored slices become those of the configuration; None where they are."""

    _best_ema: float | None
    """Best moving average of the pseudo Dice so far (nnU-Net's, which declares no type)."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net compares this signature)
    ) -> None:
        print_errors_without_traceback()
        check_two_dimensional(plans, configuration, type(self).__name__)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.epochs
        self.num_iterations_per_epoch = self.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.validation_iterations_per_epoch
        self.initial_lr = self.decoder_lr
        self.weight_decay = self.decay
        self.enable_deep_supervision = False  # these networks decode at one resolution
        self.save_every = 10  # ours: a preempted job loses at most ten epochs; nnU-Net's 50 are hours at 896 pixels
        if not needs_loss_scaling(self.device.type, self.precision):
            self.grad_scaler = None
        self._architecture: dict[str, Any] | None = None
        self._begun_with: str | None = None
        self._fine_tuning: dict[str, Any] | None = None
        self._initial_version = 0
        self._resumed_rng: dict[str, Tensor] | None = None

    def network_options(self, backbone: Any) -> dict[str, Any]:
        """Return the network's arguments besides the architecture of its encoder, as JSON values."""
        return {}

    def new_architecture(self) -> dict[str, Any]:
        """Return nnU-Net's ``architecture`` entry of the network that a fresh training builds."""
        backbone = choose_backbone(self.pretrained, self.family).config
        options = self.network_options(backbone) | fine_tuned(self.chosen_fine_tuning())
        return {
            "network_class_name": self.network_class,
            "arch_kwargs": {self.family.argument: backbone.to_dict(), **options},
            "_kw_requires_import": [],
        }

    def chosen_fine_tuning(self) -> dict[str, Any]:
        """Return what ``choose_fine_tuning`` returned when the training began.

        Raises:
            ConfigurationError: It is unknown, or this trainer has no choice.
        """
        if self._fine_tuning is None:
            self._fine_tuning = choose_fine_tuning(self.fine_tuning, type(self).__name__)
        return self._fine_tuning

    def weights(self) -> str | None:
        """Return the weights that ``MEDDINO_WEIGHTS`` names, else this trainer's own; None is random, on purpose."""
        return choose_backbone(self.pretrained, self.family).weights

    @property
    def plain_network(self) -> nn.Module:
        """The network without the wrappers of DDP and ``torch.compile``."""
        wrapped: Any = self.network
        network = getattr(wrapped, "module", wrapped)
        return getattr(network, "_orig_mod", network)

    def initialize(self) -> None:
        """Write the architecture into the plans, where nnU-Net finds it here and at prediction, and build it."""
        if not self.was_initialized:
            self._use_data_of(self._begun_with or loader_name(self.loader))
            self._architecture = self._architecture or self.new_architecture()
            self.plans_manager.plans["configurations"][self.configuration_name]["architecture"] = self._architecture
            self.plans_manager.get_configuration.cache_clear()
            self.configuration_manager = self.plans_manager.get_configuration(self.configuration_name)
        super().initialize()
        self._initial_version = self._encoder_version()

    def _use_data_of(self, loader: str) -> None:
        """Let nnU-Net's trainer find the data that a loader reads."""
        self.preprocessed_dataset_folder, self.slice_resampling = find_data(self, loader)

    def _encoder_version(self) -> int:
        """Count the writes to the encoder: it stands still until somebody loads weights into it."""
        return next(self.plain_network.encoder.parameters())._version

    def on_train_start(self) -> None:
        """Load pretrained weights at the start of a fresh training, then start as nnU-Net does."""
        if not self.was_initialized:
            self.initialize()
        if self.fine_tuning is None:
            choose_fine_tuning(None, type(self).__name__)  # refuses the variable, in a resumed training too
        require_unchanged(MEDDINO_FINETUNE, "fine-tuning", self.chosen_fine_tuning()["name"])
        if self.local_rank == 0:
            check_other_folds(Path(self.output_folder), self.configuration_name, self._architecture)
        if self._encoder_version() == self._initial_version:
            self._load_pretrained_weights()
        kept = self.my_init_kwargs.setdefault(PROVENANCE, {})
        kept.setdefault("weights", {"name": "an nnU-Net checkpoint given by -pretrained_weights"})
        self.print_to_log_file(f"Encoder weights: {with_counts(kept['weights'])}")
        self._note_fine_tuning(kept)
        super().on_train_start()
        if self._resumed_rng is not None:
            restore_rng(self._resumed_rng, self.device)
            self._resumed_rng = None

    def _note_fine_tuning(self, kept: dict[str, Any]) -> None:
        """Write into the log how the encoder is fine-tuned, and into ``kept``, the provenance, where not in full."""
        if self.fine_tuning is None:
            return
        chosen = self.chosen_fine_tuning()
        if chosen["name"] != FULL:
            kept[FINE_TUNING] = chosen
        details = [f"{key} {value}" for key, value in chosen.items() if key != "name"]
        self.print_to_log_file(f"Fine-tuning: {', '.join([chosen['name'], *details])}")
        if chosen["name"] in (FROZEN, LORA) and kept["weights"]["name"] == NO_WEIGHTS:
            self.print_to_log_file("The weights that are not trained are random: a baseline for pretrained ones.")

    def _load_pretrained_weights(self) -> None:
        """Copy the pretrained weights into the encoder and note where they came from."""
        spec = self.weights()
        if spec is None:
            self.my_init_kwargs[PROVENANCE] = {"weights": {"name": "none", "source": "random initialisation"}}
            return
        weights = self.family.read(spec)
        report = self.family.load(self.plain_network.encoder, weights)
        self.my_init_kwargs[PROVENANCE] = {"weights": weights.provenance}
        self.print_to_log_file(f"Loaded {len(report.loaded)} encoder tensors from {spec}")
        for name, reason in report.dropped.items():
            self.print_to_log_file(f"Not used: {name}: {reason}", also_print_to_console=False)

    def encoder_lr_scale(self, name: str) -> float:
        """Return what the encoder's learning rate is multiplied with for its parameter of this name."""
        return 1.0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what is trained, each group with its rate: new parameters first, adapters among them."""
        new: list[nn.Parameter] = []
        encoder: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.plain_network.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.startswith("encoder.") and not is_adapter(name):
                encoder.setdefault(self.encoder_lr_scale(name.removeprefix("encoder.")), []).append(parameter)
            else:
                new.append(parameter)
        groups: list[dict[str, Any]] = [{"params": new, "lr": self.initial_lr}]
        for scale, parameters in encoder.items():
            groups.append({"params": parameters, "lr": self.encoder_lr * scale})
            if scale != 1:
                groups[-1][LR_SCALE] = scale
        return groups

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return AdamW over what is trained, and its schedule."""
        optimizer = torch.optim.AdamW(
            self.parameter_groups(),
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=self.device.type == "cuda",
        )
        return optimizer, self.make_scheduler(optimizer)

    def lr_curve(self) -> LRCurve:
        """Return the curve of the learning rates: linear to 0; a warm-up needs ``IterationSchedule`` too."""
        return polynomial()

    def make_scheduler(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Return the schedule of this training's length."""
        return LRScheduler(optimizer, self.num_epochs, self.num_iterations_per_epoch, self.lr_curve())

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: there is no deep supervision to switch, and nnU-Net calls this regardless."""

    def _set_batch_size_and_oversample(self) -> None:
        """Refuse a batch that GPUs cannot share equally; nnU-Net would hang in its Dice loss."""
        batch_size = self.configuration_manager.batch_size
        if self.is_ddp and batch_size % dist.get_world_size():
            msg = (
                f"Batch size {batch_size} of configuration {self.configuration_name} cannot be split equally over "
                f"{dist.get_world_size()} GPUs. Choose -num_gpus so that it divides {batch_size}, or change batch_size "
                f"in the plans file {self.plans_manager.plans_name}.json."
            )
            raise ConfigurationError(msg)
        self.forced_foreground: float = self.oversample_foreground_percent  # nnU-Net makes a rank's share of it
        super()._set_batch_size_and_oversample()
        if batch_size == 1:  # nnU-Net forces foreground into a third of the batch, which is none of one
            self.probabilistic_oversampling = True

    def get_dataloaders(self) -> tuple[Iterator[Any], Iterator[Any]]:
        """Return the batches of training and validation; which loader makes them goes into the checkpoints.

        Raises:
            ConfigurationError: The loader is unknown, not that of the training that is resumed, or cannot do this.
        """
        kept = self.my_init_kwargs.setdefault(PROVENANCE, {})
        kept[LOADER] = loader = choose_loader(self.loader, kept.get(LOADER))
        self._use_data_of(loader["name"])
        if self.slice_resampling is not None:
            loader[SLICES_OF] = self.configuration_manager.configuration[RESAMPLED_FROM]
        details = [f"{key} {value}" for key, value in loader.items() if key != "name"]
        self.print_to_log_file(f"Loader: {', '.join([loader['name'], *details])}")
        return super().get_dataloaders() if loader["name"] == STOCK else whole_slice_loaders(self, loader)

    def on_train_end(self) -> None:
        """Save the last checkpoint as nnU-Net does, and end the processes of our loader, which it does not know."""
        super().on_train_end()
        for loader in (self.dataloader_train, self.dataloader_val):
            if isinstance(loader, BatchLoader):
                loader.close()

    def train_step(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Take one optimizer step, after checking that the labels exist; on a GPU a wrong one is an opaque crash.

        Raises:
            DataError: A label map holds a value that dataset.json does not declare.
        """
        if not self.label_manager.has_regions:
            highest = int(batch["target"].max())
            declared = sorted(int(v) for v in {*self.label_manager.all_labels, self.label_manager.ignore_label or 0})
            if highest > declared[-1]:
                msg = (
                    f"A label map of {self.plans_manager.dataset_name} holds the label {highest}; dataset.json "
                    f"declares {declared}. Correct the label maps or dataset.json, then run "
                    "nnUNetv2_plan_and_preprocess with --verify_dataset_integrity again."
                )
                raise DataError(msg)
        return super().train_step(batch)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the epoch's scores; one without foreground leaves the moving average where it was, not at NaN."""
        super().on_validation_epoch_end(val_outputs)
        mend_logged_average(self.logger.get_checkpoint())

    def on_epoch_end(self) -> None:
        """End the epoch as nnU-Net does; a best score that is NaN, which nothing exceeds, counts as none."""
        super().on_epoch_end()
        self._forget_undefined_best()

    def _forget_undefined_best(self) -> None:
        if self._best_ema is not None and math.isnan(self._best_ema):
            self._best_ema = None

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate slice by slice with nnU-Net's files, then write surface metrics beside its ``summary.json``."""
        reason = why_not_slicewise(self)
        if reason is not None and self.slice_resampling is not None:
            raise ConfigurationError(f"Stored slices cannot be resampled for nnU-Net's own validation: {reason}")
        if reason is None:
            validate(self, save_probabilities)
        else:
            self.print_to_log_file(f"Validation by nnU-Net's own prediction: {reason}")
            super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0:
            _, cases = self.do_split()
            self.print_to_log_file(f"{VALIDATION}: surface metrics NSD, ASSD and HD95 (cases: {len(cases)})")
            file = evaluate_validation(
                Path(self.output_folder) / "validation",
                Path(self.preprocessed_dataset_folder_base) / "gt_segmentations",
                self.dataset_json,
                cases=[str(case) for case in cases],
                processes=default_num_processes,
            )
            content = read_json(file, DataError, "Validate again, with --val.")
            for line in mean_lines(content):
                self.print_to_log_file(line, also_print_to_console=True)
            for remark in [*(failure["message"] for failure in content["failed"]), *content["notes"]]:
                self.print_to_log_file(remark, also_print_to_console=False)  # the console has it as a warning
            for key in content["foreground_mean"].keys() & set(LOGGED):
                self.logger.log_summary(f"final_val/{key}", content["foreground_mean"][key])
            self.print_to_log_file(f"{VALIDATION}: done; all scores are in {file}")

    def save_checkpoint(self, filename: str) -> None:
        """Save as nnU-Net does, with the random state (stochastic depth), under a temporary name first."""
        self.my_init_kwargs.setdefault(PROVENANCE, {})["rng"] = rng_state(self.device)
        temporary = f"{filename}.tmp"
        super().save_checkpoint(temporary)
        if Path(temporary).is_file():
            Path(temporary).replace(filename)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Resume from, or validate, a checkpoint, with the architecture that it was trained with.

        NaN in the moving average and the best score of a checkpoint that stock nnU-Net or an older version wrote are
        mended, so that ``checkpoint_best`` is written again.
        """
        if not self.was_initialized:
            begun = read_beginning(Path(filename_or_checkpoint), self.configuration_name)
            self._architecture, self._begun_with, self._fine_tuning = begun
        super().load_checkpoint(filename_or_checkpoint)
        mend_logged_average(self.logger.get_checkpoint())
        self._forget_undefined_best()
        loader = self.my_init_kwargs.setdefault(PROVENANCE, {}).setdefault(LOADER, {"name": STOCK})  # older checkpoints
        self._use_data_of(loader["name"])
        if self.local_rank == 0:
            self._resumed_rng = self.my_init_kwargs.get(PROVENANCE, {}).get("rng")
