"""The benchmark datasets of the MedDINOv3 paper, from the form in which they are released to nnU-Net's."""
