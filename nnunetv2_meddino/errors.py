"""The exceptions users can meet; each message says what happened, where, and what to do next."""


class MedDINOError(Exception):
    """Base of every error this package raises on purpose. The command line prints its message without a traceback."""


class WeightsError(MedDINOError):
    """Pretrained weights are unknown, missing, gated, damaged, or do not fit the network."""


class ConfigurationError(MedDINOError):
    """An environment variable, trainer setting or network setting is unknown or contradicts another."""


class PlanError(MedDINOError):
    """A plans file or configuration cannot be used as it stands."""


class DataError(MedDINOError):
    """A data set or label map does not follow the layout or the label range it declares."""


class DemoError(MedDINOError):
    """A step of the demo failed; the message names the step and its log."""
