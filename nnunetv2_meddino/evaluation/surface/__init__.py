"""Distances between the surfaces of segmentations, compiled."""
