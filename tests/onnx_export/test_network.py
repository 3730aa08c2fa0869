"""ONNX files compute what torch computes at every size, and a file that does not is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import nn

import nnunetv2_meddino.networks.vit
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.onnx_export.network import OPSET, OnnxNetwork, check_network, write_network
from tests.onnx_export.networks import small_network

ANY = (1, 1)
SIZES = [(96, 160), (160, 96), (64, 64), (256, 192), (61, 75), (16, 200)]
"""Square and not, smaller and larger than what is traced, multiples of a patch and not."""


def written(network: nn.Module, folder: Path, *, half: bool = False, multiple: tuple[int, int] = ANY) -> Path:
    file = folder / "network.onnx"
    write_network(network, file, 1, half=half, multiple=multiple, metadata={"meddino.fold": "fold_0"})
    return file


@pytest.mark.parametrize("kind", ["MedDINOv3", "MedDINOv3 with LoRA", "SegFormer", "DINO U-Net"])
def test_logits_are_those_of_torch_at_every_size(kind, tmp_path):
    network = small_network(kind)
    onnx_network = OnnxNetwork(written(network, tmp_path))
    for batch, size in enumerate(SIZES, start=1):
        image = torch.randn(1 + batch % 3, 1, *size, generator=torch.Generator().manual_seed(batch))
        expected = network(image).numpy()
        np.testing.assert_allclose(onnx_network(image.numpy()), expected, rtol=0, atol=1e-4, err_msg=f"{size}")
        assert np.abs(expected).max() > 0.1  # an error would show


def test_half_precision_is_in_the_weights_and_not_in_the_positions(tmp_path):
    network = small_network("MedDINOv3")
    file = written(network, tmp_path, half=True)
    assert check_network(file, network, 1, SIZES, "float16") > 1e-5
    graph = onnx.load(file).graph
    weights = [t for t in graph.initializer if np.prod(t.dims) > 64 and t.data_type != onnx.TensorProto.INT64]
    assert {t.data_type for t in weights} == {onnx.TensorProto.FLOAT16}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    positions = [types[node.output[0]] for node in graph.node if node.op_type in ("Range", "Sin", "Cos")]
    assert onnx.TensorProto.FLOAT16 not in positions
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("half", [False, True])
def test_positions_of_the_traced_size_are_found(half, tmp_path, monkeypatch):
    network = small_network("MedDINOv3")
    with monkeypatch.context() as traced:
        traced.setattr(nnunetv2_meddino.networks.vit, "rope_table", rope_table_of_timm)
        file = written(network, tmp_path, half=half)
    with pytest.raises(ConfigurationError, match="At 160 x 96 pixels the logits of network.onnx differ"):
        check_network(file, network, 1, [(90, 150), (160, 96)], "float16" if half else "float32")


def rope_table_of_timm(height: int, width: int, head_dim: int, **_: object) -> torch.Tensor:
    """Return timm's table, whose coordinates are divided by Python numbers."""
    return RotaryEmbeddingDinoV3(head_dim).get_embed([height, width])


def test_operators_and_sizes_are_stated(tmp_path):
    network = nn.Conv2d(1, 2, 4, stride=4)
    network = nn.Sequential(network, nn.ConvTranspose2d(2, 3, 4, stride=4)).requires_grad_(requires_grad=False)
    model = onnx.load(written(network, tmp_path, multiple=(4, 4)))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert {entry.key: entry.value for entry in model.metadata_props}["meddino.size_multiple"] == "4 4"
    (image,) = model.graph.input
    batch, channels, height, width = image.type.tensor_type.shape.dim
    assert channels.dim_value == 1
    assert all(side.dim_param for side in (batch, height, width))


def test_sizes_that_the_network_would_cut_off_are_refused(tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 2, 4, stride=4), nn.ConvTranspose2d(2, 3, 4, stride=4))
    onnx_network = OnnxNetwork(written(network, tmp_path, multiple=(4, 4)))
    assert onnx_network(np.zeros((1, 1, 8, 20), np.float32)).shape == (1, 3, 8, 20)
    with pytest.raises(DataError, match="multiples of 4 rows and of 4 columns, not 8 x 18. Pad the image"):
        onnx_network(np.zeros((1, 1, 8, 18), np.float32))


def test_a_network_that_depends_on_the_traced_size_is_refused(tmp_path):
    class Fixed(nn.Module):
        def forward(self, image):
            return image.reshape(-1, 1, 90, 150)

    with pytest.raises(ConfigurationError, match="torch cannot export Fixed"):
        written(Fixed(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "network.onnx").write_bytes(b"no model")
    with pytest.raises(ConfigurationError, match="onnxruntime cannot read .*network.onnx"):
        OnnxNetwork(tmp_path / "network.onnx")
