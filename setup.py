"""What setup.cfg cannot say: the settings in plans/ are installed inside the package and edited beside it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["nnunetv2_meddino*", "pretraining*"]), "nnunetv2_meddino.plans"],
    package_dir={"nnunetv2_meddino.plans": "plans"},
)
