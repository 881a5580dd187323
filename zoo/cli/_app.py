"""The typer app, its errors and exit codes, and what several groups of commands share."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TextIO, cast

import typer

from zoo.errors import ZooError
from zoo.version import __version__

_EXTRAS = {
    "accelerate": "train",
    "tensorboard": "train",
    "yaml": "train",
    "matplotlib": "demo",
    "skimage": "demo",
    "cv2": "demo",
    "sklearn": "eval",
    "trimesh": "points",
}
"""The extra of pyproject.toml that brings a package, by the name that is imported."""

app = typer.Typer(
    name="zoo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; exit code 2 for errors that the user can mend, 130 for Ctrl-C."""
    logger, handler = logging.getLogger("zoo"), logging.StreamHandler()
    logger.setLevel(logging.INFO)  # tells which source served the weights
    logger.addHandler(handler)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be of any bytes
    printed = _Printed(sys.stdout)
    sys.stdout = cast(TextIO, printed) if sys.stdout is not None else None
    try:
        code = printed.end(_run(printed))
    finally:
        sys.stdout = printed.stream
        logger.removeHandler(handler)
    sys.exit(code)


class _Printed:
    """What a command prints: notices where it can't be written, which is no fault of the command's."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failed: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._noticing():
            return self.stream.write(text)

    def flush(self) -> None:
        with self._noticing():
            self.stream.flush()

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = error
            raise

    def end(self, code: int) -> int:
        """Write what is still to be written, which Python would do with a traceback; gives the command's exit code."""
        with contextlib.suppress(OSError):
            if self.stream is not None:
                self.flush()
        if self.failed is not None:
            _discard(self.stream)
            if isinstance(self.failed, BrokenPipeError):  # who reads has had enough, as in `zoo list | head -1`
                code = code or 1
            else:
                reason = self.failed.strerror
                code = _complain(f"What is printed can't be written ({reason}). Free some space, or send it elsewhere.")
        try:
            if sys.stderr is not None:
                sys.stderr.flush()
        except OSError:
            _discard(sys.stderr)
        return code


def _run(printed: _Printed) -> int:
    try:
        app()
    except SystemExit as end:  # how typer ends, always
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ZooError as error:
        return _complain(str(error))
    except OSError as error:  # a file or folder of the user's, or a full disk
        if error is printed.failed:
            return 2
        if error.strerror is None:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        return _complain(f"{place}{error.strerror}. Check that it is there, and yours to use.")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        return _complain(_missing(package, _EXTRAS[package]))
    return 0


def _complain(message: str) -> int:
    with contextlib.suppress(OSError):  # nobody can be told
        print(message, file=sys.stderr)
    return 2


def _discard(stream: TextIO) -> None:
    """Let go of what a stream can't write."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _MissingExtra(ZooError, ModuleNotFoundError):
    """A package that is not there, and the extra that brings it."""


def need(extra: str, *packages: str) -> None:
    """Raise an error that says so if one of the packages is not installed: before anything is loaded or made."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise _MissingExtra(_missing(package, extra))


def _missing(package: str, extra: str) -> str:
    return f"This command needs {package}; get it with pip install 'pretext-zoo[{extra}]'."


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pretext-zoo {__version__}")
        raise typer.Exit


@app.callback()
def zoo(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Self-supervised vision backbones for timm: look, convert, extract, complete, train."""


def print_table(*rows: tuple[str, ...]) -> None:
    """Aligned columns, as wide as they are: a cut or folded name could not be copied."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:<12}{value}", flush=True)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "384x512" -> height and width; "384" is a square."""
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise typer.BadParameter(f"'{text}' is no size; write height x width, such as 384x512.")
    return int(sides[0]), int(sides[-1])
