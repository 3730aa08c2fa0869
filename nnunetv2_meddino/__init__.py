"""DINOv3 Vision Transformers for medical image segmentation inside stock nnU-Net v2."""

from importlib.metadata import version

__version__ = version("nnunetv2-meddino")
