"""Memory of a DINOv3 training step, predicted from when each tensor is made and freed; nothing is computed.

The step is run on tensors without values (torch's fake tensors), which takes half a minute for batches that no
machine at hand could hold. The first rows compare the prediction for small networks with the measured growth of a
process on the CPU. Needs torch and timm; no nnU-Net, no GPU.

    python benchmarks/pretraining_memory.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from measure import RESULTS, in_fresh_process, write_results
from pretraining_step import CPU_BATCH, OURS, SMALL, STAGES, Case
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pretraining.config import RunConfig
from pretraining.config.recipes import recipe
from pretraining.counter_random import Stream, torch_generator
from pretraining.engine import step
from pretraining.model.backbone import PretrainingViT
from pretraining.model.student_teacher import StudentTeacher, vit_config
from pretraining.optim import build_optimizer
from pretraining.views.masks import PatchMasks, draw_masks
from pretraining.views.pipeline import Views

BLOCK = 512
"""Bytes to which torch's CUDA allocator rounds up."""
RECIPES = ("meddinov3", "single_gpu")
GIB, MIB = 2**30, 2**20
NOTES = (
    "PREDICTED from the sizes and lifetimes of all tensors of a second step, not compiled; views are made before, and "
    "only kept. Largest of the stage's resolutions. Not in it: what the CUDA context, cuBLAS and the allocator's gaps "
    "take. The rows with 'measured' say how good that is: above the networks, first step, float32, "
    "against the resident memory of a process on the CPU."
)


class StorageCount(TorchDispatchMode):
    """Counts the bytes of all storages that operators return and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def add(self, tensors: Iterable[Any]) -> None:
        for storage in (t.untyped_storage() for t in tensors if isinstance(t, Tensor)):
            if storage not in self._known:
                size = -(-storage.nbytes() // BLOCK) * BLOCK
                self._known[storage] = size
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(tree_leaves(result))
        return result


def without_values(module: nn.Module, fake: FakeTensorMode) -> None:
    """Replace all tensors of a module."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                empty = fake.from_tensor(parameter.detach())
                part._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fake.from_tensor(buffer)


def empty_views(config: RunConfig, batch: int, masks: PatchMasks) -> Views:
    views = config.views
    gram = None
    if config.gram_teacher.enabled and views.gram_size is not None:
        gram = torch.empty(2 * batch, 1, views.gram_size, views.gram_size)
    crops = torch.empty(2 * batch, 1, views.global_size, views.global_size)
    local = torch.empty(views.num_local * batch, 1, views.local_size, views.local_size)
    return Views(crops, local, gram, masks, None)  # type: ignore[arg-type]


def with_values(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function draw real numbers: how many samples a block computes is looked up in them."""

    def drawn(*arguments: Any) -> Any:
        with unset_fake_temporarily():
            return draw(*arguments)

    return drawn


def predict(config: RunConfig, batch: int, depth: int | None = None) -> dict[str, int]:
    """Return bytes: of the networks, at the peak of a first step, and at that of a second."""
    vit = vit_config(config.model)
    model = StudentTeacher(config.model, replace(vit, depth=depth or vit.depth), gram=config.gram_teacher.enabled)
    for block in model.student.backbone.blocks:
        block.checkpointed = config.engine.checkpoint_activations
    values = config.schedules().at(config.engine.steps // 2)
    views, count = config.views, StorageCount()
    grid = views.global_size // views.masks.patch_size
    masks = draw_masks(2 * batch, grid, views.masks, seed=0, step=0, first=0)
    finite = mock.patch.object(step, "all_ranks_true", lambda flag: True)  # it would look at a value
    drawn = mock.patch.object(PretrainingViT, "_kept_rows", with_values(PretrainingViT._kept_rows))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, finite, drawn:
        without_values(model, fake)
        take = step.TrainingStep(
            model,
            model.student,
            build_optimizer(model.student, config.optim, torch.device("cpu")),
            losses=config.losses,
            clip_norm=config.optim.clip_norm,
            autocast=step.PRECISIONS[config.engine.precision],
        )
        count.add([*model.parameters(), *model.buffers()])
        networks, peaks = count.now, []
        made = empty_views(config, batch, masks)
        count.add([made.global_crops, made.local_crops, made.gram_crops])
        with count:
            for _ in range(2):
                count.peak = count.now
                take([made], values, [torch_generator(0, Stream.MODEL, 0, 0)])
                peaks.append(count.peak)
    return {"networks": networks, "first": peaks[0], "second": peaks[1]}


def compared(stage: str) -> dict[str, Any]:
    """Compare with what a process on this machine needs for a small network."""
    blocks, prototypes, _ = SMALL[stage]
    case = Case(stage, "vits16", blocks, prototypes, CPU_BATCH, 0, False, "cpu")
    config = replace(case.config, engine=replace(case.config.engine, precision="float32"))
    found = predict(config, CPU_BATCH, blocks)
    script = Path(__file__).with_name("pretraining_step.py")
    return {
        "recipe": "meddinov3",
        "stage": stage[-1],
        "network": f"vits16, {blocks} blocks, K {prototypes}",
        "batch": CPU_BATCH,
        "MiB": round((found["first"] - found["networks"]) / MIB),
        "measured": round(in_fresh_process(str(script), "--peak", OURS, json.dumps(asdict(case)))),
    }


def of_recipe(name: str, stage: str) -> dict[str, Any]:
    """Return what the largest resolution of a stage needs."""
    config = recipe(name, stage)
    batch = config.data.group_size
    views = max(config.all_views(), key=lambda views: (views.gram_size or 0, views.global_size, views.local_size))
    found = predict(replace(config, views=views, resolutions=()), batch)
    checkpointed = ", activations checkpointed" if config.engine.checkpoint_activations else ""
    return {
        "recipe": name,
        "stage": stage[-1],
        "network": f"{config.model.backbone}, K {config.model.dino_head.prototypes}{checkpointed}",
        "batch": batch,
        "MiB": round(found["second"] / MIB),
        "GiB": found["second"] / GIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compared(stage) for stage in STAGES]
    for name in RECIPES:
        for stage in STAGES:
            rows.append(of_recipe(name, stage))
            write_results("pretraining_memory", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
