"""Fetching from a server on this machine that stands in for the hub."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from nnunetv2_meddino.weights import hub
from nnunetv2_meddino.weights.hub import HubFile, parse_hub_id
from tests.hub import Repository, serve

CONTENT = b"weights" * 1000
ERRORS = {"org/gated": (401, "GatedRepo"), "org/denied": (403, "GatedRepo")}
SPECS = [f"org/{name}" for name in ("fine", "second", "gated", "denied", "absent", "cut")] + ["org/fine:nope.bin"]
SCRIPT = """
import json, sys
import huggingface_hub.constants
from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.weights.hub import cached_path, fetch
for spec in sys.argv[1:]:
    huggingface_hub.constants.HF_HUB_OFFLINE = spec.startswith("offline=")
    spec = spec.removeprefix("offline=")
    before = cached_path(spec)
    try:
        path = fetch(spec)
        result = [len(path.read_bytes()), path.name, before is not None, cached_path(spec) == path]
    except WeightsError as error:
        result = str(error)
    print(json.dumps([huggingface_hub.constants.HF_HUB_OFFLINE, spec, result]))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What a machine with network gets, then what the same machine gets offline: spec -> result."""
    environment = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "HTTP", "HUGGING"))}
    environment |= {"no_proxy": "*"}
    environment |= {"HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_HUB_DISABLE_TELEMETRY": "1"}
    specs = [*SPECS, "offline=org/fine", "offline=org/second", "offline=org/new"]
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *specs]
    with serve() as stand_in:
        files = {"fine": "model.safetensors", "second": "model.pth", "cut": "model.safetensors"}
        stand_in.repositories |= {f"org/{name}": Repository({file: CONTENT}) for name, file in files.items()}
        stand_in.refusals |= ERRORS
        stand_in.cut.add("org/cut/model.safetensors")
        environment["HF_ENDPOINT"] = stand_in.address
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    by_network: tuple[dict, dict] = ({}, {})
    for line in done.stdout.splitlines():
        offline, spec, result = json.loads(line)
        by_network[offline][spec] = result
    return by_network


def test_a_file_is_fetched_and_then_cached(results):
    online, offline = results
    assert online["org/fine"] == [len(CONTENT), "model.safetensors", False, True]
    assert offline["org/fine"] == [len(CONTENT), "model.safetensors", True, True]


def test_file_names_are_tried_in_turn(results):
    online, offline = results
    assert online["org/second"] == [len(CONTENT), "model.pth", False, True]
    assert offline["org/second"] == [len(CONTENT), "model.pth", True, True]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("org/gated", ["gated", "https://huggingface.co/org/gated", "hf auth login", "MEDDINO_WEIGHTS"]),
        ("org/denied", ["gated", "accept", "hf auth login"]),
        ("org/absent", ["no repository org/absent", "misspelt"]),
        ("org/fine:nope.bin", ["no file nope.bin", "org/fine:FILENAME"]),
        ("org/cut", ["broke off", "what has arrived is kept", "MEDDINO_WEIGHTS"]),
    ],
)
def test_failures_say_what_to_do(results, spec, expected):
    message = results[0][spec]
    assert all(part in message for part in expected), message
    assert "\n" not in message


def test_offline_says_what_to_do(results):
    message = results[1]["org/new"]
    assert all(part in message for part in ["cannot be reached", "HF_HUB_OFFLINE", "HF_HOME", "model.safetensors"])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("org/name", HubFile("org/name", None)),
        ("hf-hub:timm/vit_x.y", HubFile("timm/vit_x.y", None)),
        ("org/name:sub/model.pth", HubFile("org/name", "sub/model.pth")),
        ("org/name:../../model.pth", None),
        ("name", None),
        ("/abs/path", None),
        ("a/b/c", None),
        ("~/weights", None),
        ("../weights", None),
    ],
)
def test_hub_ids_are_recognised(spec, expected):
    assert parse_hub_id(spec) == expected


def test_a_full_disk_is_no_fault_of_the_hub(monkeypatch):
    def full(*arguments: object, **options: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/blob")

    monkeypatch.setattr(hub, "hf_hub_download", full)
    with pytest.raises(OSError, match="No space left on device: '/cache/blob'"):
        hub.fetch("org/fine")
