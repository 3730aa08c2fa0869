#!/usr/bin/env bash
# Believed: torchrun hands the signals by which Slurm warns a job on to its workers, waits until they have saved, and ends as they end.
# True:     SIGUSR1 (`--signal=USR1@120`) ends torchrun itself at once; its workers get nothing and go on without it, holding their GPUs. SIGTERM is handed on, but workers
#           that still save after 30 seconds are killed. Where they save in time and end with 0, torchrun ends with 1 all the same.
# Versions: torch 2.14.1, Python 3.11, Linux.
# Why it matters: the minutes that were asked for to save in are 30 seconds or none, a checkpoint of many gigabytes is cut, and a job script that
#           requeues on success, or takes 1 for a crash, does the wrong one.
# Seen:     USR1, worker saves for 12 s: torchrun ends after 0 s with 138; worker warned: no, saved: without torchrun
#           TERM, worker saves for 12 s: torchrun ends after 13 s with 1; worker warned: yes, saved: with torchrun
#           TERM, worker saves for 50 s: torchrun ends after 31 s with 1; worker warned: yes, saved: no
set -euo pipefail
work=$(mktemp -d)
trap 'pkill -f "$work/worker.py" || true; rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat >"$work/worker.py" <<'PYTHON'
import os
import signal
import sys
import time
from pathlib import Path

folder, seconds, parent = Path(sys.argv[1]), float(sys.argv[2]), os.getppid()
for number in (signal.SIGUSR1, signal.SIGTERM):  # as a training does: noted, and the step that runs is finished and saved
    signal.signal(number, lambda *_: (folder / "warned").touch())
(folder / "begun").touch()
time.sleep(1)
ends = time.monotonic() + seconds
while time.monotonic() < ends:
    time.sleep(0.2)
(folder / "saved").write_text("with torchrun" if os.getppid() == parent else "without torchrun")
PYTHON
wrong=0
check() { # SIGNAL SECONDS, expected: end of torchrun, warned, saved
    local folder="$work/$1_$2" status=0 begun
    mkdir "$folder"
    "$work/env/bin/torchrun" --nproc-per-node 1 "$work/worker.py" "$folder" "$2" >"$folder/log" 2>&1 &
    local torchrun=$!
    until [ -e "$folder/begun" ]; do sleep 0.2; done
    sleep 1
    begun=$SECONDS
    kill -s "$1" $torchrun
    wait $torchrun || status=$?
    local waited=$((SECONDS - begun)) warned=no saved=no
    for _ in $(seq 100); do pgrep -f "$folder" >/dev/null || break; sleep 0.2; done
    [ -e "$folder/warned" ] && warned=yes
    [ -e "$folder/saved" ] && saved=$(cat "$folder/saved")
    echo "$1, worker saves for $2 s: torchrun ends after $waited s with $status; worker warned: $warned, saved: $saved"
    [ "$status $warned $saved" = "$3" ] || wrong=1
}
check USR1 12 "138 no without torchrun" 2>/dev/null
check TERM 12 "1 yes with torchrun"
check TERM 50 "1 yes no"
exit $wrong
