"""From folders of downloaded volumes to the parts of a corpus: finds the volumes and works on them in parallel."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2_meddino import process_pool
from nnunetv2_meddino.errors import ConfigurationError, DataError
from pretraining.corpus.storage import StoreSettings
from pretraining.curation import job as jobs
from pretraining.curation.cases import Findings, relative_name, survey
from pretraining.curation.collections import Collection
from pretraining.curation.exclusions import ExclusionList, find_images
from pretraining.curation.job import Job, Part
from pretraining.curation.process_volume import VolumeRecord, VolumeTask, file_name, process, process_lost
from pretraining.curation.tables import volume_path
from pretraining.curation.volume import printable
from pretraining.progress import Progress


@dataclass(frozen=True)
class CollectionFolder:
    """A collection and the folder it was downloaded to."""

    collection: Collection
    folder: Path


@dataclass(frozen=True)
class Division:
    """Which part of the work is done here, as in nnU-Net: every ``num_parts``-th volume from ``part_id`` on."""

    part_id: int = 0
    num_parts: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.part_id < self.num_parts:
            msg = f"--part-id must be 0 to {self.num_parts - 1} (--num-parts {self.num_parts}), not {self.part_id}."
            raise ConfigurationError(msg)


@dataclass(frozen=True)
class PartSummary:
    """What a finished part holds."""

    curated: int
    """Volumes whose slices are stored."""
    rejected: int
    images: int
    """Images of excluded cases that were read for their content."""


def curate(
    sources: Sequence[CollectionFolder],
    corpus: Path,
    *,
    settings: StoreSettings,
    exclusions: Sequence[ExclusionList] = (),
    keep_near: bool = False,
    division: Division = Division(),  # noqa: B008 - frozen
    processes: int = 1,
    progress: Progress = lambda *_: None,
) -> PartSummary:
    """Curate volumes, or a part of them; ``merge.merge`` then makes the corpus of all parts.

    What an earlier call finished is not done again. The result depends neither on the division into parts nor on the
    number of processes.

    Args:
        sources: Where the volumes are; of two equally good copies of a scan the one of the earlier source is kept.
        corpus: Folder to write to.
        settings: How slices are stored.
        exclusions: Cases to leave out; they are read, so that copies of them are found, but not put into the corpus.
        keep_near: Keep near-duplicates in the corpus.
        division: Which part to do.
        processes: Spawned processes; each holds one volume in memory.
        progress: Called for every finished volume.

    Raises:
        ConfigurationError: Sources contradict each other, or the folder holds a corpus of other settings.
        DataError: A folder is missing or holds no volume, or the corpus cannot be written.
        BusyError: Another command works on the corpus, or on this part of it.
    """
    if processes < 1:
        raise ConfigurationError(f"-np must be 1 or more, not {processes}.")
    _check_sources(sources, corpus)
    jobs.prepare(corpus, settings)
    with jobs.locked_part(corpus, division.part_id, division.num_parts):
        findings = []
        for number, entry in enumerate(sources):
            findings.append(survey(entry.collection, entry.folder))
            progress("finding volumes", number + 1, len(sources))
        tasks = [task for entry, own in zip(sources, findings, strict=True) for task in _tasks(entry, own, corpus)]
        images = _find_images(exclusions, [entry.collection for entry in sources], corpus)
        names = [(task.source, task.case) for task in tasks] + [(number, task.case) for number, task in images]
        job = Job(
            settings=settings.to_json(),
            sources={entry.collection.name: jobs.describe_collection(entry.collection) for entry in sources},
            found={entry.collection.name: len(own.cases) for entry, own in zip(sources, findings, strict=True)},
            exclusions=tuple(exclusions),
            keep_near=keep_near,
            num_parts=division.num_parts,
            inventory=jobs.inventory(names),
        )
        jobs.forget_other_jobs(corpus, job)
        jobs.reopen_part(corpus, division.part_id, division.num_parts)
        mine = tasks[division.part_id :: division.num_parts]
        my_images = images[division.part_id :: division.num_parts]
        rejected = _work([*mine, *(task for _, task in my_images)], settings, processes, progress)
        part = Part(
            job=job,
            number=division.part_id,
            volumes=tuple((task.source, task.case) for task in mine),
            images=tuple(
                (number, task.case, task.record.relative_to(corpus / jobs.PARTS).as_posix())
                for number, task in my_images
            ),
            passed_over=_passed_over(sources, findings),
        )
        jobs.write_part(corpus, part)
        return PartSummary(curated=len(mine) - rejected, rejected=rejected, images=len(my_images))


def _check_sources(sources: Sequence[CollectionFolder], corpus: Path) -> None:
    if not sources:
        raise ConfigurationError("Nothing to curate: name at least one --source NAME=FOLDER.")
    names = [entry.collection.name for entry in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"--source {', '.join(twice)} is given twice. Every source needs a name of its own.")
    for entry in sources:
        if not entry.folder.is_dir():
            raise DataError(f"The folder {entry.folder} of source {entry.collection.name} does not exist.")
        if corpus.resolve().is_relative_to(entry.folder.resolve()):
            where = f"inside the folder of source {entry.collection.name}"
            raise ConfigurationError(f"The corpus {corpus} would lie {where}. Name another --out.")


def _tasks(entry: CollectionFolder, findings: Findings, corpus: Path) -> list[VolumeTask]:
    collection = entry.collection
    tasks = [
        VolumeTask(
            source=collection.name,
            case=case,
            candidate=candidate,
            folder=entry.folder,
            modality=collection.modality,
            record=jobs.record_path(corpus, collection.name, case),
            stored=jobs.staging_path(corpus, collection.name, case),
            placed=corpus / volume_path(collection.name, case),
        )
        for case, candidate in findings.cases
    ]
    if not tasks:
        msg = (
            f"No volume of source {collection.name} was found in {entry.folder}. Name the folder that the download was "
            "unpacked to; meddino-pretrain sources shows the paths that are searched for."
        )
        raise DataError(msg)
    return tasks


def _passed_over(sources: Sequence[CollectionFolder], findings: Sequence[Findings]) -> dict[str, dict[str, Any]]:
    """Return for each source what in its folder is not a volume of any source: see ``job.Part``.

    Two sources may lie in one folder: what a pattern of either matches was not passed over.
    """
    named = {_place(candidate.path) for own in findings for _, candidate in own.cases}
    passed_over = {}
    for entry, own in zip(sources, findings, strict=True):
        left = [candidate for candidate in own.unmatched if _place(candidate.path) not in named]
        dicom = {c.path if c.is_folder else c.path.parent for c in left if c.kind == "dicom"}
        endings = Counter(printable(path.suffix.lower()) for path in own.others if _place(path) not in named)
        passed_over[entry.collection.name] = {
            "dicom_folders": sorted(relative_name(path, entry.folder) or "." for path in dicom),
            "images": sum(candidate.kind != "dicom" for candidate in left),
            "other_files": dict(sorted(endings.items())),
            "unlisted_folders": sorted(relative_name(path, entry.folder) for path in own.unlisted),
        }
    return passed_over


def _place(path: Path) -> str:
    """Return a path with the links in its parent resolved, but not a link that it is itself."""
    return os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118 - pathlib's raises for some links


def _find_images(
    exclusions: Sequence[ExclusionList], collections: Sequence[Collection], corpus: Path
) -> list[tuple[int, VolumeTask]]:
    """Return a task for each image of an excluded case and each modality in use, with the number of its list."""
    modalities = sorted({collection.modality for collection in collections})
    tasks = []
    for number, listed in enumerate(exclusions):
        for case, candidates in find_images(listed).items():
            for index, candidate in enumerate(candidates):
                for modality in modalities:
                    name = f"{file_name(case)}.{index}.{modality.lower()}.json"
                    record = corpus / jobs.PARTS / "exclusions" / str(number) / name
                    tasks.append((number, VolumeTask("", case, candidate, listed.images or Path(), modality, record)))
    return tasks


def _work(tasks: Sequence[VolumeTask], settings: StoreSettings, processes: int, progress: Progress) -> int:
    """Do the tasks and return how many volumes of sources were rejected; images of excluded cases have no source."""
    counts = {"done": 0, "rejected": 0}
    progress("curating", 0, len(tasks))

    def keep(record: VolumeRecord) -> None:
        counts["done"] += 1
        counts["rejected"] += bool(record.reason and record.source)
        progress("curating", counts["done"], len(tasks))

    process_pool.run(partial(process, settings=settings), tasks, processes=processes, lost=process_lost, keep=keep)
    return counts["rejected"]
