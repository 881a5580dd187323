"""What is this checkpoint? A file or a repository of the Hub, told without running anything in it."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zoo.errors import DownloadError, WeightsUnavailableError
from zoo.models.shared.identify import Match, Nearest, identify, tells_by_values
from zoo.models.shared.known import known_variants
from zoo.weights import Checkpoint, read_checkpoint
from zoo.weights.disk import files
from zoo.weights.network.hub import HUB_FILENAME, hub_file, split_id
from zoo.weights.network.hub_header import NoHeaderError, read_hub_header

_FILENAMES = (HUB_FILENAME, "pytorch_model.bin", "open_clip_pytorch_model.bin")
_HUB_PREFIXES = ("hf-hub:", "hf_hub:")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".torch", ".tar")  # of files, not of repositories
_PARTS = 20  # things said of the training, at most
_LETTERS = 200  # of each of them


@dataclass(frozen=True)
class Inspection:
    """What `inspect_checkpoint` has found.

    path: the file; of the Hub's, repository and name. repository: OWNER/NAME@COMMIT of a file on the Hub, else None.
    container: "safetensors", "torch zip", or "torch, before 1.6". entry: the container's, that the tensors are in, such
    as "model"; "" if they are all there is. tensors, parameters: how many of them, and of numbers. dtypes: how many
    tensors of each. size: in bytes. sha256: of the file, None if it was not asked for. matches: what it is, the most
    exact first; nearest: what it is most like, if it is none of the zoo's. training: what it says of how it was made,
    as text.
    """

    path: Path
    repository: str | None
    container: str
    entry: str
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    size: int
    sha256: str | None
    matches: list[Match]
    nearest: Nearest | None
    training: dict[str, str]

    def code(self) -> str | None:
        """The lines of Python that load the file as what it is first of all."""
        if not self.matches:
            return None
        first = self.matches[0]
        args = "".join(f", {name}={value!r}" for name, value in first.args.items())
        where = f"file={str(self.path)!r}" if self.repository is None else f"hf_hub_id={self.repository!r}"
        if self.repository is not None and self.path.name != HUB_FILENAME:
            where += f", hf_hub_filename={self.path.name!r}"
        partial = ", partial=True" if first.missing else ""
        return (
            f"import timm, zoo\nmodel = timm.create_model({first.variant!r}, pretrained=True{args}, "
            f"pretrained_cfg_overlay=dict({where}{partial})).eval()"
        )

    def command(self) -> str | None:
        """The command that converts the file to the zoo's layout, if it is all of a variant and on this machine."""
        if not self.matches or self.matches[0].missing or self.repository is not None:
            return None
        output = f"{self.matches[0].architecture}.safetensors"
        return shlex.join(["zoo", "convert", str(self.path), "--variant", self.matches[0].variant, "-o", output])

    def as_json(self) -> dict[str, Any]:
        """All of it in plain types, with the code and the command: what `zoo inspect --json` prints."""
        return {**asdict(self), "path": str(self.path), "code": self.code(), "command": self.command()}


def inspect_checkpoint(name: str | Path, digest: bool = True) -> Inspection:
    """What a checkpoint is: a file, a folder that has one, or a repository of the Hub, as OWNER/NAME[@REVISION].

    digest: read all of a file, for its SHA-256 and its own checksums, which takes longer than everything else. Of a
    safetensors file on the Hub the header alone is fetched, and the digest is the one that the Hub announces.

    Raises WeightsUnavailableError if there is none, and what `read_checkpoint` raises.
    """
    path, hub_id = _find(str(name))
    if hub_id is None:
        return _inspect_file(path, digest)
    repo, revision = split_id(hub_id)
    try:
        found = read_hub_header(repo, revision, tells_by_values)
    except (NoHeaderError, DownloadError):
        path = hub_file(repo, HUB_FILENAME, revision)
    except WeightsUnavailableError as error:
        try:
            path = hub_file(repo, _FILENAMES[1], revision)
        except WeightsUnavailableError:
            raise error from None
    else:
        known = known_variants(found.checkpoint.path, found.checkpoint.extra.get("variant"), found.sha256, repo)
        return _told(found.checkpoint, "safetensors", found.size, found.sha256, known, f"{repo}@{found.commit}")
    # huggingface_hub keeps a commit's files in a folder of its name
    return replace(
        _inspect_file(path, digest, repo), path=Path(repo) / path.name, repository=f"{repo}@{path.parent.name}"
    )


def _inspect_file(path: Path, digest: bool, repo: str | None = None) -> Inspection:
    checkpoint = read_checkpoint(path, mapped=True, checked=digest)  # it is let go before this function ends
    sha256 = files.sha256(path, progress=True) if digest else None
    known = known_variants(path, checkpoint.extra.get("variant"), sha256, repo)
    return _told(checkpoint, _container(path), path.stat().st_size, sha256, known, None)


def _told(
    checkpoint: Checkpoint, container: str, size: int, sha256: str | None, known: dict[str, str], repository: str | None
) -> Inspection:
    matches, nearest = identify(checkpoint, known)
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in checkpoint.tensors.values())
    return Inspection(
        path=checkpoint.path,
        repository=repository,
        container=container,
        entry=checkpoint.entry,
        tensors=len(checkpoint.tensors),
        parameters=sum(value.numel() for value in checkpoint.tensors.values()),
        dtypes=dict(dtypes.most_common()),
        size=size,
        sha256=sha256,
        matches=matches,
        nearest=nearest,
        training=_training(checkpoint),
    )


def _find(name: str) -> tuple[Path, str | None]:
    """The file that is meant, or the id of a repository of the Hub."""
    path = Path(name).expanduser()
    if path.is_file():
        return path, None
    if path.is_dir():
        for filename in _FILENAMES:
            if (path / filename).is_file():
                return path / filename, None
        raise WeightsUnavailableError(f"The folder {path} has none of {', '.join(_FILENAMES)}. Name the file itself.")
    hub_id = next((name.removeprefix(prefix) for prefix in _HUB_PREFIXES if name.startswith(prefix)), name)
    if hub_id.count("/") != 1 or hub_id.startswith(("/", ".", "~")) or path.suffix in _SUFFIXES:
        raise WeightsUnavailableError(f"There is no file {name}. Check the path, or name a repository as OWNER/NAME.")
    return path, hub_id


def _container(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"PK"):
        return "torch zip"
    return "safetensors" if head[8:9] == b"{" else "torch, before 1.6"


def _training(checkpoint: Checkpoint) -> dict[str, str]:
    """What a checkpoint says besides its tensors, flat and short; of anything nested deeper the kind alone."""
    said: dict[str, str] = {}
    for key, value in checkpoint.extra.items():
        if isinstance(value, str) and key == "model_args":
            value = _json(value)
        inner = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
        if isinstance(inner, Mapping) and key not in ("optimizer", "scaler", "lr_scheduler"):
            pairs = [(f"{key}.{name}", part) for name, part in inner.items() if isinstance(name, str)]
        else:
            pairs = [(key, value)]
        for name, part in pairs:
            if len(said) < _PARTS and (text := _plain(part)) is not None:
                said[name[:_LETTERS]] = text
    return said


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _plain(value: Any) -> str | None:
    """A number, a text or a short list of such; None for anything else."""
    if isinstance(value, (str, int, float, bool)):
        text = str(value) if not isinstance(value, int) or abs(value) < 1 << 63 else "a large number"
    elif isinstance(value, (list, tuple)) and len(value) <= 8 and all(isinstance(v, (int, float)) for v in value):
        text = ", ".join(map(str, value))
    else:
        return None
    return text if len(text) <= _LETTERS else text[:_LETTERS] + "..."
