"""From volumes of public collections to a corpus of slices."""
