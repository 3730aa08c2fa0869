import pytest

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.losses import GramConfig, KoLeoConfig, LossConfig
from pretraining.schedules import Schedule


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (LossConfig, {"dino_weight": -1}, "dino_weight"),
        (LossConfig, {"ibot_weight": float("inf")}, "ibot_weight"),
        (LossConfig, {"koleo_weight": float("nan")}, "koleo_weight"),
        (LossConfig, {"local_weight": Schedule(1.0, end=-1.0)}, "local_weight must never be below 0"),
        (LossConfig, {"gram_weight": Schedule(1.0, start=-1.0, warmup_steps=2)}, "gram_weight must never be below 0"),
        (LossConfig, {"student_temperature": 0}, "student_temperature"),
        (LossConfig, {"sinkhorn_iterations": 0}, "sinkhorn_iterations"),
        (KoLeoConfig, {"top_k": 0}, "top_k 0"),
        (GramConfig, {"level": "patch"}, "none of image, batch"),
        (GramConfig, {"negatives": "drop"}, "none of keep, remove, remove_teacher"),
        (GramConfig, {"tokens": "some"}, "none of all, masked, unmasked"),
        (GramConfig, {"tokens": "masked"}, "level 'batch'"),
    ],
)
def test_refuses_settings_that_contradict_themselves(config, values, message):
    with pytest.raises(ConfigurationError, match=message):
        config(**values)
