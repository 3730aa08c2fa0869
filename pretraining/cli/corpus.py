"""The sub-commands of ``meddino-pretrain`` that make and look at a corpus."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_meddino.command_line import EXIT_ERROR, add_command, add_out, add_processes, add_theme
from nnunetv2_meddino.console import print_table, progress, say
from nnunetv2_meddino.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from pretraining.curation.collections import Collection
    from pretraining.curation.exclusions import ExclusionList
    from pretraining.curation.gather import CollectionFolder

NOTHING_CURATED = 1
DAMAGED = 1
SEEN = 1
IN_CORPUS = "are in the corpus (curate --exclude --images leaves them out)"

_CURATE_EPILOG = """A curation that was stopped continues where it was when the same command is run again.
On many machines: run it with --num-parts N and each --part-id from 0 to N-1, then meddino-pretrain merge CORPUS.
exit code: 0 done, 1 the corpus is empty, 2 an error."""

_SEEN_EPILOG = """Prints a line for each image and volume that match: exact (the same voxels) or near (another
export, or part of the same scan), their similarity, and all names of the volume; at the end the images that are in the
corpus, and those that could not be compared.
exit code: 0 no image is in the corpus, 1 some are, 2 an image could not be compared or another error."""


def add_sources(commands: argparse._SubParsersAction) -> None:
    """Add ``sources``."""
    description = "list the collections known by name, and how much of them is found on disk"
    command = add_command(commands, "sources", _sources, description)
    command.add_argument("names", nargs="*", metavar="NAME", help="show everything known about these")
    _add_source_option(command, required=False)


def _add_source_option(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument(
        "--source",
        action="append",
        default=[],
        required=required,
        metavar="NAME=FOLDER",
        help="a source of volumes and its folder; NAME is one that `meddino-pretrain sources` lists, a name of your "
        "own for all CT in the folder, or a YAML file that describes the source. May be repeated",
    )


def add_curate(commands: argparse._SubParsersAction) -> None:
    """Add ``curate``."""
    description = "make a corpus of volumes: each scan is read, checked and stored as slices, once"
    command = add_command(commands, "curate", _curate, description, epilog=_CURATE_EPILOG)
    _add_source_option(command, required=True)
    add_out(command, "CORPUS", "folder of the corpus", required=True)
    command.add_argument(
        "--exclude",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="cases to leave out: nnU-Net's splits_final.json (with --fold) or a text file of ids. May be repeated",
    )
    command.add_argument("--fold", type=int, metavar="F", help="the fold whose validation cases are left out")
    command.add_argument(
        "--images",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="images of the cases to leave out (imagesTr), to find them by content under any name; one folder "
        "for each --exclude, in the same order",
    )
    command.add_argument("--keep-near-duplicates", action="store_true", help="drop exact duplicates only")
    command.add_argument(
        "--store-size", type=int, metavar="PX", help="resize slices to this square (256 in the paper; default: none)"
    )
    command.add_argument(
        "--spacing", type=float, metavar="MM", help="resample slices to this spacing first (0.45 in the paper)"
    )
    command.add_argument("--part-id", type=int, default=0, metavar="I", help="which part to do, counted from 0")
    command.add_argument("--num-parts", type=int, default=1, metavar="N", help="number of parts of the work")
    add_processes(command)


def add_merge(commands: argparse._SubParsersAction) -> None:
    """Add ``merge``."""
    description = "assemble the corpus once all parts of a curation are finished"
    command = add_command(commands, "merge", _merge, description)
    command.add_argument("corpus", type=Path, metavar="CORPUS")


def add_inspect(commands: argparse._SubParsersAction) -> None:
    """Add ``inspect``."""
    description = "describe a corpus in numbers and pictures"
    command = add_command(commands, "inspect", _inspect, description)
    command.add_argument("corpus", type=Path, metavar="CORPUS")
    command.add_argument("--json", action="store_true", help="print the numbers as JSON")
    command.add_argument(
        "--verify",
        action="store_true",
        help="only compare every slice with its checksum; exit code 1 if volumes are damaged",
    )
    add_out(command, "DIR", "folder for montage.png, histograms.png and views.png")
    add_theme(command)


def add_seen(commands: argparse._SubParsersAction) -> None:
    """Add ``seen``."""
    description = "check by content whether images that you are about to evaluate on are in a corpus"
    command = add_command(commands, "seen", _seen, description, epilog=_SEEN_EPILOG)
    command.add_argument("corpus", type=Path, metavar="CORPUS")
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="file, or folder of a DICOM series")


def _sources(options: argparse.Namespace) -> int:
    from pretraining.curation.cases import survey
    from pretraining.curation.collections import COLLECTIONS
    from pretraining.inspection.report import source_text, sources_table

    folders = {entry.collection.name: entry for entry in map(_collection_folder, options.source)}
    known = COLLECTIONS | {name: entry.collection for name, entry in folders.items()}
    found = {name: len(survey(entry.collection, entry.folder).cases) for name, entry in folders.items()}
    if options.names:
        for collection in (known.get(name) or _named_collection(name) for name in options.names):
            say(source_text(collection, found.get(collection.name)) + "\n")
        return 0
    print_table(sources_table(known, found))
    return 0


def _curate(options: argparse.Namespace) -> int:
    from pretraining.corpus.storage import StoreSettings
    from pretraining.curation.gather import Division, curate
    from pretraining.curation.merge import merge
    from pretraining.inspection.report import corpus_text

    division = Division(options.part_id, options.num_parts)
    settings = StoreSettings(options.store_size, options.spacing)
    exclusions = _exclusions(options)
    sources = [_collection_folder(argument) for argument in options.source]
    with progress() as show:
        summary = curate(
            sources,
            options.out,
            settings=settings,
            exclusions=exclusions,
            keep_near=options.keep_near_duplicates,
            division=division,
            processes=options.processes,
            progress=show,
        )
        if division.num_parts == 1:
            content = merge(options.out, show)
    if division.num_parts > 1:
        of = f"part {division.part_id} of {division.num_parts}"
        say(f"{of}: {summary.curated} volumes curated, {summary.rejected} rejected, {summary.images} images compared")
        say(f"when all parts are finished: meddino-pretrain merge {shlex.quote(str(options.out))}")
        return 0
    say(corpus_text(content, options.out))
    return 0 if content["volumes"] else NOTHING_CURATED


def _merge(options: argparse.Namespace) -> int:
    from pretraining.curation.merge import merge
    from pretraining.inspection.report import corpus_text

    with progress() as show:
        content = merge(options.corpus, show)
    say(corpus_text(content, options.corpus))
    return 0 if content["volumes"] else NOTHING_CURATED


def _inspect(options: argparse.Namespace) -> int:
    if options.verify:
        return _verify(options)
    import json

    from pretraining.inspection.report import inspection_text
    from pretraining.inspection.summary import inspect_corpus

    with progress() as show:
        inspection = inspect_corpus(options.corpus, show)
    say(json.dumps(inspection, indent=4) if options.json else inspection_text(inspection))
    if options.out is not None:
        from nnunetv2_meddino.visualization.style import THEMES
        from pretraining.inspection.montage import save_histograms, save_slices
        from pretraining.inspection.views import save_views

        theme = THEMES[options.theme]
        with progress() as show:
            slices = save_slices(options.corpus, options.out / "montage.png", show, theme)
        histograms = save_histograms(inspection, options.out / "histograms.png", theme)
        views = save_views(options.corpus, options.out / "views.png", theme)
        say(f"{slices}\n{histograms}\n{views}", stderr=True)
    return 0


def _seen(options: argparse.Namespace) -> int:
    from pretraining.curation.contamination import SeenScans

    scans = SeenScans(options.corpus)
    seen, failed = [], []
    for image in options.images:
        try:
            matches = scans.find(image)
        except DataError as error:  # the other images are compared all the same
            say(f"{type(error).__name__}: {error}", stderr=True)
            failed.append(image.name)
            continue
        seen += [image.name] * bool(matches)
        for match in matches:
            say(f"{image}: {match.kind} {match.similarity:.3f} {', '.join(scans.names(match))}")
        if not matches:
            say(f"{image}: not seen")
    for names, what in ((seen, IN_CORPUS), (failed, "could not be compared")):
        if names:
            say(f"{len(names)} of {len(options.images)} images {what}: {', '.join(names)}", stderr=True)
    return EXIT_ERROR if failed else SEEN if seen else 0


def _verify(options: argparse.Namespace) -> int:
    from pretraining.corpus.verify import verify_corpus

    if options.json or options.out is not None:
        msg = "--verify prints no numbers and draws nothing: leave out --json and -o, or run inspect twice."
        raise ConfigurationError(msg)
    with progress() as show:
        damaged = verify_corpus(options.corpus, show)
    for message in damaged:
        say(message)
    say(f"{options.corpus}: {len(damaged)} volumes are damaged" if damaged else f"{options.corpus}: no damage found")
    return DAMAGED if damaged else 0


def _collection_folder(argument: str) -> CollectionFolder:
    from pretraining.curation.collections import own_collection
    from pretraining.curation.gather import CollectionFolder

    name, equals, folder = argument.partition("=")
    if not name or not equals or not folder:
        raise ConfigurationError(f"--source {argument} must be NAME=FOLDER, or RECORD.yaml=FOLDER.")
    return CollectionFolder(_recorded_collection(name) or own_collection(name), Path(folder))


def _named_collection(name: str) -> Collection:
    from pretraining.curation.collections import COLLECTIONS

    collection = _recorded_collection(name)
    if collection is None:
        known = ", ".join(COLLECTIONS)
        raise ConfigurationError(f"{name} is not a known source. Known are {known}, and those of --source NAME=FOLDER.")
    return collection


def _recorded_collection(name: str) -> Collection | None:
    """Return the source of a YAML record, or the collection of a name; None if there is none."""
    from pretraining.curation.collections import COLLECTIONS, load_collection

    if Path(name).suffix.lower() in (".yaml", ".yml"):
        return load_collection(Path(name))
    return {known.lower(): collection for known, collection in COLLECTIONS.items()}.get(name.lower())


def _exclusions(options: argparse.Namespace) -> list[ExclusionList]:
    from pretraining.curation.exclusions import read_exclusions

    if options.images and len(options.images) != len(options.exclude):
        given = f"{len(options.images)} --images and {len(options.exclude)} --exclude"
        raise ConfigurationError(f"{given} are given, but each --exclude needs its own --images.")
    if options.fold is not None and not any(file.suffix.lower() == ".json" for file in options.exclude):
        raise ConfigurationError("--fold selects a fold of a splits_final.json, but none is given with --exclude.")
    folders = options.images or [None] * len(options.exclude)
    return [
        read_exclusions(file, options.fold if file.suffix.lower() == ".json" else None, images)
        for file, images in zip(options.exclude, folders, strict=True)
    ]
