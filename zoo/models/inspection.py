"""What is this checkpoint? A file or a repository of the Hub, told without running anything in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import WeightsUnavailableError
from zoo.models.shared.identify import Match, Nearest, identify
from zoo.weights import Checkpoint, files, read_checkpoint
from zoo.weights.hub import HUB_FILENAME, hub_file, split_id

_FILENAMES = (HUB_FILENAME, "pytorch_model.bin", "open_clip_pytorch_model.bin")
_HUB_PREFIXES = ("hf-hub:", "hf_hub:")
_PARTS = 20  # things said of the training, at most
_LETTERS = 200  # of each of them


@dataclass(frozen=True)
class Inspection:
    """What `inspect_checkpoint` has found.

    container: "safetensors", "torch zip", or "torch, before 1.6". dtypes: how many tensors of each. size: in bytes.
    sha256: of the file, None if it was not asked for. matches: what it is, the most exact first; nearest: what it is
    most like, if it is none of the zoo's. training: what it says of how it was made, as text.
    """

    path: Path
    container: str
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
        partial = ", partial=True" if first.missing else ""
        return (
            f"import timm, zoo\nmodel = timm.create_model({first.architecture!r}, pretrained=True{args}, "
            f"pretrained_cfg_overlay=dict(file={str(self.path)!r}{partial})).eval()"
        )


def inspect_checkpoint(name: str | Path, digest: bool = True) -> Inspection:
    """What a checkpoint is: a file, a folder that has one, or a repository of the Hub, as OWNER/NAME[@REVISION].

    digest: compute its SHA-256 too, which takes longer than everything else.
    Raises WeightsUnavailableError if there is none, and what `read_checkpoint` raises.
    """
    path = _find(str(name))
    checkpoint = read_checkpoint(path, mapped=True)  # it is let go before this function ends
    matches, nearest = identify(checkpoint)
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in checkpoint.tensors.values())
    return Inspection(
        path=path,
        container=_container(path),
        tensors=len(checkpoint.tensors),
        parameters=sum(value.numel() for value in checkpoint.tensors.values()),
        dtypes=dict(dtypes.most_common()),
        size=path.stat().st_size,
        sha256=files.sha256(path, progress=True) if digest else None,
        matches=matches,
        nearest=nearest,
        training=_training(checkpoint),
    )


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for filename in _FILENAMES:
            if (path / filename).is_file():
                return path / filename
        raise WeightsUnavailableError(f"The folder {path} has none of {', '.join(_FILENAMES)}. Name the file itself.")
    hub_id = next((name.removeprefix(prefix) for prefix in _HUB_PREFIXES if name.startswith(prefix)), name)
    if hub_id.count("/") != 1 or hub_id.startswith(("/", ".", "~")):
        raise WeightsUnavailableError(f"There is no file {name}. Check the path, or name a repository as OWNER/NAME.")
    repo, revision = split_id(hub_id)
    try:
        return hub_file(repo, HUB_FILENAME, revision)
    except WeightsUnavailableError:
        return hub_file(repo, _FILENAMES[1], revision)


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
