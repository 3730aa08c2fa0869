"""Dense features: what a backbone sees in every patch of an image, their PCA and their similarity."""

from nnunetv2_meddino.features.dense import (
    Encoder,
    cosine_similarity,
    dense_features,
    patch_features,
    patch_of_point,
    principal_components,
    read_encoder,
)
from nnunetv2_meddino.features.image import ImageSlice, read_slice, slice_of_array

__all__ = [
    "Encoder",
    "ImageSlice",
    "cosine_similarity",
    "dense_features",
    "patch_features",
    "patch_of_point",
    "principal_components",
    "read_encoder",
    "read_slice",
    "slice_of_array",
]
