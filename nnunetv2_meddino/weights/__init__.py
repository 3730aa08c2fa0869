"""Pretrained backbone weights: where they come from, the layouts they come in, and loading them without a surprise."""
