"""Self-supervised pretraining of DINOv3 Vision Transformers on CT slices."""
