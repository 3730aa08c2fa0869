"""The main job end to end on a small phantom data set or on a data set of the user's."""
