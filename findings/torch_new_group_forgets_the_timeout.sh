#!/usr/bin/env bash
# Believed: a process group made by torch.distributed.new_group waits as long as init_process_group was told to (timeout=).
# True:     it has the backend's own default, 30 minutes for gloo, whatever the first group has; the timeout must be given again.
# Versions: torch 2.14.1, numpy 2.4.6, Python 3.11.
# Why it matters: trainings make further groups (a gloo group for checkpoints and agreement beside NCCL, groups of neighbouring ranks).
#           When a process dies, these collectives hold a node for half an hour after the limit that the user set.
# Seen:     group of all processes: 60 s
#           new_group():            1800 s
#           new_group(timeout=60):  60 s
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

dist.init_process_group("gloo", init_method=f"file://{Path('meet').absolute()}", rank=0, world_size=1, timeout=timedelta(seconds=60))


def waits_s(group):
    return int(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())


seconds = [waits_s(group) for group in (dist.group.WORLD, dist.new_group(), dist.new_group(timeout=timedelta(seconds=60)))]
for name, value in zip(("group of all processes:", "new_group():", "new_group(timeout=60):"), seconds):
    print(f"{name:23} {value} s")
dist.destroy_process_group()
sys.exit(0 if seconds == [60, 1800, 60] else 1)
PYTHON
