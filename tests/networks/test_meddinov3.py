"""The segmentation network against the golden Primus networks, and the contract nnU-Net has with it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.plain_primus import load_published
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.networks.meddinov3 import MedDINOv3
from nnunetv2_meddino.networks.precision import autocast_dtype, needs_loss_scaling
from nnunetv2_meddino.networks.vit import ViTConfig
from nnunetv2_meddino.weights.convert import to_native
from tests.conftest import shared_path

TINY = ViTConfig(embed_dim=32, depth=2, num_heads=2, mlp_hidden=64).to_dict()


def tiny(input_channels: int = 1, num_classes: int = 3, **kwargs) -> MedDINOv3:
    return MedDINOv3(input_channels, num_classes, **{"vit": TINY, "blocks": [0, 1], **kwargs})


def golden(name: str, rope_dtype: str) -> tuple[MedDINOv3, dict[str, torch.Tensor]]:
    folder = shared_path("golden/primus")
    settings = json.loads((folder / f"{name}.config.json").read_text())
    state = load_file(folder / f"{name}.state.safetensors")
    encoder = to_native({k.removeprefix("dino_encoder."): v for k, v in state.items() if k.startswith("dino_encoder.")})
    vit = {**encoder.config.to_dict(), "norm_eps": 1e-6, "rope_dtype": rope_dtype}
    blocks = settings["interaction_indices"] or [vit["depth"] - 1]
    network = MedDINOv3(1, settings["num_classes"], vit=vit, blocks=blocks).eval()
    network.encoder.load_state_dict(encoder.tensors)
    prefix = "up_projection."
    load_published(network.decoder, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return network, load_file(folder / f"{name}.io.safetensors")


@pytest.mark.parametrize("name", ["primus", "primus_multiscale"])
@pytest.mark.parametrize("size", ["64x48", "32x80"])
def test_logits_equal_golden_primus(name, size):
    network, io = golden(name, "float32")
    with torch.no_grad():
        logits = network(io[f"{size}/input"].float())
    torch.testing.assert_close(logits, io[f"{size}/logits_rope_fp32_exactperiods"], atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["primus", "primus_multiscale"])
@pytest.mark.parametrize("size", ["64x48", "32x80"])
def test_released_numbers_need_bfloat16_rotation(name, size):
    network, io = golden(name, "bfloat16")
    with torch.no_grad():
        logits = network(io[f"{size}/input"].float())
    assert (logits - io[f"{size}/logits_rope_bf16"]).abs().mean() <= 1e-3


@pytest.mark.parametrize("name", ["primus", "primus_multiscale"])
def test_gradients_equal_golden_primus(name):
    network, io = golden(name, "float32")
    (network(io["64x48/input"].float()) * io["grad/w"].float()).sum().backward()
    encoder, stages, head = network.encoder, network.decoder.stages, network.decoder.seg_layers[0]
    actual = {
        "dino_encoder.cls_token": encoder.cls_token,
        "dino_encoder.norm.weight": encoder.norm.weight,
        "dino_encoder.patch_embed.proj.bias": encoder.patch_embed.proj.bias,
        "dino_encoder.blocks.0.ls1.gamma": encoder.blocks[0].gamma_1,
        "up_projection.decode.4.bias": head.bias,
        **{f"up_projection.decode.{i}.0.bias": s.bias for i, s in enumerate(stages)},
        **{f"up_projection.decode.{i}.1.weight": s.norm.weight for i, s in enumerate(stages)},
        **{f"up_projection.decode.{i}.1.bias": s.norm.bias for i, s in enumerate(stages)},
    }
    grads = {k: v.grad for k, v in actual.items()}
    for i, stage in enumerate(stages):
        out_channels, in_channels = stage.bias.numel(), stage.weight.shape[1]
        grad = stage.weight.grad.view(2, 2, out_channels, in_channels).permute(3, 2, 0, 1)
        grads[f"up_projection.decode.{i}.0.weight"] = grad
    grads["up_projection.decode.4.weight"] = head.weight.grad[:, :, None, None]
    assert {f"grad/d_param/{k}" for k in grads} == {k for k in io if k.startswith("grad/d_param/")}
    for key, grad in grads.items():
        expected = io[f"grad/d_param/{key}"]
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-4 * expected.abs().max().item() + 1e-5, msg=key)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [(56, 40), (16, 16), (33, 70)])
def test_any_size_is_padded_and_cropped_back(channels, size):
    network = tiny(channels).eval()
    image = torch.randn(2, channels, *size)
    padded = torch.zeros(2, channels, *(-(-n // 16) * 16 for n in size))
    padded[..., : size[0], : size[1]] = image
    with torch.no_grad():
        logits = network(image)
        assert logits.shape == (2, 3, *size)
        assert torch.equal(logits, network(padded)[..., : size[0], : size[1]])
        logits += 1  # nnU-Net accumulates in place: the result must be writable memory of its own
        assert logits.is_contiguous()


def test_every_trainable_parameter_gets_a_gradient():
    """nnU-Net's DDP has no search for unused parameters: one without a gradient stops the training."""
    network = tiny(vit={**TINY, "untied_cls_norm": True, "qkv_bias": True, "k_bias": True})
    network(torch.randn(2, 1, 32, 32)).square().sum().backward()
    missing = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_float32_logits_under_any_autocast():
    network = tiny().eval()
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        exact = network(image)
        with torch.autocast("cpu", dtype=torch.float16):  # what nnU-Net would choose; the network's own type wins
            logits = network(image)
    assert logits.dtype == torch.float32
    assert 0 < (logits - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_the_network_computes_in_bfloat16_inside_float16_autocast():
    network, seen = tiny().eval(), []
    network.encoder.blocks[0].mlp.fc1.register_forward_hook(lambda m, i, output: seen.append(output.dtype))
    network.decoder.stages[0].register_forward_hook(lambda m, i, output: seen.append(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        network(torch.randn(1, 1, 32, 32))
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_precision_on_gpus_without_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert autocast_dtype("cuda") == torch.float16
    assert needs_loss_scaling("cuda")
    assert not needs_loss_scaling("cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert autocast_dtype("cuda") == torch.bfloat16
    assert not needs_loss_scaling("cuda")


def test_compiles_without_graph_breaks_and_keeps_its_numbers():
    network = tiny().eval()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    image = torch.randn(1, 1, 40, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), network(image))
    torch.testing.assert_close(compiled(image), network(image))
    assert not any("_orig_mod" in name for name in network.state_dict())


def test_head_is_named_so_that_pretrained_weights_transfer_across_class_counts():
    # nnU-Net transfers every parameter that has no ".seg_layers." in its name, and these must fit
    shapes = [{k: v.shape for k, v in tiny(1, n).state_dict().items() if ".seg_layers." not in k} for n in (2, 7)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"deep_supervision": True}, "enable_deep_supervision"),
        ({"blocks": [0]}, "end with the last block, 1"),
        ({"blocks": []}, "end with"),
        ({"blocks": [1, 0]}, "ascend"),
        ({"blocks": [-1, 1]}, "ascend"),
    ],
)
def test_impossible_settings_are_refused(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        tiny(**kwargs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_autocast_step_is_finite_and_agrees_with_the_cpu():
    torch.manual_seed(0)
    network = tiny()
    image = torch.randn(2, 1, 64, 64)
    expected = network.eval()(image).detach()
    network.cuda().train()
    with torch.autocast("cuda"):
        logits = network(image.cuda())
    logits.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    with torch.no_grad(), torch.autocast("cuda"):
        difference = (network.eval()(image.cuda()).cpu() - expected).abs().max()
    assert difference < 0.05 * expected.abs().max()
