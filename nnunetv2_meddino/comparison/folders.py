"""nnU-Net's folders: datasets, methods and folds, by name, and suggestions for names that are not there."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nnunetv2

from nnunetv2_meddino.environment import NNUNET_EXT_TRAINER, NNUNET_PATHS, nnunet_folders
from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.trainers import TRAINERS, split_length

FOLD_ALL = "all"


@dataclass(frozen=True, order=True)
class Method:
    """What a row of a comparison is: trainer, plans and configuration, as nnU-Net names its result folders."""

    trainer: str
    plans: str
    configuration: str

    @property
    def name(self) -> str:
        """Name of the result folder, ``Trainer__Plans__configuration``."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    @classmethod
    def from_name(cls, name: str) -> Method | None:
        """Return the method that a folder's name stands for, or None where it is no such name."""
        parts = name.split("__")
        return cls(*parts) if len(parts) == 3 and all(parts) else None


@dataclass(frozen=True)
class Folders:
    """The three folders that nnU-Net works in."""

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def from_environment(cls) -> Folders:
        """Return what nnU-Net's variables name.

        Raises:
            ConfigurationError: One is not set.
        """
        return cls(*nnunet_folders(*NNUNET_PATHS))

    def dataset(self, identifier: str) -> str:
        """Return the full name of a dataset that is given by its number or name.

        Raises:
            DataError: None of the folders has it, or several datasets have this number.
        """
        return dataset_name(identifier, (self.results, self.raw, self.preprocessed))

    def model(self, dataset: str, method: Method) -> Path:
        """Return the folder of a trained method."""
        return self.results / dataset / method.name

    def methods(self, dataset: str) -> list[Method]:
        """Return the methods that have a result folder, in the order of their names."""
        return trained_methods(self.results / dataset)


def dataset_names(folders: Iterable[Path]) -> list[str]:
    """Return the names of the datasets in any of some folders, in order."""
    return sorted(
        {
            folder.name
            for parent in folders
            for folder in (parent.iterdir() if parent.is_dir() else ())
            if re.fullmatch(r"Dataset\d{3}_.+", folder.name) and folder.is_dir()
        }
    )


def dataset_name(identifier: str, folders: Iterable[Path]) -> str:
    """Return the full name of a dataset that is given by its number or name.

    Raises:
        DataError: None of the folders has it, or several datasets have this number.
    """
    folders = tuple(folders)
    names = dataset_names(folders)
    by_number = [name for name in names if identifier.isdecimal() and int(name[7:10]) == int(identifier)]
    found = [identifier] if identifier in names else by_number
    if len(found) != 1:
        where = " or ".join(f"{folder}{'' if folder.is_dir() else ' (no folder)'}" for folder in folders)
        is_what = f"is ambiguous ({', '.join(found)})" if found else f"is not in {where}"
        msg = f"Dataset {identifier} {is_what}.{suggestion(identifier, names)} There are: {listed(names)}."
        raise DataError(msg)
    return found[0]


def trained_methods(folder: Path) -> list[Method]:
    """Return the methods that have a folder in the results of a dataset, in the order of their names."""
    found = (Method.from_name(path.name) for path in (folder.iterdir() if folder.is_dir() else ()))
    return sorted(method for method in found if method is not None)


def fold_folders(model: Path) -> dict[str, Path]:
    """Return the fold folders of a model by the name of the fold, numbers in order and ``all`` last."""
    folders = {
        path.name.removeprefix("fold_"): path
        for path in (model.iterdir() if model.is_dir() else ())
        if re.fullmatch(r"fold_(\d+|all)", path.name) and path.is_dir()
    }
    return dict(sorted(folders.items(), key=lambda item: (item[0] == FOLD_ALL, item[0].zfill(6))))


def has_checkpoint(fold_folder: Path) -> bool:
    """Whether nnU-Net's ``--c`` finds something to continue from."""
    return any((fold_folder / f"checkpoint_{which}.pth").is_file() for which in ("final", "latest", "best"))


def known_trainers() -> set[str]:
    """Return the names of this package's trainers, nnU-Net's own, and those in the folders of ``nnUNet_extTrainer``.

    Source files are read and nothing is imported.
    """
    folders = [Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer"]
    folders += [Path(folder) for folder in (NNUNET_EXT_TRAINER.get() or "").split(os.pathsep) if folder.strip()]
    names = set(TRAINERS)
    for folder in folders:
        for file in folder.rglob("*.py"):
            names.update(
                re.findall(r"^class (\w+)\(", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
            )
    return names


def is_trainer(name: str, known: Iterable[str]) -> bool:
    """Whether a trainer is known, itself or without the number of epochs that its name ends with."""
    return not {name, split_length(name)[0]}.isdisjoint(known)


def close_name(name: str, known: Iterable[str]) -> str | None:
    """Return the name that was probably meant, or None where no name is close."""
    by_lower = {entry.lower(): entry for entry in sorted(known)}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean X?``, or nothing where no name is close."""
    close = close_name(name, known)
    return f" Did you mean {close}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Return names for a message, in order."""
    return ", ".join(sorted(names)) or "none"
