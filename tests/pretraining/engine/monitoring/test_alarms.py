import json
import math

import pytest

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config.monitor import AlarmConfig
from pretraining.engine.monitoring.alarms import Alarms

CONFIG = AlarmConfig(target_information=(0.1, 0.2), class_rank=(0.1, 0.2), patch_spread=(0.5, 0.6), grace_steps=1000)
KINDS = ["target_information", "class_rank"]


def watching(*, config=CONFIG, steps=100_000, freed_after=0, koleo=True):
    return Alarms(config, steps=steps, freed_after=freed_after, koleo=koleo)


def reported(kind, values, *, config=CONFIG, first_step=0):
    """Return the indices of the values at which an alarm is raised."""
    alarms = watching(config=config)
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
    alarms = watching()
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
    alarms = watching()
    alarms.check(0, {f"collapse/{name}": 0.5})
    (alarm,) = alarms.check(1, {f"collapse/{name}": value})
    assert all(part in alarm.message for part in says), alarm.message


def test_a_resumed_run_reports_what_an_undisturbed_one_does():
    series = [0.5, 0.6, 0.85, 0.7, 0.5, 0.85, 0.9, 0.4]
    whole, resumed = watching(), watching()
    for step, value in enumerate(series):
        measures = {"collapse/patch_similarity": value, "collapse/class_rank": 1 - value}
        expected = whole.check(step, measures)
        again = watching()
        again.load_state_dict(json.loads(json.dumps(resumed.state_dict())), step)
        resumed = again
        assert resumed.check(step, measures) == expected


@pytest.mark.parametrize("bounds", [(0.3, 0.2), (-0.1, 0.2), (0.1,)])
def test_bounds_must_rise(bounds):
    with pytest.raises(ConfigurationError, match="class_rank"):
        AlarmConfig(class_rank=bounds)


INFORMATION = "collapse/target_information"
HEADS_CONFIG = AlarmConfig(heads_information=0.01, heads_steps=100, grace_steps=500)


def kinds_by_step(alarms, information, *, every=10):
    """Return (step, kind) of the alarms of a training; the information is a function of the finished steps."""
    steps = range(every, alarms._steps + 1, every)
    return [(done, alarm.kind) for done in steps for alarm in alarms.check(done - 1, {INFORMATION: information(done)})]


@pytest.mark.parametrize(
    ("information", "freed_after", "expected"),
    [
        (lambda done: 0.001, 0, [(100, "heads")]),  # once, and the alarm of the grace steps is held back
        (lambda done: 0.001, 200, [(300, "heads")]),
        (lambda done: 0.001, 450, [(550, "heads")]),  # later than the grace steps, which say nothing either
        (lambda done: math.nan, 0, [(100, "heads")]),
        (lambda done: done / 5000, 0, []),  # took hold
        (lambda done: 0.02, 0, [(510, "target_information")]),  # said something, but never enough
        (lambda done: 0.02 if done <= 40 else 0.001, 0, [(140, "heads")]),  # random heads that forget what they say
        (lambda done: 0.02 if done <= 40 else 0.001, 200, [(300, "heads")]),
        (lambda done: 0.3 if done <= 40 else 0.001, 0, [(50, "target_information")]),  # a collapse
        (lambda done: 0.001 if done < 400 else 0.02, 0, [(100, "heads")]),  # rising: nothing new
        (
            lambda done: 0.001 if done < 400 else 0.3 if done < 700 else 0.02,
            0,
            [(100, "heads"), (700, "target_information")],
        ),
    ],
)
def test_heads_that_say_nothing_are_reported_before_the_grace_steps_and_in_their_place(
    information, freed_after, expected
):
    assert kinds_by_step(watching(config=HEADS_CONFIG, steps=1000, freed_after=freed_after), information) == expected


@pytest.mark.parametrize(("steps", "freed_after"), [(60, 0), (90, 30), (190, 100)])
def test_stage_shorter_than_that_reports_silent_heads_at_its_end(steps, freed_after):
    alarms = watching(config=HEADS_CONFIG, steps=steps, freed_after=freed_after)
    assert kinds_by_step(alarms, lambda done: 0.002) == [(steps, "heads")]
    alarms = watching(config=HEADS_CONFIG, steps=steps, freed_after=freed_after)
    assert kinds_by_step(alarms, lambda done: 0.02) == []


@pytest.mark.parametrize(("steps", "freed_after"), [(90, 5000), (90, 90), (140, 100)])
def test_heads_that_were_hardly_free_are_not_reported_at_the_end(steps, freed_after):
    alarms = watching(config=HEADS_CONFIG, steps=steps, freed_after=freed_after)
    assert kinds_by_step(alarms, lambda done: 0.001) == []


def test_long_stage_whose_heads_fall_silent_just_before_the_end_reports_nothing():
    assert kinds_by_step(watching(config=HEADS_CONFIG, steps=200), lambda d: 0.02 if d < 150 else 0.001) == []


@pytest.mark.parametrize(("koleo", "says"), [(True, "only KoLeo is training"), (False, "nothing is training")])
def test_message_about_silent_heads_says_what_trains_and_what_to_do(koleo, says):
    alarms = watching(config=HEADS_CONFIG, freed_after=5000, koleo=koleo)
    (alarm,) = alarms.check(5999, {INFORMATION: 0.0004})
    for part in (says, "0.04%", "6,000 steps, in 1,000", "--optim.teacher-temperature 0.015", "docs/pretraining.md"):
        assert part in alarm.message, alarm.message
    assert "halve" not in alarm.message


def test_resumed_run_counts_silent_steps_on_and_an_older_checkpoint_counts_from_where_it_resumes():
    alarms = watching(config=HEADS_CONFIG)
    assert alarms.check(39, {INFORMATION: 0.02}) == []
    state = json.loads(json.dumps(alarms.state_dict()))
    older = {name: value for name, value in state.items() if name != "silent_since"}
    for given, due in ((state, 140), (older, 160)):
        resumed = watching(config=HEADS_CONFIG)
        resumed.load_state_dict(given, 60)
        assert resumed.check(due - 2, {INFORMATION: 0.001}) == []
        assert [alarm.kind for alarm in resumed.check(due - 1, {INFORMATION: 0.001})] == ["heads"]


@pytest.mark.parametrize("wrong", [{"heads_information": 1.0}, {"heads_information": -0.1}, {"heads_steps": 0}])
def test_bounds_of_silent_heads_are_checked(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        AlarmConfig(**wrong)
