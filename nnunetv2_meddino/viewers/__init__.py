"""Label maps for viewers: names and colours of the classes in 3D Slicer, ITK-SNAP and DICOM viewers."""
