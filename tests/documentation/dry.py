"""What stands in for a GPU, a download, and hours: each checks what the real one would check first."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from functools import partial, partialmethod
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnunetv2.experiment_planning.plan_and_preprocess_entrypoints as planning_entries
import nnunetv2.run.run_training as training_entries
import nnunetv2.utilities.utils
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnunetv2_meddino.cli.compare
import nnunetv2_meddino.comparison.jobs.run
import nnunetv2_meddino.demo.run
import nnunetv2_meddino.prerequisites
import nnunetv2_meddino.reproduction.run
import nnunetv2_meddino.sharing.fetch
import nnunetv2_meddino.sharing.push
import nnunetv2_meddino.weights.hub
import pretraining.corpus.loader
import pretraining.engine.stages
from nnunetv2_meddino.demo.phantom import DATASET_NAME
from nnunetv2_meddino.demo.run import TRAINER
from nnunetv2_meddino.inference import Predictor
from nnunetv2_meddino.inference.model import Model
from nnunetv2_meddino.reproduction.study import Study
from nnunetv2_meddino.sharing.push import Shipment
from nnunetv2_meddino.trainers.base import BaseTrainer
from nnunetv2_meddino.trainers.stored_data import find_data
from nnunetv2_meddino.trainers.training_input import loader_name
from nnunetv2_meddino.weights.catalog import CATALOG
from nnunetv2_meddino.weights.hub import page_of
from nnunetv2_meddino.weights.load import write_weights
from nnunetv2_meddino.weights.resolve import resolve
from pretraining.config import STAGES
from pretraining.corpus.case_ids import corpus_record
from pretraining.engine.teachers import teacher_path
from tests.documentation.world import small_entry
from tests.inference.models import write_model
from tests.nnunet import write_dataset
from tests.weights.checkpoints import random_tensors


class Dry:
    """Puts the stand-ins in place and remembers whether one was used.

    Args:
        monkeypatch: Takes them away again.
        downloads: Files by repository and name.
        pushed: Folder for repositories that are pushed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, downloads: dict[tuple[str, str], Path], pushed: Path) -> None:
        self.used = False
        self._downloads, self._pushed = downloads, pushed
        replace = monkeypatch.setattr
        for name in [name for name in CATALOG if "dinov3" in name]:
            monkeypatch.setitem(CATALOG, name, small_entry(CATALOG[name]))
        for module in (nnunetv2_meddino.weights.hub, nnunetv2_meddino.sharing.fetch):
            replace(module, "hf_hub_download", self._noting(self._download))
        replace(nnunetv2_meddino.sharing.fetch, "snapshot_download", lambda name, **_: str(self._pushed / name))
        replace(nnunetv2_meddino.sharing.push, "push", self._noting(self._push))
        replace(nnunetv2_meddino.demo.run, "run_demo", self._noting(_demo))
        replace(nnunetv2_meddino.reproduction.run, "reproduce", self._noting(_reproduce))
        replace(nnunetv2_meddino.comparison.jobs.run, "run_missing", self._noting(lambda steps, out: []))
        replace(nnunetv2_meddino.cli.compare, "_report", self._unless_used(nnunetv2_meddino.cli.compare._report))
        replace(pretraining.engine.stages, "train_stages", self._noting(_train_stages))
        replace(
            pretraining.corpus.loader,
            "slice_loader",
            self._noting(partial(_one_batch, pretraining.corpus.loader.slice_loader)),
        )
        replace(training_entries, "run_training", self._noting(_train))
        replace(planning_entries, "preprocess", self._high_resolution(planning_entries.preprocess))
        replace(nnunetv2_meddino.prerequisites, "check_device", self._noting(lambda *_: None))
        replace(nnUNetPredictor, "predict_from_files", self._noting(_predict))
        replace(Predictor, "__init__", partialmethod(_on_cpu, Predictor.__init__))
        _spare(replace)

    def _noting(self, work: Callable) -> Callable:
        def noted(*arguments: Any, **options: Any) -> Any:
            self.used = True
            return work(*arguments, **options)

        return noted

    def _unless_used(self, work: Callable) -> Callable:
        return lambda *arguments: None if self.used else work(*arguments)

    def _download(self, repository: str, filename: str, **_: Any) -> str:
        if not (self._pushed / repository).is_dir():
            return str(self._downloads[repository, filename])
        if not (self._pushed / repository / filename).is_file():
            raise LocalEntryNotFoundError(filename)
        return str(self._pushed / repository / filename)

    def _push(self, shipment: Shipment, *, public: bool) -> str:
        shutil.copytree(shipment.folder, self._pushed / shipment.repository)
        return page_of(shipment.repository)

    def _high_resolution(self, preprocess: Callable) -> Callable:
        """Preprocess ``2d``, and of what is larger leave a file that nnU-Net knows the format by."""

        def smaller(datasets: list[int], plans: str, configurations: list[str], *others: Any, **options: Any) -> None:
            if configurations == ["2d"]:
                return preprocess(datasets, plans, configurations, *others, **options)
            self.used = True
            for dataset in datasets:
                folder = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(dataset)
                manager = PlansManager(str(folder / f"{plans}.json"))
                for configuration in configurations:  # nnU-Net passes over what the plans do not have, without a word
                    data = folder / manager.get_configuration(configuration).data_identifier
                    data.mkdir()
                    (data / "case.b2nd").touch()
            return None

        return smaller


def _spare(replace: Callable) -> None:
    """Threads instead of processes that import everything once more, and fewer voxels for nnU-Net's statistics."""
    replace(multiprocessing, "get_context", lambda *_: SimpleNamespace(Pool=ThreadPool))
    replace(nnunetv2.utilities.utils, "Pool", ThreadPool)
    replace(os, "fork", _no_fork)
    replace(os, "sched_getaffinity", lambda _: {0})
    for name in ("set_num_threads", "set_num_interop_threads"):
        replace(torch, name, lambda _: None)
    begin = DatasetFingerprintExtractor.__init__

    def begin_small(extractor: DatasetFingerprintExtractor, *arguments: Any, **options: Any) -> None:
        begin(extractor, *arguments, **options)
        extractor.num_foreground_voxels_for_intensitystats = 1e4

    replace(DatasetFingerprintExtractor, "__init__", begin_small)


def _no_fork() -> None:
    """A child of a process with threads may wait for ever for a lock that one of them held."""
    msg = "a process of threads must not fork: give the pool that does a stand-in"
    raise AssertionError(msg)


def strict_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net's commands refuse options that they would pass over."""
    known = argparse.ArgumentParser.parse_known_args

    def strictly(parser: argparse.ArgumentParser, *arguments: Any, **options: Any) -> Any:
        parsed, rest = known(parser, *arguments, **options)
        return parser.error(f"unrecognized arguments: {' '.join(rest)}") if rest else (parsed, rest)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", strictly)


def _demo(out: Path, *, data: Path | None) -> None:
    """Leave what users go on with: a dataset and a trained model."""
    assert data is None or (data / "dataset.json").is_file(), f"{data} is no dataset"
    if not out.exists():
        write_dataset(out / "nnUNet_raw", DATASET_NAME)
        (out / "nnUNet_preprocessed").mkdir()
        write_model(out / "nnUNet_results" / DATASET_NAME / f"{TRAINER}__nnUNetPlans__2d")


def _one_batch(loader: Callable, corpus: Path, *, batch_size: int, workers: int, **options: Any) -> Any:
    return islice(loader(corpus, batch_size=min(batch_size, 4), **options), 1)


def _train(
    dataset: str,
    configuration: str,
    fold: str,
    trainer_name: str,
    plans: str,
    pretrained: str | None,
    num_gpus: int,
    npz: bool,
    go_on: bool,
    only_validate: bool,
    *rest: Any,
    device: torch.device,
) -> None:
    """Build the trainer by nnU-Net's own lookup, with its weights, and leave an untrained model."""
    assert fold == "all" or int(fold) in range(5), f"fold {fold}"
    cpu = torch.device("cpu")
    trainer = training_entries.get_trainer_from_args(dataset, configuration, fold, trainer_name, plans, go_on, cpu)
    folder = trainer.preprocessed_dataset_folder
    if isinstance(trainer, BaseTrainer):
        folder, _ = find_data(trainer, loader_name(trainer.loader))
    data = Path(folder)
    assert data.is_dir(), f"nothing is preprocessed in {data.name}"
    trainer.initialize()
    if isinstance(trainer, BaseTrainer):
        trainer._load_pretrained_weights()
    model = Path(trainer.output_folder).parent
    for name, content in (("plans", trainer.plans_manager.plans), ("dataset", trainer.dataset_json)):
        (model / f"{name}.json").write_text(json.dumps(content))
    trainer.disable_checkpointing = False
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))


def _predict(predictor: nnUNetPredictor, images: str, out: str, **options: Any) -> None:
    """The model is loaded by then; what is left is to find its images."""
    ending = predictor.dataset_json["file_ending"]
    assert list(Path(images).glob(f"*_0000{ending}")), f"no images *_0000{ending} in {images}"


def _on_cpu(predictor: Predictor, begin: Callable, model: Model, device: str, **options: Any) -> None:
    begin(predictor, model, "cpu", **options)


def _reproduce(study: Study, datasets: list[Path], corpus: Path, out: Path, *, device: str) -> int:
    """See that every dataset can be divided, and that there is a corpus."""
    corpus_record(corpus)
    for dataset in datasets:
        study.splits(nnunetv2_meddino.reproduction.run.labelled_cases(dataset))
    return 0


def _train_stages(configs: list, corpus: Path, run: Path, *others: Any, **options: Any) -> bool:
    """Leave the teachers that the stages leave."""
    corpus_record(corpus)
    run_steps: dict[str, list[int]] = {}
    entry = CATALOG["dinov3_vitb16_lvd1689m"]
    teacher = run / "teacher.safetensors"
    write_weights(teacher, random_tensors(entry.architecture), entry.architecture, {"name": "x"}, "meddino")
    for config in configs:
        engine = config.engine
        steps = sorted({*range(engine.teacher_every, engine.steps + 1, engine.teacher_every), engine.steps})
        run_steps[config.stage] = steps
        _check_weights(config)
        for spec in (config.initial, config.gram_teacher.teacher if config.gram_teacher.enabled else "initial"):
            _check_teacher(spec, config.stage, run_steps)
        for step in steps:
            file = teacher_path(run / config.stage, step)
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(teacher, file)
    return True


def _check_weights(config: Any) -> None:
    if config.model.weights != "none":
        _, entry = resolve(config.model.weights)
        assert entry is None or entry.backbone == config.model.backbone, f"{entry} is no {config.model.backbone}"


def _check_teacher(spec: str, stage: str, run_steps: dict[str, list[int]]) -> None:
    name, _, step = spec.partition(":")
    if name == "previous":
        before = run_steps[STAGES[STAGES.index(stage) - 1]]
        assert not step or int(step) in before, f"{spec}: teachers are those of steps {before}"
    elif spec not in ("initial", "none"):
        assert Path(spec).is_file(), f"no teacher {spec}"
