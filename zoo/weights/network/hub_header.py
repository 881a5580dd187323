"""The header of a safetensors file on the Hugging Face Hub, without the gigabytes behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from torch import Tensor

from zoo.errors import WeightsUnavailableError
from zoo.weights.disk import safetensors_format
from zoo.weights.network.hub import HUB_FILENAME, SHA256, explained
from zoo.weights.network.reach import check_reachable
from zoo.weights.reading.unpickle import Checkpoint

_FIRST = 1 << 18  # bytes asked for at first; the headers of the zoo's largest models have 120 kB
_MAX_VALUES = 1 << 24  # bytes of tensors whose values are fetched too


class NoHeaderError(WeightsUnavailableError):
    """The server gives whole files only, or isn't to be asked."""


@dataclass(frozen=True)
class OnHub:
    """A file of a repository. size: in bytes. commit: that it is of. sha256: as the Hub announces it, if it does."""

    checkpoint: Checkpoint
    size: int
    commit: str
    sha256: str | None


def read_hub_header(repo: str, revision: str | None, with_values: Callable[[str], bool]) -> OnHub:
    """The tensors of a repository's model.safetensors: on the meta device, those named by `with_values` in memory.

    Raises NoHeaderError where only the whole file can be had, DownloadError without network, WeightsUnavailableError
    if there is no such file, CorruptWeightsError if it is damaged.
    """
    place = f"{HUB_FILENAME} of {repo}" + (f" at {revision}" if revision else "")
    if constants.HF_HUB_OFFLINE:
        raise NoHeaderError(f"{place} can't be looked at: HF_HUB_OFFLINE is set. Unset it.")
    with explained(place, repo):
        check_reachable(constants.ENDPOINT)
        found = get_hf_file_metadata(hf_hub_url(repo, HUB_FILENAME, revision=revision))
        if found.size is None or found.commit_hash is None:
            raise NoHeaderError(f"{place} can't be looked at: the server tells neither size nor commit. Download it.")
        file = _RemoteFile(found.location, found.size, place)
        header = safetensors_format.header_of(place, file.read, found.size)
        tensors: dict[str, Tensor] = {}
        left = _MAX_VALUES
        for entry in header.entries:
            tensors[entry.name] = torch.empty(entry.shape, dtype=entry.dtype, device="meta")
            size = entry.end - entry.start
            if with_values(entry.name) and 0 < size <= left:
                left -= size
                content = bytearray(file.bytes_of(header.data + entry.start, header.data + entry.end))
                tensors[entry.name] = torch.frombuffer(content, dtype=entry.dtype).reshape(entry.shape)
    etag = found.etag or ""
    checkpoint = Checkpoint(tensors, dict(header.metadata), Path(repo) / HUB_FILENAME, found.size)
    return OnHub(checkpoint, found.size, found.commit_hash, etag if SHA256.fullmatch(etag) else None)


class _RemoteFile:
    """A file that is read from its beginning, a part at a time."""

    def __init__(self, url: str, size: int, place: str) -> None:
        self.url, self.size, self.place = url, size, place
        self.start, self.buffer = 0, b""

    def read(self, count: int) -> bytes:
        if len(self.buffer) < count:
            wanted = max(count - len(self.buffer), _FIRST)
            position = self.start + len(self.buffer)
            self.buffer += self.bytes_of(position, min(position + wanted, self.size))
        part, self.buffer = self.buffer[:count], self.buffer[count:]
        self.start += len(part)
        return part

    def bytes_of(self, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        # storage is another host, which shall not see the token
        ours = urlsplit(self.url).netloc == urlsplit(constants.ENDPOINT).netloc
        headers = {
            **(build_hf_headers() if ours else {}),
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        with get_session().stream("GET", self.url, headers=headers) as response:
            hf_raise_for_status(response)
            if response.status_code != 206 or int(response.headers.get("content-length", -1)) != end - start:
                raise NoHeaderError(f"{self.place} can't be looked at in parts. Download the file.")
            content = response.read()
        if len(content) != end - start:
            raise NoHeaderError(f"{self.place} can't be looked at in parts. Download the file.")
        return content
