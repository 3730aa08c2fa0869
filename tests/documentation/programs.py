"""Every program that the pages call, tried in this process on small data; an unknown one is an error."""

from __future__ import annotations

import argparse
import configparser
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NoReturn

import pytest
from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry, preprocess_entry
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.run.run_training import run_training_entry
from packaging.requirements import Requirement
from torch.distributed.run import get_args_parser

import nnunetv2_meddino.cli.main
import pretraining.cli.main
from tests.conftest import PROJECT
from tests.documentation.dry import Dry, strict_options
from tests.documentation.shell import Call, Shell

NNUNET = {
    "nnUNetv2_plan_and_preprocess": plan_and_preprocess_entry,
    "nnUNetv2_preprocess": preprocess_entry,
    "nnUNetv2_train": run_training_entry,
    "nnUNetv2_predict": predict_entry_point,
}
TRAIN = ("train", "all", "--corpus", "C", "--out", "runs/settings")
"""The command that options alone, in a block of their own, are for."""


class DocumentationError(Exception):
    """A documented command does not do what it should; the message says why."""


class Strict(argparse.ArgumentParser):
    """A parser whose errors are faults of the documentation."""

    def error(self, message: str) -> NoReturn:
        raise DocumentationError(message)


class Programs:
    """Tries calls.

    Args:
        shell: Ran them, and runs what is in jobs.
        dry: Stands in for what is too much here.
    """

    def __init__(self, shell: Shell, dry: Dry) -> None:
        self.shell, self.dry = shell, dry
        self._known: dict[str, Callable[[Call], object]] = {
            "meddino": lambda call: self._ours(nnunetv2_meddino.cli.main.main, call.words[1:]),
            "meddino-pretrain": lambda call: self._pretrain(call.words[1:], nodes=1, processes=1),
            "torchrun": self._torchrun,
            "sbatch": self._sbatch,
            "docker": self._container,
            "apptainer": self._container,
            "pip": self._pip,
            "python": self._python,
            "python3": self._python,
            "ruff": self._check,
            "mypy": self._check,
            "shtab": self._shtab,
            "mkdocs": self._check,
            **dict.fromkeys(NNUNET, self._nnunet),
        }

    def try_(self, call: Call) -> str:
        """Try a call, in its folder and environment; return ``run`` or, where something stood in, ``dry``.

        Raises:
            DocumentationError: It fails.
        """
        self.dry.used = False
        name = call.words[0]
        if name.startswith("--"):
            call = Call(call.line, call.folder, ("meddino-pretrain", *TRAIN, *call.words), call.environment)
            name = "meddino-pretrain"
        if name not in self._known:
            msg = f"no test knows how to run {name}: teach it to tests/documentation/programs.py"
            raise DocumentationError(msg)
        said = io.StringIO()
        with _place(call), redirect_stdout(said), redirect_stderr(said):
            try:
                self._known[name](call)
            except DocumentationError:
                raise
            except SystemExit as error:
                msg = f"exit code {error.code}: {_end(said)}"
                raise DocumentationError(msg) from error
            except Exception as error:
                msg = f"{type(error).__name__}: {error} {_end(said)}"
                raise DocumentationError(msg) from error
        for inner in self.shell.new_calls():
            self.try_(inner)
            self.dry.used = True
        return "dry" if self.dry.used else "run"

    def _ours(self, main: Callable[[Sequence[str]], int], words: Sequence[str]) -> None:
        """Run a command of this package; ``seen`` answers with its exit code."""
        code = main(list(words))
        if code not in ((0, 1) if "seen" in words[:2] else (0,)):
            raise SystemExit(code)

    def _pretrain(self, words: Sequence[str], *, nodes: int, processes: int) -> None:
        if words[:1] == ("train",) and "--show" not in words:  # submit refuses what so many processes cannot do
            size = ("--nodes", str(nodes), "--gpus-per-node", str(processes), "--print")
            self._ours(pretraining.cli.main.main, ["submit", *words[1:], *size])
        self._ours(pretraining.cli.main.main, words)

    def _torchrun(self, call: Call) -> None:
        self.dry.used = True
        parser = get_args_parser()
        options = parser.parse_args(call.words[1:])
        started = (options.training_script, *options.training_script_args[:1])
        if not options.no_python or started != ("meddino-pretrain", "train"):
            msg = "torchrun is known with --no-python meddino-pretrain train"
            raise DocumentationError(msg)
        nodes, processes = int(options.nnodes.split(":")[-1]), int(options.nproc_per_node)
        if nodes > 1 and not (options.rdzv_backend == "c10d" and options.rdzv_endpoint and options.rdzv_id):
            msg = "several nodes need --rdzv-backend, --rdzv-endpoint and --rdzv-id"
            raise DocumentationError(msg)
        self._pretrain(tuple(options.training_script_args), nodes=nodes, processes=processes)

    def _sbatch(self, call: Call) -> None:
        self.dry.used = True
        parser = sbatch_parser()
        options = parser.parse_args(call.words[1:])
        if (options.script is None) == (options.wrap is None):
            msg = "sbatch takes a script or --wrap"
            raise DocumentationError(msg)
        if options.script:
            for line in Path(options.script).read_text().splitlines():
                check_job_options(line)
            return
        first, _, last = (options.array or "0").partition("-")
        for task in range(int(first), int(last or first) + 1):
            variables = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_CPUS_PER_TASK": "1"}
            for inner in self.shell.run(options.wrap, call.folder, {**call.environment, **variables}):
                self.try_(inner)
        self.dry.used = True

    def _pip(self, call: Call) -> None:
        self.dry.used = True
        parser = Strict("pip")
        parser.add_argument("action", choices=("install",))
        parser.add_argument("-e", dest="editable", action="append", default=[])
        parser.add_argument("--user", action="store_true")
        parser.add_argument("--target")
        parser.add_argument("requirements", nargs="*")
        options = parser.parse_intermixed_args(call.words[1:])
        for requirement in (*options.requirements, *options.editable):
            check_requirement(re.sub(r"^\.", "nnunetv2-meddino", requirement))

    def _python(self, call: Call) -> None:
        self.dry.used = True
        words = call.words[1:]
        if words[:2] == ("-m", "venv") and len(words) == 3:
            return
        if words[:2] == ("-m", "pytest"):
            check_tests(words[2:])
            return
        if words[:1] and words[0].startswith("benchmarks/"):
            check_benchmark(words[0], words[1:])
            return
        msg = f"no test knows how to run python {shlex.join(words)}"
        raise DocumentationError(msg)

    def _container(self, call: Call) -> None:
        """The recipe must be there, and what is run in the container is tried here."""
        self.dry.used = True
        options = container_parser(call.words[0]).parse_args(call.words[1:])
        if options.action == "build":
            if not (PROJECT / (options.recipe if call.words[0] == "apptainer" else "Dockerfile")).is_file():
                raise DocumentationError(f"there is no recipe for {shlex.join(call.words)}")
            return
        if options.command:
            self.try_(Call(call.line, call.folder, tuple(options.command), call.environment))
        self.dry.used = True

    def _check(self, call: Call) -> None:
        """``.ci/run`` runs these; here it matters that it does so in the same words."""
        self.dry.used = True
        if shlex.join(call.words) not in (PROJECT / ".ci/run").read_text():
            raise DocumentationError(f".ci/run does not run {shlex.join(call.words)}")

    def _shtab(self, call: Call) -> None:
        self.dry.used = True
        parser = Strict("shtab")
        parser.add_argument("--shell", choices=("bash", "zsh", "tcsh"), required=True)
        parser.add_argument("parser")
        module, _, name = parser.parse_args(call.words[1:]).parser.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name)(), argparse.ArgumentParser)

    def _nnunet(self, call: Call) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            strict_options(monkeypatch)
            monkeypatch.setattr(sys, "argv", list(call.words))
            NNUNET[call.words[0]]()


def check_benchmark(script: str, words: Sequence[str]) -> None:
    """The script must be there and have these options; it would take minutes."""
    shown = subprocess.run([sys.executable, PROJECT / script, "--help"], capture_output=True, text=True)
    if shown.returncode:
        raise DocumentationError(f"{script} --help: {shown.stderr}")
    known = set(re.findall(r"--[\w-]+", shown.stdout))
    if unknown := [word for word in words if word.startswith("--") and word not in known]:
        raise DocumentationError(f"{script} has no {', '.join(unknown)}")


def check_tests(arguments: Sequence[str]) -> None:
    """Refuse options of pytest that it does not have, files that are not there, and markers that nobody declares.

    Raises:
        DocumentationError: There is one.
    """
    parser = Strict("pytest")
    parser.add_argument("-n")
    parser.add_argument("-k")
    parser.add_argument("-m")
    parser.add_argument("files", nargs="*")
    options = parser.parse_args(arguments)
    if missing := [file for file in options.files if not (PROJECT / file).is_file()]:
        raise DocumentationError(f"there are no tests {', '.join(missing)}")
    if options.m and f'"{options.m}: ' not in (PROJECT / "pyproject.toml").read_text():
        raise DocumentationError(f"no marker is called {options.m}")


def check_requirement(text: str) -> None:
    """Refuse a requirement that is not this package, or an extra that it does not have.

    Raises:
        DocumentationError: It is one.
    """
    requirement = Requirement(text)
    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    if requirement.name != setup["metadata"]["name"]:
        msg = f"no test knows the package {requirement.name}"
        raise DocumentationError(msg)
    if unknown := requirement.extras - set(setup["options.extras_require"]):
        msg = f"there are no extras {', '.join(sorted(unknown))}"
        raise DocumentationError(msg)


def sbatch_parser() -> Strict:
    """Return the options of ``sbatch`` that the pages and our scripts use, as its manual has them."""
    parser = Strict("sbatch", allow_abbrev=False)
    for flag in ("--parsable", "--requeue"):
        parser.add_argument(flag, action="store_true")
    for names in (
        ("-p", "--partition"),
        ("-A", "--account"),
        ("-t", "--time"),
        ("-J", "--job-name"),
        ("-N", "--nodes"),
    ):
        parser.add_argument(*names)
    for name in ("array", "cpus-per-task", "mem", "wrap", "dependency", "gres", "kill-on-invalid-dep", "output"):
        parser.add_argument(f"--{name}")
    for name in ("ntasks-per-node", "gpus-per-node", "chdir", "signal", "open-mode"):
        parser.add_argument(f"--{name}")
    parser.add_argument("script", nargs="?")
    return parser


def container_parser(program: str) -> Strict:
    """Return the options of ``docker`` or ``apptainer`` that the pages use, as their manuals have them."""
    parser = Strict(program, allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True)
    build, run = actions.add_parser("build"), actions.add_parser("run")
    if program == "docker":
        build.add_argument("-t", required=True)
        run.add_argument("--rm", action="store_true")
        run.add_argument("-v")
        run.add_argument("-e", dest="variables", action="append", default=[])
        run.add_argument("--gpus")
        run.add_argument("--ipc")
    else:
        build.add_argument("image")
        run.add_argument("--nv", action="store_true")
    build.add_argument("recipe")
    run.add_argument("image")
    run.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def check_job_options(line: str) -> None:
    """Refuse options of a line ``#SBATCH`` that sbatch does not have.

    Raises:
        DocumentationError: There is one.
    """
    if line.startswith("#SBATCH"):
        sbatch_parser().parse_args(shlex.split(line)[1:])


@contextmanager
def _place(call: Call) -> Iterator[None]:
    """Work in the folder and with the environment of a call."""
    before, folder = dict(os.environ), Path.cwd()
    os.environ.clear()
    os.environ.update(call.environment)
    os.chdir(call.folder)
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(before)


def _end(said: io.StringIO) -> str:
    return " | ".join(said.getvalue().strip().splitlines()[-3:])
