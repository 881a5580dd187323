"""What goes wrong with the cache of weights and the disk under it: rows of docs/faults.md.

`reads` holds a message against the row of the test that calls it (see tests/conftest.py).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm

import zoo  # noqa: F401
from tests.support.checkpoints import FileServer, Reply, convert, torch_bytes, variant_of
from tests.support.eight_processes import digest
from tests.support.fetching import CONTENT, NOBODY, Reads, arrived, refused
from tests.support.hub_server import HubServer
from zoo.catalog import Variant
from zoo.errors import StorageError, WeightsUnavailableError
from zoo.weights import cache_dir, fetch, read_checkpoint, sources, verify

TESTS = Path(__file__).parents[2]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder whose parents everybody may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("ZOO_CACHE", folder)
        monkeypatch.setattr(sources, "LOCK_FILE", Path(folder) / "weights.lock.json")
        yield Path(folder)


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Root may write everywhere, so that nothing is read-only for it."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)


def test_cache_read_only(variant: Variant, reads: Reads, shared: Path, as_nobody: None) -> None:
    if os.geteuid() != NOBODY:
        shared.chmod(0o555)
    reads(refused(variant, StorageError))


def test_cache_read_only_with_the_weights(
    variant: Variant, shared: Path, request: pytest.FixtureRequest, server: FileServer
) -> None:
    path = fetch(variant, convert)
    for made in (shared, *shared.rglob("*")):
        made.chmod(made.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    request.getfixturevalue("as_nobody")
    assert fetch(variant, convert) == path and server.gets("/CroCo.pth") == 1


def test_cache_is_a_file(variant: Variant, reads: Reads, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError) as caught:
        fetch(variant, convert)
    reads(caught.value)


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes the cache a disk of some kilobytes: a tmpfs, or where mounting isn't allowed, a count at each fsync."""
    folder = tmp_path / "disk"
    mounted = []

    def make(kilobytes: int) -> Path:
        folder.mkdir()
        monkeypatch.setenv("ZOO_CACHE", str(folder / "cache"))
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
            mounted.append(folder)
        except (OSError, subprocess.CalledProcessError):
            fsync = os.fsync

            def full(descriptor: int) -> None:
                if sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) > kilobytes * 1024:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                fsync(descriptor)

            monkeypatch.setattr(os, "fsync", full)
        return folder

    yield make
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_disk_full_while_downloading(
    variant: Variant, reads: Reads, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small_disk(80)
    reads(refused(variant, StorageError))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "larger"))
    arrived(variant)


def test_disk_full_while_converting(
    variant: Variant, reads: Reads, small_disk: Callable[[int], Path], server: FileServer
) -> None:
    folder = small_disk(180)
    reads(refused(variant, StorageError))
    assert len(list(folder.rglob("*.pth"))) == 1  # kept: it needs no second download when there is space
    with pytest.raises(StorageError):
        fetch(variant, convert)
    assert server.gets("/CroCo.pth") == 1


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # huggingface_hub says so before it tries
def test_disk_full_in_the_hub_cache(
    hub: HubServer, reads: Reads, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    folder = small_disk(80)
    if os.path.ismount(folder):
        monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
        reads(refused(variant_of(), StorageError))
    else:  # huggingface_hub syncs nothing, so that the stand-in sees nothing
        pytest.skip("mounting isn't allowed here")


def test_cache_in_use(
    variant: Variant, reads: Reads, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "NOTICE", 0.1)
    path = cache_dir() / "locks" / f"{variant.name}.lock"
    path.parent.mkdir(parents=True)
    with path.open("w") as file, caplog.at_level(logging.INFO, "zoo"):
        fcntl.flock(file, fcntl.LOCK_EX)
        timer = threading.Timer(0.5, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        arrived(variant)
        timer.join()
    reads(next(record.getMessage() for record in caplog.records if "another process" in record.getMessage()))


def run_script(name: str, *arguments: object) -> str:
    paths = [str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "support" / name), *map(str, arguments)]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120)
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_eight_processes(server: FileServer) -> None:
    pair = timm.create_model("croco_nano_patch8_64_dec128d4")
    server.files["/nano.pth"] = torch_bytes({"model": pair.reference_state()})
    server.faults = [Reply(pause=0.5)]
    answers = run_script("eight_processes.py", server.url + "/nano.pth").split()
    assert answers == [digest(pair)] * 8
    assert server.gets("/nano.pth") == 1


def test_killed_fifty_times(server: FileServer) -> None:
    phases = run_script("fifty_kills.py", server.url + "/CroCo.pth").split()
    assert len(phases) == 50
    for phase in ("downloading", "converting", "writing"):
        assert phases.count(phase) >= 10, phases


def test_cached_file_with_a_changed_bit(variant: Variant, reads: Reads) -> None:
    path = fetch(variant, convert)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fetch(variant, convert) == path  # size and header are what is checked at each use
    reads(next(report.problem for report in verify(variant) if report.path == path))


def test_cached_file_cut_short(variant: Variant, reads: Reads, caplog: pytest.LogCaptureFixture) -> None:
    path = fetch(variant, convert)
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "zoo"):
        arrived(variant)
    reads(caplog.messages[0])


def test_downloaded_checkpoint_changed(
    variant: Variant, reads: Reads, caplog: pytest.LogCaptureFixture, server: FileServer
) -> None:
    fetch(variant, convert).unlink()
    (downloaded,) = (cache_dir() / "downloads").glob("*.pth")
    downloaded.write_bytes(CONTENT[:-1] + b"x")
    with caplog.at_level(logging.WARNING, "zoo"):
        arrived(variant)
    reads(caplog.messages[0])
    assert server.gets("/CroCo.pth") == 2


def test_user_file_missing(tmp_path: Path, reads: Reads) -> None:
    with pytest.raises(WeightsUnavailableError) as caught:
        read_checkpoint(tmp_path / "none.pth")
    reads(caught.value)
