"""Public files on Google Drive, through the package gdown."""

from __future__ import annotations

import glob
import threading
from pathlib import Path

from zoo.errors import DownloadError, WeightsUnavailableError, printable
from zoo.weights.network.download import CONNECT_TIMEOUT, LARGEST, READ_TIMEOUT, TRIES
from zoo.weights.network.parts import accept, discard, keep_if_plain, part_of, progress_bar, saving, too_large_error
from zoo.weights.network.reach import HINT, check_reachable

DRIVE_WINDOW = 120.0  # seconds in which something of a file on Google Drive must arrive


def download_from_drive(
    file_id: str, path: Path, *, expected_sha256: str | None = None, at_most: int = LARGEST, progress: bool = True
) -> str:
    """`download` for a public file on Google Drive, through the package gdown.

    Google doesn't say whether a file is still the one that a part of it is here of. So the next call goes on with that
    part only if the whole's digest is known.

    Raises WeightsUnavailableError without gdown, and what `download` raises.
    """
    import requests

    link = f"https://drive.google.com/file/d/{file_id}"
    by_hand = "in a browser, save the file and convert it with `zoo convert`"
    try:
        import gdown
        from gdown.exceptions import DownloadCancelled, FileURLRetrievalError
        from gdown.exceptions import DownloadError as TransferError
    except ImportError as error:
        raise WeightsUnavailableError(
            "gdown 6.5 or later is not installed; get it with pip install 'pretext-zoo[drive]', or open "
            f"{link} {by_hand}."
        ) from error
    check_reachable(link)
    part = part_of(path)
    received, stalled, over = 0, threading.Event(), threading.Event()

    def show(size: int, total: int | None) -> None:  # gdown calls it for every 512 kB
        nonlocal received
        received, bar.total = size, total
        bar.update(size - bar.n)
        if size > at_most:
            stalled.set()

    def watch() -> None:
        before = -1
        while not over.wait(DRIVE_WINDOW):
            if received == before:
                stalled.set()
            before = received

    with saving(link, path), progress_bar(path.name, progress) as bar:
        path.parent.mkdir(parents=True, exist_ok=True)
        for kept in path.parent.glob(glob.escape(part.name) + "*.part"):  # gdown's own names
            if expected_sha256 is None:
                kept.unlink()
            else:
                keep_if_plain(kept)
        threading.Thread(target=watch, daemon=True).start()
        try:
            gdown.download(
                id=file_id,
                output=str(part),
                quiet=True,
                resume=expected_sha256 is not None,
                progress=show,
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                retries=TRIES,
                cancel=stalled,
            )
        except FileURLRetrievalError as error:
            raise DownloadError(
                f"Google Drive shows a page instead of the file, about a quota or a login: open {link} {by_hand}. "
                f"The page says: {printable(' '.join(str(error).split()), 500)}"
            ) from error
        except (TransferError, DownloadCancelled, requests.RequestException) as error:
            if received > at_most:
                discard(part)
                for kept in path.parent.glob(glob.escape(part.name) + "*.part"):
                    kept.unlink()
                raise too_large_error(link, at_most) from error
            reason = "too slow" if stalled.is_set() else printable(" ".join(str(error).split()), 500)
            raise DownloadError(f"{link} can't be downloaded ({reason}). {HINT}") from error
        finally:
            over.set()
        return accept(link, part, path, expected_sha256, progress)
