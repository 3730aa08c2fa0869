"""Whether a training of ours and one by the plain step of ``plain_dinov3.py`` learn alike: 300 steps from one state.

    python benchmarks/learning_against_plain.py --corpus FOLDER --work FOLDER [--steps N] [--seeds N] [--only-table]
        [--out FOLDER]

The recipe ``small`` on a corpus, at its teacher temperature and at the usual one, with nothing random in the networks:
stochastic depth and the rescaling of coordinates draw their numbers in other ways. Rounding grows in any such training,
so one pair is trained in float64 as well: there the two must agree for longest. Each training is a process of its own
on one core, two at a time, whose result is a file in the work folder: the same command continues where it was stopped.
Takes an hour. ``--only-table`` makes the table of the pairs that are done.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from measure import RESULTS, write_results
from plain_dinov3 import PlainStep, sinkhorn
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nnunetv2_meddino.commands import run_command
from nnunetv2_meddino.environment import one_thread_each, run_environment
from nnunetv2_meddino.errors import MedDINOError
from nnunetv2_meddino.files import read_json, write_json
from pretraining.config import RunConfig
from pretraining.config.recipes import recipe
from pretraining.corpus.dataset import SliceDataset
from pretraining.corpus.loader import slice_loader
from pretraining.engine.monitoring.collapse import target_measures
from pretraining.engine.step import TrainingStep
from pretraining.model.student_teacher import StudentTeacher
from pretraining.optim import build_optimizer
from pretraining.schedules import Schedule
from pretraining.views import make_views

PLAIN, OURS = "plain", "ours"
TEMPERATURES = (0.015, 0.04)
SINGLE, DOUBLE = "float32", "float64"
TOLERANCE, MEASURE_EVERY, FIRST, LAST = 1e-4, 10, 10, 50
TERMS = ("total", "dino_local", "dino_global", "koleo", "ibot")
NOTES = (
    "The recipe small without stochastic depth and rescaled coordinates, the same weights, slices and views for both. "
    f"Differ: the largest difference of a loss in the first {FIRST} steps, as a share of it. Agree: steps before the "
    f"first in which a loss differs by more than {TOLERANCE:g} of itself. Then: mean of the last {LAST} steps, plain / "
    "ours; of the information of the teacher's targets (share of the most it can be), the last value."
)


def settings(temperature: float, seed: int, steps: int) -> RunConfig:
    config = recipe("small", "stage1")
    return replace(
        config,
        model=replace(config.model, drop_path=0.0, rope_rescale=None),
        optim=replace(config.optim, teacher_temperature=Schedule(temperature)),
        data=replace(config.data, seed=seed, workers=0),
        engine=replace(config.engine, steps=max(steps, config.optim.lr.warmup_steps)),
    )


class InDouble(TorchFunctionMode):
    """Lets torch take float64 wherever a function is asked for float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function for float64."""
        named: Mapping[str, Any] = kwargs or {}
        if named.get("dtype") is torch.float32:
            named = {**named, "dtype": torch.float64}
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*args, **named)


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Compute in float64 if that is the precision, whatever types the code names."""
    if precision == SINGLE:
        yield
        return
    torch.set_default_dtype(torch.float64)
    try:
        with InDouble():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def in_double(part: Any) -> Any:
    """Return views or masks with float64 for float32."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    tensors = {name: x for name, x in values.items() if isinstance(x, Tensor)}
    return replace(part, **{name: x.double() for name, x in tensors.items() if x.is_floating_point()})


class Training:
    """Our step or the plain one, with its teacher.

    Args:
        method: ``PLAIN`` or ``OURS``.
        config: Of the training; its seed decides the weights.
    """

    def __init__(self, method: str, config: RunConfig) -> None:
        torch.manual_seed(config.data.seed)
        model = StudentTeacher(config.model, gram=False)
        self.schedules, self.iterations = config.schedules(), config.losses.sinkhorn_iterations
        if method == PLAIN:
            plain = PlainStep(model, config, None)
            self.teacher, self.take = plain.teacher, plain
            return
        optimizer = build_optimizer(model.student, config.optim, torch.device("cpu"))
        step = TrainingStep(model, model.student, optimizer, losses=config.losses, clip_norm=config.optim.clip_norm)

        def take(views: Any, values: Any) -> dict[str, Tensor]:
            result = step([views], values, [None])
            return {"total": result.total, **result.terms}

        self.teacher, self.take = model.teacher, take

    @torch.no_grad()
    def information(self, crops: Tensor, temperature: float) -> float:
        """Return how much the teacher's targets of global crops say about them."""
        cls = self.teacher.backbone(crops)[0]
        targets = sinkhorn(self.teacher.dino_head(cls), temperature, self.iterations)
        return float(target_measures(targets)["collapse/target_information"])


def train(corpus: Path, method: str, temperature: float, seed: int, precision: str, steps: int, result: Path) -> None:
    """Train in this process and write all losses."""
    torch.set_num_threads(1)
    config = settings(temperature, seed, steps)
    with computing_in(precision):
        training = Training(method, config)
    losses, information = [], {}
    slices_of = slice_loader(
        SliceDataset(corpus), batch_size=config.data.batch_size, seed=seed, rank=0, world_size=1, workers=0
    )
    for step, slices in slices_of:
        views = make_views(slices, config.views, seed=seed, step=step)
        if precision == DOUBLE:
            views = replace(in_double(views), masks=in_double(views.masks))
        with computing_in(precision):
            terms = training.take(views, training.schedules.at(step))
            losses.append([float(terms[name]) for name in TERMS])
            if (step + 1) % MEASURE_EVERY == 0 or step + 1 == steps:
                information[step + 1] = training.information(views.global_crops, temperature)
        if step + 1 == steps:
            break
    write_json({"losses": losses, "information": information}, result)


def result_file(work: Path, method: str, temperature: float, seed: int, precision: str, steps: int) -> Path:
    return work / f"{method}_{temperature:g}_{seed}_{precision}_{steps}.json"


def all_cases(seeds: int) -> list[tuple[float, int, str]]:
    """Return temperature, seed and precision of all pairs."""
    single = [(temperature, seed, SINGLE) for temperature in TEMPERATURES for seed in range(seeds)]
    return [(TEMPERATURES[0], 0, DOUBLE), *single]


def run_all(corpus: Path, work: Path, seeds: int, steps: int) -> None:
    """Train what has no result yet."""
    order = [(method, *case) for case in all_cases(seeds) for method in (PLAIN, OURS)]
    waiting = [run for run in order if not result_file(work, *run, steps).exists()]

    def one(run: tuple[str, float, int, str]) -> None:
        file = result_file(work, *run, steps)
        command = [sys.executable, __file__, "--run", *map(str, run)]
        command += ["--corpus", str(corpus), "--work", str(work), "--steps", str(steps)]
        run_command(command, {**os.environ, **run_environment()}, work / f"{file.stem}.log", lambda line: None)
        print(file.stem, "done", flush=True)

    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(one, waiting):
            pass


def row(work: Path, temperature: float, seed: int, precision: str, steps: int) -> dict[str, Any]:
    case = (temperature, seed, precision, steps)
    both = {m: read_json(result_file(work, m, *case), MedDINOError, "Delete it.") for m in (PLAIN, OURS)}
    plain, ours = (np.array(both[method]["losses"]) for method in (PLAIN, OURS))
    difference = np.abs(ours / plain - 1).max(axis=1)
    apart = difference > TOLERANCE
    found: dict[str, Any] = {
        "teacher temperature": temperature,
        "seed": seed,
        "precision": precision,
        "differ by, first steps": f"{difference[:FIRST].max():.0e}",
        "agree, steps": int(apart.argmax()) if apart.any() else len(apart),
    }
    for place, name in enumerate(TERMS):
        found[name] = f"{plain[-LAST:, place].mean():.4f} / {ours[-LAST:, place].mean():.4f}"
    last = [list(both[method]["information"].values())[-1] for method in (PLAIN, OURS)]
    return {**found, "information": f"{last[0]:.2g} / {last[1]:.2g}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="for everything that is written; continued")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only-table", action="store_true", help="of the pairs that are done; train nothing")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.run:
        method, temperature, seed, precision = options.run
        run = method, float(temperature), int(seed), precision
        train(options.corpus, *run, options.steps, result_file(options.work, *run, options.steps))
        return
    if not options.only_table:
        with one_thread_each():
            run_all(options.corpus, options.work, options.seeds, options.steps)
    done = [
        case
        for case in all_cases(options.seeds)
        if all(result_file(options.work, method, *case, options.steps).exists() for method in (PLAIN, OURS))
    ]
    rows = [row(options.work, *case, options.steps) for case in done]
    write_results("learning_against_plain", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
