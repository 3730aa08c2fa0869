"""Large batches in little memory, exactly: one optimizer step from several micro-batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor


class GradientAccumulation(nnUNetTrainer):
    """Mixin: the step of the whole batch, with activations of one micro-batch at a time.

    Name it last among the bases. Summing the gradients of micro-batch losses would be another loss: nnU-Net's Dice is
    taken over the batch, and so are class weights. Instead all micro-batches are run once without a graph; the loss of
    all their logits gives the gradient of each logit; then each micro-batch is run again, with the same random numbers,
    and that gradient sent through it (Gao et al. 2021, arXiv:2101.06983). The price is one more forward pass. Exact for
    networks that treat the images of a batch independently, so not with batch normalisation.
    """

    micro_batch_size: int
    """Images whose activations are held at once; on each GPU, under DDP."""

    def train_step(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Take one optimizer step on the batch."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        # strided, for nnU-Net forces foreground into the last images of a batch
        count = math.ceil(len(data) / self.micro_batch_size)
        parts = [data[i::count] for i in range(count)]
        self.optimizer.zero_grad(set_to_none=True)

        states, outputs = [], []
        with torch.no_grad():
            for part in parts:
                states.append(rng_state(self.device))
                outputs.append(self._logits(part))
        logits = torch.cat(outputs).requires_grad_()
        order = torch.cat([torch.arange(i, len(data), count) for i in range(count)])
        loss = self.loss(logits, target[order.to(self.device)])
        (self.grad_scaler.scale(loss) if self.grad_scaler is not None else loss).backward()
        assert logits.grad is not None
        gradients = logits.grad.split([len(part) for part in parts])

        for i, (part, state, gradient) in enumerate(zip(parts, states, gradients, strict=True)):
            restore_rng(state, self.device)
            last = i == count - 1
            with self.network.no_sync() if self.is_ddp and not last else nullcontext():
                self._logits(part).backward(gradient)

        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)  # nnU-Net's
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        return {"loss": loss.detach().cpu().numpy()}

    def _logits(self, images: Tensor) -> Tensor:
        """Run the network under autocast on a GPU, as nnU-Net does."""
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            return self.network(images)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return torch's random state on the CPU and, for a GPU, on that."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, Tensor], device: torch.device) -> None:
    """Set the random state that ``rng_state`` returned; a state of another kind of device is left alone."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
