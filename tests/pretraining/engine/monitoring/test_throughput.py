import pytest
import torch

from pretraining.engine.monitoring import throughput
from pretraining.engine.monitoring.throughput import WINDOW_STEPS, Throughput, peak_flops, peak_flops_by_name


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_speed_is_that_of_the_last_steps(clock):
    meter = Throughput(torch.device("cpu"), clock=clock)
    for _ in range(3 * WINDOW_STEPS):  # slow ones, which must be forgotten
        clock.now += 10
        meter.step(64, 1.0)
    for _ in range(WINDOW_STEPS):
        clock.now += 0.5
        meter.step(64, 1.0)
    assert meter.values(100) == pytest.approx(
        {"throughput/images_per_s": 128, "throughput/step_s": 0.5, "throughput/remaining_s": 50}
    )


def test_steps_of_different_sizes_are_weighed_by_their_time(clock):
    meter = Throughput(torch.device("cpu"), clock=clock)
    for images, seconds in ((10, 1.0), (50, 4.0)):
        clock.now += seconds
        meter.step(images, 1.0)
    assert meter.values(4) == pytest.approx(
        {"throughput/images_per_s": 12, "throughput/step_s": 2.5, "throughput/remaining_s": 10}
    )


def test_nothing_is_known_before_the_first_step(clock):
    assert Throughput(torch.device("cpu"), clock=clock).values(10) == {}


def test_pauses_do_not_count(clock):
    meter = Throughput(torch.device("cpu"), clock=clock)
    for _ in range(4):
        clock.now += 2
        meter.step(6, 1.0)
        with meter.paused():
            clock.now += 100
    assert meter.values(0)["throughput/images_per_s"] == pytest.approx(3)


def test_mfu_is_the_share_of_the_peak_of_all_devices(clock, monkeypatch):
    monkeypatch.setattr(throughput, "peak_flops", lambda device: 1000.0)
    meter = Throughput(torch.device("cpu"), processes=4, clock=clock)
    for flops in (30.0, 50.0):  # of an image; 100 images in 5 s
        clock.now += 5
        meter.step(100, flops)
    assert meter.values(0)["throughput/mfu"] == pytest.approx((3000 + 5000) / 10 / 4000)


def test_a_device_of_unknown_peak_has_no_mfu(clock):
    assert peak_flops(torch.device("cpu")) is None
    meter = Throughput(torch.device("cpu"), clock=clock)
    clock.now += 1
    meter.step(1, 1.0)
    assert "throughput/mfu" not in meter.values(0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A1000", None),
        ("Tesla V100-SXM2-32GB", None),
    ],
)
def test_peaks_are_found_by_the_whole_name(name, peak):
    assert peak_flops_by_name(name) == peak


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_reports_its_memory(clock):
    device = torch.device("cuda")
    held = torch.zeros(2**28, device=device)
    meter = Throughput(device, clock=clock)
    clock.now += 1
    meter.step(1, 1.0)
    assert meter.values(0)["throughput/peak_memory_gib"] >= held.nbytes / 2**30
