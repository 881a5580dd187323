"""Small things that go wrong on a bad day, each a sentence and no traceback."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.conftest import Run
from tests.support.checkpoints import FileServer, torch_bytes
from tests.support.hub_server import Fault, HubServer
from zoo.errors import RecipeError, StorageError, ZooError
from zoo.train.objectives.teachers import make_teacher
from zoo.train.recipe import load_recipe
from zoo.weights import save_safetensors
from zoo.weights.network.download import download
from zoo.weights.network.hub import explain, hub_file

PAIR = "croco_nano_patch8_64_dec128d4"


@pytest.mark.parametrize(
    "record",
    ["{}", "[]", "{", '{"source": 7}', '{"source": {"kind": 1, "location": []}}', '{"source": {"kind": "\\u001b[2J"}}'],
)
def test_odd_record_in_zoo_info(zoo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: str) -> None:
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    path = tmp_path / "croco_base_patch16_224.habitat.safetensors"
    save_safetensors({"a": torch.ones(1)}, path, {})
    path.with_name(path.name + ".json").write_text(record)
    code, out, _ = zoo("info", "croco_base_patch16_224.habitat")
    assert code == 0 and f"{path} (its record is damaged; `zoo verify` tells what to do)" in out and "\x1b" not in out


def test_folder_where_a_record_should_be(zoo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    path = tmp_path / "croco_base_patch16_224.habitat.safetensors"
    save_safetensors({"a": torch.ones(1)}, path, {})
    path.with_name(path.name + ".json").mkdir()
    code, out, _ = zoo("info", "croco_base_patch16_224.habitat")
    assert code == 0 and "its record is damaged" in out
    code, out, error = zoo("verify", "croco_base_patch16_224.habitat")
    assert code == 2 and "can't be read" in out and "Traceback" not in error


def test_no_home(zoo: Run, monkeypatch: pytest.MonkeyPatch, reads: Callable[[object], None]) -> None:
    """HOME unset, for a user whom the system doesn't know, as in containers."""
    for name in ("HOME", "ZOO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    users: dict[int, Any] = {}
    monkeypatch.setattr(pwd, "getpwuid", users.__getitem__)
    timm.create_model("croco_nano_patch8_64", pretrained=True)  # in the package
    code, _, error = zoo("info", "croco_base_patch16_224.habitat")
    assert code == 2
    reads(error.strip())


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_part_that_is_none(tmp_path: Path, kind: str) -> None:
    """What somebody has put where a download grows is neither written through nor waited for."""
    treasure, part = tmp_path / "treasure", tmp_path / "f.pth.part"
    treasure.write_text("gold")
    if kind == "link":
        part.symlink_to(treasure)
    elif kind == "pipe":
        os.mkfifo(part)
    else:
        part.mkdir()
    content = torch_bytes({"model": {"a": torch.ones(3)}})
    with FileServer({"/f.pth": content}) as server:
        if kind == "folder":
            with pytest.raises(StorageError):
                download(server.url + "/f.pth", tmp_path / "f.pth")
        else:
            download(server.url + "/f.pth", tmp_path / "f.pth")
            assert (tmp_path / "f.pth").read_bytes() == content and not (tmp_path / "f.pth").is_symlink()
    assert treasure.read_text() == "gold"


def test_server_that_echoes_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer(tmp_path / "server") as hub:
        hub.patch(monkeypatch, tmp_path / "home", hub.owner_token)
        hub.add_repo("owner/model", {"model.safetensors": b"x"})
        for said in (f"no, {hub.owner_token}!", "Bearer " + hub.owner_token, "hf_SomebodyElsesToken is not welcome"):
            headers = {"x-error-message": said, "x-error-code": "Other"}
            hub.faults = [Fault("resolve", times=None, status=418, headers=headers)]
            with pytest.raises(ZooError) as caught:
                hub_file("owner/model")
            assert "hf_" not in str(caught.value) and "token)" in str(caught.value), caught.value
    monkeypatch.setenv("HF_TOKEN", "secret-of-another-form")
    assert "secret" not in explain(ValueError("you sent secret-of-another-form"), "a/b")


@pytest.mark.parametrize("name", ["../../x", "/abs", "a/b", "..", "", "a\nb", "x\\y", "\x1b[2J", "x" * 500])
def test_recipe_names_no_folder(name: str) -> None:
    with pytest.raises(RecipeError, match="which no folder can have"):
        load_recipe("croco_nano", {"name": name})


@pytest.mark.parametrize(
    "teacher", ["timm:hf-hub:a/b", "timm:local-dir:/x", "open_clip:ViT-B-16//other/private.pt", "/other/private.pt"]
)
def test_recipe_teachers_are_no_files(teacher: str) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(RecipeError, match="unknown|has no weights"):
        make_teacher(teacher, (14, 14))


def damaged_run(tmp_path: Path, content: bytes) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    recipe = load_recipe("croco_nano").to_dict()
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    (run / "checkpoint.safetensors").write_bytes(content)
    return run


@pytest.mark.parametrize("content", [b"", b"hello", b"\x10\0\0\0\0\0\0\0{}              "])
@pytest.mark.parametrize("command", ["pairs", "pretext"])
def test_damaged_runs_are_not_evaluated(zoo: Run, tmp_path: Path, content: bytes, command: str) -> None:
    code, _, error = zoo("eval", command, damaged_run(tmp_path, content))
    assert code == 2 and "checkpoint.safetensors" in error and "Traceback" not in error


def test_permissions_and_disks_in_a_sentence(zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.cli import look

    def fail(*args: Any) -> None:
        raise PermissionError(13, "Permission denied", "/theirs/file")

    monkeypatch.setattr(look, "find_variant", fail)
    code, _, error = zoo("info", PAIR)
    assert code == 2 and error == "/theirs/file: Permission denied. Check that it is there, and yours to use.\n"
