"""Where untrained heads begin to learn: on class tokens of slices, at teacher temperatures on both sides of the border.

    python benchmarks/learning_border.py --corpus FOLDER --work FOLDER [--seeds ...] [--out FOLDER]

The work folder is that of ``learning.py``: its trainings ``small`` and ``KoLeo alone`` are the networks whose class
tokens are taken, together with untrained ones. They are not trained further here, so that nothing changes but the
heads. Takes half an hour on one core.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from learning import KOLEO, SMALL, run_folder
from matplotlib.figure import Figure
from measure import RESULTS, write_results
from patient_probe import backbone_of
from scipy.linalg import eigh
from torch import Tensor

from pretraining.config import RunConfig
from pretraining.config.recipes import recipe
from pretraining.corpus.dataset import SliceDataset
from pretraining.corpus.loader import slice_loader
from pretraining.engine.monitoring.view_correlation import class_tokens, moments, view_correlation
from pretraining.engine.teachers import teacher_path
from pretraining.losses.dino import GLOBAL_CROPS, dino_loss, pair_shares
from pretraining.losses.sinkhorn import sinkhorn_scaling, sinkhorn_targets
from pretraining.model.heads import ProjectionHead
from pretraining.views import make_views

UNTRAINED = "untrained"
NETWORKS = ((UNTRAINED, 0), (KOLEO, 200), (KOLEO, 600), (SMALL, 600))
"""Name of the training and after how many steps."""
TEMPERATURES = (0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12)
BATCHES, JUDGED = 48, 5
STEPS = (300, 1500)
"""After which the heads are looked at."""
ROUNDING = 1e-7
"""Information below this is none: Sinkhorn's marginals are single precision."""
NOTES = (
    "Heads of the recipe small from random weights, trained by the DINO loss alone on class tokens of a network that "
    "stays as it is. Border: teacher's over student's temperature. Correlation: views/correlation, judged on other "
    "slices than those that propose the direction. Own slices: along the direction that is best for the very slices "
    f"that the heads are trained on, judged on {JUDGED} batches of other views of them. Information: of the teacher's "
    "targets about these views, before the first step and after so many; 0 is less than single precision can tell."
)


class Seen(NamedTuple):
    """Class tokens of a network."""

    trained: list[Tensor]
    """``(V, B, D)`` of each batch, two global crops first."""
    judged: Tensor
    """``(V, N, D)`` of views that are not trained on."""
    correlation: float
    """``views/correlation`` of the judged ones."""
    own_slices: float
    """The ratio of the judged ones along the direction that is best for the trained ones, views of the same slices."""


def look(config: RunConfig, corpus: Path, weights: Path | None) -> Seen:
    """Return the class tokens of views, as a training with this seed makes them.

    Args:
        config: Of the training.
        corpus: Of slices.
        weights: Teacher; None: untrained.
    """
    seed = config.data.seed
    vit = backbone_of(config, weights)
    loader = slice_loader(
        SliceDataset(corpus), batch_size=config.data.batch_size, seed=seed, rank=0, world_size=1, workers=0
    )
    tokens, rows = [], []
    for step, slices in islice(loader, JUDGED + BATCHES):
        tokens.append(class_tokens(vit, make_views(slices, config.views, seed=seed, step=step)))
        rows.append(slices.indices)
    judged = torch.cat(tokens[:JUDGED], dim=1)
    weight = config.schedules().at(0).local_weight
    found = view_correlation(torch.cat(rows[:JUDGED]), judged, local_weight=weight)
    local, global_ = pair_shares(config.views.num_local)
    trained, other = (moments(some, weight * local, global_) for some in (torch.cat(tokens[JUDGED:], dim=1), judged))
    best = torch.from_numpy(eigh(trained.between.numpy(), trained.within.numpy())[1][:, -1])
    return Seen(tokens[JUDGED:], judged, found["views/correlation"], float(other.along(best)))


def train_heads(config: RunConfig, seen: Seen, temperature: float) -> list[float]:
    """Return the information of the targets before a training of heads from random weights, and after ``STEPS``."""
    torch.manual_seed(config.data.seed)
    student = ProjectionHead(seen.judged.shape[-1], config.model.dino_head).double()
    teacher = copy.deepcopy(student).requires_grad_(False)
    optim, values = config.optim, config.schedules().at(config.optim.lr.warmup_steps)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=values.lr, betas=optim.betas, weight_decay=values.weight_decay, fused=True
    )
    local, global_ = pair_shares(config.views.num_local)
    found = [information(teacher, seen.judged, temperature)]
    for step in range(1, STEPS[-1] + 1):
        tokens = seen.trained[step % BATCHES]
        with torch.no_grad():
            targets = targets_of(teacher, tokens, temperature)
        terms = dino_loss(
            student(tokens[:GLOBAL_CROPS].flatten(0, 1)),
            student(tokens[GLOBAL_CROPS:].flatten(0, 1)),
            targets,
            temperature=config.losses.student_temperature,
        )
        (values.local_weight * local * terms.local + global_ * terms.global_).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
            own.data.lerp_(other.data, 1 - values.momentum)
        if step in STEPS:
            found.append(information(teacher, seen.judged, temperature))
    return found


def targets_of(teacher: ProjectionHead, tokens: Tensor, temperature: float) -> Tensor:
    """Return the targets ``(2B, K)`` of the global crops."""
    logits = teacher(tokens[:GLOBAL_CROPS].flatten(0, 1))
    return sinkhorn_targets(logits, sinkhorn_scaling([lambda: logits], temperature), temperature)


@torch.no_grad()
def information(teacher: ProjectionHead, tokens: Tensor, temperature: float) -> float:
    """Return what ``collapse/target_information`` is, in double precision."""
    targets = targets_of(teacher, tokens, temperature)
    count, prototypes = targets.shape
    divergence = torch.xlogy(targets, targets / targets.mean(0)).sum(-1).mean()  # of nearly uniform ones as well
    share = float(divergence / math.log(min(count, prototypes)))
    return share if share > ROUNDING else 0.0


def measure(corpus: Path, work: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each network, seed and temperature."""
    rows = []
    for name, step in NETWORKS:
        for seed in seeds:
            config = recipe("small", "stage1")
            config = replace(config, data=replace(config.data, seed=seed))
            weights = None if name == UNTRAINED else teacher_path(run_folder(work, name, seed) / "stage1", step)
            seen = look(config, corpus, weights)
            network = name if weights is None else f"{name}, {step} steps"
            rows += [row(config, seen, network, temperature) for temperature in TEMPERATURES]
            print(network, seed, "done", flush=True)
    return rows


def row(config: RunConfig, seen: Seen, network: str, temperature: float) -> dict[str, Any]:
    found = train_heads(config, seen, temperature)
    return {
        "network": network,
        "seed": config.data.seed,
        "correlation": round(seen.correlation, 3),
        "own slices": round(seen.own_slices, 3),
        "border": round(temperature / config.losses.student_temperature, 3),
    } | {f"information at {step}": f"{value:.2g}" for step, value in zip((0, *STEPS), found, strict=True)}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the growth of the information over the border, a panel for each network whose class tokens say anything."""
    networks = list(dict.fromkeys(row["network"] for row in rows if float(row["information at 0"])))
    figure = Figure(figsize=(3.1 * len(networks), 3.6), layout="constrained")
    for axes, network in zip(figure.subplots(1, len(networks), sharey=True), networks, strict=True):
        for number, seed in enumerate(sorted({row["seed"] for row in rows})):
            own = [row for row in rows if (row["network"], row["seed"]) == (network, seed)]
            for steps, line in zip(STEPS, ("o:", "o-"), strict=True):
                growth = [
                    max(float(row[f"information at {steps}"]), ROUNDING) / float(row["information at 0"]) for row in own
                ]
                axes.plot([row["border"] for row in own], growth, line, color=f"C{number}", ms=3)
            axes.axvline(own[0]["own slices"], color=f"C{number}", ls="--", lw=1)
        axes.axhline(1, color="grey", lw=0.8)
        axes.set(xscale="log", yscale="log", title=network, xlabel="teacher's / student's temperature")
        shown = sorted({row["border"] for row in rows})[::2]
        axes.set_xticks(shown, [str(border) for border in shown])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("growth of target information")
    about = " and ".join(f"{line} after {steps:,}" for steps, line in zip(STEPS, ("dotted", "solid"), strict=True))
    figure.suptitle(f"Heads on class tokens of CT slices, {about} steps; dashed: correlation of views", fontsize=10)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="of learning.py, with its finished trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.corpus, options.work, options.seeds)
    write_results("learning_border", "cpu", rows, options.out, NOTES)
    draw(rows, options.out / "learning_border_cpu.svg")


if __name__ == "__main__":
    main()
