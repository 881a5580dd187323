"""What goes wrong with photos, data, runs and publishing: rows of docs/faults.md.

`reads` holds a message against the row of the test that calls it (see tests/conftest.py); other inputs of each kind
are in the tests of the rooms.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm

from tests.support.hub_server import HubServer
from tests.support.publishing import ENCODER, REPO, same, tiny
from tests.test_photos import BOMBS
from tests.train.data.test_hostile_data import photo, sparse_shard, write_shard
from tests.train.test_run_folder import run as train_into
from zoo import publish
from zoo.errors import (
    ArgumentsError,
    DataError,
    ImageError,
    PublishError,
    RecipeError,
    StorageError,
    TrainingError,
    ZooError,
)
from zoo.photos import read_image
from zoo.train.build import make_model
from zoo.train.data.folder import ImageFolder
from zoo.train.data.shards import ImageShards
from zoo.train.recipe import load_recipe
from zoo.train.run import Run, read_checkpoint
from zoo.weights import cache_dir, save_safetensors

pytestmark = [
    pytest.mark.usefixtures("no_pictures"),
    pytest.mark.filterwarnings("ignore:Use 'content=<...>'"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]
Reads = Callable[[object], None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def refused(kind: type[ZooError], function: Callable[..., Any], *args: Any, **options: Any) -> ZooError:
    with pytest.raises(kind) as caught:
        function(*args, **options)
    return caught.value


# ------------------------------------------------------------------------------------------------ photos


def test_photo_of_too_many_pixels(tmp_path: Path, reads: Reads) -> None:
    (tmp_path / "x.png").write_bytes(BOMBS["PNG under Pillow's limit"])
    reads(refused(ImageError, read_image, tmp_path / "x.png"))


def test_photo_that_is_a_program(tmp_path: Path, reads: Reads) -> None:
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    reads(refused(ImageError, read_image, tmp_path / "x.jpg"))


def test_photo_that_is_a_pipe(tmp_path: Path, reads: Reads) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    reads(refused(ImageError, read_image, tmp_path / "x.jpg"))


# -------------------------------------------------------------------------------------------------- data


def test_folder_within_itself(tmp_path: Path, reads: Reads, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.png").write_bytes(photo())
    (tmp_path / "more").symlink_to(".")
    with caplog.at_level(logging.WARNING, "zoo"):
        assert len(ImageFolder(tmp_path)) == 1
    reads(caplog.messages[0])


def test_shard_with_holes(tmp_path: Path, reads: Reads) -> None:
    reads(refused(DataError, ImageShards, str(sparse_shard(tmp_path / "a.tar"))))


def test_shard_index_damaged(tmp_path: Path, reads: Reads, caplog: pytest.LogCaptureFixture) -> None:
    path = write_shard(tmp_path / "a.tar", {"x.png": photo()})
    ImageShards(str(path))
    (kept,) = (cache_dir() / "shards").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-8])
    with caplog.at_level(logging.WARNING, "zoo"):
        assert len(ImageShards(str(path))) == 1
    reads(caplog.messages[0])


# --------------------------------------------------------------------------------------- recipes and runs


def test_recipe_that_grows(tmp_path: Path, reads: Reads) -> None:
    (tmp_path / "x.yaml").write_text("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    reads(refused(RecipeError, load_recipe, tmp_path / "x.yaml"))


def test_recipe_that_names_other_weights(reads: Reads) -> None:
    recipe = load_recipe("croco_nano", {"model_args.checkpoint_path": "/other/private.pth"})
    reads(refused(RecipeError, make_model, recipe))


def test_folder_of_a_run_that_lives(tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Run.log

    def second(self: Run, *args: Any) -> Any:
        monkeypatch.setattr(Run, "log", log)
        reads(refused(TrainingError, train_into, tmp_path))
        return log(self, *args)

    monkeypatch.setattr(Run, "log", second)
    train_into(tmp_path)


def test_checkpoint_damaged(tmp_path: Path, reads: Reads) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"hello")
    reads(refused(TrainingError, train_into, tmp_path))


def test_checkpoint_beyond_the_plan(run: Path, reads: Reads, recipe_file: Path) -> None:
    from zoo.train import engine

    state, tensors = read_checkpoint(run / "checkpoint.safetensors")
    save_safetensors(tensors, run / "checkpoint.safetensors", {"run": json.dumps({**state, "step": 99})})
    reads(refused(TrainingError, engine.train, load_recipe(recipe_file), run, workers=0, progress=False))


def test_log_cut_short(run: Path, recipe_file: Path) -> None:
    from zoo.train import engine

    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    engine.train(load_recipe(recipe_file), run, workers=0, progress=False)


def test_disk_full_while_training(tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    reads(refused(StorageError, train_into, tmp_path))


def test_run_folder_is_a_file(tmp_path: Path, reads: Reads) -> None:
    (tmp_path / "run").write_text("")
    reads(refused(StorageError, train_into, tmp_path / "run"))


def test_data_worker_killed(tmp_path: Path, reads: Reads) -> None:
    program = f"""
from tests.train.test_run_folder import tiny, SHORT
from zoo.train.engine import train
from zoo.errors import TrainingError
recipe = tiny(data=dict(source="tests.train.test_run_folder:Killer"), **SHORT)
try:
    train(recipe, {str(tmp_path)!r}, workers=1, progress=False)
except TrainingError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=120)
    reads(result.stdout.strip())


# -------------------------------------------------------------------------------------- repositories


@pytest.fixture
def published(hub: HubServer, tmp_path: Path) -> Callable[..., Any]:
    """Publishes a model whose config.json is changed so; returns the model."""

    def make(place: str, **changes: Any) -> Any:
        model = tiny()
        folder = publish.export_model(model, tmp_path / "published", REPO)
        config = json.loads((folder / "config.json").read_text())
        config[place].update(changes)
        files = {name: (folder / name).read_bytes() for name in publish.listing(folder)}
        hub.add_repo(REPO, {**files, "config.json": json.dumps(config).encode()})
        return model

    return make


def test_repository_that_names_a_local_file(
    published: Callable[..., Any], reads: Reads, caplog: pytest.LogCaptureFixture
) -> None:
    model = published("pretrained_cfg", file="/other/private.safetensors")
    with caplog.at_level(logging.WARNING, "zoo"):
        assert same(model, timm.create_model(f"hf-hub:{REPO}", pretrained=True))
    reads(next(message for message in caplog.messages if "config.json" in message))


def test_repository_of_a_model_without_measure(published: Callable[..., Any], reads: Reads) -> None:
    published("model_args", depth=10**9)
    reads(refused(ArgumentsError, timm.create_model, f"hf-hub:{REPO}"))


# ----------------------------------------------------------------------------------------- publishing


def test_published_folder_with_a_link(tmp_path: Path, reads: Reads) -> None:
    folder = publish.export_model(tiny(), tmp_path / "exported", REPO)
    (folder / "completion.png").symlink_to("/etc/passwd")
    reads(refused(PublishError, publish.check_folder, folder))


def test_published_run_of_two(run: Path, tmp_path: Path, reads: Reads) -> None:
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("name: tiny_pair", "name: another"))
    reads(refused(PublishError, publish.export_run, run, tmp_path / "out", REPO))


def test_published_license_of_others(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "mine.safetensors"
    about = {"license": "mit", "base_model": "croco_base_patch16_224.habitat"}
    save_safetensors(tiny().state_dict(), path, about)
    arguments: dict[str, Any] = dict(embed_dim=48, depth=2, num_heads=3, img_size=16)
    overlay = dict(file=str(path))
    model = timm.create_model(ENCODER, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    reads(refused(PublishError, publish.export_model, model, tmp_path / "out", REPO, license="mit"))


def test_published_name_that_cannot_be(tmp_path: Path, reads: Reads) -> None:
    reads(refused(PublishError, publish.export_model, tiny(), tmp_path, "mypairs"))


def test_published_in_half_precision(tmp_path: Path, reads: Reads) -> None:
    reads(refused(PublishError, publish.export_model, tiny().bfloat16(), tmp_path, REPO))
