"""One training step of the whole network, ViT-B/16: ours against the same ViT with a channel-first decoder.

The reference computes as the published code does (float16 autocast with loss scaling on a GPU); ours in bfloat16. Both
are compiled where ``--compile`` is given. Loss: cross-entropy plus soft Dice, 14 classes; AdamW. Needs torch and timm;
no nnU-Net.

    python benchmarks/training_step.py [--out FOLDER] [--size 896] [--batch 2] [--repeats N] [--compile]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from decoder import ChannelFirstDecoder
from measure import RESULTS, interleaved, speedup, write_results
from torch import Tensor, nn

from nnunetv2_meddino.networks.meddinov3 import MedDINOv3
from nnunetv2_meddino.networks.vit import BACKBONES, evenly_spaced_blocks

CLASSES = 14
REFERENCE = "channel-first"


class Reference(nn.Module):
    """The published arrangement: feature maps of four blocks, concatenated, into the channel-first decoder."""

    def __init__(self) -> None:
        super().__init__()
        ours = build_ours()
        self.encoder, self.blocks = ours.encoder, ours.blocks
        self.decoder = ChannelFirstDecoder()

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.encoder.forward_tokens(image, self.blocks)
        return self.decoder([t.patches for t in tokens], self.encoder.grid_size(*image.shape[-2:]))


def build_ours(**kwargs: Any) -> MedDINOv3:
    config = BACKBONES["vitb16"]
    return MedDINOv3(1, CLASSES, vit=config.to_dict(), blocks=evenly_spaced_blocks(config.depth), **kwargs)


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    probabilities = logits.float().softmax(1)
    hot = F.one_hot(target, CLASSES).movedim(-1, 1)
    overlap = (probabilities * hot).sum((0, 2, 3))
    dice = (2 * overlap + 1e-5) / (probabilities.sum((0, 2, 3)) + hot.sum((0, 2, 3)) + 1e-5)
    return F.cross_entropy(logits.float(), target) - dice[1:].mean()


def step_of(network: nn.Module, image: Tensor, target: Tensor, *, scaled: bool) -> Callable[[], object]:
    """Return a function that takes one optimizer step as nnU-Net's trainer does."""
    device = image.device.type
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=device == "cuda")
    scaler = torch.amp.GradScaler(device, enabled=scaled)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.float16, enabled=device == "cuda"):
            loss = loss_of(network(image), target)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--size", type=int, default=896)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    image = torch.randn(options.batch, 1, options.size, options.size, device=device)
    target = torch.randint(0, CLASSES, (options.batch, options.size, options.size), device=device)
    networks = {
        REFERENCE: Reference(),
        "ours": build_ours(),
        "ours, checkpointed decoder": build_ours(checkpointing=True),
    }
    rows: list[dict[str, Any]] = []
    steps, peaks = {}, {}
    for name, network in networks.items():
        network.to(device)
        if options.compile:
            network.compile()
        steps[name] = step_of(network, image, target, scaled=device == "cuda" and name == REFERENCE)
        if device == "cuda":
            steps[name]()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            steps[name]()
            peaks[name] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
    times = interleaved(steps, repeats=options.repeats, device=device)
    for name in networks:
        median = statistics.median(times[name])
        rows.append(
            {
                "size": options.size,
                "batch": options.batch,
                "compiled": options.compile,
                "network": name,
                "x": speedup(times, name, REFERENCE),
                "images/s": options.batch / median,
                "peak MiB of a step": peaks.get(name, "not measured"),
            }
        )
    notes = "Whole training step, ViT-B/16, 14 classes; x: channel-first reference over ours, medians, interleaved."
    write_results(
        f"training_step_{options.size}{'_compiled' if options.compile else ''}", device, rows, options.out, notes
    )


if __name__ == "__main__":
    main()
