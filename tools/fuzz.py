"""Inputs of any kind for whatever reads other people's files, steered by the code that they reach (atheris).

    python tools/fuzz.py                         all targets side by side, a minute in all
    python tools/fuzz.py pickle --seconds 3600   one target, an hour
    python tools/fuzz.py pickle --input FILE     once more what was found

Only errors of the zoo may come out, nothing may be run, written or connected to, and no input may take more than
5 seconds or 2 GB. What breaks that is kept in --corpus, with the traceback above. Needs `pip install
'pretext-zoo[fuzz]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this clone's zoo, installed or not

SECONDS, MEGABYTES, LONGEST = 5, 2000, 20_000  # for an input; the last in bytes

# What nothing that is read may lead to, in the interpreter's own words (sys.addaudithook).
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "os.chmod"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "ctypes.dlopen", "exec", "pickle.find_class"),
    *("shutil.rmtree", "webbrowser.open", "code.__new__", "function.__new__"),
)


class Escape(Exception):
    """An input led to what only code may do."""


def _read_pickle(content: bytes) -> None:
    """As data.pkl of a zip file, without the file: all of it is fuzz."""
    import torch

    from zoo.weights.reading.pickles import Grammar, read_pickle
    from zoo.weights.reading.rebuild import FUNCTIONS, PRICES, VALUES, Storage
    from zoo.weights.reading.tape import Budget
    from zoo.weights.reading.unpickle import find_state_dict

    grammar = Grammar("fuzz", FUNCTIONS, PRICES, VALUES, lambda _: Storage(torch.UntypedStorage(64), torch.float32))
    buffer = mmap.mmap(-1, max(1, len(content)))
    buffer[: len(content)] = content
    data, _ = read_pickle(buffer, 0, len(content), grammar, Budget(20_000_000))
    with suppress(LookupError):  # which read_checkpoint turns into a sentence
        find_state_dict(data)


def _in_file(read: Callable[[Path], object], name: str = "input") -> Callable[[bytes], None]:
    path = Path(tempfile.mkdtemp(prefix="zoo-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)) / name

    def run(content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content)
        read(path)

    return run


def _file() -> Callable[[bytes], None]:
    from zoo.weights import read_checkpoint

    return _in_file(read_checkpoint)


def _header() -> Callable[[bytes], None]:
    from zoo.weights import read_checkpoint
    from zoo.weights.disk import safetensors_format

    def read(path: Path) -> None:
        safetensors_format.header_digest(path)
        safetensors_format.read_metadata(path)
        read_checkpoint(path)

    in_file = _in_file(read)
    return lambda content: in_file(struct.pack("<Q", len(content)) + content + bytes(64))


def _recipe() -> Callable[[bytes], None]:
    from zoo.train.recipe import load_recipe

    return _in_file(load_recipe, "recipe.yaml")


def _config() -> Callable[[bytes], None]:
    """Model arguments of a repository's config.json, a constructor call beside weights, a record."""
    from zoo.errors import CorruptWeightsError
    from zoo.models.making.arguments import check_arguments
    from zoo.models.making.reference_settings import parse_constructor
    from zoo.weights.disk import files, records

    def read(path: Path) -> None:
        content = files.read_json(path) or {}
        with suppress(CorruptWeightsError):
            records.check_record(path, content)
        text = content.get("args")
        if isinstance(text, str):
            parse_constructor(text, "fuzz")
        check_arguments("croco_nano_patch8_64", content.get("model_args", {}), "fuzz")

    return _in_file(read, "config.json")


TARGETS: dict[str, Callable[[], Callable[[bytes], None]]] = {
    "pickle": lambda: _read_pickle,
    "file": _file,
    "header": _header,
    "recipe": _recipe,
    "config": _config,
}
INSTRUMENTED = {
    "pickle": ["zoo.weights"],
    "file": ["zoo.weights"],
    "header": ["zoo.weights"],
    "recipe": ["zoo.train.recipe", "zoo.train.plain_yaml", "zoo.models.making.arguments"],
    "config": ["zoo.weights.disk.files", "zoo.models.making.arguments", "zoo.models.making.reference_settings"],
}


def seeds(target: str) -> list[bytes]:
    """Honest inputs, to start from."""
    import torch

    state = {"blocks.0.weight": torch.ones(2, 3), "n": torch.tensor(1)}
    content = {"model": state, "args": argparse.Namespace(a=1), "epoch": 3, "betas": (0.9, 0.95), "seen": {1, 2}}
    saved = []
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=new)
        saved.append(buffer.getvalue())
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "U8", "shape": [40], "data_offsets": [24, 64]},
    }
    raw = json.dumps(header).encode()
    if target == "pickle":
        with zipfile.ZipFile(io.BytesIO(saved[0])) as archive:
            return [archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))]
    if target == "file":
        return [*saved, struct.pack("<Q", len(raw)) + raw + bytes(64)]
    if target == "header":
        return [raw]
    if target == "recipe":
        return [path.read_bytes() for path in sorted((ROOT / "zoo" / "train" / "recipes").rglob("*.yaml"))]
    call = "CroCoNet(enc_depth=12, pos_embed='RoPE100', depth_mode=('exp', -inf, inf))"
    record = {"variant": "x", "source": {"kind": "url", "location": "x"}, "sha256": "", "header_sha256": ""}
    return [
        json.dumps({"model_args": {"depth": 2, "img_size": [64, 64], "global_pool": "avg"}, "args": call}).encode(),
        json.dumps(record).encode(),
    ]


def _child(target: str, corpus: Path, arguments: list[str]) -> None:
    """Fuzz one target for good: libFuzzer ends the process."""
    import atheris
    import torch  # noqa: F401 - before anything is instrumented

    with atheris.instrument_imports(include=INSTRUMENTED[target]):
        run = TARGETS[target]()
        _warm(target, run)
    from zoo.errors import ZooError

    guard, thread = [False], threading.get_ident()
    # Settings are compared with the annotations of our own classes, which typing evaluates.
    forbidden = set(FORBIDDEN) - ({"exec"} if target in ("recipe", "config") else set())

    def watch(event: str, values: tuple[Any, ...]) -> None:
        if guard[0] and event in forbidden and threading.get_ident() == thread:
            guard[0] = False
            raise Escape(f"{event} {values!r:.200}")

    sys.addaudithook(watch)

    def one(content: bytes) -> None:
        guard[0] = True
        try:
            run(content)
        except ZooError as error:
            if not str(error).replace("\n", "").isprintable():
                raise Escape("a message that a terminal would act on") from error
        finally:
            guard[0] = False

    atheris.Setup([sys.argv[0], *arguments, str(corpus)], one)
    atheris.Fuzz()


def _warm(target: str, run: Callable[[bytes], None]) -> None:
    """What is only imported at the first use is imported here."""
    b"x".decode("raw-unicode-escape")
    for seed in [*seeds(target), b""]:
        try:
            run(seed)
        except Exception:
            continue


def fuzz(target: str, seconds: int, corpus: Path) -> int:
    """Fuzz one target; the exit code of its process, 0 if nothing was found."""
    folder = corpus / target
    folder.mkdir(parents=True, exist_ok=True)
    honest = seeds(target)
    assert honest, target
    for number, seed in enumerate(honest):
        (folder / f"seed{number}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", f"-max_len={LONGEST}"]
    kept = [f"-artifact_prefix={corpus}/{target}-", "-print_final_stats=1", "-verbosity=0"]
    command = [sys.executable, __file__, "--child", target, "--corpus", str(corpus)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--", *limits, *kept], env=environment, stderr=subprocess.PIPE, text=True)
    print(done.stderr, file=sys.stderr, end="")  # one target's after the other's
    return done.returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; by default all")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--corpus", type=Path, help="a folder that keeps inputs from run to run")
    parser.add_argument("--input", type=Path, help="run a target on this file alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    own, libfuzzer = arguments if arguments is not None else sys.argv[1:], []
    if "--" in own:
        own, libfuzzer = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    if options.child:
        _child(options.child, options.corpus / options.child, libfuzzer)
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {unknown[0]}; there are {', '.join(TARGETS)}")
    targets = options.targets or list(TARGETS)
    if options.input:
        for target in targets:
            TARGETS[target]()(options.input.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("This needs atheris; get it with pip install 'pretext-zoo[fuzz]'.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="zoo-fuzz-") as temporary:
        corpus = options.corpus or Path(temporary)
        lanes = min(len(targets), os.cpu_count() or 1)
        seconds = max(1, options.seconds // math.ceil(len(targets) / lanes))
        with ThreadPoolExecutor(lanes) as pool:
            found = dict(zip(targets, pool.map(lambda target: fuzz(target, seconds, corpus), targets)))
        for target in targets:
            for artifact in sorted(corpus.glob(f"{target}-*")):
                print(f"{target}: {artifact.name}: {artifact.read_bytes()[:300]!r}")
    for target, code in found.items():
        print(f"{target:<8}{'nothing found' if code == 0 else f'FOUND SOMETHING (exit code {code}); see above'}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
