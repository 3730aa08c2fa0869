"""Multipliers of every parameter against the DINOv3 reference (golden)."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.optim import parameter_groups
from pretraining.optim.param_groups import parameters_by_module
from tests.conftest import shared_path
from tests.pretraining.optim.students import student

MODELS = ("vitb_12", "tiny_4_untied")


def golden(model):
    return json.loads(shared_path("golden/param_groups/param_groups.json").read_text())[model]


def our_names(name: str) -> list[str]:
    """The reference has one bias for queries, keys (masked) and values."""
    for theirs, ours in (("storage_tokens", "reg_token"), ("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2")):
        name = name.replace(theirs, ours)
    return [name.replace("qkv.bias", f"{one}_bias") for one in "qv"] if name.endswith("qkv.bias") else [name]


def students_of(record):
    names = ("embed_dim", "depth", "num_heads")
    options = {name: record["ctor"][name] for name in names}
    with torch.device("meta"):
        return student(**options, untied=record["ctor"].get("untie_cls_and_patch_norms", False))


def groups_of(module, record):
    return parameter_groups(
        module, layer_decay=record["layerwise_decay"], patch_embed_lr_multiplier=record["patch_embed_lr_mult"]
    )


def found(module, groups):
    """Name in the student -> (lr multiplier, weight decay multiplier, last layer)."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        names[id(parameter)]: (group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"])
        for group in groups
        for parameter in group["params"]
    }


def expected_of(record):
    expected = {}
    for part, source in (("backbone", "backbone"), ("dino_head", "dino_head"), ("ibot_head", "dino_head")):
        for name, values in record[source]["params"].items():
            row = (values["lr_multiplier"], values["wd_multiplier"], values["is_last_layer"])
            expected |= {f"{part}.{ours}": row for ours in our_names(name)}
    return expected


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_has_the_multipliers_of_the_reference(model):
    record = golden(model)
    module = students_of(record)
    assert found(module, groups_of(module, record)) == expected_of(record)


@pytest.mark.parametrize("model", MODELS)
def test_as_few_groups_as_the_reference(model):
    record = golden(model)
    module = students_of(record)
    groups = groups_of(module, record)
    sizes = {"backbone": [], "dino_head": [], "ibot_head": []}
    part_of = {id(p): part for part, ps in parameters_by_module(module).items() for p in ps.values()}
    for group in groups:
        (part,) = {part_of[id(parameter)] for parameter in group["params"]}
        # each block's one bias of the reference is two parameters here
        extra = sum(name.endswith("v_bias") for name in found(module, [group]))
        sizes[part].append(len(group["params"]) - extra)
    assert sorted(sizes["backbone"]) == record["backbone"]["fused_sizes"]
    assert sorted(sizes["dino_head"]) == sorted(sizes["ibot_head"]) == record["dino_head"]["fused_sizes"]


def test_wrappers_change_nothing():
    plain, wrapped = student(), student()
    plain_rows = found(plain, parameter_groups(plain, layer_decay=0.9, patch_embed_lr_multiplier=0.2))
    wrapped.backbone.blocks[0] = checkpoint_wrapper(wrapped.backbone.blocks[0])
    wrapped.backbone.blocks[1] = torch.compile(wrapped.backbone.blocks[1], backend="eager")
    holder = nn.Module()
    holder.module = wrapped  # as DDP does
    rows = found(holder, parameter_groups(holder, layer_decay=0.9, patch_embed_lr_multiplier=0.2))
    assert any("_checkpoint_wrapped_module" in name for name in rows)
    assert any("_orig_mod" in name for name in rows)
    assert sorted(rows.values()) == sorted(plain_rows.values())
    clean = [f"{part}.{name}" for part, ps in parameters_by_module(holder).items() for name in ps]
    assert sorted(clean) == sorted(plain_rows)


def test_frozen_parameters_are_left_out():
    module = student()
    module.backbone.mask_token.requires_grad_(False)
    rows = found(module, parameter_groups(module, layer_decay=0.9, patch_embed_lr_multiplier=0.2))
    assert "backbone.mask_token" not in rows
    assert len(rows) == len(list(module.parameters())) - 1


def test_refuses_a_module_without_a_backbone():
    with pytest.raises(ConfigurationError, match=r"backbone\.blocks"):
        parameter_groups(student().dino_head, layer_decay=0.9, patch_embed_lr_multiplier=0.2)
