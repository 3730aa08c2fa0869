"""A corpus of slices as training reads it: its format on disk, a dataset, a sampler and a loader."""
