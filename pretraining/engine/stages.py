"""From a recipe to a finished run: what each stage starts from, where it is kept, and what comes next.

A run is a folder with a folder for each stage:

    RUN/stage1/config.yaml        the resolved configuration
    RUN/stage1/initial_weights.json  provenance of what it started from
    RUN/stage1/metrics.jsonl      what happened
    RUN/stage1/checkpoints/       states to go on from
    RUN/stage1/teachers/          EMA teachers as safetensors: for the next stage, and for the plugin
    RUN/stage1/pictures/          feature pictures
    RUN/stop, RUN/stopped         see pretraining.engine.stop
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nnunetv2_meddino.errors import CheckpointError, ConfigurationError, DataError
from nnunetv2_meddino.files import naming, read_json, write_json, write_text
from nnunetv2_meddino.locks import locked
from nnunetv2_meddino.weights.catalog import InputStatistics
from nnunetv2_meddino.weights.contamination import SEEN_CASES, listed_cases, merged, without_cases
from pretraining.config import NONE, PREVIOUS, STAGES, RunConfig
from pretraining.config.parse import from_dict, read_yaml, to_dict, to_yaml
from pretraining.corpus.case_ids import corpus_record
from pretraining.counter_random import DRAWS_VERSION
from pretraining.engine.agreement import Agreement
from pretraining.engine.checkpointing.manifest import RECORD, DamageError, read_record
from pretraining.engine.distributed import Ranks
from pretraining.engine.loop import CHECKPOINTS, Progress, Stage, StageTraining
from pretraining.engine.stop import StopRequest, clear_stopped, mark_stopped
from pretraining.engine.teachers import load_backbone, load_gram_teacher, load_teacher, teacher_path, teacher_steps
from pretraining.model.config import RANDOM_WEIGHTS
from pretraining.model.student_teacher import StudentTeacher

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
INITIAL_WEIGHTS = "initial_weights.json"
_OLD_INITIAL_WEIGHTS = "origins.json"  # its name up to 0.1, read for one more release
_INITIAL_WEIGHTS_ADVICE = (
    "It says what the stage was started from, which is recorded nowhere else: restore it from a copy, or train the "
    "stage in a new run folder."
)
CORPUS_HASH = "corpus.sha256"
INITIAL = "initial"
FREE = (
    *("engine.strategy", "engine.compile", "engine.checkpoint_activations", "engine.checkpoint_every"),
    *("engine.keep_checkpoints", "engine.teacher_every", "engine.max_bad_steps", "engine.timeout_s"),
    *("data.workers", "data.micro_batch_size", "monitor."),
)
"""Settings that may change when a run goes on, as may the number of processes."""


def is_finished(config: RunConfig, run: Path) -> bool:
    """Tell whether a stage of a run has its last teacher."""
    return teacher_path(run / config.stage, config.engine.steps).is_file()


def train_stages(
    configs: Sequence[RunConfig],
    corpus: Path,
    run: Path,
    ranks: Ranks,
    *,
    stop: StopRequest,
    progress: Callable[[str], Progress],
) -> bool:
    """Train stages one after the other, each from where it stopped; finished ones are passed over.

    Args:
        configs: Of the stages, in their order.
        corpus: slices.
        run: Folder of the run.
        ranks: This process.
        stop: Request to stop.
        progress: Given the name of a stage, returns what is told about its steps.

    Returns:
        Whether all are finished; if not, everything is saved.

    Raises:
        MedDINOError: A setting, file or number forbids going on, or another command trains in the folder; the message
            says which.
    """
    for config in configs:
        config.division(ranks.world_size)  # the third stage must not be refused after weeks of the first
    agreement = Agreement(max(config.engine.timeout_s for config in configs))
    with ExitStack() as stack:
        agreement.broadcast_from_rank0(lambda: stack.enter_context(locked(run)))  # process 0 holds it for all
        return _train_stages(configs, corpus, run, ranks, agreement, stop, progress)


def _train_stages(
    configs: Sequence[RunConfig],
    corpus: Path,
    run: Path,
    ranks: Ranks,
    agreement: Agreement,
    stop: StopRequest,
    progress: Callable[[str], Progress],
) -> bool:
    on_rank0 = agreement.broadcast_from_rank0
    record = on_rank0(lambda: corpus_record(corpus))
    on_rank0(partial(check_settings, configs, run, record))
    on_rank0(partial(clear_stopped, run))
    trained = False
    for config in configs:
        if on_rank0(partial(is_finished, config, run)):
            logger.info("%s is finished", config.stage)
            continue
        if trained and stop.agreed(ranks.is_main):
            on_rank0(partial(mark_stopped, run))
            return False
        folder = run / config.stage
        on_rank0(partial(_write_settings, config, folder, record))
        torch.manual_seed(config.data.seed)
        model = StudentTeacher(config.model, gram=config.gram_teacher.enabled)
        if on_rank0(partial(_goes_on, folder)):  # from a checkpoint, which holds all weights
            origins = on_rank0(partial(_read_initial_weights, folder))
        else:
            origins = initialize_from(model, config, run)
            on_rank0(partial(write_json, origins, folder / INITIAL_WEIGHTS))
        stage = Stage(config, folder, corpus, _provenance(config, run, record, origins))
        if not StageTraining(stage, model, ranks).run(stop, progress(config.stage)):
            on_rank0(partial(mark_stopped, run))  # before any process ends: a launcher may then kill the rest
            return False
        trained = True
    return True


def _initial_weights_file(folder: Path) -> Path:
    old = folder / _OLD_INITIAL_WEIGHTS
    return old if old.is_file() else folder / INITIAL_WEIGHTS


def _read_initial_weights(folder: Path) -> dict[str, Any]:
    return read_json(_initial_weights_file(folder), DataError, _INITIAL_WEIGHTS_ADVICE)


def _goes_on(folder: Path) -> bool:
    return _initial_weights_file(folder).is_file() and any((folder / CHECKPOINTS).glob("step_*"))


def initialize_from(model: StudentTeacher, config: RunConfig, run: Path) -> dict[str, Any]:
    """Initialise the networks of a stage.

    Args:
        model: As built, on the CPU.
        config: Of the stage.
        run: Folder of the run.

    Returns:
        Provenance of the weights by the network they went to; empty for random ones.

    Raises:
        ConfigurationError: The stage before has not got there.
        WeightsError: A file cannot be read, or is of another architecture.
    """
    origins: dict[str, Any] = {}
    if config.initial != NONE:
        origins["initial"] = load_teacher(_teacher(config, run, config.initial), model)
    elif config.model.weights != RANDOM_WEIGHTS:
        origins["initial"] = load_backbone(config.model.weights, model)
    if model.gram_teacher is not None and config.gram_teacher.teacher != INITIAL:
        path = _teacher(config, run, config.gram_teacher.teacher)
        origins["gram_teacher"] = load_gram_teacher(path, model.gram_teacher)
    return origins


def _teacher(config: RunConfig, run: Path, spec: str) -> Path:
    """Return the file that ``previous``, ``previous:20000`` or a path names."""
    name, _, wanted = spec.partition(":")
    if name != PREVIOUS:
        return Path(spec)
    before = run / STAGES[STAGES.index(config.stage) - 1]
    found = teacher_steps(before)
    if not wanted:
        settings = _settings_of(before / CONFIG) if (before / CONFIG).is_file() else None
        if settings is None or not is_finished(settings, run):
            raise ConfigurationError(
                f"{config.stage} starts from the last teacher of {before.name}, which is not finished in {run}. Train "
                "it first (or all three: train all), or give the file of a teacher: --initial TEACHER.safetensors"
            )
        return teacher_path(before, settings.engine.steps)
    if not wanted.isdigit() or int(wanted) not in found:
        raise ConfigurationError(
            f"{config.stage} wants the teacher of step {wanted} of {before.name}; in {before} there are those of steps "
            f"{', '.join(map(str, found)) or 'none'}. Choose one of them (--gram-teacher.teacher {PREVIOUS}:STEP), or "
            "a file."
        )
    return teacher_path(before, int(wanted))


def check_settings(configs: Sequence[RunConfig], run: Path, record: Mapping[str, Any]) -> None:
    """Compare the settings of all stages that a run holds, finished or not, with those they would go on with.

    Args:
        configs: Of the stages that are to be trained.
        run: Folder of the run.
        record: Of the corpus.

    Raises:
        ConfigurationError: Settings differ that would make another model, or the corpus does.
        CheckpointError: A stage was begun by a release that draws other random numbers.
    """
    for config in configs:
        folder = run / config.stage
        path, hash_path = folder / CONFIG, folder / CORPUS_HASH
        if not path.is_file():
            continue
        finished = is_finished(_settings_of(path), run)
        if not finished:
            _check_draws(folder)
        state = "is finished, with" if finished else "holds a stage with"
        before, now = _flat(to_dict(_settings_of(path))), _flat(to_dict(config))
        changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        fixed = [name for name in changed if not name.startswith(FREE)]
        if fixed:
            listed = "; ".join(f"{name} was {before.get(name)}, is now {now.get(name)}" for name in fixed[:6])
            raise ConfigurationError(
                f"{folder} {state} other settings: {listed}. Go on with the same settings, or start anew in "
                "another folder (--out)."
            )
        if hash_path.is_file() and hash_path.read_text().strip() != record["hash"]:
            raise ConfigurationError(
                f"{folder} was trained on another corpus (its hash is in {hash_path}). Give that corpus, or start anew "
                "in another folder (--out)."
            )


def _check_draws(folder: Path) -> None:
    """Refuse to go on with a stage whose checkpoints are of a release that draws slices and views in another order."""
    for path in (folder / CHECKPOINTS).glob(f"step_*/{RECORD}"):
        with suppress(DamageError):  # found and set aside when it is loaded
            if read_record(path.parent).metadata.get("draws_version", 1) != DRAWS_VERSION:
                raise CheckpointError(
                    f"{folder} was begun by a release that draws slices and views in another order: this one cannot go "
                    "on with it. Finish the stage with the release that began it, or begin it anew in another folder "
                    "(--out), if you like from its newest teacher (--initial TEACHER.safetensors). Nothing was "
                    "changed; finished stages can be used as they are."
                )


def _write_settings(config: RunConfig, folder: Path, record: Mapping[str, Any]) -> None:
    if not (folder / CONFIG).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with naming(folder / CORPUS_HASH):
            (folder / CORPUS_HASH).write_text(f"{record['hash']}\n")
    write_text(to_yaml(config), folder / CONFIG)


def _settings_of(path: Path) -> RunConfig:
    """Return the configuration of a stage on disk; before there were groups, what a process held at once was one."""
    content = read_yaml(path)
    if isinstance(content, dict) and "group_size" not in content.get("data", {}):
        content["data"]["group_size"] = content["data"]["micro_batch_size"]
        koleo = content["losses"]["koleo"]
        # else it is refused: neighbours of several processes made no group
        if koleo.get("distributed") in (None, "false"):
            content["losses"]["koleo"] = {"top_k": koleo["top_k"]}
    return from_dict(content, str(path))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _provenance(config: RunConfig, run: Path, record: dict[str, Any], origins: dict[str, Any]) -> dict[str, Any]:
    """Return what teachers of a stage say of themselves; its list of cases speaks for the stages before, too."""
    initial = origins.get("initial", {})
    corpus = {key: value for key, value in record.items() if key != "cases"}
    return {
        "name": f"{run.resolve().name}-{config.stage}",
        "licence": initial.get("licence"),
        "licence_url": initial.get("licence_url"),
        "input_statistics": _input_statistics(config),
        "derived_from": {network: without_cases(origin) for network, origin in origins.items()},
        "configuration": to_dict(config),
        "corpus": corpus,
        SEEN_CASES: merged(record["cases"], *map(listed_cases, origins.values())),
    }


def _input_statistics(config: RunConfig) -> dict[str, Any] | None:
    """Return how slices were normalised, where that does not depend on the slice."""
    rule = config.views.intensity
    if rule.rule != "ct":
        return None
    note = "Hounsfield units; the rule of this pretraining. The same grey image goes to all channels"
    return asdict(InputStatistics((rule.mean_hu,), (rule.std_hu,), rule.clip_hu, note))
