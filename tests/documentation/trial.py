"""The trial of all pages: what was found of each command and sample."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnunetv2_meddino.environment import run_environment
from tests.documentation.dry import Dry
from tests.documentation.pages import SHELL, Block, blocks, command_lines, script
from tests.documentation.programs import DocumentationError, Programs, check_job_options
from tests.documentation.samples import try_sample
from tests.documentation.shell import Call, Shell, ShellError
from tests.documentation.world import World, make_world, write_downloads

README = "README.md"
_PLANS_ITSELF = re.compile(r"(plan_and_preprocess|meddino plan) -d 900")
_SETS = re.compile(r"(export )?(\w+=\S+ ?)+")
_CONVERTS_ITSELF = re.compile(r"meddino dataset amos22")


@dataclass(frozen=True)
class Outcome:
    """What became of one command or sample: ``run``, ``dry``, ``read`` or ``not a command``, or a fault."""

    page: str
    line: int
    text: str
    how: str
    fault: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}" + (f"\n    {self.fault}" if self.fault else "")


class Trial:
    """Small data and stand-ins for all pages.

    Args:
        folder: For everything.
        monkeypatch: Puts the stand-ins in place.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        downloads = write_downloads(folder / "downloads")
        self._folder, self._dry = folder, Dry(monkeypatch, downloads, folder / "pushed")
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in run_environment().items())
        self._shell = Shell(folder / "shell", exports)
        self._programs = Programs(self._shell, self._dry)
        self._template = World(folder / "template")
        make_world(self._template, downloads)
        self._run(
            "nnUNetv2_plan_and_preprocess -d 900 -c 2d\nmeddino plan -d 900\n"
            "nnUNetv2_preprocess -d 900 -plans_name nnUNetPlans -c 2d_896\n"
            "nnUNetv2_train 900 2d 0 -tr MedDINOv3Trainer\n"
        )
        trained = self._template.nnunet.results / "Dataset900_CTMini"
        (trained / "MedDINOv3Trainer__nnUNetPlans__2d" / "fold_0").rename(self._template.work / "fold_0")
        shutil.rmtree(trained)

    def _run(self, commands: str) -> None:
        world = self._template
        for call in self._shell.run(commands, world.work, world.variables() | run_environment()):
            self._programs.try_(call)

    def page(self, page: str, text: str | None = None) -> list[Outcome]:
        """Try all blocks of a page, whose commands are one session of a user; ``text`` stands for its content."""
        found = blocks(page, text)
        shell_blocks = [block for block in found if block.language in SHELL]
        world = self._world(script(shell_blocks))
        outcomes = self._commands(page, shell_blocks, world)
        for block in found:
            if block not in shell_blocks:
                outcomes.append(self._sample(block, world))
        return sorted(outcomes, key=lambda outcome: outcome.line)

    def _world(self, commands: str) -> World:
        """Return a new world without what the commands of a page make themselves."""
        world = self._template.copy(self._folder / "world")
        world = World(world.root.rename(self._folder / f"world{len(list(self._folder.iterdir()))}"))
        (world.root / "path" / "to" / ".venv" / "bin" / "activate").write_text(f'PATH="{self._shell.bin}:$PATH"\n')
        made = [(_PLANS_ITSELF, "Dataset900_CTMini", "preprocessed"), (_CONVERTS_ITSELF, "Dataset301_AMOS22CT", "")]
        for pattern, dataset, only in made:
            if pattern.search(commands):
                for kind in (only,) if only else ("raw", "preprocessed"):
                    (world.root / kind / dataset).rename(world.root / f"{dataset}_{kind}")
        return world

    def _commands(self, page: str, shell_blocks: list[Block], world: World) -> list[Outcome]:
        environment = world.variables() | ({} if page == README else run_environment())
        outcomes: list[Outcome] = []
        try:
            calls = self._shell.run(world.text_of(script(shell_blocks)), world.work, environment)
        except ShellError as error:
            return [Outcome(page, 0, "the commands of the page", "", str(error))]
        for call in calls:
            outcomes.append(self._outcome(page, call, world))
        called = {call.line for call in calls}
        for block in shell_blocks:
            for line, text in command_lines(block):
                if called.isdisjoint(range(line, line + text.count("\n") + 1)):
                    outcomes.append(_without_call(page, line, text))
        return outcomes

    def _outcome(self, page: str, call: Call, world: World) -> Outcome:
        set_ = [f"{name}={value}" for name, value in call.environment.items() if name.startswith("MEDDINO_")]
        text = " ".join([*set_, shlex.join(call.words)]).replace(f"{world.root}/", "/")
        try:
            return Outcome(page, call.line, text, self._programs.try_(call))
        except (DocumentationError, ShellError) as error:
            return Outcome(page, call.line, text, "", str(error))

    def _sample(self, block: Block, world: World) -> Outcome:
        text = f"{block.language or 'no language'}, {len(block.text.splitlines())} lines"
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name, value in world.variables().items():
                monkeypatch.setenv(name, value)
            try:
                return Outcome(block.page, block.line, text, try_sample(block, world, self._dry))
            except Exception as error:
                return Outcome(block.page, block.line, text, "", f"{type(error).__name__}: {error}")


def _without_call(page: str, line: int, text: str) -> Outcome:
    """Return what became of a line in which bash called nothing: it changes the environment, or is for Slurm."""
    if text.startswith(". ") or _SETS.fullmatch(text):
        return Outcome(page, line, text, "run")
    if not text.startswith("#SBATCH "):
        return Outcome(page, line, text, "", "bash calls nothing here")
    try:
        check_job_options(text)
    except DocumentationError as error:
        return Outcome(page, line, text, "", str(error))
    return Outcome(page, line, text, "dry")
