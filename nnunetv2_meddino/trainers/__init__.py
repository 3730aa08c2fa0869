"""nnU-Net trainers."""
