"""Running a pretraining: processes, steps, checkpoints, stages, and watching it."""
