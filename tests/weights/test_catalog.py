"""The catalog is complete and consistent with the architectures it names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm

from nnunetv2_meddino.networks.mit import MIT_BACKBONES
from nnunetv2_meddino.networks.vit import BACKBONES
from nnunetv2_meddino.weights.catalog import CATALOG

LVD = ("dinov3_vits16_lvd1689m", "dinov3_vitb16_lvd1689m", "dinov3_vitl16_lvd1689m")


def test_the_promised_names_are_there():
    assert {*LVD, "meddinov3_vitb16_ct3m"} <= set(CATALOG)


@pytest.mark.parametrize("entry", CATALOG.values(), ids=CATALOG)
def test_entries_are_complete(entry):
    assert CATALOG[entry.name] is entry
    if entry.backbone in BACKBONES:
        assert replace(entry.architecture, norm_eps=1e-5) == BACKBONES[entry.backbone]
        assert "DINOv3 License" in entry.licence  # every ViT here derives from Meta's weights
    else:
        assert entry.architecture == MIT_BACKBONES[entry.backbone]
        assert "NVIDIA" in entry.licence
    assert entry.licence_url.startswith("https://")
    assert len(entry.input_statistics.mean) == len(entry.input_statistics.std)


@pytest.mark.parametrize("name", LVD)
def test_lvd_repositories_and_statistics_are_those_timm_knows(name):
    repository = CATALOG[name].repository
    known = timm.get_pretrained_cfg(repository.removeprefix("timm/"), allow_unregistered=False)
    assert known.hf_hub_id == repository
    assert (known.mean, known.std) == (CATALOG[name].input_statistics.mean, CATALOG[name].input_statistics.std)
    assert known.license == "dinov3-license"


def test_meddinov3_is_described_as_its_code_builds_it():
    entry = CATALOG["meddinov3_vitb16_ct3m"]
    assert (entry.architecture.norm_eps, entry.architecture.qkv_bias, entry.architecture.num_registers) == (
        1e-6,
        False,
        4,
    )
    assert entry.input_statistics.clip_hu == (-1000, 1000)
    assert "Apache-2.0" in entry.licence
