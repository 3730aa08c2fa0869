"""The steps that a comparison still lacks: what they are, run here or as Slurm jobs."""
