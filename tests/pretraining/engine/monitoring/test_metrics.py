import json
import logging
import math
import sys
import types

import pytest
import torch

from nnunetv2_meddino.errors import ConfigurationError, DataError
from pretraining.engine.monitoring.metrics import FILE, MetricsLog


def lines(folder):
    def no_constant(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=no_constant) for line in (folder / FILE).read_text().splitlines()]


def run(folder, first, last, **options):
    """Log every step of a made-up run whose values depend on the step alone, and an event every third step."""
    with MetricsLog(folder, start_step=first, tensorboard=False, **options) as log:
        for step in range(first, last):
            log.write(step, {"loss": 10 / (step + 1), "lr": step * 1e-4})
            if step % 3 == 0:
                log.event(step, "alarm", f"step {step} divides by three")


def test_a_line_holds_the_exact_numbers_of_a_step_and_is_on_disk_at_once(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write(7, {"loss": 0.1 + 0.2, "images": 512, "tensor": torch.tensor(0.5)})
    log.event(7, "skipped", "a gradient was not finite")
    assert lines(tmp_path) == [
        {"step": 7, "loss": 0.1 + 0.2, "images": 512.0, "tensor": 0.5},
        {"step": 7, "event": "skipped", "message": "a gradient was not finite"},
    ]
    log.close()


def test_values_that_are_not_finite_are_null_and_named(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(0, {"loss": math.nan, "norm": -math.inf, "lr": 1.0})
    assert lines(tmp_path) == [
        {"step": 0, "loss": None, "norm": None, "lr": 1.0, "not_finite": {"loss": "nan", "norm": "-inf"}}
    ]


def test_baseline_is_an_event_with_values_apart_from_the_metrics_of_the_first_step(tmp_path):
    for _ in range(2):  # a run that was killed before its first checkpoint begins anew
        with MetricsLog(tmp_path, tensorboard=False) as log:
            log.baseline("before", {"probe/dice": 0.25, "views/correlation": math.nan})
            log.write(0, {"probe/dice": 0.5})
    assert lines(tmp_path) == [
        {
            **{"step": 0, "event": "baseline", "message": "before"},
            **{"values": {"probe/dice": 0.25, "views/correlation": None}, "not_finite": {"views/correlation": "nan"}},
        },
        {"step": 0, "probe/dice": 0.5},
    ]
    with MetricsLog(tmp_path, start_step=1, tensorboard=False):
        assert len(lines(tmp_path)) == 2


@pytest.mark.parametrize("reached", [4, 7, 9])
def test_the_file_of_a_resumed_run_is_that_of_an_undisturbed_one(tmp_path, reached):
    run(tmp_path / "whole", 0, 10)
    run(tmp_path / "resumed", 0, reached)  # killed at this step; its last checkpoint was before step 4
    run(tmp_path / "resumed", 4, 10)
    assert (tmp_path / "resumed" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == [FILE]


@pytest.mark.parametrize("rest", [b'{"step": 4, "lo', b'{"step": 4', b"\x00" * 40, b'{"step": 4, "loss": "\xff'])
def test_a_line_cut_by_a_power_failure_is_dropped_with_a_warning(tmp_path, caplog, rest):
    run(tmp_path / "whole", 0, 6)
    run(tmp_path / "cut", 0, 4)
    with (tmp_path / "cut" / FILE).open("ab") as file:
        file.write(rest)
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "cut", 4, 6)
    assert "middle of a line" in caplog.text
    assert (tmp_path / "cut" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path):
    run(tmp_path / "whole", 0, 6)
    run(tmp_path / "cut", 0, 4)
    path = tmp_path / "cut" / FILE
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    run(tmp_path / "cut", 4, 6)
    assert path.read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "two"}', ""])
def test_a_damaged_line_inside_the_file_is_an_error_and_nothing_is_changed(tmp_path, line):
    run(tmp_path, 0, 3)
    path = tmp_path / FILE
    content = path.read_text().splitlines()
    path.write_text("\n".join([content[0], line, *content[1:]]) + "\n")
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2, .*Restore"):
        MetricsLog(tmp_path, start_step=3, tensorboard=False)
    assert path.read_bytes() == before


def test_other_ranks_write_nothing(tmp_path):
    run(tmp_path / "other", 0, 3, enabled=False)
    assert not (tmp_path / "other").exists()


def test_a_metric_cannot_take_the_name_of_a_field(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log, pytest.raises(ValueError, match="'event'"):
        log.write(0, {"event": 1.0})
    with MetricsLog(tmp_path, tensorboard=False) as log, pytest.raises(ValueError, match="'values'"):
        log.write(0, {"values": 1.0})


def test_tensorboard_shows_the_same_and_forgets_what_a_resumed_run_repeats(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((0, 6), (3, 5)):
        with MetricsLog(tmp_path, start_step=first) as log:
            for step in range(first, last):
                log.write(step, {"loss": step + first / 10})
            log.event(last, "alarm", "look here")
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, round(e.value, 5)) for e in shown.Scalars("loss")] == [(0, 0), (1, 1), (2, 2), (3, 3.3), (4, 4.3)]
    assert shown.Tags()["tensors"] == ["event/alarm/text_summary"]


class FakeWandB(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.calls, self.id = [], None

    def init(self, **options):
        self.calls.append(("init", options))
        self.id = options["id"] or "new-id"
        return self

    def log(self, values, step):
        self.calls.append(("log", step, values))

    def finish(self):
        self.calls.append(("finish",))


def test_wandb_gets_the_same_and_a_resumed_run_goes_on_under_its_id(tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run(tmp_path / "run7", 0, 1, wandb="ct")
    run(tmp_path / "run7", 1, 2, wandb="ct")
    run(tmp_path / "run7", 0, 0, wandb="ct")
    options = {"project": "ct", "dir": str(tmp_path / "run7"), "name": "run7", "resume": "allow"}
    assert fake.calls == [
        ("init", {**options, "id": None}),
        ("log", 0, {"loss": 10.0, "lr": 0.0}),
        ("log", 0, {"event/alarm": "step 0 divides by three"}),
        ("finish",),
        ("init", {**options, "id": "new-id"}),
        ("log", 1, {"loss": 5.0, "lr": 1e-4}),
        ("finish",),
        ("init", {**options, "id": None}),
        ("finish",),
    ]


@pytest.mark.parametrize(
    ("module", "package", "options"),
    [("wandb", "wandb", {"tensorboard": False, "wandb": "ct"}), ("torch.utils.tensorboard", "tensorboard", {})],
)
def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch, module, package, options):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=f"pip install {package}"):
        MetricsLog(tmp_path, **options)
