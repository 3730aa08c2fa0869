"""Converts the benchmark datasets of the MedDINOv3 paper from their released form to nnU-Net's."""
