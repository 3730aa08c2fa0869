import json
import math

import pytest

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config.monitor import AlarmConfig
from pretraining.engine.monitoring.alarms import Alarms

CONFIG = AlarmConfig(target_information=(0.1, 0.2), class_rank=(0.1, 0.2), patch_spread=(0.5, 0.6), grace_steps=1000)
KINDS = ["target_information", "class_rank"]


def reported(kind, values, *, config=CONFIG, first_step=0):
    """Return the indices of the values at which an alarm is raised."""
    alarms = Alarms(config)
    return [i for i, v in enumerate(values) if alarms.check(first_step + i, {f"collapse/{kind}": v})]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 0.3, 0.09, 0.05, 0.01], [2]),  # once
        ([0.5, 0.09, 0.15, 0.09, 0.15, 0.09], [1]),  # wavering around the lower bound
        ([0.5, 0.09, 0.25, 0.15, 0.09], [1, 4]),  # well in between
        ([0.5, 0.1, 0.1], []),  # the bound itself is not below it
        ([0.01, 0.02, 0.01], []),  # never well, in the first steps
        ([0.5, math.nan, math.nan], [1]),
    ],
)
def test_an_alarm_is_raised_once_until_the_measure_is_well_again(kind, values, expected):
    assert reported(kind, values) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_measure_that_was_never_well_is_reported_after_the_grace_steps(kind):
    assert reported(kind, [0.01] * 6, first_step=997) == [3]


def test_patches_that_become_alike_are_reported_relative_to_the_first_measurement():
    # spread 0.4, 0.3, 0.21 (more than half), 0.19
    assert reported("patch_similarity", [0.6, 0.7, 0.79, 0.81, 0.9]) == [3]
    assert reported("patch_similarity", [0.9, 0.94, 0.96]) == [2]
    assert reported("patch_similarity", [0.6, 0.1, 0.5]) == []


def test_measures_that_are_not_given_keep_their_state():
    alarms = Alarms(CONFIG)
    alarms.check(0, {"collapse/class_rank": 0.5, "collapse/patch_similarity": 0.5})
    assert alarms.check(1, {"loss": 3.0}) == []
    found = alarms.check(2, {"collapse/class_rank": 0.01, "collapse/patch_similarity": 0.9})
    assert [alarm.kind for alarm in found] == ["class_rank", "patch_spread"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("target_information", 0.03, ["3.0%", "learning rate", "checkpoint"]),
        ("class_rank", 0.03, ["3.0%", "KoLeo", "checkpoint"]),
        ("patch_similarity", 0.9, ["20%", "Gram"]),
    ],
)
def test_messages_say_what_is_seen_and_what_to_do(name, value, says):
    alarms = Alarms(CONFIG)
    alarms.check(0, {f"collapse/{name}": 0.5})
    (alarm,) = alarms.check(1, {f"collapse/{name}": value})
    assert all(part in alarm.message for part in says), alarm.message


def test_a_resumed_run_reports_what_an_undisturbed_one_does():
    series = [0.5, 0.6, 0.85, 0.7, 0.5, 0.85, 0.9, 0.4]
    whole, resumed = Alarms(CONFIG), Alarms(CONFIG)
    for step, value in enumerate(series):
        measures = {"collapse/patch_similarity": value, "collapse/class_rank": 1 - value}
        expected = whole.check(step, measures)
        again = Alarms(CONFIG)
        again.load_state_dict(json.loads(json.dumps(resumed.state_dict())))
        resumed = again
        assert resumed.check(step, measures) == expected


@pytest.mark.parametrize("bounds", [(0.3, 0.2), (-0.1, 0.2), (0.1,)])
def test_bounds_must_rise(bounds):
    with pytest.raises(ConfigurationError, match="class_rank"):
        AlarmConfig(class_rank=bounds)
