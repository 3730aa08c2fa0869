import pytest

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.views import IntensityConfig, MaskConfig, ViewConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"global_size": 250}, "global_size 250 must be a multiple of 16"),
        ({"local_size": 15}, "local_size 15 must hold a patch of 16"),
        ({"gram_size": 500}, "gram_size"),
        ({"global_scale": (0.5, 0.4)}, "global_scale"),
        ({"local_scale": (0.0, 0.4)}, "local_scale"),
        ({"local_scale": (0.1, 1.4)}, "local_scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"num_local": 0}, "num_local"),
        ({"flip_probability": 1.1}, "flip_probability"),
        ({"jitter_probability": -0.1}, "jitter_probability"),
        ({"global_2_blur_probability": 2}, "global_2_blur_probability"),
        ({"brightness": 1.5}, "brightness"),
        ({"contrast": -1}, "contrast"),
        ({"solarise_threshold": 128}, "solarise_threshold"),
        ({"blur_kernel": 8}, "odd"),
        ({"blur_kernel": 33, "local_size": 16}, "too wide"),
        ({"blur_sigma": (0.0, 2.0)}, "blur_sigma"),
    ],
)
def test_refuses_views_that_cannot_be_made(values, message):
    with pytest.raises(ConfigurationError, match=message):
        ViewConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": "mri"}, "none of ct, window, zscore, percentile"),
        ({"clip_hu": (5, 5)}, "clip_hu"),
        ({"std_hu": 0}, "std_hu"),
        ({"windows_hu": ()}, "windows_hu"),
        ({"windows_hu": ((40, 0),)}, "windows_hu"),
        ({"percentiles": (50, 50)}, "percentiles"),
        ({"percentiles": (0.5, 100.5)}, "percentiles"),
    ],
)
def test_refuses_intensity_rules_that_cannot_be_followed(values, message):
    with pytest.raises(ConfigurationError, match=message):
        IntensityConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": 0}, "patch_size"),
        ({"probability": 1.5}, "probability"),
        ({"ratio": (0.5, 0.1)}, "ratio"),
        ({"min_patches": 0}, "min_patches"),
        ({"min_aspect": 0}, "min_aspect"),
    ],
)
def test_refuses_masks_that_cannot_be_drawn(values, message):
    with pytest.raises(ConfigurationError, match=message):
        MaskConfig(**values)


def test_the_five_resolutions_of_the_third_stage_are_possible():
    for sizes in ((512, 112, 768), (768, 112, 1152), (768, 168, 1152), (768, 224, 1152), (768, 336, 1152)):
        config = ViewConfig(global_size=sizes[0], local_size=sizes[1], gram_size=sizes[2])
        assert (config.global_size, config.local_size, config.gram_size) == sizes
