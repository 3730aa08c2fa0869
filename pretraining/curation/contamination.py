"""Leak control at the end: whether a corpus holds a scan, whatever its name."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_meddino.errors import DataError
from pretraining.corpus.format import VOLUMES_FILE, read_corpus, read_volumes
from pretraining.curation.deduplicate import ContentIndex, Match
from pretraining.curation.fingerprint import exact_hash, fingerprint, is_current
from pretraining.curation.process_volume import outdated
from pretraining.curation.readers.read import Candidate, candidates_of, read_volume
from pretraining.curation.volume import Rejected
from pretraining.modality import Modality


class SeenScans:
    """Finds the scans of a corpus by their content; its tables are read once for any number of images."""

    def __init__(self, corpus: Path) -> None:
        """Read the contents of a corpus.

        Raises:
            DataError: The corpus is not finished, an earlier version made it, or its tables cannot be read.
        """
        read_corpus(corpus)
        volumes = read_volumes(corpus)
        if not all(map(is_current, volumes["fingerprint"])):
            raise DataError(outdated(corpus / VOLUMES_FILE))
        self._names = {
            f"{source}/{case}": names
            for source, case, names in zip(volumes["source"], volumes["case"], volumes["names"], strict=True)
        }
        self._index = ContentIndex(zip(self._names, volumes["hash"], volumes["fingerprint"], strict=True))
        self._modalities = sorted({Modality(modality) for modality in volumes["modality"]})

    def names(self, match: Match) -> list[str]:
        """Return all names of a volume, its own first: copies that were found in other sources are merged into it."""
        return self._names[match.name]

    def find(self, image: Path) -> list[Match]:
        """Return the volumes that have the content of an image, the most similar first; none if it is new.

        The image is read as each modality of the corpus.

        Args:
            image: A file, or the folder of a DICOM series.

        Raises:
            DataError: The image cannot be read as any of them.
        """
        candidates = candidates_of(image)
        if not candidates:
            raise DataError(f"{image} is not an image that can be read.")
        found: dict[str, Match] = {}
        for match in (match for candidate in candidates for match in self._matches(candidate)):
            found[match.name] = max(match, found.get(match.name, match), key=lambda m: m.similarity)
        return sorted(found.values(), key=lambda m: (-m.similarity, m.name))

    def _matches(self, candidate: Candidate) -> list[Match]:
        matches, rejections = [], []
        for modality in self._modalities:
            try:
                volume = read_volume(candidate, modality)
            except Rejected as rejected:
                rejections.append(rejected.message)
                continue
            content_hash = exact_hash(volume.voxels)
            matches += self._index.matches(content_hash, fingerprint(volume).to_bytes())
        if len(rejections) == len(self._modalities) > 0:
            msg = f"{candidate.path} cannot be compared with the corpus: {'; '.join(dict.fromkeys(rejections))}"
            raise DataError(msg)
        return matches
