"""The commands of meddino, one file each."""
