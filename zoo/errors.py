"""The zoo's own errors: each says in one sentence what is wrong and in one what to do.

Every class is also a subclass of the builtin that a caller would expect, so `except ValueError` and the
like keep working. This module imports nothing.
"""


class ZooError(Exception):
    """Base of all errors that the zoo raises on purpose; its text is written for the user."""


class UnknownVariantError(ZooError, ValueError):
    """A model, variant or recipe name that the zoo does not have."""


class WeightsUnavailableError(ZooError, FileNotFoundError):
    """No source that could be reached has the weights of a variant."""


class DownloadError(ZooError, ConnectionError):
    """A download failed, was cut, or brought something else than what was asked for."""


class UnsafeCheckpointError(ZooError, ValueError):
    """A checkpoint that can't be read without running code, or that tries to run some."""


class CheckpointMismatchError(ZooError, ValueError):
    """A readable checkpoint whose keys or shapes are not those of the model."""


class ArgumentsError(ZooError, ValueError):
    """Model arguments out of a file that name other files, or a model that can't be."""


class UnsuitableModelError(ArgumentsError, TypeError):
    """A model of a kind that can't do what is asked of it."""


class CorruptWeightsError(ZooError, OSError):
    """A weights file that is damaged, incomplete or not what its record says."""


class StorageError(ZooError, OSError):
    """A file or folder that can't be written: a full disk, a missing permission."""


class ImageError(ZooError, ValueError):
    """An image that can't be read or whose size the model can't take."""


class DataError(ZooError, ValueError):
    """Training data that is missing, empty or not in the format that was named."""


class RecipeError(ZooError, ValueError):
    """A recipe with a missing, unknown or impossible setting."""


class TrainingError(ZooError, RuntimeError):
    """A training run that can't start, go on or be resumed."""


class DivergedError(TrainingError, ArithmeticError):
    """The loss became NaN or infinite."""


class PublishError(ZooError, RuntimeError):
    """Weights that can't or must not be published, or a Hub that does not take them."""


class GeometryError(ZooError, ValueError):
    """Points from which no focal length, pose or cloud can be made."""
