"""Images in files: one strict reader of voxels and geometry for every command."""
