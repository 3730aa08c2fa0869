"""Job scripts for Slurm, and their submission."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_meddino.errors import CommandError
from nnunetv2_meddino.files import replacing


def write_script(path: Path, options: Sequence[str], variables: Mapping[str, str], commands: str) -> None:
    """Write a job script whole or not at all.

    Args:
        path: Of the script; its folder exists.
        options: Of ``sbatch``, one a line.
        variables: Of the environment, exported first.
        commands: In bash, which stops at the first that fails.
    """
    header = "".join(f"#SBATCH {option}\n" for option in options)
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    with replacing(path) as temporary:
        temporary.write_text(f"#!/bin/bash\n{header}set -euo pipefail\n{exports}{commands}\n", encoding="utf-8")
        temporary.chmod(0o755)


def job_path() -> str:
    """Return a ``PATH`` for a job that starts from a bare shell, with the commands of this installation."""
    own, folders = str(Path(sys.executable).parent), os.get_exec_path()
    return os.pathsep.join(folders if own in folders else [own, *folders])


def sbatch_command(script: Path, arguments: Sequence[str] = ()) -> list[str]:
    """Return the command that submits a script and prints the job's id."""
    return ["sbatch", "--parsable", *arguments, str(script)]


def run_sbatch(command: Sequence[str]) -> str:
    """Run what ``sbatch_command`` returned; return the job's id.

    Raises:
        CommandError: There is no ``sbatch``, or it refuses.
    """
    script = command[-1]
    if shutil.which("sbatch") is None:
        raise CommandError(f"sbatch is not on PATH: {script} is written, but not submitted.")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    job = re.match(r"\d+", done.stdout.strip())
    if done.returncode or job is None:
        reason = (done.stderr or done.stdout).strip()
        raise CommandError(f"sbatch refused {script} (status {done.returncode}): {reason}")
    return job[0]
