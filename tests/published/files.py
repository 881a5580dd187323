"""Published files as evidence.yaml describes them: at full size, of zeros that take no room."""

from __future__ import annotations

import argparse
import fnmatch
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml
from torch import Tensor

from tests.support.checkpoints import foreign_object
from zoo.catalog import Source
from zoo.weights.disk import files, safetensors_format

KEYS = Path(__file__).parents[1] / "upstream_keys"


@cache
def evidence() -> list[dict[str, Any]]:
    return yaml.safe_load((Path(__file__).parent / "evidence.yaml").read_text("utf-8"))


def entry_of(source: Source) -> dict[str, Any] | None:
    """The evidence of a source's file; None if there is none."""
    found = [entry for entry in evidence() if source.location.endswith(entry["at"])]
    return max(found, key=lambda entry: len(entry["at"])) if found else None


def tensors_of(entry: dict[str, Any]) -> dict[str, Tensor]:
    """The file's tensors, each a single zero repeated by strides; of positions that aren't learned, the real ones."""
    shapes = _shapes(entry["keys"])
    lacks = entry.get("lacks", [])
    shapes = {key: shape for key, shape in shapes.items() if not any(fnmatch.fnmatchcase(key, p) for p in lacks)}
    shapes |= entry.get("adds", {})
    dtype = getattr(torch, entry.get("dtype", "float32"))
    zeros = {float: torch.zeros(1, dtype=dtype), int: torch.zeros(1, dtype=torch.int64)}
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith("relative_position_index"):
            tensors[key] = _offsets(round(shape[0] ** 0.5))
        else:
            zero = zeros[int if key.endswith("num_batches_tracked") else float]
            tensors[key] = zero.expand(shape) if shape else zero[0]
    assert len(tensors) == entry.get("count", len(tensors))
    return {entry.get("prefix", "") + key: value for key, value in tensors.items()}


def write_file(entry: dict[str, Any], path: Path) -> None:
    """Write the file: a torch checkpoint of a few hundred kB, or a sparse safetensors file."""
    tensors, container = tensors_of(entry), entry["container"]
    if container == "safetensors":
        save_sparse(tensors, path, {"format": "pt"})
        return
    beside = {
        key: foreign_object(a=1) if value == "object" else value for key, value in entry.get("beside", {}).items()
    }
    if "args" in entry:
        beside["args"] = argparse.Namespace(**entry["args"])
    content = beside | {container: tensors}
    if container == "vissl":
        heads = {"0.clf.0.weight": torch.zeros(2, 2)}
        base_model = {"model": {"trunk": tensors, "heads": heads}}
        content = {"phase_idx": 104, "classy_state_dict": {"base_model": base_model, "optimizer": {}}}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())


def save_sparse(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """What zoo.weights.save_safetensors writes, with holes in the file in place of repeated zeros."""
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = dict(
            dtype=safetensors_format._DTYPES[tensor.dtype], shape=list(tensor.shape), data_offsets=[start, end]
        )
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.atomic_writer(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = tensors[name]
            if not (tensor[(0,) * tensor.ndim] if tensor.is_floating_point() else tensor).any():  # not all is read
                file.seek(tensor.numel() * tensor.dtype.itemsize, io.SEEK_CUR)
            else:
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        file.truncate(8 + len(text) + end)


@cache
def _shapes(keys: str) -> dict[str, list[int]]:
    if not keys.startswith("resnet50"):
        return json.loads((KEYS / f"{keys}.json").read_text("utf-8"))
    with torch.device("meta"):
        state = torchvision.models.resnet50().state_dict()
    double = 2 if keys.endswith("_w2") else 1
    return {
        key: [double * n if n >= 64 else n for n in value.shape]
        for key, value in state.items()
        if not key.startswith("fc.")
    }


@cache
def _offsets(side: int) -> Tensor:
    """For each two patches of a square grid (dy + s - 1) * (2s - 1) + dx + s - 1, with dy, dx = query minus key."""
    y, x = torch.arange(side * side).div(side, rounding_mode="floor"), torch.arange(side * side) % side
    return (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1
