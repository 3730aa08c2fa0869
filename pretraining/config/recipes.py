"""Complete configurations of the three stages, by name.

``meddinov3`` holds what the MedDINOv3 paper states (steps, batch size, learning rates, crop sizes of the later stages)
and, for what it leaves open, the values of DINOv3's own three stages scaled to its length. The others change it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config import PREVIOUS, STAGES, DataConfig, EngineConfig, GramTeacherConfig, RunConfig
from pretraining.config.monitor import MonitorConfig
from pretraining.losses.config import LossConfig
from pretraining.model.config import RANDOM_WEIGHTS, HeadConfig, ModelConfig
from pretraining.optim.config import OptimConfig
from pretraining.schedules import Schedule, scheduled
from pretraining.views.config import ViewConfig
from pretraining.views.resolutions import Resolution

GRAM_RAMP_STEPS = 1000
"""Steps in which the Gram loss comes in and the local crops' weight is halved (DINOv3's 7B, second stage)."""

GRAM_TEACHER_STEP = 20_000
"""Step of the first stage whose teacher anchors the second (MedDINOv3)."""

FIVE_RESOLUTIONS = (
    Resolution(512, 112, 768, 0.30),
    Resolution(768, 112, 1152, 0.30),
    Resolution(768, 168, 1152, 0.30),
    Resolution(768, 224, 1152, 0.05),
    Resolution(768, 336, 1152, 0.05),
)
"""DINOv3's third stage; the ranges that MedDINOv3 states are these."""


def meddinov3(stage: str) -> RunConfig:
    """Return MedDINOv3's stage: 100,000, 10,000 and 10,000 steps of 512 slices."""
    if stage == "stage1":
        return RunConfig()
    settled_optim = partial(
        OptimConfig, momentum=Schedule(0.999), teacher_temperature=Schedule(0.07), freeze_last_layer_steps=0
    )
    if stage == "stage2":
        ramp = partial(Schedule, warmup_steps=GRAM_RAMP_STEPS, warmup_shape="cosine")
        return RunConfig(
            stage=stage,
            initial=PREVIOUS,
            views=ViewConfig(gram_size=512),
            losses=LossConfig(local_weight=ramp(0.5, start=1.0), gram_weight=ramp(2.0, start=0.0)),
            optim=settled_optim(lr=Schedule(5e-5, warmup_steps=500)),
            gram_teacher=GramTeacherConfig(True, f"{PREVIOUS}:{GRAM_TEACHER_STEP}"),
            engine=EngineConfig(steps=10_000),
        )
    return RunConfig(
        stage=stage,
        initial=PREVIOUS,
        resolutions=FIVE_RESOLUTIONS,
        losses=LossConfig(local_weight=Schedule(0.5), gram_weight=Schedule(1.5)),
        optim=settled_optim(lr=Schedule(2.5e-5, warmup_steps=3_333, warmup_shape="cosine")),
        gram_teacher=GramTeacherConfig(True),
        data=DataConfig(group_size=16),  # DINOv3's third stage looks for KoLeo's neighbours among as many
        engine=EngineConfig(steps=10_000, checkpoint_every=250),
    )


def im1k(stage: str) -> RunConfig:
    """Return the schedules of DINOv3's ViT-L, which MedDINOv3's author names, in the first stage."""
    config = meddinov3(stage)
    if stage != "stage1":
        return config
    steps = config.engine.steps

    def cosine(peak: float, end: float, warmup_share: float = 0.0) -> Schedule:
        return Schedule(peak, end=end, warmup_steps=int(steps * warmup_share), family="dinov2")

    optim = replace(
        config.optim,
        lr=cosine(1e-3, 1e-6, 0.1),
        lr_scaling="sqrt_1024",
        weight_decay=cosine(0.04, 0.4),
        momentum=cosine(0.992, 1.0),
        teacher_temperature=Schedule(0.07, start=0.04, warmup_steps=int(steps * 0.3), family="dinov2"),
        freeze_last_layer_steps=steps // 100,
    )
    views = replace(config.views, global_size=224, local_size=96)
    return replace(config, optim=optim, views=views, model=replace(config.model, rope_rescale=None))


def linear_warmup_cosine(stage: str) -> RunConfig:
    """Return a sister study's optimisation: warm-up over a tenth, cosine to 1e-6, batch 256, float16."""
    config = meddinov3(stage)
    peak, steps = config.optim.lr.peak, config.engine.steps
    return replace(
        config,
        optim=replace(config.optim, lr=Schedule(peak, end=1e-6, warmup_steps=steps // 10)),
        data=replace(config.data, batch_size=256, group_size=min(config.data.group_size, 32)),
        engine=replace(config.engine, precision="float16"),
    )


def single_gpu(stage: str) -> RunConfig:
    """Return a quarter of the batch in groups for a GPU of 24 GB, at half the learning rate (root rule)."""
    config = meddinov3(stage)
    high = stage == "stage3"
    return replace(
        config,
        optim=replace(config.optim, lr=config.optim.lr.scaled(0.5)),
        data=replace(config.data, batch_size=128, group_size=8 if high else 32),
        engine=replace(config.engine, checkpoint_activations=high),
    )


def small(stage: str) -> RunConfig:
    """Return hundreds of slices or volumes from random weights: a tiny ViT in half an hour of a CPU.

    Untrained heads take hold only once the blocks do something, and where views of a slice are alike enough for the
    teacher's temperature (docs/pretraining.md, "Heads that learn nothing"). So the blocks start at full strength,
    crops show most of the slice, brightness and contrast change little, and the teacher is colder than DINOv3's.
    ``benchmarks/learning.py`` measures a choice at a time; docs/evidence.md has those that were.
    """
    config = _from_random_weights(stage, {"stage1": 600, "stage2": 200, "stage3": 200}[stage], gram_teacher_step=400)
    gram_size = None if stage == "stage1" else 160
    return replace(
        config,
        views=replace(config.views, global_size=112, local_size=48, gram_size=gram_size),
        resolutions=(Resolution(160, 48, 224, 0.5), Resolution(224, 64, 320, 0.5)) if stage == "stage3" else (),
        data=DataConfig(batch_size=64, group_size=16 if stage == "stage3" else 64),
        engine=replace(config.engine, checkpoint_every=50, teacher_every=200),
        monitor=MonitorConfig(check_every=20, picture_every=200, probe_every=200),
    )


def smoke(stage: str) -> RunConfig:
    """Return minutes on a CPU: ``small`` on smaller crops, and faster. It shows that everything works."""
    config = _from_random_weights(stage, {"stage1": 200, "stage2": 20, "stage3": 20}[stage], gram_teacher_step=100)
    gram_size = None if stage == "stage1" else 96
    optim = replace(config.optim, momentum=Schedule(0.95))
    if stage == "stage1":
        optim = replace(optim, lr=replace(optim.lr, peak=3e-3))
    return replace(
        config,
        views=replace(config.views, global_size=64, local_size=32, gram_size=gram_size),
        resolutions=(Resolution(96, 32, 144, 0.5), Resolution(128, 48, 192, 0.5)) if stage == "stage3" else (),
        optim=optim,
        data=DataConfig(batch_size=32, group_size=8 if stage == "stage3" else 32, workers=0),
        engine=replace(config.engine, checkpoint_every=10, teacher_every=20),
        monitor=MonitorConfig(log_every=1, check_every=10, picture_every=20),
    )


def _from_random_weights(stage: str, steps: int, *, gram_teacher_step: int) -> RunConfig:
    """Return what ``small`` and ``smoke`` share: a tiny ViT, few prototypes, and views that are alike."""
    config = meddinov3(stage)
    heads = HeadConfig(prototypes=256, bottleneck=64, hidden=128)
    losses, teacher = config.losses, config.gram_teacher.teacher
    if stage == "stage2":
        ramps = {name: replace(weight, warmup_steps=steps // 4) for name, weight in scheduled(losses).items()}
        losses = replace(losses, **ramps)  # type: ignore[arg-type]
        teacher = f"{PREVIOUS}:{gram_teacher_step}"
    return replace(
        config,
        model=ModelConfig(
            backbone="tiny",
            weights=RANDOM_WEIGHTS,
            layer_scale=1.0,
            drop_path=0.1,
            dino_head=heads,
            ibot_head=heads,
        ),
        views=replace(
            config.views,
            global_scale=(0.5, 1.0),
            local_scale=(0.2, 0.5),
            num_local=2,
            brightness=0.2,
            contrast=0.2,
        ),
        losses=losses,
        optim=OptimConfig(
            lr=Schedule(1e-3 if stage == "stage1" else 2e-4, warmup_steps=steps // 50),
            momentum=Schedule(0.98),
            teacher_temperature=Schedule(0.015, start=0.015),
            freeze_last_layer_steps=0,
            betas=(0.9, 0.95),
        ),
        gram_teacher=replace(config.gram_teacher, teacher=teacher),
        engine=EngineConfig(steps=steps, precision="float32", compile=False, keep_checkpoints=2),
    )


RECIPES: dict[str, Callable[[str], RunConfig]] = {
    recipe.__name__: recipe for recipe in (meddinov3, im1k, linear_warmup_cosine, single_gpu, small, smoke)
}


def recipe(name: str, stage: str) -> RunConfig:
    """Return a recipe's configuration of a stage.

    Raises:
        ConfigurationError: There is no such recipe or stage.
    """
    if name not in RECIPES:
        raise ConfigurationError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    if stage not in STAGES:
        raise ConfigurationError(f"there is no stage {stage!r}; there are {', '.join(STAGES)}")
    return RECIPES[name](stage)
