"""Stock plans with a high-resolution 2D configuration."""
