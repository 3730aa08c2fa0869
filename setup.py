"""What setup.cfg cannot say: the plans/ within the package, and the README as PyPI shows it."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def readme() -> str:
    """Return the README with the links to files of the repository absolute, as PyPI needs them."""
    settings = ConfigParser()
    settings.read(HERE / "setup.cfg")
    files = f"{settings['metadata']['url']}/blob/main/"
    return re.sub(r"\]\((?!\w+:|#)", f"]({files}", (HERE / "README.md").read_text(encoding="utf-8"))


setup(
    packages=[*find_packages(include=["nnunetv2_meddino*", "pretraining*"]), "nnunetv2_meddino.plans"],
    package_dir={"nnunetv2_meddino.plans": "plans"},
    long_description=readme(),
)
