"""A network as an ONNX file that computes what torch computes, at every size of the image.

torch traces a network at one size. What it takes for a number there is one for ever, in the file too, and nothing
says so: with DINOv3 of other libraries the rotary positions are those of that size. So every file is run at other
sizes before it is used.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.networks.layers import parts

Size = tuple[int, int]
"""Rows and columns."""

OPSET = 20
"""Version of ONNX' operators, torch's default: runtimes of 2024 and later know it (onnxruntime 1.17)."""

INPUT, OUTPUT = "image", "logits"
MULTIPLE = "meddino.size_multiple"
"""Metadata of a file: rows and columns of an image must be multiples of these two numbers."""

TOLERANCE = {"float32": 1e-5, "float16": 1e-2}
"""How far logits may lie from those of torch in float32, as the norm of the difference over theirs. Rounding makes 1e-6
and 1e-3 at most, positions of another size more than 5e-2 in a trained model."""

_TRACED_BATCH, _TRACED_PX = 2, (90, 150)
"""What is traced: more than the one image that torch takes for a constant, and sides that need padding."""


class OnnxNetwork:
    """A network in an ONNX file, on the CPU.

    Args:
        file: The file.
        threads: Of onnxruntime; 0: as many as cores.

    Raises:
        ConfigurationError: onnxruntime is not installed, or cannot read the file.
    """

    def __init__(self, file: Path, threads: int = 0) -> None:
        onnxruntime = _import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class
            raise ConfigurationError(f"onnxruntime cannot read {file}: {_first_line(error)}") from error
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        rows, columns = (int(number) for number in self.metadata.get(MULTIPLE, "1 1").split())
        self.multiple: Size = (rows, columns)

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits ``(B, K, H, W)`` of normalised images ``(B, C, H, W)``.

        Raises:
            DataError: H or W is no multiple of what the network needs, of which a file by itself says nothing.
        """
        size = image.shape[-2:]
        if any(side % multiple for side, multiple in zip(size, self.multiple, strict=True)):
            rows, columns = self.multiple
            msg = (
                f"The network takes multiples of {rows} rows and of {columns} columns, not {size[0]} x {size[1]}. "
                "Pad the image, with zeros on all sides as nnU-Net does, and crop the logits."
            )
            raise DataError(msg)
        (logits,) = self._session.run([OUTPUT], {INPUT: image})
        return logits


class HalfPrecision(nn.Module):
    """A network whose weights become float16, and its arithmetic; images and logits stay float32.

    Float32 stays what the networks ask for by themselves: rotary positions and the rotation, sampling positions and
    sampled values of deformable attention, and inside of a runtime the statistics of LayerNorm.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, K, H, W)``."""
        return self.network(image.half()).float()


def write_network(
    network: nn.Module, file: Path, channels: int, *, half: bool, multiple: Size, metadata: Mapping[str, str]
) -> None:
    """Write a network as an ONNX file whose batch, height and width are free.

    Weights of more than 2 GB lie in ``FILE.data`` beside it, which is the format's limit. Low-rank adapters are merged.

    Args:
        network: In float32, on the CPU; maps ``(B, C, H, W)`` to ``(B, K, H, W)``.
        file: To be written.
        channels: Of the images.
        half: Whether it is to compute in float16.
        multiple: Of which H and W must be multiples.
        metadata: Further facts for the file.

    Raises:
        ConfigurationError: torch cannot export such a network, or a package is missing.
    """
    _import_onnxruntime()
    network = merged(network).eval()
    if half:
        network = HalfPrecision(network)
    size = [factor * parts(side, factor) for factor, side in zip(multiple, _TRACED_PX, strict=True)]
    free: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    for axis, factor in enumerate(multiple, start=2):
        free[axis] = torch.export.Dim.DYNAMIC if factor == 1 else factor * torch.export.Dim(f"side{axis}")
    try:
        with _quietly(), torch.no_grad():
            example = (torch.zeros(_TRACED_BATCH, channels, *size),)
            traced = torch.export.export(network, example, dynamic_shapes=(free,), strict=False)
            program = torch.onnx.export(
                traced, dynamo=True, verbose=False, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT]
            )
    except Exception as error:  # the exporters raise anything on operators that they do not know
        raise ConfigurationError(f"torch cannot export {type(network).__name__}: {_first_line(error)}") from error
    assert program is not None
    program.model.metadata_props.update({**metadata, MULTIPLE: f"{multiple[0]} {multiple[1]}"})
    program.save(file)


def merged(network: nn.Module) -> nn.Module:
    """Return a copy that needs no gradient, with sums of weights and low-rank adapters in the place of both."""
    network = deepcopy(network)
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and parametrize.is_parametrized(
                layer, "weight"
            ):  # removing that would change the original's class, too
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                plain.weight, plain.bias = nn.Parameter(layer.weight.detach()), layer.bias
                setattr(parent, name, plain)
    return network.requires_grad_(requires_grad=False)


def check_network(file: Path, network: nn.Module, channels: int, sizes: Sequence[Size], precision: str) -> float:
    """Return how far a file's logits lie from those of torch at most, as ``TOLERANCE`` measures it.

    Args:
        file: The file.
        network: What it was written of, in float32.
        channels: Of the images.
        sizes: To run both at, with noise as an image.
        precision: Of the file: ``float32`` or ``float16``.

    Raises:
        ConfigurationError: The difference is larger than ``TOLERANCE``.
    """
    written, noise = OnnxNetwork(file), torch.Generator().manual_seed(0)
    worst = 0.0
    for rows, columns in sizes:
        image = torch.randn(1, channels, rows, columns, generator=noise)
        with torch.inference_mode():
            expected = network(image).numpy()
        error = float(np.linalg.norm(written(image.numpy()) - expected) / np.linalg.norm(expected))
        if not error <= TOLERANCE[precision]:
            msg = (
                f"At {rows} x {columns} pixels the logits of {file.name} differ from those of torch by {error:.1e}; "
                f"{TOLERANCE[precision]:.0e} is allowed in {precision}. It was not kept."
            )
            hint = " Export without --half: the network's values do not fit float16." if precision == "float16" else ""
            raise ConfigurationError(msg + hint)
        worst = max(worst, error)
    return worst


def _import_onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401 (torch's exporter needs both)
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        msg = f"ONNX files need packages that are not installed ({error}): pip install 'nnunetv2-meddino[onnx]'"
        raise ConfigurationError(msg) from error
    return onnxruntime


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what torch's exporter says about itself from the terminal."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
