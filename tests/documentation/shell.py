"""What bash makes of a page: it runs the commands with stand-ins that only write down how they were called.

So bash itself takes care of comments, continued lines, quotes, variables, ``&&``, ``eval`` and patterns of file names.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BASH = "/bin/bash"
PROGRAMS = (
    *("meddino", "meddino-pretrain", "torchrun", "sbatch", "docker", "apptainer"),
    *("pip", "python", "python3", "ruff", "mypy", "mkdocs"),
)
NNUNET_PROGRAMS = ("plan_and_preprocess", "preprocess", "train", "predict")

_RECORD = r"""
record() {
  {
    printf '%s\0' call "${LINE:-0}" "$PWD" "$#" "$@"
    /usr/bin/env -0
    printf 'end\0'
  } >> "$CALLS"
}
"""
_STAND_IN = f"""#!{BASH}
{_RECORD}
record "${{0##*/}}" "$@"
here=$(cd "${{BASH_SOURCE%/*}}" && pwd -P)
case "${{0##*/}} $*" in
  "meddino env") echo "$ENVIRONMENT_OF_MEDDINO" ;;
  sbatch*) echo 4711 ;;
  "python3 -m venv "*)
    /bin/mkdir -p "$3/bin"
    for program in "$STAND_INS"/*; do /bin/ln -sf "$program" "$3/bin/"; done ;;
esac
"""
# What is no stand-in and no file is written down as well: whoever reads the calls must know it, or fail
_PROLOGUE = f"""set -euo pipefail
{_RECORD}
command_not_found_handle() {{ record "$@"; }}
trap 'export LINE=$LINENO' DEBUG
"""


@dataclass(frozen=True)
class Call:
    """One command as it was called."""

    line: int
    folder: Path
    words: tuple[str, ...]
    environment: Mapping[str, str]


class ShellError(Exception):
    """Bash could not run a script to its end."""


class Shell:
    """Bash with stand-ins for the commands of the documentation.

    Args:
        folder: For the stand-ins and their records.
        environment_of_meddino: What ``meddino env`` prints.
    """

    def __init__(self, folder: Path, environment_of_meddino: str) -> None:
        self.bin, self.calls = folder / "bin", folder / "calls"
        self.bin.mkdir(parents=True)
        self._variables = {"CALLS": str(self.calls), "STAND_INS": str(self.bin), "PATH": str(self.bin)}
        self._variables["ENVIRONMENT_OF_MEDDINO"] = environment_of_meddino
        self._read = 0
        for name in (*PROGRAMS, *(f"nnUNetv2_{program}" for program in NNUNET_PROGRAMS)):
            (self.bin / name).write_text(_STAND_IN)
            (self.bin / name).chmod(0o755)
        (self.bin / "activate").write_text(f'PATH="{self.bin}:$PATH"\n')

    def run(self, script: str, folder: Path, environment: Mapping[str, str]) -> list[Call]:
        """Run a script in a folder and return what it called, in order.

        Raises:
            ShellError: It did not come to its end.
        """
        file = self.bin.with_name("script")
        file.write_text(_PROLOGUE + script)
        variables = {**environment, **self._variables}
        done = subprocess.run([BASH, file], cwd=folder, env=variables, capture_output=True, text=True, check=False)
        calls = self.new_calls()
        if done.returncode:
            after = f"line {calls[-1].line}" if calls else "the beginning"
            msg = f"bash ended with {done.returncode} after {after}: {done.stderr.strip()}"
            raise ShellError(msg)
        return calls

    def new_calls(self) -> list[Call]:
        """Return what was called since this was asked last, also by commands that call others."""
        if not self.calls.exists():
            return []
        with self.calls.open("rb") as file:
            file.seek(self._read)
            pieces = iter(file.read().decode().split("\0")[:-1])
            self._read = file.tell()
        calls = []
        for piece in pieces:
            assert piece == "call", piece
            line, folder, count = int(next(pieces)) - _PROLOGUE.count("\n"), Path(next(pieces)), int(next(pieces))
            words = tuple(next(pieces) for _ in range(count))
            variables = dict(entry.split("=", 1) for entry in iter(pieces.__next__, "end"))
            calls.append(Call(line, folder, words, variables))
        return calls
