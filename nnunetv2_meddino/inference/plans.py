"""What the plans of a model name: classes of nnU-Net, found by name, and whether slices can be predicted one by one."""

from __future__ import annotations

from pathlib import Path

import nnunetv2
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_meddino.errors import ConfigurationError

PREPROCESSOR = "DefaultPreprocessor"


def check_slicewise(configuration: ConfigurationManager, where: Path | str) -> None:
    """Refuse a configuration whose slices are not independent of each other.

    Raises:
        ConfigurationError: Its patches are three-dimensional, it is the second stage of a cascade, or it is
            preprocessed in a way of its own.
    """
    problem = None
    if len(configuration.patch_size) != 2:
        problem = f"predicts patches of {' x '.join(map(str, configuration.patch_size))}, not slices"
    elif configuration.previous_stage_name is not None:
        problem = f"needs the predictions of {configuration.previous_stage_name}"
    elif configuration.preprocessor_name != PREPROCESSOR:
        problem = f"is preprocessed by {configuration.preprocessor_name}"
    if problem is not None:
        msg = f"The model in {where} {problem}, so it cannot be predicted slice by slice. Use meddino predict --stock."
        raise ConfigurationError(msg)


def find_normalization(scheme: str) -> type[ImageNormalization]:
    """Return nnU-Net's class of a normalisation scheme.

    Raises:
        ConfigurationError: There is no such scheme.
    """
    folder = Path(nnunetv2.__path__[0]) / "preprocessing" / "normalization"
    found = recursive_find_python_class(str(folder), scheme, "nnunetv2.preprocessing.normalization")
    if found is None:
        raise ConfigurationError(f"The plans normalise with {scheme}, which this nnU-Net does not have.")
    return found
