"""Python's collector of cyclic garbage, held off while a file is read.

It looks through all containers again and again as their number grows, and finds nothing: what is read stays. For
files of a million of them that takes longer than reading them does.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """No collection within; what may be made is bounded by the file's budget or its header's size."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
