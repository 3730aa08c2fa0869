"""The golden training: networks, batches and schedule values of the reference's three full steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pretraining.model.config import HeadConfig, ModelConfig
from pretraining.model.student_teacher import Network, StudentTeacher
from pretraining.optim import OptimConfig
from pretraining.schedules import StepValues
from pretraining.views import PatchMasks, Views
from tests.conftest import shared_path
from tests.pretraining.golden import native_backbone, under

HEADS = ("dino_head", "ibot_head")
STEPS = 3


class GoldenTraining:
    """One of the golden runs, ``stage1`` or ``stage2_gram``."""

    def __init__(self, run: str) -> None:
        folder: Path = shared_path(f"golden/ssl/{run}")
        self.tensors = {
            name: load_file(folder / f"{name}.safetensors")
            for name in ("batches", "init_state", "final_state", "grads_step0", "intermediates_step0")
        }
        self.steps: list[dict[str, Any]] = json.loads((folder / "steps.json").read_text())
        self.settings = json.loads((folder / "config.json").read_text())["config"]
        self.optim = OptimConfig(
            layer_decay=self.settings["optim"]["layerwise_decay"],
            betas=(self.settings["optim"]["adamw_beta1"], self.settings["optim"]["adamw_beta2"]),
            clip_norm=self.settings["optim"]["clip_grad"],
        )

    def model(self) -> StudentTeacher:
        """Return the networks as they are before the first step."""
        state = self.tensors["init_state"]
        _, vit = native_backbone(under(state, "student.backbone."), norm_eps=1e-5, num_heads=2)
        sizes = ("head_n_prototypes", "head_bottleneck_dim", "head_hidden_dim", "head_nlayers")
        sections = (self.settings["dino"], self.settings["ibot"])
        dino, ibot = (HeadConfig(*(section[name] for name in sizes)) for section in sections)
        config = ModelConfig(drop_path=0.0, rope_rescale=None, dino_head=dino, ibot_head=ibot)
        model = StudentTeacher(config, vit, gram=any(name.startswith("gram_teacher.") for name in state))
        for network, name in ((model.student, "student."), (model.teacher, "teacher.")):
            network.load_state_dict(native_network(under(state, name)))
        backbones = [model.student.backbone, model.teacher.backbone]
        if model.gram_teacher is not None:
            model.gram_teacher.load_state_dict(native_backbone(under(state, "gram_teacher.backbone."))[0])
            backbones.append(model.gram_teacher)
        for backbone in backbones:
            backbone.in_channels = 3  # the golden images are in colour
        return model

    def views(self, step: int) -> Views:
        """Return the batch of a step."""
        batch = under(self.tensors["batches"], f"step{step}/")
        gram = batch.get("collated_gram_teacher_crops")
        return Views(
            batch["collated_global_crops"].float(),
            batch["collated_local_crops"].float(),
            None if gram is None else gram.float(),
            PatchMasks(batch["collated_masks"], batch["mask_indices_list"], batch["masks_weight"]),
            None,  # type: ignore[arg-type]
        )

    def values(self, step: int) -> StepValues:
        """Return what the schedules of the reference gave for a step."""
        logged = self.steps[step]
        return StepValues(
            lr=logged["lr"],
            last_layer_lr=logged["last_layer_lr"],
            weight_decay=logged["wd"],
            momentum=logged["momentum"],
            teacher_temperature=logged["teacher_temp"],
            local_weight=logged["losses"].get("dino_local_loss_weight", 1.0),
            gram_weight=logged["losses"].get("gram_loss_weight", 0.0),
        )


def native_network(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a reference's student or teacher in our names."""
    tensors, _ = native_backbone(under(state, "backbone."))
    return {f"backbone.{name}": tensor for name, tensor in tensors.items()} | {
        name: tensor for name, tensor in state.items() if name.startswith(HEADS)
    }


def require_close(network: Network, state: Mapping[str, Tensor], atol: float) -> None:
    """Check all parameters of a network against a reference's."""
    ours = network.state_dict()
    for name, expected in native_network(state).items():
        difference = (ours[name] - expected).abs().max().item()
        assert difference <= atol, f"{name}: {difference}"
