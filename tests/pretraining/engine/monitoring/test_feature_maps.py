import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA

from nnunetv2_meddino.features.dense import pooled_colours
from nnunetv2_meddino.imaging.slices import centre_of
from pretraining.corpus.dataset import SliceDataset
from pretraining.engine.monitoring import feature_maps
from pretraining.engine.monitoring.feature_maps import (
    BODY_ABOVE,
    patch_means,
    save_pictures,
)
from pretraining.engine.monitoring.fixed_slices import WholeSlice, patch_features, watched_slices
from pretraining.views import IntensityConfig
from tests.pretraining.corpora import write_corpus
from tests.pretraining.engine.monitoring.networks import random_vit

RNG = np.random.default_rng(0)
SHAPES = [(6, 5), (4, 7)]


def bodies():
    """Random features, and means of which some are air."""
    features = [RNG.normal(size=(*shape, 10)) * np.arange(10, 0, -1) for shape in SHAPES]
    means = [RNG.choice([0.0, 0.2, 0.5, 0.8], size=shape) for shape in SHAPES]
    return features, means


def inside(means):
    return [mean > BODY_ABOVE for mean in means]


def test_components_are_those_of_the_masksof_all_slices_together():
    features, means = bodies()
    colours, explained = pooled_colours(features, means, inside(means))
    masks = inside(means)
    pooled = np.concatenate([f[i] for f, i in zip(features, masks, strict=True)])
    reference = PCA(3).fit(pooled)
    np.testing.assert_allclose(explained, reference.explained_variance_ratio_, rtol=1e-6)
    shown = np.concatenate([c[i] for c, i in zip(colours, masks, strict=True)])
    unsaturated = (shown > 0) & (shown < 1)
    for channel, component in enumerate(reference.transform(pooled).T):
        kept = unsaturated[:, channel]
        assert abs(np.corrcoef(shown[kept, channel], component[kept])[0, 1]) == pytest.approx(1)
    assert all((colour[~i] == 0).all() for colour, i in zip(colours, masks, strict=True))


def test_colours_grow_with_the_intensity_whatever_the_sign_of_the_features():
    features, means = bodies()
    colours, _ = pooled_colours(features, means, inside(means))
    negated, _ = pooled_colours([-f for f in features], means, inside(means))
    for one, other in zip(colours, negated, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_slices_without_a_body_are_coloured_throughout():
    features, means = bodies()
    colours, _ = pooled_colours(features, means, [np.zeros_like(mean, bool) for mean in means])
    assert all(np.ptp(colour) > 0.5 for colour in colours)


def test_the_point_is_in_the_middle_of_the_body():
    means = np.zeros((9, 9))
    means[1:6, 2:9] = 0.5
    assert centre_of(means > BODY_ABOVE) == (3, 5)
    means[3, 5] = 0  # a hole: the nearest patch of the body
    assert centre_of(means > BODY_ABOVE) in {(2, 5), (4, 5), (3, 4), (3, 6)}
    assert centre_of(np.zeros((4, 6), bool)) == (2, 3)


def test_the_mean_of_a_patch_is_that_of_its_pixels():
    unit = torch.rand(24, 16)
    expected = [[unit[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean() for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(patch_means(WholeSlice("s", unit, unit[None]), (3, 2)), expected, rtol=1e-5)


def test_a_picture_is_written_whole_and_the_same_every_time(tmp_path):
    write_corpus(tmp_path / "corpus")
    intensity = IntensityConfig()
    slices = watched_slices(SliceDataset(tmp_path / "corpus"), 2, intensity, size=48, patch_size=8)
    features = patch_features(random_vit(), slices)
    path = save_pictures(slices, features, tmp_path / "pictures", 12000, intensity)
    assert path == tmp_path / "pictures" / "step_00012000.png"
    assert list(path.parent.iterdir()) == [path]
    with Image.open(path) as image:
        assert image.width > image.height > 300
    content = path.read_bytes()
    assert save_pictures(slices, features, tmp_path / "pictures", 12000, intensity).read_bytes() == content
    other = [torch.randn_like(grid) for grid in features]
    assert save_pictures(slices, other, tmp_path / "pictures", 12000, intensity).read_bytes() != content


def test_nothing_of_a_picture_is_cut_off_and_rows_are_as_high_as_their_slices(tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(feature_maps, "write_figure", lambda figure, path: figures.append(figure) or path)
    sides = [(16, 32), (16, 32), (32, 32)]
    slices = [WholeSlice(f"slice {i}", torch.rand(*side), torch.rand(1, *side)) for i, side in enumerate(sides)]
    features = [torch.randn(height // 8, width // 8, 10) for height, width in sides]
    save_pictures(slices, features, tmp_path, 1, IntensityConfig())
    (figure,) = figures
    FigureCanvasAgg(figure).draw()
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    assert page.x0 <= drawn.x0 < drawn.x1 <= page.x1
    assert page.y0 <= drawn.y0 < drawn.y1 <= page.y1
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert [round(box.height / box.width, 2) for box in boxes[:9:3]] == [0.5, 0.5, 1.0]
    assert boxes[0].y0 - boxes[6].y1 < 0.5 * figure.dpi, "no empty room between the rows"
