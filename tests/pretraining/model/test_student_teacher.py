"""Student and teachers as they are built."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.model.config import HeadConfig, ModelConfig
from pretraining.model.student_teacher import StudentTeacher

HEAD = HeadConfig(prototypes=16, bottleneck=8, hidden=8)
CONFIG = ModelConfig(backbone="tiny", drop_path=0.5, dino_head=HEAD, ibot_head=HEAD)


@pytest.fixture(scope="module")
def model():
    return StudentTeacher(CONFIG, gram=True)


def test_teachers_begin_as_the_student(model):
    student = model.student.state_dict()
    assert all(torch.equal(tensor, student[name]) for name, tensor in model.teacher.state_dict().items())
    gram = model.gram_teacher.state_dict()
    assert all(torch.equal(tensor, student[f"backbone.{name}"]) for name, tensor in gram.items())


def test_teachers_are_never_trained(model):
    model.train()
    assert model.student.training
    assert not any(m.training for network in (model.teacher, model.gram_teacher) for m in network.modules())
    assert all(parameter.requires_grad for parameter in model.student.parameters())
    assert not any(p.requires_grad for network in (model.teacher, model.gram_teacher) for p in network.parameters())


def test_student_sees_masks_and_the_teacher_does_not(model):
    crops, masks = torch.randn(2, 1, 32, 32), torch.zeros(2, 4, dtype=torch.bool)
    masks[0, 1] = True
    indices = masks.flatten().nonzero().flatten()
    with torch.no_grad():
        outputs = model.student(crops, torch.randn(3, 1, 16, 16), masks, indices)
        taught = model.teacher.teacher_forward(crops, indices)
        seen = model.teacher.backbone(crops)
    assert outputs.dino_global.shape == (2, 16)
    assert outputs.dino_local.shape == (3, 16)
    assert outputs.ibot.shape == (1, 16)
    torch.testing.assert_close(taught.dino, model.teacher.dino_head.bottleneck(seen.cls))
    torch.testing.assert_close(taught.ibot, model.teacher.ibot_head.bottleneck(seen.patches[0, 1:2]))
    assert not torch.allclose(outputs.patches[0], seen.patches[0])
    torch.testing.assert_close(outputs.patches[1], seen.patches[1])


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"backbone": "resnet"}, "vitb16"), ({"drop_path": 1.0}, "drop_path"), ({"rope_rescale": 0.5}, "rope_rescale")],
)
def test_impossible_models_are_refused(setting, message):
    with pytest.raises(ConfigurationError, match=message):
        ModelConfig(**setting)


@pytest.mark.parametrize("scale", [1e-5, 1.0])
def test_blocks_of_all_networks_start_at_the_layer_scale(scale):
    assert CONFIG.layer_scale == 1e-5, "as DINOv3"
    model = StudentTeacher(replace(CONFIG, layer_scale=scale), gram=True)
    for backbone in (model.student.backbone, model.teacher.backbone, model.gram_teacher):
        assert {float(block.gamma_2.max()) for block in backbone.blocks} == {float(torch.tensor(scale))}
