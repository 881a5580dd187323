"""Objectives and data sources of one's own, named in a recipe as `package.module:Class`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zoo.errors import RecipeError, ZooError

UNFIT = (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, AssertionError, ImportError)
"""What code raises that is given settings it wasn't written for."""


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Settings of a recipe are given to what they are for; what that can't take is a RecipeError (a ValueError).

    what: of the recipe is given, for the error.
    """
    try:
        yield
    except ZooError:
        raise
    except UNFIT as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise RecipeError(f"The {what} don't fit ({reason[:200]}); correct them.") from error


def is_extension(name: Any) -> bool:
    """Whether a recipe's name is that of a class outside of the zoo."""
    return isinstance(name, str) and ":" in name


def load_class(name: str, what: str, base: type) -> type:
    """The class that `name`, "package.module:Class", means; its module is imported, which runs it.

    what: the kind of thing, for errors. base: what the class must be made from: a recipe, maybe somebody else's, may
    choose among classes that were written for this, and call no others. Raises RecipeError (a ValueError).
    """
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the last two: of names that none can have
        raise RecipeError(
            f"The {what} {name} can't be imported ({error}); name a module that Python finds, as in "
            "my_package.my_module:MyClass, and put its folder on PYTHONPATH or install it."
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = sorted(n for n, value in vars(module).items() if isinstance(value, type) and not n.startswith("_"))
        raise RecipeError(f"{module_name} has no class '{class_name}' for the {what}; it has {', '.join(classes)}.")
    if not issubclass(found, base):
        public = f"{base.__module__.partition('.objectives')[0]}.{base.__name__}"
        raise RecipeError(f"The {what} {name} is no subclass of {public}; make it one.")
    return found
