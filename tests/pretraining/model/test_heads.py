"""Projection heads against golden ones."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.model.config import HeadConfig
from pretraining.model.heads import ProjectionHead
from tests.conftest import shared_path
from tests.pretraining.golden import under


@pytest.mark.parametrize("name", ["n1", "n3"])
def test_outputs_and_gradients_equal_golden(name):
    folder = shared_path("golden/dino_head")
    data = load_file(folder / f"{name}.safetensors")
    c = json.loads((folder / f"{name}.config.json").read_text())
    head = ProjectionHead(c["in_dim"], HeadConfig(c["out_dim"], c["bottleneck_dim"], c["hidden_dim"], c["nlayers"]))

    def ours(key):  # a single layer has no number in the reference
        return key.replace("mlp.", "mlp.0.") if c["nlayers"] == 1 else key

    head.load_state_dict({ours(key): value for key, value in under(data, "state/").items()})
    x = data["x"].clone().requires_grad_()
    close = {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(head.bottleneck(x), data["out_no_last_layer"], **close)
    out = head(x)
    torch.testing.assert_close(out, data["out"], **close)
    (data["grad/w"] * out).sum().backward()
    torch.testing.assert_close(x.grad, data["grad/d_x"], **close)
    parameters = dict(head.named_parameters())
    for key, expected in under(data, "grad/d_param/").items():
        torch.testing.assert_close(parameters[ours(key)].grad, expected, **close)


def test_head_of_no_layers_is_refused():
    with pytest.raises(ConfigurationError, match="layers 0"):
        HeadConfig(layers=0)
