#!/usr/bin/env bash
# Believed: a DINO loss that stands at log K (K prototypes) from the first epoch on needs another learning rate, momentum, batch or
#           number of epochs, or collapses by the teacher's momentum; as long as views share something, heads will find it in time.
# True:     equal outputs for all images are a stable state wherever two views of an image correlate less than teacher temperature /
#           student temperature, 0.4 with the usual 0.04 and 0.1. Near it targets and predictions are linear in the logits: what views
#           share grows by 1/t_teacher - 1/t_student, what they do not share shrinks by 1/t_student. Below 0.4 weights shrink back to
#           it from where they began, above they grow, at learning rates that differ by ten; half the teacher temperature halves the
#           border.
# Versions: lightly 1.6.0, torch 2.14.1, numpy 2.4.6, Python 3.11.
# Why it matters: untrained networks see little in common between small, strongly changed crops of a medical image. Trainings stand at
#           log K for weeks (reported for X-rays, chromosomes, organs in 3D) while other terms of the loss go on falling, and what is
#           tried, learning rates and momenta, cannot help. Larger crops, weaker changes or a colder teacher can.
# Seen:     correlation 0.30, teacher 0.04, learning rate 0.001:  weights x 0.16, loss 4.1584 -> 4.1589 (log K 4.1589)
#           correlation 0.36, teacher 0.04, learning rate 0.001:  weights x 0.4, loss 4.1582 -> 4.1588 (log K 4.1589)
#           correlation 0.44, teacher 0.04, learning rate 0.001:  weights x 3.1, loss 4.1579 -> 4.1523 (log K 4.1589)
#           correlation 0.50, teacher 0.04, learning rate 0.001:  weights x 17, loss 4.1576 -> 3.4937 (log K 4.1589)
#           (learning rate 0.0001: x 0.15, 0.37, 2.9, 13)
#           correlation 0.30, teacher 0.02, learning rate 0.001:  weights x 15, loss 4.1572 -> 3.7432 (log K 4.1589)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet lightly==1.6.0 torch==2.14.1 numpy==2.4.6
"$work/env/bin/python" -W ignore - <<'PYTHON'
import copy
import math
import sys

import torch
from lightly.loss import DINOLoss

PROTOTYPES, WIDTH, IMAGES, STEPS, MOMENTUM, STUDENT = 64, 16, 256, 1000, 0.99, 0.1


def growth(correlation: float, teacher_temp: float, learning_rate: float) -> float:
    """Train a linear head on Gaussian features of two views; return by how much its weights have grown."""
    torch.manual_seed(0)
    student = torch.nn.Linear(WIDTH, PROTOTYPES, bias=False)
    torch.nn.init.normal_(student.weight, std=0.001)
    teacher, begun = copy.deepcopy(student).requires_grad_(False), student.weight.std().item()
    dino = DINOLoss(
        output_dim=PROTOTYPES, teacher_temp=teacher_temp, warmup_teacher_temp=teacher_temp, student_temp=STUDENT
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        shared = correlation**0.5 * torch.randn(IMAGES, WIDTH)
        views = [shared + (1 - correlation) ** 0.5 * torch.randn(IMAGES, WIDTH) for _ in range(2)]
        with torch.no_grad():
            taught = [teacher(view) for view in views]
        loss = dino(taught, [student(view) for view in views], epoch=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            teacher.weight.mul_(MOMENTUM).add_(student.weight, alpha=1 - MOMENTUM)
        losses.append(loss.item())
    grown = student.weight.std().item() / begun
    print(
        f"correlation {correlation:.2f}, teacher {teacher_temp:g}, learning rate {learning_rate:g}:  weights x "
        f"{grown:.2g}, loss {losses[0]:.4f} -> {losses[-1]:.4f} (log K {math.log(PROTOTYPES):.4f})"
    )
    return grown


shrink = [growth(correlation, 0.04, rate) for rate in (1e-3, 1e-4) for correlation in (0.3, 0.36)]
grow = [growth(correlation, 0.04, rate) for rate in (1e-3, 1e-4) for correlation in (0.44, 0.5)]
colder = growth(0.3, 0.02, 1e-3)
sys.exit(0 if max(shrink) < 1 < min(*grow, colder) else 1)
PYTHON
