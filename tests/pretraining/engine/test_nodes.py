"""Two nodes that are two network name spaces of this machine: what they train together, and the end of one of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pretraining.engine.checkpointing.manifest import check_files, read_record
from tests.pretraining.launched import LIMIT_S, launched, torchrun, train_arguments, until_step
from tests.pretraining.training import losses, small_config, small_corpus, teacher, train

pytestmark = pytest.mark.slow

STEPS = 20
LENGTH = ("--engine.steps", str(STEPS), "--engine.checkpoint-every", "4", "--engine.teacher-every", "20")
PORT = 29400


class Node:
    """A network name space with one end of a cable.

    Args:
        index: 0 or 1.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.name, self.interface = f"meddino_{os.getpid()}_{index}", f"md{os.getpid()}_{index}"
        self.address = f"10.213.77.{index + 1}"

    def command(self, arguments: list[str]) -> list[str]:
        """Return the command that trains here; the first node is where they meet."""
        launcher = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=0", "--rdzv-backend=c10d", "--rdzv-id=test"]
        launcher += [f"--rdzv-endpoint=10.213.77.1:{PORT}", f"--rdzv-conf=is_host={int(self.index == 0)}"]
        launcher += [f"--local-addr={self.address}"]
        return ["ip", "netns", "exec", self.name, *torchrun(launcher, arguments)]

    def kill(self) -> None:
        """End all processes here at once."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        for pid in pids.stdout.split():
            os.kill(int(pid), signal.SIGKILL)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes with a cable between them."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command (iproute2)")
    first, second = pair = Node(0), Node(1)
    try:
        try:
            for node in pair:
                ip("netns", "add", node.name)
            cable = ("netns", first.name, "type", "veth", "peer", "name", second.interface, "netns", second.name)
            ip("link", "add", first.interface, *cable)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network name spaces are not permitted here: {error.stderr.strip()}")
        for node in pair:
            ip("-n", node.name, "address", "add", f"{node.address}/30", "dev", node.interface)
            for interface in (node.interface, "lo"):
                ip("-n", node.name, "link", "set", interface, "up")
        yield pair
    finally:
        for node in pair:  # the cable goes with its ends
            subprocess.run(["ip", "netns", "delete", node.name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """One process that makes two micro-batches of every step."""
    run = tmp_path_factory.mktemp("alone")
    assert train(small_config("stage1", *LENGTH), corpus, run)
    return run


def start(stack: ExitStack, nodes, corpus: Path, run: Path, *overrides: str) -> list[subprocess.Popen[bytes]]:
    arguments = train_arguments(corpus, run, *LENGTH, *overrides)
    processes = []
    for node in nodes:
        log = run.with_name(f"log_{node.index}")
        processes.append(stack.enter_context(launched(node.command(arguments), log, GLOO_SOCKET_IFNAME=node.interface)))
        stack.callback(node.kill)  # whatever is left after a failure
    return processes


def require_equal(run: Path, alone: Path) -> None:
    expected = losses(alone / "stage1")
    assert len(expected) == STEPS
    assert losses(run / "stage1") == [pytest.approx(loss, rel=1e-5) for loss in expected]
    assert teacher(run, step=STEPS).keys() == teacher(alone, step=STEPS).keys()


@pytest.mark.parametrize("lost", [0, 1], ids=["first", "second"])
def test_loss_of_a_node_ends_the_other_and_both_go_on(nodes, corpus, alone, tmp_path, lost):
    run = tmp_path / "run"
    with ExitStack() as stack:
        processes = start(stack, nodes, corpus, run, "--engine.timeout-s", "20")
        until_step(run, 5, processes[0])
        nodes[lost].kill()
        assert processes[1 - lost].wait(60) != 0, "the other node ends with an error"
    done = len(losses(run / "stage1"))
    assert 5 < done < STEPS
    checkpoints = list((run / "stage1" / "checkpoints").glob("step_*"))
    assert checkpoints
    for checkpoint in checkpoints:
        check_files(checkpoint, read_record(checkpoint).files)
    with ExitStack() as stack:
        assert [process.wait(LIMIT_S) for process in start(stack, nodes, corpus, run)] == [0, 0]
    require_equal(run, alone)
