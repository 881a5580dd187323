"""Whether a host answers at all: a machine without a network hears so within two seconds, not after timeouts."""

from __future__ import annotations

import queue
import socket
import threading
import time
from urllib.parse import urlsplit

from zoo.errors import DownloadError

PROBE_TIMEOUT = 2.0  # seconds

# What else to do, in errors.
HINT = "Check the network, or get the file elsewhere and put it into the folder that ZOO_WEIGHTS names."


def check_reachable(url: str) -> None:
    """Return at once if the URL's host accepts connections; with a proxy set, that is left to the proxy.

    Raises DownloadError after PROBE_TIMEOUT at the latest, even if name resolution hangs.
    """
    import requests

    if requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url)):
        return
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: connected, text: why not

    def connect(family: int, address: tuple) -> None:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(PROBE_TIMEOUT)
                probe.connect(address)
            answers.put(None)
        except OSError as error:
            answers.put(error.strerror or str(error))

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            answers.put(f"its name can't be resolved: {getattr(error, 'strerror', None) or error}")
            return
        # All addresses at once: one family that leads nowhere must not hide another that works.
        expected.append(len(found))
        for family, _, _, _, address in found:
            threading.Thread(target=connect, args=(family, address), daemon=True).start()

    expected: list[int] = []
    deadline = time.monotonic() + PROBE_TIMEOUT
    threading.Thread(target=resolve, daemon=True).start()
    reasons: list[str] = []
    while not reasons or (expected and len(reasons) < expected[0]):
        try:
            reason = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            reasons.append(f"no answer within {PROBE_TIMEOUT:g} s")
            break
        if reason is None:
            return
        reasons.append(reason)
    raise DownloadError(f"{host} can't be reached ({reasons[-1]}) for {url}. {HINT}")
