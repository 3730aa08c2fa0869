"""The collections of CT-3M (section 3.2 of arXiv:2509.02379), and a user's own.

Numbers and layouts are those of the publications and of the releases known to the authors of this file. ``note`` says
what could not be checked against a download. Licences change: read the terms on the page before you download.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.corpus.case_ids import NUMBER
from pretraining.modality import Modality

UNKNOWN_LICENCE = "unknown"
"""Of a source without a record."""

_SIMILAR = 0.7
"""Share of equal letters from which a name counts as a known one mistyped (BTVC and BTCV: 0.75)."""


@dataclass(frozen=True)
class Collection:
    """One collection."""

    name: str
    """What users type, and what tables call it."""
    title: str
    """Its full name."""
    homepage: str
    """Where it is described."""
    licence: str
    """Short name of its terms."""
    licence_url: str
    """Where the terms are."""
    how: str
    """How one gets it."""
    images: tuple[str, ...]
    """Regular expressions, searched for in ``/`` + POSIX path below the source's folder, of files or of the folders of
    DICOM series. Group ``case`` is the case id. None: every readable image, named by its path."""
    excluded: tuple[str, ...] = ()
    """Regular expressions of paths that match ``images`` but are not images."""
    expected_volumes: int | None = None
    """Number of image volumes; None where it is not known."""
    contains: tuple[str, ...] = ()
    """Names of collections whose scans are known to be in it, all or some."""
    modality: Modality = Modality.CT
    """Of its scans."""
    note: str = ""
    """Where the number comes from, and what was not checked."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other ids of its cases, such as those of a dataset made of it for nnU-Net: pattern of the other id -> pattern of
    the case id. Both have a number, ``{n}`` or ``{n:03d}`` (padded to three digits)."""
    former_aliases: Mapping[str, str] = field(default_factory=dict)
    """The same for ids that earlier versions gave to cases that are named otherwise now; in a list they may mean either
    case. Not for records of a user's own."""

    def __post_init__(self) -> None:
        """Check the record.

        Raises:
            ConfigurationError: A field is wrong.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            self._complain(f"name '{self.name}' may have letters, digits, '.', '_' and '-'")
        for pattern in (*self.images, *self.excluded):
            try:
                groups = re.compile(pattern).groupindex
            except re.error as error:
                self._complain(f"'{pattern}' is not a regular expression ({error})")
            if pattern in self.images and "case" not in groups:
                self._complain(f"pattern '{pattern}' of images has no group (?P<case>...)")
        for pattern in (text for pair in [*self.aliases.items(), *self.former_aliases.items()] for text in pair):
            if not NUMBER.search(pattern) or re.search(r"[{}]", NUMBER.sub("", pattern, count=1)):
                self._complain(f"'{pattern}' of aliases must have one number, such as {{n}} or {{n:03d}}")

    def _complain(self, what: str) -> None:
        raise ConfigurationError(f"The record of source {self.name}: {what}. Correct it.")

    def case_of(self, path: str) -> str | None:
        """Return the case id of a POSIX path below the folder; None if it is not an image of this collection."""
        if not self.images:
            return path.strip("/").replace("/", "_") or self.name
        path = "/" + path
        if any(re.search(pattern, path) for pattern in self.excluded):
            return None
        match = next(filter(None, (re.search(pattern, path) for pattern in self.images)), None)
        return match["case"].strip("/").replace("/", "_") if match and match["case"] else None


def own_collection(name: str) -> Collection:
    """Return a collection that takes every CT in a folder, whatever its layout.

    Raises:
        ConfigurationError: The name is that of a collection, mistyped, or no name.
    """

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    own, known = plain(name), {plain(other): other for other in COLLECTIONS}
    near = difflib.get_close_matches(own, known, 1, _SIMILAR) or [
        n for n in known if len(own) > 3 and n.startswith(own)
    ]
    if near:
        msg = (
            f"{name} is not a known collection; {known[near[0]]} is. For a source of your own choose a name less "
            "similar to those of `meddino-pretrain sources`, or give the path of a YAML record."
        )
        raise ConfigurationError(msg)
    return Collection(
        name=name,
        title="a folder of your own",
        homepage="not stated",
        licence=UNKNOWN_LICENCE,
        licence_url="not stated",
        how="Everything in the folder that a reader knows and that is CT. State the licence and patterns in a record.",
        images=(),
    )


def load_collection(path: Path) -> Collection:
    r"""Read a user's own collection from a YAML record.

    ``name``, ``modality`` and ``images`` are needed. An example::

        name: clinic
        modality: CT
        images: ['/(?P<case>[^/]+)\.nii\.gz$', '/(?P<case>patient\d+)/']
        aliases: {'clinic_{n:03d}': 'patient{n}'}  # clinic_007 in a list of exclusions means patient7

    Raises:
        ConfigurationError: The file cannot be read, or the record is wrong.
    """
    try:
        record = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read as a source record: {error}. Correct it.") from error
    if not isinstance(record, dict):
        raise ConfigurationError(f"{path} is not a record (lines such as 'name: clinic'). Correct it.")
    known = {field.name for field in fields(Collection)} - {"former_aliases"} | {"intensity"}
    if unknown := sorted(str(key) for key in record.keys() - known):
        raise ConfigurationError(f"{path} has the unknown fields {', '.join(unknown)}; known are {', '.join(known)}.")
    if missing := [key for key in ("name", "modality", "images") if not record.get(key)]:
        raise ConfigurationError(f"{path} lacks {', '.join(missing)}. Add them.")
    values: dict[str, Any] = (
        dict.fromkeys(("title", "homepage", "licence", "licence_url", "how"), "not stated") | record
    )
    try:
        for key in ("images", "excluded", "contains"):
            if key in values:
                values[key] = _texts(values[key])
        aliases = values.get("aliases", {})
        if not isinstance(aliases, dict) or not all(isinstance(text, str) for pair in aliases.items() for text in pair):
            raise ValueError(f"aliases must be lines of 'other id: case id', not {aliases!r}")
        for key in ("name", "title", "homepage", "licence", "licence_url", "how", "modality", "note"):
            if key in values and not isinstance(values[key], str):
                raise ValueError(f"{key} must be a text, not {values[key]!r}; put it in quotes")
        expected = values.get("expected_volumes")
        if expected is not None and (isinstance(expected, bool) or not isinstance(expected, int) or expected < 0):
            raise ValueError(f"expected_volumes must be a number, not {expected!r}")
        modality = values["modality"].upper()
        if (intensity := str(values.pop("intensity", modality)).upper()) != modality:  # of earlier records
            raise ValueError(f"intensity '{intensity}' is not for modality {modality}")
        return Collection(**values | {"modality": Modality(modality)})
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error} (modalities: {', '.join(Modality)}). Correct it.") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _texts(value: Any) -> tuple[str, ...]:
    """Return one text or a list of them as a tuple."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise ValueError(f"{value!r} must be a text or a list of texts")
    return tuple(values)


_UNCHECKED = "The layout is that of the publication; it was not checked against a download."
_TCIA = "https://www.cancerimagingarchive.net/collection/"
_CC_BY = "https://creativecommons.org/licenses/by/4.0/"
_READ_TERMS = "see the home page"


def _decathlon(task: int, organ: str, name: str, volumes: int, contains: tuple[str, ...], note: str = "") -> Collection:
    return Collection(
        name=f"MSD-{name}",
        title=f"Medical Segmentation Decathlon, task {task:02d} ({organ})",
        homepage="http://medicaldecathlon.com",
        licence="CC-BY-SA-4.0",
        licence_url="https://creativecommons.org/licenses/by-sa/4.0/",
        how=f"download Task{task:02d}_{name}.tar from the home page",
        images=(rf"/images(Tr|Ts)/(?P<case>{name.lower()}_\d+)\.nii\.gz$",),
        expected_volumes=volumes,
        contains=contains,
        note=f"Training and test images; number: arXiv:1902.09063, table of tasks. {note}".strip(),
    )


_RECORDS = (
    Collection(
        name="BTCV",
        title="Multi-Atlas Labeling Beyond the Cranial Vault, abdomen",
        homepage="https://www.synapse.org/#!Synapse:syn3193805",
        licence="terms of use of the Synapse project",
        licence_url="https://www.synapse.org/#!Synapse:syn3193805",
        how="register at Synapse, join the project, download RawData.zip",
        images=(r"/(Training|Testing)/img/(?P<case>img\d{4})\.nii\.gz$",),
        expected_volumes=50,
        note="30 training and 20 test images.",
        aliases={"btcv_{n:04d}": "img{n:04d}"},
    ),
    Collection(
        name="Pancreas-CT",
        title="NIH Pancreas-CT",
        homepage=_TCIA + "pancreas-ct/",
        licence=_READ_TERMS,
        licence_url=_TCIA + "pancreas-ct/",
        how="NBIA Data Retriever (DICOM), from the home page",
        images=(r"/(?P<case>PANCREAS_\d{4})(/|$)",),
        note="82 scans were published, and some withdrawn later as copies. " + _UNCHECKED,
    ),
    Collection(
        name="CHAOS",
        title="Combined Healthy Abdominal Organ Segmentation, CT part",
        homepage="https://chaos.grand-challenge.org",
        licence=_READ_TERMS,
        licence_url="https://zenodo.org/records/3431873",
        how="download CHAOS_Train_Sets.zip and CHAOS_Test_Sets.zip from Zenodo (DICOM)",
        images=(r"/CT/(?P<case>\d+)/DICOM_anon$",),
        expected_volumes=40,
        note="20 training and 20 test patients (arXiv:2001.06535). " + _UNCHECKED,
    ),
    Collection(
        name="LiTS",
        title="Liver Tumor Segmentation Challenge",
        homepage="https://competitions.codalab.org/competitions/17094",
        licence=_READ_TERMS,
        licence_url="https://competitions.codalab.org/competitions/17094",
        how="register at CodaLab, download the two training batches and the test data",
        images=(r"/(?P<case>(test-)?volume-\d+)\.nii(\.gz)?$",),
        expected_volumes=201,
        note="131 training and 70 test images (arXiv:1901.04056).",
        aliases={"lits_{n:03d}": "volume-{n}", "lits_test_{n:03d}": "test-volume-{n}"},
        former_aliases={"lits_{n:03d}": "test-volume-{n}"},
    ),
    Collection(
        name="KiTS",
        title="Kidney Tumor Segmentation Challenge 2023",
        homepage="https://kits-challenge.org/kits23",
        licence="CC-BY-NC-SA-4.0",
        licence_url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
        how="git clone https://github.com/neheller/kits23, then its download command",
        images=(r"/(?P<case>case_\d{5})/imaging\.nii\.gz$",),
        expected_volumes=489,
        note="The labelled cases; CT-3M names no year. KiTS19 and KiTS21 have the same file names and fewer cases.",
    ),
    Collection(
        name="WORD",
        title="Whole abdominal Organ Dataset",
        homepage="https://github.com/HiLab-git/WORD",
        licence=_READ_TERMS,
        licence_url="https://github.com/HiLab-git/WORD",
        how="ask for access as the home page describes",
        images=(r"/images(Tr|Val|Ts)/(?P<case>word_\d{4})(_0000)?\.nii\.gz$",),
        expected_volumes=150,
        note="Number: arXiv:2111.02403. " + _UNCHECKED,
    ),
    Collection(
        name="AbdomenCT-1K",
        title="AbdomenCT-1K",
        homepage="https://github.com/JunMa11/AbdomenCT-1K",
        licence=_READ_TERMS,
        licence_url="https://github.com/JunMa11/AbdomenCT-1K",
        how="links on the home page",
        images=(r"/(?P<case>Case_\d{5})_0000\.nii\.gz$",),
        contains=("LiTS", "KiTS", "MSD-Spleen", "MSD-Pancreas", "Pancreas-CT"),
        note="The publication counts 1112 scans; how many of them are released as images was not checked. "
        + _UNCHECKED,
    ),
    Collection(
        name="AMOS22",
        title="Abdominal Multi-Organ Segmentation, CT part",
        homepage="https://zenodo.org/records/7262581",
        licence="CC-BY-4.0",
        licence_url=_CC_BY,
        how="download amos22.zip from Zenodo",
        images=(r"/images(Tr|Va|Ts)/(?P<case>amos_(0[0-4]\d\d|0500))\.nii\.gz$",),
        expected_volumes=500,
        note="CT cases are numbered up to 500, later ones are MR. The number is that of the publication "
        "(arXiv:2206.08023).",
    ),
    _decathlon(3, "liver", "Liver", 201, ("LiTS",), "The images are those of LiTS."),
    _decathlon(6, "lung", "Lung", 96, (), "The release may lack one of the 64 training images."),
    _decathlon(7, "pancreas", "Pancreas", 420, ()),
    _decathlon(8, "hepatic vessels", "HepaticVessel", 443, ()),
    _decathlon(9, "spleen", "Spleen", 61, ()),
    _decathlon(10, "colon", "Colon", 190, ()),
    Collection(
        name="CT-ORG",
        title="CT volumes with multiple organ segmentations",
        homepage=_TCIA + "ct-org/",
        licence=_READ_TERMS,
        licence_url=_TCIA + "ct-org/",
        how="download from the home page",
        images=(r"/(?P<case>volume-\d+)\.nii(\.gz)?$",),
        expected_volumes=140,
        contains=("LiTS",),
        note="Number: doi:10.1038/s41597-020-00715-8. Files are named as in LiTS, so give each its own folder.",
    ),
    Collection(
        name="TotalSegmentator",
        title="TotalSegmentator CT dataset, version 2",
        homepage="https://zenodo.org/records/10047292",
        licence="CC-BY-4.0",
        licence_url=_CC_BY,
        how="download Totalsegmentator_dataset_v201.zip from Zenodo",
        images=(r"/(?P<case>s\d{4})/ct\.nii\.gz$",),
        expected_volumes=1228,
        note="Number: description of version 2 of the release; version 1 has 1204. " + _UNCHECKED,
    ),
    Collection(
        name="AbdomenAtlas3",
        title="AbdomenAtlas 3.0",
        homepage="https://github.com/MrGiovanni/RadGPT",
        licence=_READ_TERMS,
        licence_url="https://github.com/MrGiovanni/RadGPT",
        how="links on the home page",
        images=(r"/(?P<case>BDMAP_[A-Za-z0-9]+)/ct\.nii\.gz$",),
        contains=(
            *("BTCV", "Pancreas-CT", "CHAOS", "LiTS", "KiTS", "WORD", "AbdomenCT-1K", "AMOS22", "CT-ORG"),
            *("MSD-Liver", "MSD-Lung", "MSD-Pancreas", "MSD-HepaticVessel", "MSD-Spleen", "MSD-Colon"),
        ),
        note="What it contains is what earlier versions of AbdomenAtlas state; number and page were not checked. "
        + _UNCHECKED,
    ),
)

COLLECTIONS = {collection.name: collection for collection in _RECORDS}
"""Name -> collection; the six tasks of the Decathlon are six records."""
