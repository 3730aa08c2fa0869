"""Training samples of a 2D configuration: which slice and box, how it is augmented, batches by worker processes."""
