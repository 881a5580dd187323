"""Checkpoints in the containers that users have, and a small HTTP server that misbehaves on request."""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import socket
import struct
import sys
import threading
import time
import types
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.catalog import CROCO_V1_PAPER, Source, Variant
from zoo.weights import Alias, Checkpoint, Drop, KeyRules, Rename
from zoo.weights.sources import Converted


def reference_state(seed: int = 0, dim: int = 8) -> dict[str, Tensor]:
    """A small state dict under the CroCo reference's kind of names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "mask_token": (1, 1, dim),
        "enc_blocks.0.attn.qkv.weight": (3 * dim, dim),
        "enc_blocks.0.attn.qkv.bias": (3 * dim,),
        "enc_blocks.1.attn.qkv.weight": (3 * dim, dim),
        "enc_blocks.1.attn.qkv.bias": (3 * dim,),
        "dec_blocks.0.cross_attn.projq.weight": (dim, dim),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save_training(path: Path, state: dict[str, Tensor], **options: Any) -> None:
    """What the reference's training code writes: model, optimizer, scaler, argparse.Namespace, epoch."""
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in state.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95))
    torch.stack([parameter.square().sum() for parameter in parameters]).sum().backward()
    optimizer.step()
    args = argparse.Namespace(
        model="CroCoNet(enc_depth=12, dec_depth=8)",
        epochs=400,
        lr=None,
        warmup=4.5,
        output_dir=Path("out"),
        seed=0,
    )
    torch.save(
        {
            "model": state,
            "optimizer": optimizer.state_dict(),
            "scaler": {"scale": 65536.0, "growth_factor": 2.0, "growth_interval": 2000, "_growth_tracker": 7},
            "args": args,
            "epoch": 3,
        },
        path,
        **options,
    )


def foreign_object(**attributes: Any) -> Any:
    """An object of a class whose module won't exist when it is read; to be saved within `with_module`."""
    module = types.ModuleType("zoo_tests_absent_module")
    meter = type("Meter", (), {"__module__": module.__name__})
    setattr(module, "Meter", meter)  # noqa: B010
    sys.modules[module.__name__] = module
    instance = meter()
    vars(instance).update(attributes)
    return instance


def save_foreign(path: Path, content: dict[str, Any], **options: Any) -> None:
    """torch.save of content with a `foreign_object`, whose module is gone afterwards."""
    torch.save(content, path, **options)
    del sys.modules["zoo_tests_absent_module"]


def save_pickle_in_zip(path: Path, pickled: bytes, **storages: bytes) -> None:
    """torch's zip container around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key.lstrip('_')}", content)


def save_pickle_in_legacy(path: Path, pickled: bytes) -> None:
    """torch's container from before 1.6 around any pickle without tensors."""
    machine = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps(machine, 2)]
    path.write_bytes(b"".join([*parts, pickled, pickle.dumps([], 2)]))


def tensor_pickle(storage_type: str, key: str, numel: int, offset: int, size: tuple, stride: tuple) -> bytes:
    """The pickle of {"w": tensor}, with a storage, offset, size and stride of one's choice."""
    module, _, name = storage_type.rpartition(".")

    def number(value: int) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    def numbers(values: tuple) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    text = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(("
    text += b"X\x07\x00\x00\x00storage" + f"c{module}\n{name}\n".encode()
    text += b"X" + struct.pack("<I", len(key)) + key.encode() + b"X\x03\x00\x00\x00cpu" + number(numel) + b"tQ"
    text += number(offset) + numbers(size) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtRs."
    return text


def torch_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


RULES = KeyRules(  # for `reference_state`, and parts that its like may have
    Rename("mask_token", "mask_token"),
    Drop("prediction_head.*", "the prediction head"),
    Alias("dec_blocks2.*", "dec_blocks.*"),
    Rename("dec_blocks.*.cross_attn.projq.*", "decoder.blocks.*.cross_attn.q_proj.*"),
    Rename("dec_blocks.*", "decoder.blocks.*"),
    Rename("enc_blocks.*", "encoder.blocks.*"),
)


def variant_of(*sources: Source, name: str = "croco_test") -> Variant:
    """A catalog entry as far as getting weights is concerned."""
    return Variant(
        architecture=name,
        tag="tag",
        family="croco",
        form="encoder",
        description="",
        args={},
        parameters=0,
        license="",
        paper=CROCO_V1_PAPER,
        sources=sources,
    )


def convert(checkpoint: Checkpoint) -> Converted:
    """What a family does with a reference checkpoint."""
    return Converted(RULES.to_zoo(checkpoint.tensors, name="v"), {})


# ---------------------------------------------------------------------------------------------- server


@dataclass
class Reply:
    """How the server answers one GET, when it is not the plain file.

    cut: bytes of the body after which the connection is closed. length: what Content-Length claims.
    endless: the body again and again, without a Content-Length.
    pause: seconds before the body. drip: seconds before each hundred bytes of it.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: int | None = None
    length: int | None = None
    endless: bool = False
    pause: float = 0.0
    drip: float = 0.0


class FileServer:
    """Files over HTTP on the loopback, with ranges and ETags; `faults` are the replies to the next GETs.

    requests: (method, path, headers) of everything that was asked.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: list[Reply] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.ranges = True
        self.headers: Callable[[bytes], dict[str, str]] = lambda content: {"ETag": f'"{_digest(content)}"'}

    def __enter__(self) -> FileServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                outer._answer(self, Reply())

            def do_GET(self) -> None:
                outer._answer(self, outer.faults.pop(0) if outer.faults else Reply())

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        # A short poll keeps the shutdown, which waits for it, short.
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def gets(self, path: str) -> int:
        return sum(method == "GET" and asked == path for method, asked, _ in self.requests)

    def _answer(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        asked = dict(handler.headers.items())
        self.requests.append((handler.command, handler.path, asked))
        content = self.files.get(handler.path)
        if content is None:
            handler.send_error(404)
            return
        headers = self.headers(content)
        status, body = 200, content
        asked_start = asked.get("Range", "").removeprefix("bytes=").removesuffix("-")
        if self.ranges and asked_start and asked.get("If-Range") in (headers.get("ETag"), headers.get("Last-Modified")):
            first = int(asked_start)
            status, body = (206, content[first:]) if first < len(content) else (416, b"")
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        body = body if reply.body is None else reply.body
        handler.send_response(reply.status or status)
        length = len(body) if reply.length is None else reply.length
        for name, value in {"Content-Length": str(length), **headers, **reply.headers}.items():
            if not (reply.endless and name == "Content-Length"):
                handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        time.sleep(reply.pause)
        body = body if reply.cut is None else body[: reply.cut]
        step = 100 if reply.drip else max(1, len(body))
        with suppress(OSError):  # of a client that gave up
            while reply.endless:
                handler.wfile.write(body)
            for start in range(0, len(body), step):
                time.sleep(reply.drip)
                handler.wfile.write(body[start : start + step])
        handler.close_connection = True


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert set(left) == set(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


def free_port() -> int:
    """A port on which nobody answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
