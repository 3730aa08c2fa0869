"""Named variations of the trainers: schedule, loss weighting, length. Names follow nnU-Net's own variants."""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_meddino.errors import print_errors_without_traceback
from nnunetv2_meddino.trainers.baselines import DINOUNetTrainer, SegFormerTrainer
from nnunetv2_meddino.trainers.fine_tuning import choose_fine_tuning
from nnunetv2_meddino.trainers.gradient_accumulation import GradientAccumulation
from nnunetv2_meddino.trainers.losses import DiceAndBalancedCrossEntropy
from nnunetv2_meddino.trainers.lr_schedules import IterationSchedule, LRCurve, warmup_cosine
from nnunetv2_meddino.trainers.meddinov3 import MedDINOv3Trainer


class MedDINOv3CosineTrainer(IterationSchedule, MedDINOv3Trainer, GradientAccumulation):
    """MedDINOv3 with warm-up and cosine, float16, accumulated batches and class weights that follow the imbalance.

    Linear warm-up over the first tenth of the iterations, half a cosine down to 1e-6, AdamW. The batch of the plans is
    the global batch, of which four images are held at once; the step is that of the whole batch. Base rates, betas and
    weight decay are those of ``MedDINOv3Trainer`` (ours: the recipe does not state them).
    """

    precision = "float16"
    micro_batch_size = 4

    def lr_curve(self) -> LRCurve:
        """Return the warm-up over the first tenth and the cosine."""
        return warmup_cosine(warmup=0.1, final=1e-6)

    def _build_loss(self) -> nn.Module:
        """Return nnU-Net's Dice with balanced cross-entropy."""
        return DiceAndBalancedCrossEntropy(
            super()._build_loss().dc,
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
        )


class MedDINOv3Trainer_5epochs(MedDINOv3Trainer):  # noqa: N801
    """MedDINOv3 for 5 epochs: does it run on my data?"""

    epochs = 5


class MedDINOv3Trainer_100epochs(MedDINOv3Trainer):  # noqa: N801
    """MedDINOv3 for 100 epochs: a tenth of the full training, with the whole schedule in it."""

    epochs = 100


class DemoLength:
    """Length of the trainings that end in minutes on a CPU."""

    epochs = 12
    iterations_per_epoch = 25
    validation_iterations_per_epoch = 2


class MedDINOv3Trainer_demo(DemoLength, MedDINOv3Trainer):  # noqa: N801
    """A few short epochs at high rates, for a small ViT from random weights on a CPU; what ``meddino demo`` runs."""

    drop_path = 0.0
    encoder_lr = 2e-3
    decoder_lr = 2e-3


class MedDINOv3LastBlockTrainer_demo(MedDINOv3Trainer_demo):  # noqa: N801
    """The same from the tokens of the last block alone, for ablations on a CPU."""

    multi_scale = False


class SegFormerTrainer_demo(DemoLength, SegFormerTrainer):  # noqa: N801
    """SegFormer at the length of the demo, for comparisons on a CPU."""

    drop_path = 0.0
    encoder_lr = 2e-3
    decoder_lr = 2e-3


class DINOUNetTrainer_demo(DemoLength, DINOUNetTrainer):  # noqa: N801
    """DINO U-Net at the length of the demo, for comparisons on a CPU."""


class nnUNetTrainer_demo(nnUNetTrainer):  # noqa: N801
    """Stock nnU-Net at the length of the demo, for comparisons on a CPU; nothing else is changed."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net compares this signature)
    ) -> None:
        print_errors_without_traceback()
        choose_fine_tuning(None, type(self).__name__)  # refuses the variable
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = DemoLength.epochs
        self.num_iterations_per_epoch = DemoLength.iterations_per_epoch
        self.num_val_iterations_per_epoch = DemoLength.validation_iterations_per_epoch
