"""What class tokens and masked patches have learned: the same slices seen by an untrained network and by a teacher.

    python benchmarks/learning_pictures.py --corpus FOLDER --run FOLDER --out FOLDER

The run is a stage of ``meddino-pretrain train`` from random weights, such as ``learning.py`` makes. Two pictures are
written: slices with those of other volumes whose class tokens are most alike, and slices with a hidden block, of which
the head of the patches says what the teacher, who sees it, says of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.functional import normalize

from nnunetv2_meddino.features.dense import as_colours
from nnunetv2_meddino.visualization.figure_files import write_figure
from nnunetv2_meddino.visualization.style import INK, MARK
from nnunetv2_meddino.weights.files import read_file
from pretraining.config import RunConfig
from pretraining.config.parse import stage_configurations
from pretraining.corpus.dataset import SliceDataset
from pretraining.engine.monitoring.fixed_slices import WholeSlice, watched_slices
from pretraining.engine.teachers import teacher_path, teacher_steps
from pretraining.model.student_teacher import Network, StudentTeacher

QUERIES, NEIGHBOURS, SIZE, PATCH = 5, 4, 224, 16


class Guess(NamedTuple):
    """Of the patches of a slice."""

    targets: Tensor
    """``(h, w, bottleneck)`` unit vectors of the teacher, who sees everything."""
    guessed: Tensor
    """The same of a student who does not see the hidden block."""
    hidden: Tensor
    """``(h, w)`` bool."""


def networks(run: Path) -> dict[str, Network]:
    """Return the network before and after a stage, by title."""
    (config,) = stage_configurations(["stage1"], "small", None, [])
    written = yaml.safe_load((run / "config.yaml").read_text())
    torch.manual_seed(written["data"]["seed"])
    untrained, trained = (StudentTeacher(config.model).teacher for _ in range(2))
    last = teacher_steps(run)[-1]
    trained.load_state_dict(read_file(teacher_path(run, last)).content)
    return {"untrained": untrained, f"after {last:,} steps": trained}


@torch.no_grad()
def class_token(network: Network, whole: WholeSlice) -> Tensor:
    """Return the class token of a slice, ``(D,)``."""
    return network.backbone(whole.input[None]).cls[0]


def neighbours(network: Network, slices: Sequence[WholeSlice], query: int) -> list[int]:
    """Return the slices of other volumes whose class tokens, less their mean, are most alike."""
    tokens = torch.stack([class_token(network, whole) for whole in slices])
    tokens = normalize(tokens - tokens.mean(0), dim=1)
    order = (tokens @ tokens[query]).argsort(descending=True).tolist()
    return [other for other in order if volume(slices[other]) != volume(slices[query])][:NEIGHBOURS]


def volume(whole: WholeSlice) -> str:
    return whole.name.rsplit(" ", 1)[0]


@torch.no_grad()
def guess(network: Network, whole: WholeSlice) -> Guess:
    """Return what the head of the patches says of the middle of a slice, seen and hidden."""
    height, width = (side // PATCH for side in whole.unit.shape)
    hidden = torch.zeros(height, width, dtype=torch.bool)
    hidden[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    image = whole.input[None]
    seen, unseen = (network.backbone(image, masks).patches[0] for masks in (None, hidden.flatten()[None]))
    targets, guessed = (
        network.ibot_head.bottleneck(patches).unflatten(0, (height, width)) for patches in (seen, unseen)
    )
    return Guess(targets, guessed, hidden)


def found_again(found: Guess) -> float:
    """Return the share of hidden patches whose guess is nearer to their own target than to that of any other."""
    targets, guessed = found.targets[found.hidden], found.guessed[found.hidden]
    targets, guessed = (normalize(vectors - vectors.mean(0), dim=1) for vectors in (targets, guessed))
    return float(((guessed @ targets.T).argmax(1) == torch.arange(len(targets))).float().mean())


def colours(found: Guess) -> tuple[Tensor, Tensor]:
    """Return targets and guesses ``(h, w, 3)`` as the principal components of the targets."""
    flat = found.targets.flatten(0, 1)
    mean = flat.mean(0)
    directions = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:3].T
    both = torch.cat([(vectors - mean) @ directions for vectors in (found.targets, found.guessed)])
    coloured = torch.from_numpy(as_colours(both.double().numpy()))
    return coloured[: len(found.targets)], coloured[len(found.targets) :]


def show(axes: Axes, image: Tensor, title: str = "") -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=8, color=INK)
    axes.set_axis_off()


def draw_neighbours(
    named: dict[str, Network], slices: Sequence[WholeSlice], queries: Sequence[int], path: Path
) -> None:
    columns = 1 + NEIGHBOURS * len(named)
    figure = Figure(figsize=(1.7 * columns, 1.9 * len(queries)), layout="constrained")
    panels = figure.subplots(len(queries), columns)
    for row, query in zip(panels, queries, strict=True):
        show(row[0], slices[query].unit, slices[query].name)
        for number, (title, network) in enumerate(named.items()):
            own = row[1 + number * NEIGHBOURS :][:NEIGHBOURS]
            for rank, (axes, other) in enumerate(zip(own, neighbours(network, slices, query), strict=True), 1):
                show(axes, slices[other].unit, f"{title}: {rank}")
    write_figure(figure, path)


def draw_guesses(named: dict[str, Network], slices: Sequence[WholeSlice], queries: Sequence[int], path: Path) -> None:
    figure = Figure(figsize=(2.2 * (1 + 2 * len(named)), 2.4 * len(queries)), layout="constrained")
    for row, query in zip(figure.subplots(len(queries), 1 + 2 * len(named)), queries, strict=True):
        whole = slices[query]
        show(row[0], whole.unit, whole.name)
        height, width = whole.unit.shape
        row[0].add_patch(Rectangle((width / 4, height / 4), width / 2, height / 2, fill=False, color=MARK))
        for number, (title, network) in enumerate(named.items()):
            found = guess(network, whole)
            targets, guessed = colours(found)
            inside = torch.where(found.hidden[..., None], guessed, targets)
            show(row[1 + 2 * number], targets, f"{title}: seen")
            again = f"{100 * found_again(found):.0f} % found of {int(found.hidden.sum())}"
            show(row[2 + 2 * number], inside, f"block hidden: {again}")
    write_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder of a stage, .../stage1")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config: RunConfig = stage_configurations(["stage1"], "small", None, [])[0]
    dataset = SliceDataset(options.corpus)
    slices = watched_slices(dataset, len(dataset.usable_rows()), config.views.intensity, size=SIZE)
    queries = [round((n + 0.5) * len(slices) / QUERIES) for n in range(QUERIES)]
    named = networks(options.run)
    options.out.mkdir(parents=True, exist_ok=True)
    draw_neighbours(named, slices, queries, options.out / "class_tokens.png")
    draw_guesses(named, slices, queries, options.out / "masked_patches.png")
    for title, network in named.items():
        shares = [found_again(guess(network, whole)) for whole in slices]
        print(f"{title}: {100 * sum(shares) / len(shares):.1f} % of hidden patches found again")


if __name__ == "__main__":
    main()
