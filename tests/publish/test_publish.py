"""Publishing, with the real client and the test Hub: what is written, what is refused, what loads back."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

import zoo
from tests.support.hub_server import Fault, HubServer
from tests.support.publishing import ENCODER, PAIR, REPO, TINY, same, tiny, train
from zoo import publish
from zoo.catalog import Metric
from zoo.cli import app
from zoo.errors import PublishError, ZooError
from zoo.models import Ancestor, ZooModel
from zoo.train.recipe import load_recipe
from zoo.weights import sources
from zoo.weights.disk.files import sha256

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>'")

# ----------------------------------------------------------------------------------- there and back again


def test_encoder(hub: HubServer) -> None:
    model = tiny(depth=3, img_size=(24, 16), global_pool="max")
    commit = zoo.push_to_hub(model, REPO, license="mit", datasets=["imagenet-1k"])
    assert str(commit) == f"{hub.url}/{REPO}/commit/{commit.oid}" and hub.count("commit") == 1
    assert hub.listing(REPO) == ["README.md", "SHA256SUMS", "config.json", "features.png", "model.safetensors"]
    loaded = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()
    assert same(model, loaded) and loaded.patch_embed.img_size == (24, 16) and loaded.global_pool == "max"
    assert torch.equal(model(torch.ones(1, 3, 24, 16)), loaded(torch.ones(1, 3, 24, 16)))
    assert loaded.ancestor == Ancestor(REPO, "mit")
    config = json.loads(hub.read(REPO, "config.json"))
    assert config["architecture"] == ENCODER and config["num_features"] == 48 and config["num_classes"] == 0
    # all arguments, so that a change of the catalog's does not matter; and no tag that it might not know
    assert config["model_args"]["patch_size"] == 8 and config["model_args"]["pos_embed"] == "rope"
    assert "tag" not in config["pretrained_cfg"] and config["pretrained_cfg"]["license"] == "mit"

    backbone = timm.create_model(f"hf-hub:{REPO}", pretrained=True, features_only=True, img_size=32)
    assert [tuple(m.shape) for m in backbone(torch.ones(1, 3, 32, 32))] == [(1, 48, 4, 4)] * 3
    ten = timm.create_model(f"hf-hub:{REPO}", pretrained=True, num_classes=10)
    assert ten.head.out_features == 10 and torch.equal(ten.patch_embed.proj.weight, model.patch_embed.proj.weight)


PAIRS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": dict(depth=1, img_size=(48, 32), freeze_encoder=True),
    "eva02_tiny_patch14_224": dict(depth=1, img_size=28, norm_memory=False),
    ENCODER: dict(TINY, decoder_num_heads=2, pos_embed="sincos"),
}


@pytest.mark.parametrize("encoder", PAIRS)
def test_pair_on_any_encoder(encoder: str, hub: HubServer, no_pictures: None) -> None:
    """By the name of the function that makes it, and the name of its encoder, with what it was made of."""
    torch.manual_seed(0)
    pair = zoo.create_pair_model(encoder, "cat32d1", completes=False, **PAIRS[encoder]).eval()
    zoo.push_to_hub(pair, REPO)
    config = json.loads(hub.read(REPO, "config.json"))
    assert config["architecture"] == "create_pair_model" and config["model_args"]["encoder"] == encoder
    assert config["pretrained_cfg"]["mean"] == list(pair.pretrained_cfg["mean"])
    loaded = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()
    assert same(pair, loaded) and loaded.encoder_frozen == pair.encoder_frozen
    assert loaded.ancestor == Ancestor(REPO, "apache-2.0")
    images = torch.randn(2, 1, 3, *pair.encoder.patch_embed.img_size)
    assert torch.equal(pair(*images), loaded(*images))
    # published again, from what was loaded, or from an encoder that was made before
    zoo.push_to_hub(loaded, "owner/again")
    assert same(timm.create_model("hf-hub:owner/again", pretrained=True), pair)


def test_pair_on_an_encoder_that_was_made_before(hub: HubServer, no_pictures: None) -> None:
    vit = timm.create_model("vit_tiny_patch16_224.augreg_in21k", depth=1, img_size=32, num_classes=3)
    pair = zoo.create_pair_model(vit, "cross32d1")
    assert pair.ancestor == Ancestor("timm/vit_tiny_patch16_224.augreg_in21k", "apache-2.0")
    vit.pretrained_cfg["license"] = "cc-by-nc-4.0"
    pair = zoo.create_pair_model(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32), "cross32d1")
    with pytest.raises(PublishError, match=r"keep its license"):
        zoo.push_to_hub(zoo.create_pair_model(vit, "cross32d1"), REPO, license="mit")
    zoo.push_to_hub(pair, REPO)
    assert same(timm.create_model(f"hf-hub:{REPO}", pretrained=True), pair)
    assert yaml.safe_load(hub.read(REPO, "README.md").decode().split("---")[1])["base_model"].startswith(
        "timm/vit_tiny"
    )


def test_pair_whose_config_names_another_encoder(tmp_path: Path, no_pictures: None, reads: Any) -> None:
    pair = zoo.create_pair_model("vit_tiny_patch16_224", "cross32d1", depth=1, img_size=32)
    publish.export_model(pair, tmp_path, REPO)
    config = json.loads((tmp_path / "config.json").read_text())
    for encoder in ("resnet18", "create_pair_model", "/tmp", 3, "hf-hub:them/theirs"):
        config["model_args"]["encoder"] = encoder
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ZooError) as caught:
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    reads(caught.value)


def test_classifier(hub: HubServer, no_pictures: None) -> None:
    model = tiny(num_classes=7, in_chans=1)
    zoo.push_to_hub(model, REPO)
    loaded = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()
    assert same(model, loaded) and loaded(torch.ones(1, 1, 16, 16)).shape == (1, 7)
    assert ModelCard(hub.read(REPO, "README.md").decode()).data.pipeline_tag == "image-classification"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("hivit_nano_patch16_64_mae", dict(embed_dim=96, depths=(1, 1, 1))),
        ("hivit_nano_patch16_64", dict(embed_dim=96, depths=(1, 1, 1), num_classes=5)),
        (
            "itpn_base_patch16_224_clip",
            dict(embed_dim=96, depths=(1, 1, 4), num_heads=3, fpn_dim=32, teacher_dim=16, rel_pos=False),
        ),
        ("convmae_base_patch16_224", dict(embed_dim=(32, 48, 64), depths=(1, 1, 1), num_heads=4)),
        ("pirl_resnet50", dict(layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))),
        ("pirl_resnet50_mlp128", dict(layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))),
        ("crocov2_large_patch16_dec768d12_flow", dict(TINY, depth=12, decoder_dim=32, decoder_num_heads=2)),
    ],
)
def test_other_families_and_forms(tmp_path: Path, name: str, args: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sized = {} if "resnet" in name else {"img_size": 64}
    model = timm.create_model(name, **{**args, **sized})
    folder = publish.export_model(model, tmp_path, REPO)
    assert same(model, timm.create_model(f"local-dir:{folder}", pretrained=True))
    picture = publish.COMPLETION if name.endswith("_mae") else publish.FEATURES
    assert f"]({picture})" in (folder / "README.md").read_text() and (folder / picture).is_file()


def test_pair(hub: HubServer) -> None:
    model = tiny(PAIR, decoder_dim=32, decoder_depth=1, decoder_num_heads=2)
    zoo.push_to_hub(model, REPO)
    assert "completion.png" in hub.listing(REPO)
    loaded = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()
    images = torch.ones(2, 1, 3, 16, 16)
    assert same(model, loaded) and torch.equal(model(*images), loaded(*images))


def test_revisions_and_pull_requests(hub: HubServer, no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (tiny(depth=depth) for depth in (1, 2, 3))
    old = zoo.push_to_hub(first, REPO)
    zoo.push_to_hub(second, REPO, revision="deeper")
    assert len(timm.create_model(f"hf-hub:{REPO}", pretrained=True).blocks) == 1
    assert same(second, timm.create_model(f"hf-hub:{REPO}@deeper", pretrained=True))
    monkeypatch.setenv("HF_TOKEN", hub.guest_token)
    with pytest.raises(
        PublishError, match=r"^owner/model can't be published: your login may not do that.* ask its owner"
    ):
        zoo.push_to_hub(third, REPO)
    proposed = zoo.push_to_hub(third, REPO, create_pr=True)
    assert proposed.pr_url == f"{hub.url}/{REPO}/discussions/1"
    assert same(third, timm.create_model(f"hf-hub:{REPO}@{proposed.pr_revision}", pretrained=True))
    assert same(first, timm.create_model(f"hf-hub:{REPO}@{old.oid}", pretrained=True))


# ---------------------------------------------------------------------------------- cards and the folder


def test_folder(tmp_path: Path) -> None:
    metric = Metric("optical flow", "Sintel", "EPE", 1.25, "clean pass", "us")
    model = tiny()
    model.ancestor = Ancestor("them/theirs", "cc-by-nc-sa-4.0")
    folder = publish.export_model(model, tmp_path / "out", "me/mine", datasets=["imagenet-1k"], metrics=[metric])
    card = ModelCard.load(folder / "README.md")
    card.data.eval_results = card.data.eval_results  # parsed from the model-index
    data = card.data
    assert data.license == "cc-by-nc-sa-4.0" and data.library_name == "timm" and data.base_model == "them/theirs"
    assert data.pipeline_tag == "image-feature-extraction" and data.datasets == ["imagenet-1k"]
    assert {"timm", "pretext-zoo", "croco"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.task_type, result.dataset_name, result.metric_value) == ("optical-flow", "Sintel", 1.25)
    assert 'timm.create_model("hf-hub:me/mine", pretrained=True)' in card.text
    for line in card.text.splitlines():
        if line.startswith("!["):
            Image.open(folder / line.partition("(")[2].rstrip(")")).verify()
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    with safe_open(folder / "model.safetensors", "pt") as file:
        about = file.metadata()
    assert about["license"] == "cc-by-nc-sa-4.0" and about["base_model"] == "them/theirs"
    # the same model gives the same bytes
    again = publish.export_model(model, tmp_path / "again", "me/mine", datasets=["imagenet-1k"], metrics=[metric])
    assert (folder / "SHA256SUMS").read_text() == (again / "SHA256SUMS").read_text()


def test_edited_folder(hub: HubServer, tmp_path: Path, no_pictures: None) -> None:
    folder = publish.export_model(tiny(), tmp_path / "out", REPO)
    (folder / "secrets.env").write_text("PASSWORD=1")
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nMore about it.\n")
    result = CliRunner().invoke(app, ["push", str(folder), "--repo", REPO])
    assert result.exit_code == 0, result.output
    assert b"More about it." in hub.read(REPO, "README.md") and "secrets.env" not in hub.listing(REPO)
    assert f"{sha256(card)}  README.md" in hub.read(REPO, "SHA256SUMS").decode()

    card.write_text(card.read_text().replace("license: apache-2.0", "license: [a, b]"))
    with pytest.raises(PublishError, match="names no license"):
        publish.check_folder(folder)
    card.write_text("---\nlicense: mit\n---\n")
    publish.check_folder(folder)  # from scratch: under whatever they like
    with pytest.raises(PublishError, match="says that the license is mit, not apache-2.0"):
        publish.check_folder(folder, "apache-2.0")
    card.unlink()
    with pytest.raises(PublishError, match=r"has no README\.md"):
        publish.check_folder(folder)


# ------------------------------------------------------------------------------------------------- runs


def test_finished_run(hub: HubServer, tmp_path: Path, recipe_file: Path) -> None:
    run = train(recipe_file, tmp_path / "run")
    result = CliRunner().invoke(app, ["push", str(run), "--repo", REPO, "--private"])
    assert result.exit_code == 0, result.output
    assert f"{hub.url}/{REPO}/commit/" in result.output and hub.repos[REPO].private
    assert {"recipe.yaml", "loss.png", "completion.png"} <= set(hub.listing(REPO))
    card = hub.read(REPO, "README.md").decode()
    assert "trained by pretext-zoo's recipe `tiny_pair`" in card and "| Steps | 4 of 2 samples |" in card
    assert "not finished" not in card and "They started at random." in card
    loaded: Any = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    with safe_open(run / "model.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(key), value) for key, value in loaded.state_dict().items())
    again = yaml.safe_load(hub.read(REPO, "recipe.yaml"))
    assert again["model_args"]["embed_dim"] == 48


def test_run_of_a_pair_on_any_encoder(hub: HubServer, tmp_path: Path, recipe_file: Path) -> None:
    vit = dict(encoder="vit_tiny_patch16_224", patch_size=8, depth=1, img_size=16)
    pair = {"model": "create_pair_model", "model_args": dict(vit, decoder="cross32d1"), "schedule.length": 2}
    run = train(recipe_file, tmp_path / "run", **pair)
    result = CliRunner().invoke(app, ["push", str(run), "--repo", REPO])
    assert result.exit_code == 0, result.output
    assert {"recipe.yaml", "loss.png", "completion.png"} <= set(hub.listing(REPO))
    card = hub.read(REPO, "README.md").decode()
    assert "`create_pair_model`" in card and "vit_tiny_patch16_224" in card and "They started at random." in card
    loaded: Any = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    with safe_open(run / "model.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(key), value) for key, value in loaded.state_dict().items())


def test_interrupted_run(hub: HubServer, tmp_path: Path, recipe_file: Path, no_pictures: None) -> None:
    run = train(recipe_file, tmp_path / "run")
    (run / "model.safetensors").unlink()
    (run / "loss.png").unlink()
    result = CliRunner().invoke(app, ["push", str(run), "--repo", REPO])
    assert result.exit_code == 0, result.output
    assert "the run was not finished" in hub.read(REPO, "README.md").decode() and "loss.png" in hub.listing(REPO)
    loaded: Any = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    with safe_open(run / "checkpoint.safetensors", "pt") as file:
        state = loaded.state_dict()
        assert all(torch.equal(file.get_tensor(f"objective.model.{key}"), value) for key, value in state.items())
    (run / "checkpoint.safetensors").unlink()
    with pytest.raises(PublishError, match="has saved no weights yet"):
        publish.export_run(run, tmp_path / "out", REPO)
    with pytest.raises(PublishError, match="holds neither a training run"):
        publish.export_run(tmp_path, tmp_path / "out", REPO)


def test_dry_run(tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    monkeypatch.setattr(publish.hub, "HfApi", None)  # no network
    run = train(recipe_file, tmp_path / "run", **{"schedule.length": 1, "schedule.warmup": 0})
    kept = tmp_path / "kept"
    result = CliRunner().invoke(app, ["push", str(run), "--repo", REPO, "--dry-run", "-o", str(kept)])
    assert result.exit_code == 0, result.output
    for name in ("README.md", "config.json", "model.safetensors", "recipe.yaml", "loss.png", "SHA256SUMS"):
        assert f"{(kept / name).stat().st_size:,} bytes" in result.output and name in result.output
    assert (kept / "README.md").read_text() in result.output
    assert result.output.endswith(f"Nothing was uploaded to {REPO}.\n")


def test_figures_and_classes_of_a_run(tmp_path: Path, recipe_file: Path, no_pictures: None) -> None:
    recipe = load_recipe(recipe_file, {"validation": {"source": "folder", "path": "/data/rooms/val"}})
    results = dict(step=4, validation_top1=0.75, classes=["hall", "attic"])
    metrics = publish.runs._figures(recipe, results)
    run = publish.Run(recipe, [], 4, True, tuple(results["classes"]), metrics)
    folder = publish.export_model(tiny(num_classes=2), tmp_path / "out", REPO, metrics=metrics, run=run)
    assert json.loads((folder / "config.json").read_text())["label_names"] == ["hall", "attic"]
    (figure,) = ModelCard.load(folder / "README.md").data.eval_results
    assert (figure.dataset_name, figure.metric_type, figure.metric_value) == ("val", "top1", 0.75)


def test_data_folders_are_nobodys_business(tmp_path: Path, recipe_file: Path) -> None:
    data = {"source": "pairs", "path": "/home/me/photos,/data/more"}
    again = publish.private.public_recipe(load_recipe(recipe_file, {"data": data, "init": "/home/me/runs/first"}))
    assert again.data["path"] == "photos,more" and again.init == "first"


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(tmp_path: Path, value: float) -> None:
    model = tiny()
    model.blocks[1].mlp.fc1.weight.data[0, 0] = value
    with pytest.raises(PublishError, match=r"^blocks\.1\.mlp\.fc1\.weight holds 1 values that are NaN or infinite"):
        publish.export_model(model, tmp_path, REPO)


def test_would_not_load_back(tmp_path: Path) -> None:
    longer = tiny()
    longer.blocks.append(tiny().blocks[0])
    other = tiny()
    other.blocks[0].mlp.act = torch.nn.Tanh()
    odd = tiny()
    odd._model_args["norm_layer"] = torch.nn.LayerNorm
    built = type(tiny())(**TINY)
    wrapped = tiny(features_only=True, depth=3)
    pair = zoo.create_pair_model(type(tiny())(**TINY), "cross32d1", decoder_num_heads=2)
    for model, message in (
        (longer, "would not load back: .*blocks.2"),
        (other, r"would not load back: made again from its name and arguments, it gives other outputs \(by"),
        (odd, "would not load back: Model argument 'norm_layer' is not serializable"),
        (built, "This CrocoEncoder was not made by timm.create_model"),
        (wrapped, "This FeatureGetterNet was not made by timm.create_model"),
        (pair, "This PairModel was not made by timm.create_model"),
    ):
        with pytest.raises(PublishError, match=message):
            publish.export_model(model, tmp_path, REPO)


def test_training_mode_and_dropout_do_not_matter(tmp_path: Path, no_pictures: None) -> None:
    model = tiny(drop_path_rate=0.5).train()
    publish.export_model(model, tmp_path, REPO)
    assert model.training and model.blocks[0].training


def test_licenses(tmp_path: Path, hub: HubServer, recipe_file: Path, no_pictures: None) -> None:
    """Weights that started from others keep their license, through files, runs and the Hub."""
    theirs = Ancestor("them/theirs", "cc-by-nc-4.0")
    assert publish.choose_license(None, None) == "apache-2.0" and publish.choose_license("MIT", None) == "mit"
    assert publish.choose_license(None, theirs) == publish.choose_license("CC-BY-NC-4.0", theirs) == "cc-by-nc-4.0"
    assert publish.choose_license("other", Ancestor("a", "mit")) == "other"
    with pytest.raises(PublishError, match="them/theirs, which is under cc-by-nc-4.0, and keep its license"):
        publish.choose_license("apache-2.0", theirs)
    with pytest.raises(PublishError, match="doesn't say under which license"):
        publish.choose_license("mit", Ancestor("a/b", ""))

    model = tiny(PAIR, decoder_dim=32, decoder_depth=1, decoder_num_heads=2)
    model.ancestor = theirs
    zoo.push_to_hub(model, REPO)
    # a model that started from it, and a run that did
    tuned: Any = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    with pytest.raises(PublishError, match=f"started from {REPO}, which is under cc-by-nc-4.0"):
        zoo.push_to_hub(tuned, "owner/tuned", license="mit")
    zoo.push_to_hub(tuned, "owner/tuned")
    data = ModelCard(hub.read("owner/tuned", "README.md").decode()).data
    assert data.license == "cc-by-nc-4.0" and data.base_model == REPO

    weights = publish.export_model(model, tmp_path / "out", REPO) / "model.safetensors"
    run = train(recipe_file, tmp_path / "run", init=str(weights))
    train(recipe_file, tmp_path / "other", init=str(weights))
    with pytest.raises(PublishError, match="started from them/theirs, which is under cc-by-nc-4.0"):
        publish.export_run(tmp_path / "other", tmp_path / "out", REPO, license="mit")
    for name in ("model.safetensors", "checkpoint.safetensors"):  # finished, and as if it had been interrupted
        assert (run / name).is_file()
        with pytest.raises(PublishError, match="started from them/theirs, which is under cc-by-nc-4.0"):
            publish.export_run(run, tmp_path / "out", REPO, license="mit")
        folder = publish.export_run(run, tmp_path / "out", REPO)
        assert ModelCard.load(folder / "README.md").data.license == "cc-by-nc-4.0"
        (run / name).unlink()
    # the card can't say otherwise
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: cc-by-nc-4.0", "license: mit"))
    with pytest.raises(PublishError, match="keep its license, so they can't be published under mit"):
        publish.check_folder(folder)


def test_license_of_a_run_that_did_not_record_it(tmp_path: Path, recipe_file: Path) -> None:
    run = train(recipe_file, tmp_path / "run", **{"schedule.length": 1, "schedule.warmup": 0})
    settings = yaml.safe_load((run / "recipe.yaml").read_text())
    settings["model_args"]["pretrained"] = True
    (run / "recipe.yaml").write_text(yaml.safe_dump(settings))
    model: Any = publish.runs._model_of_run(load_recipe(run / "recipe.yaml"), run / "model.safetensors")
    assert model.ancestor == Ancestor(f"{PAIR}.scenes_rich", "apache-2.0")


def test_a_checkpoint_of_the_authors_keeps_their_license(tmp_path: Path) -> None:
    name, args = "crocov2_base_patch16_224", dict(embed_dim=48, depth=1, num_heads=3, img_size=32)
    torch.save({"model": timm.create_model(name, **args).state_dict()}, tmp_path / "mine.pth")
    overlay = dict(file=str(tmp_path / "mine.pth"))
    model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **args)
    assert isinstance(model, ZooModel) and model.ancestor == Ancestor("mine.pth", "cc-by-nc-sa-4.0")
    assert timm.create_model(name, **args).ancestor is None


# -------------------------------------------------------------------------------- what is there already


def test_other_files_are_not_overwritten(hub: HubServer, no_pictures: None) -> None:
    hub.add_repo(REPO, {"README.md": b"# Mine\n", "config.json": b"{}", "notes.txt": b"keep"})
    with pytest.raises(
        PublishError, match=r"owner/model has README\.md, config\.json with contents that `zoo push` did"
    ):
        zoo.push_to_hub(tiny(), REPO)
    assert hub.read(REPO, "README.md") == b"# Mine\n" and hub.count("commit") == 0
    zoo.push_to_hub(tiny(), REPO, force=True)
    # what is ours may be replaced, and what is no longer there is removed
    hub.add_files(REPO, {"SHA256SUMS": hub.read(REPO, "SHA256SUMS") + f"{'0' * 64}  notes.txt\n".encode()})
    zoo.push_to_hub(tiny(depth=3), REPO)
    assert len(timm.create_model(f"hf-hub:{REPO}", pretrained=True).blocks) == 3
    assert hub.read(REPO, "notes.txt") == b"keep"
    # an edit on the Hub is somebody's work
    hub.add_files(REPO, {"README.md": hub.read(REPO, "README.md") + b"Edited on the Hub.\n"})
    with pytest.raises(PublishError, match=r"has README\.md with contents"):
        zoo.push_to_hub(tiny(), REPO)


def test_stale_files_go(hub: HubServer, tmp_path: Path, no_pictures: None) -> None:
    folder = publish.export_model(tiny(), tmp_path / "out", REPO)
    (folder / "features.png").write_bytes(b"\x89PNG\0")
    publish.write_sums(folder)
    publish.upload(folder, REPO)
    (folder / "features.png").unlink()
    publish.write_sums(folder)
    publish.upload(folder, REPO)
    assert hub.listing(REPO) == ["README.md", "SHA256SUMS", "config.json", "model.safetensors"]
    assert hub.count("commit") == 2


def test_a_change_in_between_is_not_overwritten(hub: HubServer, no_pictures: None) -> None:
    zoo.push_to_hub(tiny(), REPO)

    def answer(body: bytes) -> bytes:
        hub.add_files(REPO, {"other": b"change"})
        return body

    hub.faults.append(Fault("preupload", change=answer))
    with pytest.raises(PublishError, match="somebody has changed it meanwhile: try again"):
        zoo.push_to_hub(tiny(depth=1), REPO)
    zoo.push_to_hub(tiny(depth=1), REPO)


def test_public_repository_is_not_taken_for_a_private_one(hub: HubServer, no_pictures: None) -> None:
    hub.add_repo(REPO)
    with pytest.raises(PublishError, match=f"is there and public; make it private at {hub.url}/{REPO}/settings"):
        zoo.push_to_hub(tiny(), REPO, private=True)
    assert hub.listing(REPO) == []


# ---------------------------------------------------------------------------------------- logins, faults


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (None, REPO, "does not accept your token: log in with `hf auth login` or set HF_TOKEN"),
        ("hf_wrong", REPO, "does not accept your token: log in"),
        (HubServer.guest_token, REPO, "your login may not do that"),
        (HubServer.owner_token, "a/b/c", "can't be published: "),
    ],
)
def test_who_may_not(
    hub: HubServer, no_pictures: None, monkeypatch: pytest.MonkeyPatch, token: str | None, repo: str, message: str
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match=message) as caught:
        zoo.push_to_hub(tiny(), repo)
    assert "\n" not in str(caught.value) and "hf_" not in str(caught.value)


def test_tokens_are_neither_printed_nor_written(
    hub: HubServer, tmp_path: Path, recipe_file: Path, no_pictures: None, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(recipe_file, tmp_path / "run", **{"schedule.length": 1, "schedule.warmup": 0})
    arguments = ["push", str(run), "--repo", REPO, "-o", str(tmp_path / "kept")]
    with caplog.at_level("DEBUG"):
        result = CliRunner().invoke(app, arguments)
        failed = CliRunner().invoke(app, [*arguments, "--revision", "no/such..branch~"])
    assert result.exit_code == 0 and hub.owner_token not in result.output + failed.output + caplog.text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or hub.owner_token.encode() not in path.read_bytes(), path


def test_hub_out_of_order(hub: HubServer, no_pictures: None) -> None:
    hub.faults.append(Fault("commit", times=None, status=503))
    with pytest.raises(PublishError, match=r"owner/model can't be published: the Hub is out of order \(HTTP 503\)"):
        zoo.push_to_hub(tiny(), REPO)
    hub.faults.clear()
    hub.faults.append(Fault("lfs_*", method="PUT", status=400, body=b"no"))
    with pytest.raises(PublishError, match="owner/model can't be published: HTTP 400"):
        zoo.push_to_hub(tiny(depth=1), REPO)
    hub.stop()
    with pytest.raises(PublishError, match=f"{hub.url} can't be reached"):
        zoo.push_to_hub(tiny(), REPO)


def test_pinned_ancestors_have_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LOCK_FILE", tmp_path / "lock.json")
    assert publish.card._hub_repository("croco.habitat") is None and publish.card._hub_repository("a/b") == "a/b"
    sources.LOCK_FILE.write_text(json.dumps({"croco.habitat": {"repo": "org/croco"}}))
    assert publish.card._hub_repository("croco.habitat") == "org/croco"
