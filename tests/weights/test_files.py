"""Damaged, foreign and hostile files: one clear error each, and nothing in them is ever run."""

from __future__ import annotations

import json
import pickle
from hashlib import sha256

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.weights.files import read_file, write_safetensors, write_torch
from tests.weights.checkpoints import Plants

TENSORS = {"a": torch.arange(4000.0)}


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_is_written_is_read(tmp_path, name):
    path = tmp_path / "new" / name
    (write_torch(path, TENSORS) if name.endswith("pth") else write_safetensors(path, TENSORS, {"k": "v"}))
    file = read_file(path)
    assert torch.equal(file.content["a"], TENSORS["a"])
    assert file.metadata == ({} if name.endswith("pth") else {"k": "v"})
    assert [p.name for p in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("length", range(248, 512, 8))
def test_a_header_of_any_length_is_read(tmp_path, length):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"a": torch.ones(2)}, {"note": ""})
    short = int.from_bytes(path.read_bytes()[:8], "little")
    write_safetensors(path, {"a": torch.ones(2)}, {"note": "x" * (length - short)})
    assert int.from_bytes(path.read_bytes()[:8], "little") == length
    assert len(read_file(path).metadata["note"]) == length - short


def test_the_same_content_gives_the_same_file(tmp_path):
    metadata = {"format": "pt", "author": 'Jürgen "x"\n\x1f', "step": "3", "origin": json.dumps({"name": "a/b"})}
    for number in range(8):
        write_safetensors(tmp_path / f"{number}.safetensors", TENSORS, metadata)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    file = read_file(tmp_path / "0.safetensors")
    assert file.metadata == metadata
    assert all(torch.equal(file.content[name], tensor) for name, tensor in TENSORS.items())


def test_legacy_pytorch_files_are_read(tmp_path):
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_file(tmp_path / "old.pth").content["a"], TENSORS["a"])


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, legacy):
    planted = tmp_path / "planted"
    path = tmp_path / "evil.pth"
    content = {"teacher": {"backbone.cls_token": torch.zeros(1, 1, 64)}, "note": Plants(planted)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match="holds Python objects besides tensors.*not opened"):
        read_file(path)
    assert not planted.exists()
    torch.load(path, weights_only=False)  # the trap works: this is what reading it carelessly would have done
    assert planted.exists()


def test_a_bare_malicious_pickle_is_refused_and_not_run(tmp_path):
    planted = tmp_path / "planted"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Plants(planted), protocol=2))
    with pytest.raises(WeightsError):
        read_file(tmp_path / "evil.pth")
    assert not planted.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x80\x02}q\x00.", "PyTorch cannot read it"),
        (b"PK\x03\x04" + bytes(100), "cut off"),
        ((10**12).to_bytes(8, "little") + b'{"a":', "cut off"),
    ],
)
def test_damaged_files_say_so_and_are_left_to_their_owner(tmp_path, content, expected):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=expected) as caught:
        read_file(path)
    assert str(path) in str(caught.value)
    assert "Get the file again" in str(caught.value)
    assert "elete" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_a_download_that_is_not_what_was_published_may_be_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    torch.save(TENSORS, tmp_path / "published.pth")
    blobs, snapshot = tmp_path / "models--org--name/blobs", tmp_path / "models--org--name/snapshots/0123"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    blob, link = blobs / sha256((tmp_path / "published.pth").read_bytes()).hexdigest(), snapshot / "model.pth"
    link.symlink_to(blob)
    blob.write_bytes((tmp_path / "published.pth").read_bytes()[:3000])
    with pytest.raises(WeightsError, match=f"other checksum.*Delete {blob} and fetch it again"):
        read_file(link)
    # published as it is: nothing to be had by fetching it again
    blob.unlink()
    broken = b"PK\x03\x04" + bytes(100)
    (blobs / sha256(broken).hexdigest()).write_bytes(broken)
    link.unlink()
    link.symlink_to(blobs / sha256(broken).hexdigest())
    with pytest.raises(WeightsError, match="cut off") as caught:
        read_file(link)
    assert "elete" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_truncated_files_are_an_error(tmp_path, kind, fraction):
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    with pytest.raises(WeightsError, match="cut off"):
        read_file(path)


def test_flipped_bits_in_a_zip_are_an_error(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(TENSORS, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="checksum"):
        read_file(path)


def test_a_file_of_one_tensor_is_an_error(tmp_path):
    torch.save(torch.ones(3), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds a Tensor instead of named tensors"):
        read_file(tmp_path / "a.pth")


def test_missing_files_and_folders_are_an_error(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        read_file(tmp_path / "absent.pth")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(WeightsError, match=r"is a folder\. Name one weights file in it: .*/model\.safetensors$"):
        read_file(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, TENSORS, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_safetensors(path, TENSORS, {"not": 1})  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_writing_replaces_the_name_and_not_the_content(tmp_path):
    path, reader = tmp_path / "a.pth", tmp_path / "still-open.pth"
    write_torch(path, TENSORS)
    reader.hardlink_to(path)
    write_torch(path, {"b": torch.ones(1)})
    assert set(read_file(path).content) == {"b"}
    assert set(read_file(reader).content) == {"a"}


def test_safetensors_header_of_other_types_is_an_error(tmp_path):
    header = json.dumps({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(WeightsError, match="safetensors reports"):
        read_file(tmp_path / "a.safetensors")
