"""What the processes of the tests import, for the server that they are forked from."""

import matplotlib.pyplot  # noqa: F401
import nnunetv2.inference.predict_from_raw_data  # noqa: F401
import nnunetv2.run.run_training  # noqa: F401
import pandas  # noqa: F401  # pyarrow imports it where there is one
import pyarrow.compute  # noqa: F401
import pyarrow.pandas_compat  # noqa: F401
import pytest  # noqa: F401
import torch._dynamo  # noqa: F401
import torch.distributed  # noqa: F401

import nnunetv2_meddino.trainers.variants  # noqa: F401
import tests.pretraining.curation.killing
import tests.pretraining.engine.checkpointing.saving
import tests.pretraining.training  # noqa: F401
