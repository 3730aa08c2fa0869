import json
import pickle
import shutil

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.corpora import SPACING_MM, write_manifest, write_volume
from nnunetv2_meddino.errors import DataError
from pretraining.corpus import dataset as slices_module
from pretraining.corpus.dataset import PADDING_HU, SliceDataset
from tests.pretraining.corpora import flip_silent_bit, numbered_volume, write_corpus


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    write_corpus(folder)
    return folder


def test_a_batch_holds_each_slice_at_the_top_left_and_air_around_it(tmp_path):
    volumes = write_corpus(tmp_path)
    rows = [10, 0, 5]  # slice 4 of b1, slice 0 of a1, slice 1 of a2
    batch = SliceDataset(tmp_path)[10], SliceDataset(tmp_path).__getitems__(rows)
    expected = [volumes[2][4], volumes[0][0], volumes[1][1]]
    assert batch[1].pixels.dtype == torch.int16
    assert batch[1].pixels.shape == (3, 48, 48)
    for pixels, slice_ in zip(batch[1].pixels.numpy(), expected, strict=True):
        height, width = slice_.shape
        np.testing.assert_array_equal(pixels[:height, :width], slice_)
        padding = np.ones_like(pixels, bool)
        padding[:height, :width] = False
        assert (pixels[padding] == PADDING_HU).all()
    assert batch[1].sizes.tolist() == [[48, 48], [40, 48], [48, 32]]
    assert batch[1].indices.tolist() == rows
    assert batch[1].global_index.tolist() == [0, 1, 2]
    torch.testing.assert_close(batch[1].spacing, torch.tensor([SPACING_MM] * 3))
    torch.testing.assert_close(batch[0].pixels[0], batch[1].pixels[0])


def test_only_slices_flagged_empty_are_left_out(corpus):
    dataset = SliceDataset(corpus)
    assert len(dataset) == 11
    assert dataset.usable_rows().tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert {source: rows.tolist() for source, rows in dataset.rows_by_source().items()} == {
        "alpha": [0, 1, 2, 4, 5],
        "beta": [6, 7, 8, 9, 10],
    }


def test_flags_may_be_plain_text_or_missing(corpus):
    table = pq.read_table(corpus / "slices.parquet")
    flags = table["flags"].cast(pa.string()).to_pylist()
    flags[:2] = "empty", None
    table = table.set_column(table.column_names.index("flags"), "flags", pa.array(flags))
    pq.write_table(table, corpus / "slices.parquet")
    assert SliceDataset(corpus).usable_rows().tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_open_volumes_are_bounded_and_the_least_recently_used_one_is_closed(corpus, monkeypatch):
    monkeypatch.setattr(slices_module, "OPEN_VOLUMES", 2)
    dataset = SliceDataset(corpus)
    dataset.__getitems__([0, 4, 0, 10])
    assert list(dataset._open) == [0, 2]


def test_a_dataset_sent_to_another_process_leaves_its_open_files_behind(corpus):
    dataset = SliceDataset(corpus)
    batch = dataset.__getitems__([0, 6])
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._open
    torch.testing.assert_close(copy.__getitems__([0, 6]).pixels, batch.pixels)


def _vanish(path):
    path.unlink()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def _empty(path):
    path.write_bytes(b"")


def _overwrite(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - 300 : middle + 300] = bytes(600)
    path.write_bytes(data)


def _other_shape(path):
    path.unlink()
    write_volume(path, numbered_volume(2, 5, 36, 64))  # as many bytes a slice


def _other_type(path):
    path.unlink()
    voxels, slice_shape = numbered_volume(2, 5, 48, 48).astype(np.uint16), (1, 48, 48)
    blosc2.asarray(voxels, urlpath=str(path), mode="w", chunks=slice_shape, blocks=slice_shape)


@pytest.mark.parametrize("damage", [_vanish, _cut, _empty, _overwrite, _other_shape, _other_type])
def test_a_damaged_file_is_an_error_that_names_it(corpus, damage):
    path = corpus / "volumes" / "beta" / "b1.b2nd"
    damage(path)
    with pytest.raises(DataError, match=str(path)):
        SliceDataset(corpus).__getitems__([6, 7, 8, 9, 10])


@pytest.mark.parametrize("damage", [_empty, _overwrite])
def test_a_file_that_breaks_while_it_is_open_is_an_error_that_names_it(corpus, damage):
    path = corpus / "volumes" / "beta" / "b1.b2nd"
    dataset = SliceDataset(corpus)
    dataset.__getitems__([6])
    damage(path)
    with pytest.raises(DataError, match=str(path)):
        dataset.__getitems__([7, 8, 9, 10])


@pytest.mark.parametrize("already_open", [False, True])
def test_a_flipped_bit_that_decodes_to_other_voxels_is_an_error(corpus, already_open):
    path = corpus / "volumes" / "beta" / "b1.b2nd"
    dataset = SliceDataset(corpus)
    if already_open:
        dataset.__getitems__([8])
    flip_silent_bit(path, 2)
    with pytest.raises(DataError, match=f"slice 3 of {path}.*checksum.*Curate this volume again: delete the file"):
        dataset.__getitems__([8])
    with pytest.raises(DataError, match=f"slice 3 of {path}.*checksum"):
        dataset.check(8)
    dataset.__getitems__([6, 7, 9, 10])  # the other slices are whole


def test_a_manifest_read_piece_by_piece_is_the_same(corpus, monkeypatch):
    whole = SliceDataset(corpus).__getitems__(range(11))
    monkeypatch.setattr(slices_module, "ROWS_PER_BATCH", 4)
    assert torch.equal(SliceDataset(corpus).__getitems__(range(11)).pixels, whole.pixels)


def test_a_damaged_slice_never_reaches_the_decoder(corpus, monkeypatch):
    flip_silent_bit(corpus / "volumes" / "beta" / "b1.b2nd", 2)
    dataset = SliceDataset(corpus)
    monkeypatch.setattr(slices_module.blosc2, "decompress", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(DataError, match="checksum"):
        dataset.__getitems__([8])


def _set_described(corpus, **values):
    path = corpus / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: _set_described(c, version=2), "version 2; this release reads .* version 1"),
        (lambda c: _set_described(c, format="something"), "'something'"),
        (lambda c: _set_described(c, slices=12), "11 rows, corpus.json counts 12"),
        (lambda c: _set_described(c, slices=None), "11 rows, corpus.json counts None"),
        (lambda c: (c / "corpus.json").write_text("{"), "corpus.json cannot be read"),
        (lambda c: (c / "corpus.json").unlink(), "holds no finished corpus"),
        (lambda c: _cut(c / "slices.parquet"), "slices.parquet cannot be read"),
        (lambda c: (c / "slices.parquet").unlink(), "slices.parquet cannot be read"),
        (lambda c: _cut(c / "volumes.parquet"), "volumes.parquet cannot be read"),
        (lambda c: pq.write_table(pa.table({"case": ["x"]}), c / "volumes.parquet"), "volumes.parquet cannot be read"),
        (lambda c: pq.write_table(pa.table({"case": ["x"] * 11}), c / "slices.parquet"), "slices.parquet cannot be"),
        (
            lambda c: pq.write_table(pq.read_table(c / "slices.parquet").drop("crc32"), c / "slices.parquet"),
            "slices.parquet cannot be read: .*crc32.*Run meddino-pretrain merge",
        ),
    ],
)
def test_a_damaged_manifest_is_an_error_that_names_it(corpus, damage, message):
    damage(corpus)
    with pytest.raises(DataError, match=message):
        SliceDataset(corpus)


@pytest.mark.parametrize(("column", "value"), [("volume", 3), ("volume", -1), ("index", 5), ("index", -1)])
def test_a_row_that_points_outside_of_the_volumes_is_an_error(corpus, column, value):
    table = pq.read_table(corpus / "slices.parquet")
    values = table[column].to_numpy().copy()
    values[8] = value
    table = table.set_column(table.column_names.index(column), column, pa.array(values))
    pq.write_table(table, corpus / "slices.parquet")
    with pytest.raises(DataError, match="row 8: slice"):
        SliceDataset(corpus)


def test_the_manifest_takes_few_bytes_a_row(tmp_path):
    write_manifest(tmp_path, [(f"source{i % 16}", f"case{i}", (150, 512, 512)) for i in range(2000)])
    dataset = SliceDataset(tmp_path)
    arrays = [v for v in vars(dataset).values() if isinstance(v, np.ndarray)]
    held = sum(array.nbytes for array in arrays) + len(pickle.dumps(dataset.paths))
    assert held < 14 * len(dataset)
    shutil.rmtree(tmp_path)
