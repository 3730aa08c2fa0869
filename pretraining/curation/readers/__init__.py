"""Files of volumes, each format in one file."""
