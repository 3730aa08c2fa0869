"""What a stage of a training is made of: the sections that the parts own, and those of the training itself."""

from pretraining.config.engine import DataConfig, EngineConfig, GramTeacherConfig
from pretraining.config.run import NONE, PREVIOUS, STAGES, RunConfig

__all__ = ["NONE", "PREVIOUS", "STAGES", "DataConfig", "EngineConfig", "GramTeacherConfig", "RunConfig"]
