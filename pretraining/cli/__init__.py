"""The commands of meddino-pretrain, one file each."""
