"""From downloaded volumes to a corpus of slices."""
