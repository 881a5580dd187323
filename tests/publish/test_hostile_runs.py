"""Folders of runs that somebody else has filled: nothing but their own files is published, under what they keep."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors import safe_open
from typer.testing import CliRunner

from tests.support.publishing import PAIR, REPO, tiny, train
from zoo import publish
from zoo.cli import app
from zoo.errors import CorruptWeightsError, PublishError, RecipeError, TrainingError, ZooError
from zoo.models import Ancestor
from zoo.models.shared.ancestry import ancestor_of
from zoo.weights import save_safetensors

pytestmark = pytest.mark.usefixtures("no_pictures")


def change_recipe(run: Path, **settings: Any) -> None:
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    content.update(settings)
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))


def change_metadata(path: Path, **about: str) -> None:
    with safe_open(path, "pt") as file:
        tensors, known = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    save_safetensors(tensors, path, {**known, **about})


def pushed(run: Path, tmp_path: Path) -> str:
    """What a dry run of `zoo push` prints."""
    result = CliRunner().invoke(app, ["push", str(run), "--repo", REPO, "--dry-run", "-o", str(tmp_path / "kept")])
    assert result.exception is None or isinstance(result.exception, (ZooError, SystemExit)), result.exception
    return result.output + str(result.exception or "")


# ------------------------------------------------------------------------------------ files of others


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg_overlay", "pretrained_cfg", "file"])
def test_recipe_chooses_no_other_weights(run: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / "private.pth"
    torch.save(timm.create_model(PAIR).state_dict(), other)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    value = str(other) if name in ("checkpoint_path", "file") else {"file": str(other)}
    change_recipe(run, model_args={**recipe["model_args"], name: value})
    change_metadata(run / "model.safetensors", model_args=json.dumps({**recipe["model_args"], name: value}))
    with pytest.raises(PublishError, match=name):
        publish.export_run(run, tmp_path / "out", REPO)


@pytest.mark.parametrize("model", ["hf-hub:owner/other", "local-dir:/other", "resnet50", "../other"])
def test_recipe_model_is_not_followed(run: Path, tmp_path: Path, model: str) -> None:
    change_recipe(run, model=model)
    change_metadata(run / "model.safetensors", architecture=model)
    with pytest.raises(PublishError, match="can't be published: The zoo has no variant"):
        publish.export_run(run, tmp_path / "out", REPO)


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml", "log.jsonl"])
@pytest.mark.parametrize("kind", ["link", "broken link", "fifo", "folder"])
def test_a_run_is_of_regular_files(run: Path, tmp_path: Path, name: str, kind: str) -> None:
    replace_by(kind, run / name, tmp_path)
    with pytest.raises(PublishError, match=f"{name} is (a symbolic link|no regular file), which is not published"):
        publish.export_run(run, tmp_path / "out", REPO)


def replace_by(kind: str, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copyfile(path, other) if path.exists() else other.write_bytes(b"\x89PNG private")
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(other)
    elif kind == "broken link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("name", ["model.safetensors", "completion.png", "README.md", "config.json", "matches.png"])
@pytest.mark.parametrize("kind", ["link", "broken link", "fifo", "folder"])
def test_links_in_an_exported_folder(tmp_path: Path, name: str, kind: str) -> None:
    folder = publish.export_model(tiny(), tmp_path / "exported", REPO)
    replace_by(kind, folder / name, tmp_path)
    for publishing in (
        lambda: publish.check_folder(folder),
        lambda: publish.upload(folder, REPO),
        lambda: publish.copy_published(folder, tmp_path / "copy"),
    ):
        with pytest.raises(PublishError, match=f"{name} is (a symbolic link|no regular file)"):
            publishing()
    if name != "config.json":  # else it is no such folder
        assert "is not published" in pushed(folder, tmp_path)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_text("gold")
    out = tmp_path / "out"
    out.mkdir()
    for name in publish.FILES:
        (out / name).symlink_to(treasure)
    publish.export_model(tiny(), out, REPO)
    assert treasure.read_text() == "gold" and not (out / "README.md").is_symlink()


def test_output_that_is_a_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    assert "can't be written (Not a directory)" in pushed(run, tmp_path) or "File exists" in pushed(run, tmp_path)


def test_weights_of_another_run(run: Path, tmp_path: Path) -> None:
    """A folder into which two runs have written: the card would describe the other."""
    change_recipe(run, name="another")
    with pytest.raises(PublishError, match="trained by another recipe than the recipe.yaml beside it"):
        publish.export_run(run, tmp_path / "out", REPO)
    (run / "model.safetensors").unlink()
    with pytest.raises(PublishError, match="trained by another recipe than the recipe.yaml beside it"):
        publish.export_run(run, tmp_path / "out", REPO)


# -------------------------------------------------------------------------------------- damaged files

BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "alias"),
        ("a: &a [*a]", "alias"),
        ("data: &d {x: *d}", "alias"),
        ("<<: {model: x}\nbase: &b {a: 1}\nmore: {<<: *b}", "alias"),
        ("[" * 10_000, "levels deep"),
        ("a: " * 30, "YAML"),
        ("seed: " + "9" * 10_000, "readable YAML"),
        ("seed: 99999999999999999999", "beyond all measure"),
        ("source: " + "x" * 200_000, "characters"),
        ("seed: .inf", "no number"),
        ("1: 2", "no text"),
        ("when: 2020-01-01", "type date"),
        ("x: !!binary aGk=", "type bytes"),
        ("x: !!python/object/apply:os.system [id]", "readable YAML"),
        ("\x00", "readable YAML"),
    ],
)
def test_yaml_bombs(run: Path, tmp_path: Path, text: str, message: str) -> None:
    import time

    (run / "recipe.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(RecipeError, match=message) as caught:
        publish.export_run(run, tmp_path / "out", REPO)
    assert time.monotonic() - start < 5 and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "front", [BOMB, "license: &a [*a]", "license: *b", "[" * 10_000, "license: [mit]", "mit", ": :"]
)
def test_bombs_in_a_card(tmp_path: Path, front: str) -> None:
    folder = publish.export_model(tiny(), tmp_path / "exported", REPO)
    (folder / "README.md").write_text(f"---\n{front}\n---\n# Mine\n")
    with pytest.raises(PublishError, match="can't be read|names no license"):
        publish.check_folder(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", '{"classes": 7}'),
        ("results.json", '{"classes": [1]}'),
        ("results.json", '{"validation_top1": "much | <b>"}'),
        ("results.json", '{"validation_top1": NaN}'),
        ("results.json", "[]"),
        ("results.json", "[" * 100_000),
    ],
)
def test_odd_results(run: Path, tmp_path: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    with pytest.raises((PublishError, CorruptWeightsError), match=r"results\.json"):
        publish.export_run(run, tmp_path / "out", REPO)


@pytest.mark.parametrize("steps", ["", "many", "-4", "1e9", "9" * 400])
def test_odd_steps(run: Path, tmp_path: Path, steps: str) -> None:
    change_metadata(run / "model.safetensors", steps=steps)
    with pytest.raises(PublishError, match="how many steps"):
        publish.export_run(run, tmp_path / "out", REPO)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"step": "4"}', "[" * 100_000])
def test_foreign_checkpoint(run: Path, tmp_path: Path, content: str | None) -> None:
    (run / "model.safetensors").unlink()
    about = {} if content is None else {"run": content}
    save_safetensors({"a": torch.ones(1)}, run / "checkpoint.safetensors", about)
    with pytest.raises((PublishError, CorruptWeightsError), match=r"checkpoint\.safetensors"):
        publish.export_run(run, tmp_path / "out", REPO)


def test_log_cut_by_a_kill(run: Path, tmp_path: Path) -> None:
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    publish.export_run(run, tmp_path / "out", REPO)


@pytest.mark.parametrize("row", ["{", "7", "{}", '{"step": "a", "loss": 1}', '{"step": 1, "loss": "x"}', "[" * 100_000])
def test_odd_log(run: Path, tmp_path: Path, row: str) -> None:
    (run / "log.jsonl").write_text(row + "\n")
    with pytest.raises(TrainingError, match=r"log\.jsonl can't be read in row 1"):
        publish.export_run(run, tmp_path / "out", REPO)


# ------------------------------------------------------------------------------ private places, Markdown

PLACES = [
    {"data": {"source": "images", "path": ["/home/me/secret/a", "/home/me/secret/b"]}},
    {"data": {"source": "images", "path": {"/home/me/secret/a": 1}}},
    {"data": {"source": "images", "root": "/home/me/secret/photos", "list": "secret/list.txt"}},
    {"data": {"source": "images", "path": "C:\\Users\\me\\secret\\photos"}},
    {"data": {"source": "images", "path": "\\\\server\\me\\secret\\photos,/x/secret/b"}},
    {"data": {"source": "images", "path": "~/secret/photos"}},
    {"validation": {"path": {"deep": ["/home/me/secret/val"]}}},
    {"init": "C:\\Users\\me\\secret\\model.safetensors"},
    {"source": "as told in /home/me/secret/notes.txt"},
    {"objective": {"name": "x", "teacher": "/home/me/secret/teacher.pth"}},
    {"curriculum": {"data.textures": [[0, "/home/me/secret/textures"]]}},
]


@pytest.mark.parametrize("settings", PLACES)
def test_private_places(run: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    change_recipe(run, **settings)
    folder = publish.export_run(run, tmp_path / "out", REPO)
    for path in folder.iterdir():
        content = path.read_bytes()
        assert b"secret" not in content and b"Users" not in content and b"server" not in content, path


def test_a_public_recipe_keeps_what_is_public(run: Path) -> None:
    source = "arXiv 2210.10716, https://github.com/a/b and section 3/4"
    change_recipe(run, source=source, data={"source": "datasets", "path": "photos"})
    recipe = publish.private.public_recipe(publish.runs.load_recipe(run / "recipe.yaml"))
    assert recipe.source == source and recipe.data == {"source": "datasets", "path": "photos"}


def test_cards_escape_markdown(run: Path, tmp_path: Path) -> None:
    evil = "x` | <script>alert(1) [click](evil) # Title"
    change_recipe(run, name=evil, source=evil, objective={"name": evil, evil: evil})
    change_metadata(run / "model.safetensors", recipe=evil)
    (run / "results.json").write_text(json.dumps({f"validation_{evil}": 0.5}))
    text = publish.export_run(run, tmp_path / "out", REPO).joinpath("README.md").read_text()
    body = text.split("---\n", 2)[2]
    shown = re.sub("`[^`]*`", "", body)  # in typewriter letters nothing means anything
    assert "<script" not in shown.replace("\\<", "") and "[click](" not in shown
    for line in body.splitlines():
        assert not line.startswith("|") or line.replace("\\|", "").count("|") in (3, 7), line


def test_data_row_after_the_round_trip(run: Path, tmp_path: Path) -> None:
    """recipe.yaml is sorted by its keys, so `source` isn't the first."""
    text = publish.export_run(run, tmp_path / "out", REPO).joinpath("README.md").read_text()
    assert (
        "| Data | scenes, image_size 16 |" in text and "| Objective | cross_view_completion, color_jitter 0.1" in text
    )


# -------------------------------------------------------------------------------------------- licenses

NAMES = [
    "croco_base_patch16_224.habitat",
    "croco_base_patch16_224",
    "CroCo_Base_Patch16_224.Habitat",
    "somebody/croco_base_patch16_224.habitat",
    "somebody/croco_base_patch16_224@main",
    "/home/me/croco_base_patch16_224.habitat.safetensors",
    "weights/CroCo.pth",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["base_model", "variant", "init"])
def test_the_catalogs_license_counts(name: str, key: str) -> None:
    ancestor = ancestor_of({"license": "mit", "recipe": "mine", key: name}, "f", "")
    assert ancestor is not None and ancestor.license == "cc-by-nc-sa-4.0" and "/home" not in ancestor.name
    assert ancestor_of({"license": "mit", key: "somebody/else"}, "f", "") == (
        Ancestor("somebody/else" if key == "base_model" else "f", "mit")
    )


@pytest.mark.parametrize("license", ["mit", "apache-2.0", None])
def test_licenses_are_not_laundered(run: Path, tmp_path: Path, license: str | None) -> None:
    out = tmp_path / "out"
    about = dict(base_model="croco_base_patch16_224.habitat", license="mit")
    change_metadata(run / "model.safetensors", **about)
    if license is not None:
        with pytest.raises(PublishError, match="under cc-by-nc-sa-4.0, and keep its license"):
            publish.export_run(run, out, REPO, license=license)
    folder = publish.export_run(run, out, REPO)
    assert "license: cc-by-nc-sa-4.0" in (folder / "README.md").read_text()
    # an exported folder whose files and card say otherwise
    change_metadata(folder / "model.safetensors", **about)
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("license: cc-by-nc-sa-4.0", "license: mit"))
    with pytest.raises(PublishError, match="can't be published under mit"):
        publish.check_folder(folder)
    # what the recipe says of the start, over metadata that says nothing of it
    shutil.copyfile(run / "checkpoint.safetensors", run / "model.safetensors")
    (run / "model.safetensors").unlink()
    change_recipe(run, init="croco_base_patch16_224.habitat")
    with pytest.raises(PublishError, match="keep its license"):
        publish.export_run(run, out, REPO, license="mit")


def test_two_runs_differ(tmp_path: Path, recipe_file: Path) -> None:
    """A run that started from another of the user's own, which started at random, is free."""
    first = train(recipe_file, tmp_path / "first", **{"schedule.length": 1, "schedule.warmup": 0})
    second = train(recipe_file, tmp_path / "second", init=str(first), **{"schedule.length": 1, "schedule.warmup": 0})
    folder = publish.export_run(second, tmp_path / "out", REPO, license="mit")
    assert "license: mit" in (folder / "README.md").read_text()


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("repo", ["mypairs", "a b/c", "a/b/c", "/c", "a/", "a/b..c", "-a/b", "a/b.git", "", "ä/b"])
def test_impossible_repositories(run: Path, tmp_path: Path, repo: str) -> None:
    with pytest.raises(PublishError, match="can't be published: .*give one such as"):
        publish.export_run(run, tmp_path / "out", repo)
    result = CliRunner().invoke(app, ["push", str(run), "--repo", repo, "--dry-run"])
    assert isinstance(result.exception, PublishError)


def test_cards_say_where_the_zoo_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_REPOSITORY", raising=False)
    text = publish.export_model(tiny(), tmp_path, REPO).joinpath("README.md").read_text()
    assert "pip install pretext-zoo" not in text and "in a clone of pretext-zoo: pip install ." in text
    monkeypatch.setenv("ZOO_REPOSITORY", "https://example.org/zoo.git")
    text = publish.export_model(tiny(), tmp_path, REPO).joinpath("README.md").read_text()
    assert "pip install git+https://example.org/zoo.git" in text and "git clone https://example.org/zoo.git" in text


def test_models_that_would_not_load_back(tmp_path: Path) -> None:
    head, wide, meta = tiny(), tiny(num_classes=5), timm.create_model("croco_nano_patch8_64", device="meta")
    head.head = torch.nn.Linear(48, 10)
    wide.head = torch.nn.Linear(48, 10)
    nested = tiny(num_classes=5)
    nested.head = torch.nn.Sequential(nested.head)
    block = tiny()
    block.blocks[0] = torch.compile(block.blocks[0])
    for model, message in (
        (tiny().bfloat16(), r"is in bfloat16, .*publish model\.float\(\)"),
        (tiny().half(), "is in float16"),
        (tiny().double(), "is in float64"),
        (head, "would not load back"),
        (wide, "head.weight has the shape .10, 48. where its name and arguments give .5, 48."),
        (nested, "would not load back"),
        (block, "would not load back"),
        (meta, "meta device"),
    ):
        with pytest.raises(PublishError, match=message):
            publish.export_model(model, tmp_path, REPO)
    publish.export_model(torch.compile(tiny()), tmp_path, REPO)  # type: ignore[arg-type]  # the same weights


def test_killed_pushes_leave_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 in the middle of `zoo push`; the next one removes the copy of the weights that it has left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program = f"""
import os, signal
from zoo import publish
from zoo.publish import export
export.draw_example = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with publish.workspace() as folder:
    publish.export_run({str(run)!r}, folder, "owner/model")
"""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == -signal.SIGKILL
    assert list(temporary.rglob("model.safetensors"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with publish.workspace() as one, publish.workspace() as other:
        assert one.is_dir() and other.is_dir() and not list(temporary.rglob("model.safetensors"))
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("place", ["config.json", "card"])
def test_folders_whose_weights_say_nothing(tmp_path: Path, place: str) -> None:
    """Then the other files of an exported folder still do."""
    model = tiny()
    model.ancestor = Ancestor("somebody/theirs", "cc-by-nc-4.0" if place == "config.json" else "mit")
    folder = publish.export_model(model, tmp_path / "out", REPO)
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    save_safetensors(tensors, path, {"format": "pt"})
    base = "" if place == "config.json" else "base_model: me/croco_base_patch16_224.habitat\n"
    (folder / "README.md").write_text(f"---\nlicense: mit\n{base}---\n# Mine\n")
    with pytest.raises(PublishError, match="can't be published under mit"):
        publish.check_folder(folder)
