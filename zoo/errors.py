"""The zoo's own errors: each says in one sentence what is wrong and in one what to do.

Every class is also a subclass of the builtin that a caller would expect, so `except ValueError` and the
like keep working. This module imports nothing.
"""

_LONGEST_TEXT = 200  # characters of a name or reason that a message quotes
_LONGEST_MESSAGE = 4000


def printable(text: object, longest: int = _LONGEST_TEXT) -> str:
    """What a file or server says, fit for a message: one line of at most `longest` characters, for any terminal.

    Escape sequences, line breaks and characters that turn the line around come out as Python writes them. Of what
    is neither text nor a number only the type is told: an object of a file may be of any size and depth.
    """
    if isinstance(text, (int, float)):
        short = isinstance(text, float) or abs(text) < 1 << 64
        return str(text) if short else "a number of many digits"
    if not isinstance(text, str):
        return f"an object of type {type(text).__name__}"
    shown = text[: longest + 1]  # escapes only make it longer
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


class ZooError(Exception):
    """Base of all errors that the zoo raises on purpose; its text is written for the user.

    Whatever else it is built from, the text holds nothing that a terminal would act on, and is no longer than a page.
    """

    def __init__(self, message: str = "") -> None:
        half = _LONGEST_MESSAGE // 2
        if len(message) > _LONGEST_MESSAGE:  # what to do stands at the end
            message = f"{message[:half]} … {message[-half:]}"
        super().__init__("\n".join(printable(line, _LONGEST_MESSAGE) for line in message.split("\n")))


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


class FeaturesError(ZooError, RuntimeError):
    """An extraction of features that can't start or go on."""


class DataError(ZooError, ValueError):
    """Training data that is missing, empty or not in the format that was named."""


class RecipeError(ZooError, ValueError):
    """A recipe with a missing, unknown or impossible setting."""


class TrainingError(ZooError, RuntimeError):
    """A training run that can't start, go on or be resumed."""


class DivergedError(TrainingError, ArithmeticError):
    """The loss became NaN or infinite, or the weights did."""


class PublishError(ZooError, RuntimeError):
    """Weights that can't or must not be published, or a Hub that does not take them."""


class GeometryError(ZooError, ValueError):
    """Points from which no focal length, pose or cloud can be made."""
