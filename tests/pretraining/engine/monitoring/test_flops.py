import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer, ViTConfig
from pretraining.engine.monitoring.flops import step_flops
from pretraining.model.config import HeadConfig
from pretraining.model.heads import ProjectionHead

TINY = {
    "mlp": ViTConfig(embed_dim=24, depth=3, num_heads=2, mlp_hidden=80, patch_size=8, num_registers=4),
    "swiglu": ViTConfig(embed_dim=32, depth=2, num_heads=2, mlp_hidden=56, patch_size=8, num_registers=0, swiglu=True),
}
HEAD, OTHER_HEAD = HeadConfig(48, 8, 20, 3), HeadConfig(72, 12, 28, 2)
SIZES = {"global_size": 40, "local_size": 24, "num_local": 3}


def counted(function):
    """Count with torch; attention as two products, since the counter charges fused kernels for their recomputation."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


def backbone(vit, batch, size, channels):
    return vit.forward_tokens(torch.randn(batch, channels, size, size), [vit.config.depth - 1])[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TINY)
def test_a_step_costs_what_torch_counts(name, channels):
    config = TINY[name]
    vit = VisionTransformer(config, channels)
    heads = ProjectionHead(config.embed_dim, HEAD), ProjectionHead(config.embed_dim, OTHER_HEAD)
    masked = 11

    def student():
        tokens = [backbone(vit, 2, 40, channels), backbone(vit, 3, 24, channels)]
        sum(t.prefix.sum() + t.patches.sum() for t in tokens).backward()

    def inference(size):
        with torch.no_grad():
            backbone(vit, 2, size, channels)

    def both_heads():
        for head, rows, teacher_rows in zip(heads, (2 + 3, masked), (2, masked), strict=True):
            head(torch.randn(rows, config.embed_dim, requires_grad=True)).sum().backward()
            with torch.no_grad():
                head(torch.randn(teacher_rows, config.embed_dim))

    flops = step_flops(
        config,
        **SIZES,
        gram_size=64,
        masked_patches=masked,
        dino_head=HEAD,
        ibot_head=OTHER_HEAD,
        channels=channels,
    )
    assert flops.student == counted(student)
    assert flops.teacher == counted(lambda: inference(40))
    assert flops.gram_teacher == counted(lambda: inference(64))
    assert flops.heads == counted(both_heads)
    assert flops.total == flops.student + flops.teacher + flops.gram_teacher + flops.heads


def test_stochastic_depth_saves_the_branches_of_the_student_alone():
    options = {**SIZES, "masked_patches": 11, "dino_head": HEAD, "ibot_head": OTHER_HEAD}
    full, half = (step_flops(TINY["mlp"], **options, drop_path=rate) for rate in (0.0, 0.5))
    none = step_flops(TINY["mlp"], **options, drop_path=1.0)
    assert none.student < half.student < full.student
    assert half.student == (none.student + full.student) / 2
    embedding = 2 * (2 * 25 + 3 * 9) * 64 * 24
    assert none.student == 2 * embedding  # forward, and the gradient of its weight
    assert (half.teacher, half.heads) == (full.teacher, full.heads)


def test_a_patch_that_is_not_full_is_cut_off():
    options = {**SIZES, "masked_patches": 0, "dino_head": HEAD, "ibot_head": OTHER_HEAD}
    larger = options | {"global_size": 47, "local_size": 31}
    assert step_flops(TINY["mlp"], **options) == step_flops(TINY["mlp"], **larger)


# GFLOP an image of ViT-B/16 with 8 local crops, half of the global crops masked by 30 %, counted independently:
# total, student, teacher, Gram teacher
PUBLISHED = [
    ({"prototypes": 65536}, (617, 507, 94, 0)),
    ({"prototypes": 98304}, (623, 507, 94, 0)),
    ({"drop_path": 0.3}, (466, 356, 94, 0)),
    ({"gram_size": 512}, (1047, 507, 94, 430)),
    ({"global_size": 512, "gram_size": 768}, (3186, 1514, 430, 1183)),
    ({"global_size": 768, "local_size": 168, "gram_size": 1152}, (9062, 3990, 1183, 3760)),
]


@pytest.mark.parametrize(("changes", "expected"), PUBLISHED)
def test_the_stages_of_vit_b_cost_what_was_published(changes, expected):
    options = {"global_size": 256, "local_size": 112, "num_local": 8, "channels": 3, **changes}
    head = HeadConfig(prototypes=options.pop("prototypes", 65536))
    masked = 2 * (options["global_size"] // 16) ** 2 * 0.5 * 0.3
    flops = step_flops(BACKBONES["vitb16"], **options, masked_patches=masked, dino_head=head, ibot_head=head)
    found = [value / 1e9 for value in (flops.total, flops.student, flops.teacher, flops.gram_teacher)]
    assert found == pytest.approx(expected, rel=0.005)
