"""Watching a training: metrics, alarms, pictures, a linear probe."""
