"""The main job end to end on a small phantom dataset or on a dataset of the user's."""
