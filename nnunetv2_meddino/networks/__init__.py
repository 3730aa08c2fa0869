"""Networks in plain PyTorch; nothing here knows nnU-Net."""
