"""Under which license weights may be published: not always for us to choose."""

from __future__ import annotations

from zoo.errors import PublishError
from zoo.models.shared.ancestry import PERMISSIVE, Ancestor

DEFAULT_LICENSE = "apache-2.0"
"""Of weights that started at random, when nobody says."""


def choose_license(claimed: str | None, ancestor: Ancestor | None) -> str:
    """The license to publish under, in the Hub's spelling. Raises PublishError if it is not for us to choose."""
    if ancestor is None or ancestor.license.lower() in PERMISSIVE:
        return (claimed or (ancestor.license if ancestor else DEFAULT_LICENSE)).lower()
    inherited = ancestor.license.lower()
    if not inherited:
        raise PublishError(
            f"These weights started from {ancestor.name}, which doesn't say under which license it is; "
            "publish them where you got it from, or start from weights with a license."
        )
    if claimed is not None and claimed.lower() != inherited:
        raise PublishError(
            f"These weights started from {ancestor.name}, which is under {inherited}, and keep its license, so they "
            f"can't be published under {claimed}; leave the license out or name that one."
        )
    return inherited
