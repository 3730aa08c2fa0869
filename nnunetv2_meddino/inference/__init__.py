"""Prediction with trained 2D models, slice by slice: ``Predictor`` is the way in."""

from nnunetv2_meddino.inference.predictor import Predictor

__all__ = ["Predictor"]
