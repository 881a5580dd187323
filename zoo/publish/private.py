"""What of a recipe is nobody's business: where files and folders lie on the machine that trained it."""

from __future__ import annotations

import json
import re
from typing import Any

from zoo.train.recipe import Recipe, parse_recipe

_PLACE = re.compile(
    r"(?<![\w/:.\\-])"  # where a word begins
    r"(?:~[\w-]*[/\\]|/(?=[^\s/])|[A-Za-z]:[/\\]|\\\\|file:/+)"
    r"[^\s,;'\"`<>|()\[\]{}]*"
)
"""A path from the root, from a home folder or of Windows, in any text."""

_FOLDERS = ("data", "validation", "init")
"""Settings whose texts are places of files, relative ones too."""


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe as it was run, with files and folders by their last names."""
    settings = json.loads(json.dumps(recipe.to_dict()))
    for name, value in settings.items():
        settings[name] = _public(value, last_name if name in _FOLDERS else without_places)
    return parse_recipe(settings, recipe.name)


def last_name(text: str) -> str:
    """ "/home/me/photos,D:\\more" -> "photos,more"; what has no separators stays as it is."""
    parts = [re.split(r"[/\\]", part.strip().partition("?")[0].rstrip("/\\"))[-1] for part in text.split(",")]
    return ",".join(parts) if re.search(r"[/\\]", text) else text


def without_places(text: str) -> str:
    """A text in which paths of this machine are their last names; addresses on the network stay."""
    return _PLACE.sub(lambda found: last_name(found[0]), text)


def _public(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_public(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _public(item, change) for key, item in value.items()}
    return value
