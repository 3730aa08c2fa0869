"""DINOv3 Vision Transformers for medical image segmentation inside stock nnU-Net v2."""

import warnings
from importlib.metadata import version

__version__ = version("nnunetv2-meddino")

# timm 1.0.22 calls it when it is imported, by nnU-Net too, and torch 2.14 warns in its own name, not in timm's. Here,
# because every command and every worker process of one imports this first.
warnings.filterwarnings("ignore", r"`torch\.jit\.interface` is deprecated", FutureWarning, r"torch\.jit\._script")
