"""A CUDA device for machines without one: its tensors have shapes, types and a device, but no values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves


class PretendedCuda(FakeTensorMode):
    """Meanwhile what would run on CUDA is checked and not computed; the CPU computes as ever.

    It is an error if tensors of both devices meet, and if a value of the device is asked for: the CPU would wait.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        on_cuda = device is not None and torch.device(device).type == "cuda"
        if on_cuda or any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def pretended_cuda(mode: type[PretendedCuda] = PretendedCuda) -> Iterator[PretendedCuda]:
    """Pretend meanwhile, and let autocast act; it would look for the device, warn, and do nothing."""
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda **settings: True),
        mode() as pretended,
    ):
        yield pretended


def to_cuda(module: nn.Module) -> nn.Module:
    """Do what ``module.to("cuda")`` does, which cannot exchange such parameters."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(parameter.detach().to("cuda"), requires_grad=parameter.requires_grad)
                part._parameters[name] = moved
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to("cuda")
    return module


@contextmanager
def pretended_backward(module: nn.Module) -> Iterator[None]:
    """Let ``backward`` give every trained parameter a gradient: autograd's engine needs the device's driver."""

    def backward(loss: Tensor) -> None:
        assert loss.device.type == "cuda"
        assert loss.requires_grad
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)

    with mock.patch.object(Tensor, "backward", backward):
        yield
