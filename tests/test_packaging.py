"""An sdist holds the whole tree, and the wheel made from it finds what a checkout finds, wherever it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
from configparser import ConfigParser
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import yaml

from nnunetv2_meddino.environment import run_environment
from tests.conftest import PROJECT
from tests.forked import run_code
from tests.nnunet import nnunet_environment

README = PROJECT / "README.md"
PACKAGES = ("nnunetv2_meddino", "pretraining")
BUILDS = """
import os, sys, tarfile
from setuptools import build_meta
out = os.path.abspath(sys.argv[1])
with tarfile.open(os.path.join(out, build_meta.build_sdist(out))) as sdist:
    sdist.extractall(out, filter="data")
    os.chdir(os.path.join(out, os.path.commonpath(sdist.getnames())))
build_meta.build_wheel(out)
"""
FINDS = """
import json, os, sys
sys.path.insert(0, {place!r})
from nnunetv2_meddino.comparison.report.document import Heading, to_html
from nnunetv2_meddino.environment import run_environment
from nnunetv2_meddino.planning.presets import load_overlay, overlays
found = {{
    "overlays": {{name: load_overlay(name).configuration for name in overlays()}},
    "styled": "<style>\\n" in to_html([Heading("Scores", 1)]),
}}
{then}
print(json.dumps(found))
"""
TRAINERS = """
os.environ.update(run_environment())
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
trainer = recursive_find_trainer_class_by_name("MedDINOv3Trainer")
found["trainer"] = sys.modules[trainer.__module__].__file__
"""
ENVIRONMENT_COMMAND = """
from nnunetv2_meddino.cli.main import main
found["exit code"] = main(["env"])
"""


def checkout_files() -> set[str]:
    """Return the files that git tracks, or would."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return set(subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.splitlines())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with an sdist of the checkout, what is in it, and the wheel that is built from that."""
    if not (PROJECT / ".git").exists():
        pytest.skip("only a checkout of the repository says which files are part of it")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in checkout_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILDS, out], cwd=source, capture_output=True, check=True)
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The packages as pip installs the wheel with ``--target``."""
    target = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", target, *built.glob("*.whl")], check=True)
    return target


def what_is_found(place: Path, then: str, home: Path) -> tuple[dict, list[str]]:
    """Return what the packages at a place on the path find, and what was printed before."""
    code, printed = run_code(FINDS.format(place=str(place), then=then), nnunet_environment(home, nnUNet_extTrainer=""))
    assert code == 0, printed
    *before, last = printed.splitlines()
    return json.loads(last), before


@pytest.mark.slow
def test_sdist_holds_every_file_of_the_checkout(built):
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames() if sdist.getmember(name).isfile()}
    made = {name for name in held if name.startswith("nnunetv2_meddino.egg-info/")} | {"PKG-INFO"}
    assert held - made == checkout_files()


@pytest.mark.slow
def test_all_files_of_the_packages_are_installed(installed):
    held = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    held = {name for name in held if name.startswith(PACKAGES) and ".dist-info" not in name and ".pyc" not in name}
    expected = {name for name in checkout_files() if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    expected |= {f"nnunetv2_meddino/plans/{path.name}" for path in (PROJECT / "plans").glob("*.json")}
    assert held == expected
    assert {f"{package}/py.typed" for package in PACKAGES} < held
    (metadata,) = {path for path in installed.iterdir() if path.name not in (*PACKAGES, "bin")}
    assert metadata.suffix == ".dist-info"  # nothing else at the top level


@pytest.mark.slow
def test_metadata_links_to_the_project_and_its_readme_to_nothing_beside_it(installed):
    (folder,) = installed.glob("*.dist-info")
    metadata = PathDistribution(folder).metadata
    labels = {entry.partition(", ")[0] for entry in metadata.get_all("Project-URL")}
    assert labels == {"Documentation", "Source", "Issues", "Changelog"}
    assert metadata["License-Expression"] == "Apache-2.0"
    text = metadata.get_payload()
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert f"{metadata['Home-page']}/blob/main/docs/training.md#two-loaders" in targets
    assert [target for target in targets if not target.startswith("https://")] == []
    assert re.sub(r"\]\([^)]*\)", "", text).strip() == re.sub(r"\]\([^)]*\)", "", README.read_text()).strip()


def test_citation_and_changes_are_of_this_version():
    settings = ConfigParser()
    settings.read(PROJECT / "setup.cfg")
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert citation["version"] == settings["metadata"]["version"]
    assert citation["repository-code"] == settings["metadata"]["url"]
    newest = re.search(r"^## (\S+)", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == citation["version"]


@pytest.mark.parametrize("recipe", ["Dockerfile", "apptainer.def"])
def test_container_recipes_set_what_nnunet_needs_to_find_the_trainers(recipe, monkeypatch):
    for name in run_environment():
        monkeypatch.delenv(name, raising=False)
    text = (PROJECT / recipe).read_text()
    python = re.search(r"^from:? python:(3\.\d+)-slim$", text, re.IGNORECASE | re.MULTILINE)[1]
    for name, value in run_environment().items():
        there = value.replace(str(PROJECT), f"/usr/local/lib/python{python}/site-packages")
        assert f" {name}={there}" in text


def test_both_containers_are_made_of_the_same_files():
    allowed = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set(re.findall(r"^    (\S+) /source/$", (PROJECT / "apptainer.def").read_text(), re.MULTILINE))
    assert copied == allowed
    assert {*PACKAGES, "plans", "setup.py", "setup.cfg"} < copied


@pytest.mark.slow
def test_nnunet_finds_the_trainers_and_the_package_its_files_where_it_is_installed(installed, tmp_path):
    found, _ = what_is_found(installed, TRAINERS, tmp_path)
    assert found == {
        "trainer": str(installed / "nnunetv2_meddino/trainers/meddinov3.py"),
        "overlays": stated_overlays(),
        "styled": True,
    }


@pytest.mark.slow
def test_in_an_archive_files_are_found_and_what_nnunet_cannot_find_is_said(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    found, said = what_is_found(wheel, ENVIRONMENT_COMMAND, tmp_path)
    assert found == {"exit code": 2, "overlays": stated_overlays(), "styled": True}
    assert f"ConfigurationError: {wheel}/nnunetv2_meddino/nnunet_ext/ is in an archive" in "\n".join(said)


def stated_overlays() -> dict:
    files = (PROJECT / "plans").glob("*.json")
    return {file.stem: json.loads(file.read_text())["configuration"] for file in files}
