"""The one file that nnU-Net's trainer lookup sees: it hands out this package's trainers by name.

``nnUNet_extTrainer`` names this folder. nnU-Net imports every module it finds there under a top-level name and forgets
it after the lookup; were the trainers themselves here, each lookup would make new classes that cannot be pickled.
"""


def __getattr__(name: str) -> type:
    """Return the trainer ``name``, importing the package only when one of its trainers is asked for."""
    from nnunetv2_meddino.trainers import UnknownTrainerError, find_trainer

    try:
        return find_trainer(name)
    except UnknownTrainerError:
        raise AttributeError(name) from None
