"""One DINOv3 training step, views included: ours against the plain one of ``plain_dinov3.py``, for all three stages.

Before anything is timed, one step of each from the same weights, views and values shows that losses and gradient norms
agree (float32, nothing random). On the CPU the networks are a few blocks of a ViT-S, on a GPU a whole ViT-B. Rows that
say so are predictions for an H100 from the number of operations. Needs torch and timm; no nnU-Net.

    python benchmarks/pretraining_step.py [--stage N ...] [--batch N] [--backbone NAME] [--compile] [--repeats N]
        [--out FOLDER]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from measure import RESULTS, in_fresh_process, interleaved, peak_rss_mib, speedup, write_results
from plain_dinov3 import PlainStep
from torch import Tensor, nn

from nnunetv2_meddino.networks.vit import BACKBONES
from pretraining.config import RunConfig
from pretraining.config.recipes import recipe
from pretraining.counter_random import Stream, torch_generator
from pretraining.engine.monitoring.flops import step_flops
from pretraining.engine.monitoring.throughput import PEAK_BF16_FLOPS, peak_flops
from pretraining.engine.step import TrainingStep
from pretraining.model.config import HeadConfig
from pretraining.model.student_teacher import StudentTeacher, vit_config
from pretraining.optim import build_optimizer
from pretraining.views import ViewConfig, make_views
from pretraining.views.pipeline import Views

STAGES = ("stage1", "stage2", "stage3")
SIDE = 512
PLAIN, OURS, OURS_WHOLE, VIEWS = "plain", "ours", "ours, no stochastic depth", "views alone (in all)"
METHODS = (PLAIN, OURS, OURS_WHOLE)
TOLERANCE = 1e-4
H100, PREDICTED_MFU = "NVIDIA H100 80GB HBM3", 0.4
PREDICTION = "PREDICTION, not measured: ours on one H100 at 40 % MFU"
FULL_HEAD = HeadConfig()

SMALL = {"stage1": (4, 4096, 3), "stage2": (4, 4096, 3), "stage3": (1, 2048, 1)}
"""Blocks, prototypes and runs on the CPU: minutes in all, prototypes with no larger a share in the work than those of a
ViT-B."""
GPU_RUNS = 5
CPU_BATCH = 5
"""Of ten rows a share of 0.3 can be left out exactly; of four it would be half, which flatters."""

NOTES = (
    "A whole step: views from stored slices of 512 pixels, teacher, student, losses, backward, clipping, AdamW, moving "
    "average. s: median of interleaved runs in one process; user CPU time of one thread, or wall time between "
    "synchronisations on a GPU. x: plain over this. Stochastic depth leaves 30 % of the samples out of each branch: "
    "ours does not compute them, plain does; 'no stochastic depth' shows what is left without that. GFLOP: model "
    "operations of the row's method for an image (backward twice forward, attention counted). Peak MiB: resident "
    "memory above the networks in a process of its own on the CPU, everything allocated on a GPU. Difference: largest "
    "relative one of a loss or gradient norm from plain's, float32, nothing random, measured before timing."
)


@dataclass(frozen=True)
class Case:
    """What is measured; travels to other processes as JSON."""

    stage: str
    backbone: str
    blocks: int
    prototypes: int
    batch: int
    runs: int
    compiled: bool
    device: str

    @property
    def config(self) -> RunConfig:
        """Return the recipe's stage on a network of this size, at the largest of the resolutions that are common."""
        config = recipe("meddinov3", self.stage)
        head = HeadConfig(prototypes=self.prototypes)
        model = replace(config.model, backbone=self.backbone, dino_head=head, ibot_head=head)
        views = config.views
        if config.resolutions:
            views = max(config.resolutions, key=lambda r: (r.share, r.global_size, r.local_size)).applied_to(views)
        return replace(config, model=model, views=views, resolutions=())

    @property
    def autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.device == "cuda" else None


@dataclass(frozen=True)
class RandomSlices:
    """Smooth noise over the whole range of a CT."""

    pixels: Tensor
    sizes: Tensor
    global_index: Tensor

    @classmethod
    def on(cls, device: str, batch: int) -> RandomSlices:
        noise = torch.rand(batch, 1, SIDE // 16, SIDE // 16, generator=torch.Generator().manual_seed(0))
        hu = nn.functional.interpolate(noise, (SIDE, SIDE), mode="bilinear")[:, 0] * 2000 - 1000
        return cls(hu.round().short().to(device), torch.full((batch, 2), SIDE), torch.arange(batch))


def views_of(case: Case, slices: RandomSlices) -> Views:
    return make_views(slices, case.config.views, seed=0, step=0)


def networks(case: Case, config: RunConfig) -> StudentTeacher:
    """Return networks in which every part counts; they begin with LayerScale 1e-5, equal teachers and flat scores."""
    torch.manual_seed(0)
    vit = replace(vit_config(config.model), depth=case.blocks)
    model = StudentTeacher(config.model, vit, gram=config.gram_teacher.enabled)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("student"):
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
            if "gamma" in name:
                parameter.fill_(0.3)
            if "last_layer" in name:
                parameter.mul_(10)
    return model.to(case.device)


Step = Callable[[Views], dict[str, Tensor]]


def build(method: str, case: Case, config: RunConfig, autocast: torch.dtype | None) -> Step:
    """Return what takes a step and returns losses and gradient norms."""
    if method == OURS_WHOLE:
        config = replace(config, model=replace(config.model, drop_path=0.0))
    model = networks(case, config)
    values = config.schedules().at(config.engine.steps // 2)
    if method == PLAIN:
        plain = PlainStep(model, config, autocast)
        if case.compiled:
            _compile(plain.student.backbone, plain.teacher.backbone, plain.gram_teacher)
        return lambda views: plain(views, values)
    if case.compiled:
        _compile(model.student.backbone, model.teacher.backbone, model.gram_teacher)
    optimizer = build_optimizer(model.student, config.optim, torch.device(case.device))
    step = TrainingStep(
        model, model.student, optimizer, losses=config.losses, clip_norm=config.optim.clip_norm, autocast=autocast
    )

    def run(views: Views) -> dict[str, Tensor]:
        result = step([views], values, [torch_generator(0, Stream.MODEL, 0, 0)])
        return {"total": result.total, **result.terms, **result.gradient_norms}

    return run


def _compile(*backbones: nn.Module | None) -> None:
    """Compile every block, as ``engine.compile`` does."""
    torch._dynamo.config.cache_size_limit = 64
    for backbone in backbones:
        for block in () if backbone is None else cast(nn.ModuleList, backbone.blocks):
            block.compile(dynamic=False)


def largest_difference(case: Case) -> float:
    """Take one step of each with nothing random and return how far losses and gradient norms are apart.

    Raises:
        AssertionError: further than ``TOLERANCE``.
    """
    case = replace(case, compiled=False, batch=min(case.batch, 3))
    config = case.config
    config = replace(config, model=replace(config.model, drop_path=0.0, rope_rescale=None))
    views = views_of(case, RandomSlices.on(case.device, case.batch))
    plain, ours = (build(method, case, config, None)(views) for method in (PLAIN, OURS))
    assert plain.keys() == ours.keys()
    apart = {name: abs(ours[name].item() / value.item() - 1) for name, value in plain.items()}
    assert max(apart.values()) < TOLERANCE, f"ours and plain do not compute the same: {apart}"
    return max(apart.values())


def flops(config: ViewConfig, run: RunConfig, blocks: int, drop_path: float) -> float:
    """Return model operations of a step for an image."""
    patches = 2 * (config.global_size // config.masks.patch_size) ** 2
    return step_flops(
        replace(vit_config(run.model), depth=blocks),
        global_size=config.global_size,
        local_size=config.local_size,
        num_local=config.num_local,
        masked_patches=patches * config.masks.probability * sum(config.masks.ratio) / 2,
        dino_head=run.model.dino_head,
        ibot_head=run.model.ibot_head,
        gram_size=config.gram_size,
        drop_path=drop_path,
    ).total


def measure(case: Case) -> list[dict[str, Any]]:
    """Time all methods in one process, in turn."""
    difference = largest_difference(case)
    slices, config = RandomSlices.on(case.device, case.batch), case.config
    steps = {method: build(method, case, config, case.autocast) for method in METHODS}
    runs: dict[str, Callable[[], object]] = {
        method: lambda step=step: step(views_of(case, slices)) for method, step in steps.items()
    }
    runs[VIEWS] = lambda: views_of(case, slices)
    times = interleaved(runs, repeats=case.runs, device=case.device)
    available = peak_flops(torch.device(case.device))
    rows = []
    for method in runs:
        seconds = statistics.median(times[method])
        row = described(case) | {"method": method, "runs": case.runs, "s": seconds, "images/s": case.batch / seconds}
        if method != VIEWS:
            work = flops(config.views, config, case.blocks, config.model.drop_path if method == OURS else 0.0)
            row |= {"x": speedup(times, method, PLAIN), "GFLOP/image": work / 1e9}
            row |= {"MFU": "peak not known" if available is None else work * case.batch / seconds / available}
            row |= {"difference": 0.0 if method == PLAIN else difference}
        rows.append(row)
    return rows


def described(case: Case) -> dict[str, Any]:
    views = case.config.views
    gram = "" if views.gram_size is None else f", Gram {views.gram_size}"
    return {
        "stage": case.stage[-1],
        "crops": f"2 x {views.global_size} + {views.num_local} x {views.local_size}{gram}",
        "network": f"{case.backbone}, {case.blocks} blocks, K {case.prototypes}",
        "precision": "float32" if case.autocast is None else "bfloat16" + (", compiled" if case.compiled else ""),
        "batch": case.batch,
    }


def measure_what_fits(case: Case) -> list[dict[str, Any]]:
    """Measure with the largest batch, halving it from what is wanted, for which the GPU's memory suffices."""
    while True:
        try:
            return measure(case)
        except torch.OutOfMemoryError:
            if case.batch <= 2:
                raise
        gc.collect()
        torch.cuda.empty_cache()
        case = replace(case, batch=case.batch // 2)


def peak(method: str, case: Case) -> float:
    """Return the peak memory of a first step, or on a GPU of a second (after compiling)."""
    step, slices = build(method, case, case.config, case.autocast), RandomSlices.on(case.device, case.batch)
    if case.device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # what building left behind would be used again unseen
        return peak_rss_mib(lambda: step(views_of(case, slices)))
    step(views_of(case, slices))
    torch.cuda.reset_peak_memory_stats()
    step(views_of(case, slices))
    return torch.cuda.max_memory_allocated() / 2**20


def prediction(stage: str) -> dict[str, Any]:
    """Return what the number of operations says of a ViT-B/16 on an H100."""
    depth, batch = BACKBONES["vitb16"].depth, recipe("meddinov3", stage).data.group_size
    case = Case(stage, "vitb16", depth, FULL_HEAD.prototypes, batch, 0, True, "cuda")
    work = flops(case.config.views, case.config, depth, case.config.model.drop_path)
    images = PREDICTED_MFU * PEAK_BF16_FLOPS[H100] / work
    return described(case) | {
        "method": PREDICTION,
        "s": batch / images,
        "images/s": images,
        "GFLOP/image": work / 1e9,
        "MFU": PREDICTED_MFU,
    }


def cases(options: argparse.Namespace) -> list[Case]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for stage in (f"stage{number}" for number in options.stage):
        if device == "cuda":
            backbone, batch = options.backbone or "vitb16", recipe("meddinov3", stage).data.group_size
            blocks, prototypes, runs = BACKBONES[backbone].depth, FULL_HEAD.prototypes, GPU_RUNS
        else:
            backbone, batch = options.backbone or "vits16", CPU_BATCH
            blocks, prototypes, runs = SMALL[stage]
        compiled = device == "cuda" if options.compile is None else options.compile
        batch, runs = options.batch or batch, options.repeats or runs
        found.append(Case(stage, backbone, blocks, prototypes, batch, runs, compiled, device))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--batch", type=int, help="images of a step; by default the recipe's micro-batch, 5 on a CPU")
    parser.add_argument("--backbone", choices=BACKBONES, help="by default vitb16, vits16 on a CPU")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compile blocks (default on a GPU)")
    parser.add_argument("--repeats", type=int, help="timed runs; by default 5, or on a CPU 3, and 1 of the third stage")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        print(json.dumps(measure_what_fits(Case(**json.loads(options.measure)))))
        return
    if options.peak:
        print(json.dumps(peak(options.peak[0], Case(**json.loads(options.peak[1])))))
        return
    rows: list[dict[str, Any]] = []
    for case in cases(options):
        for row in in_fresh_process(__file__, "--measure", json.dumps(asdict(case))):
            fitting = json.dumps(asdict(replace(case, batch=row["batch"])))
            if row["method"] in (PLAIN, OURS):
                row["peak MiB"] = round(in_fresh_process(__file__, "--peak", row["method"], fitting))
            rows.append(row)
        rows.append(prediction(case.stage))
        write_results("pretraining_step", case.device, rows, options.out, NOTES)


if __name__ == "__main__":
    main()
