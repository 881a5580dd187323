"""Fine-tuning and linear probes: they learn, resume bit by bit, start from pretraining, and are validated exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.support.two_processes import in_two_processes
from tests.train.data.test_images import png, write_shard
from zoo.errors import CheckpointMismatchError, DataError, RecipeError, UnknownVariantError
from zoo.train.build import make_model, make_objective, make_optimizer, make_source
from zoo.train.data import shards as shards_module
from zoo.train.data.loading import seed_python
from zoo.train.data.sources import make_source as source_of
from zoo.train.engine import train
from zoo.train.objectives.labels.classify import Classification, LabeledTransform, LinearProbe, _posterize
from zoo.train.recipe import Recipe, load_recipe
from zoo.train.run import Run, read_log
from zoo.train.schedule import make_plan

TINY = dict(embed_dim=32, depth=2, num_heads=2, img_size=32)
ALL_RANDOMNESS = dict(
    name="classification", mixup=0.8, cutmix=1.0, erasing=0.5, augment="rand-m9-mstd0.5-inc1", color_jitter=0.2
)


def tiny(**changes) -> Recipe:
    settings = dict(
        model_args=TINY | dict(num_classes=8, drop_path_rate=0.1),
        init="",
        data=dict(source="patterns", samples=64, image_size=32),
        validation=dict(samples=13),
        batch_size=8,
        schedule=dict(unit="steps", warmup=0, length=8, validate_every=4),
        log_steps=2,
        checkpoint_steps=4,
    )
    return load_recipe("classify_nano", settings | changes)


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reddish and bluish pictures, in two folders for each split."""
    root = tmp_path_factory.mktemp("colors")
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 5)):
        for channel, name in ((0, "red"), (2, "blue")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 150, (36, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    return root


def on_colors(colors: Path, **changes) -> Recipe:
    settings = dict(
        model_args=TINY | dict(num_classes=2),
        data=dict(source="images", path=str(colors)),
        validation=dict(split="val"),
        **{"schedule.unit": "epochs", "schedule.length": 6, "schedule.validate_every": 3},
    )
    return tiny(**settings | changes)


def test_fine_tuning_learns(colors: Path, tmp_path: Path) -> None:
    train(on_colors(colors), tmp_path, workers=0, progress=False)
    rows = read_log(tmp_path)
    assert rows[-1]["loss"] < 0.5 < rows[0]["loss"]
    validated = {row["step"]: row["validation_top1"] for row in rows if "validation_top1" in row}
    assert validated.keys() == {12, 24} and validated[24] == 100
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["step"] == 24 and results["validation_top1"] == 100 and results["classes"] == ["blue", "red"]
    assert results["validation_loss"] < 0.5
    overlay = dict(file=str(tmp_path / "model.safetensors"))
    timm.create_model("croco_nano_patch8_64", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=2, **TINY)


def train_until_saved(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a run, which ends abruptly behind its first checkpoint."""
    save = Run.save

    def save_and_die(run, step, *state):
        save(run, step, *state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, folder, workers=0, progress=False)


def test_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything that is random: mixing, erasing, RandAugment, dropped paths."""
    recipe = tiny(objective=ALL_RANDOMNESS)
    train(recipe, tmp_path / "whole", workers=0, progress=False)
    train_until_saved(recipe, tmp_path / "cut", monkeypatch)
    assert read_log(tmp_path / "cut")[-1]["step"] == 4
    train(recipe, tmp_path / "cut", workers=1, progress=False)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    results = [(tmp_path / name / "results.json").read_text() for name in ("whole", "cut")]
    assert results[0] == results[1]


def test_killed_run_on_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of WebDataset shards, cut in the middle: every image is read once, shard after shard."""
    for shard in range(4):
        members = {}
        for i in range(4):
            members |= {f"{i}.png": png(16 * shard + i), f"{i}.cls": str(i % 2).encode()}
        write_shard(tmp_path / f"{shard}.tar", members)
    monkeypatch.setattr(shards_module, "WINDOW", 1)
    read: list[int] = []
    give = shards_module.ImageShards.__getitem__
    monkeypatch.setattr(shards_module.ImageShards, "__getitem__", lambda self, i: read.append(i) or give(self, i))
    settings = dict(data=dict(source="webdataset", path=str(tmp_path)), validation={}, batch_size=2, checkpoint_steps=3)
    recipe = tiny(**settings, **{"schedule.unit": "epochs", "schedule.length": 1})
    train_until_saved(recipe, tmp_path / "run", monkeypatch)
    assert len(read) == 6
    train(recipe, tmp_path / "run", workers=0, progress=False)
    assert sorted(read) == list(range(16))
    shards = [i // 4 for i in read]
    assert all(len(set(shards[first : first + 4])) == 1 for first in range(0, 16, 4))
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_layer_decay() -> None:
    recipe = tiny(**{"optimizer.layer_decay": 0.5})
    objective = make_objective(recipe, make_source(recipe))
    scales = {
        id(parameter): group["lr_scale"]
        for group in make_optimizer(recipe, objective).param_groups
        for parameter in group["params"]
    }
    of = {name: scales[id(parameter)] for name, parameter in objective.model.named_parameters()}
    assert of["head.weight"] == 1.0
    assert of["patch_embed.proj.weight"] < of["blocks.0.mlp.fc1.weight"] < of["blocks.1.mlp.fc1.weight"] < 1
    assert of["blocks.0.mlp.fc1.weight"] == of["blocks.1.mlp.fc1.weight"] / 2


@pytest.mark.parametrize("model", ["croco_nano_patch8_64", "resnet10t"])
def test_linear_probe_leaves_the_backbone(colors: Path, tmp_path: Path, model: str) -> None:
    """Batch statistics included, and what it gives computes what was validated."""
    recipe = on_colors(
        colors,
        model=model,
        model_args=dict(num_classes=2) | (TINY if model.startswith("croco") else {}),
        objective=dict(name="linear_probe"),
        optimizer=dict(name="lars", lr=3.0, momentum=0.9, weight_decay=0.0),
        validation={},
        **{"schedule.length": 2},
    )
    before = make_model(recipe).state_dict()
    objective = make_objective(recipe, make_source(recipe))
    assert isinstance(objective, LinearProbe)
    train(recipe, tmp_path, workers=0, progress=False)
    after = load_file(tmp_path / "model.safetensors")
    head = objective.model.pretrained_cfg["classifier"] + "."
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {head + "weight", head + "bias"}

    state = load_file(tmp_path / "checkpoint.safetensors")
    objective.load_state_dict({key[10:]: value for key, value in state.items() if key.startswith("objective.")})
    objective.eval()
    trained = make_model(recipe).eval()
    trained.load_state_dict(after)
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(trained(x), objective.logits(x), rtol=1e-4, atol=1e-5)
    rows = read_log(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_hits_are_counted() -> None:
    recipe = tiny()
    objective = make_objective(recipe, make_source(recipe))
    assert isinstance(objective, Classification)
    logits = torch.eye(8)[:4] + 0.1 * torch.arange(8.0)
    objective.logits = lambda images: logits
    batch = dict(image=torch.zeros(4, 3, 32, 32, dtype=torch.uint8), label=torch.tensor([0, 1, 7, 4]))
    loss, top1, top5 = objective.judge(batch).tolist()
    assert (top1, top5) == (200.0, 400.0) and loss > 0
    batch["label"] = torch.tensor([1, 2, 4, 0])
    assert objective.judge(batch).tolist()[1:] == [0.0, 100.0], "4 is the fifth best of the third image"


def validated(folder: Path) -> None:
    """One step that changes nothing, then the validation."""
    recipe = tiny(
        data=dict(source="patterns", samples=8, image_size=32),
        schedule=dict(unit="steps", warmup=1, length=1),
        validation=dict(samples=29),
    )
    train(recipe, folder, workers=0, progress=False)


def test_two_processes_validate_the_same(tmp_path: Path) -> None:
    validated(tmp_path / "one")
    test = "tests.train.objectives.labels.test_classify"
    program = f"from {test} import Path, validated\nvalidated(Path({str(tmp_path / 'two')!r}))"
    in_two_processes(program)
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["validation_top1"] == two["validation_top1"] and one["validation_top5"] == two["validation_top5"]
    assert 0 < one["validation_top5"] < 100
    assert one["validation_loss"] == pytest.approx(two["validation_loss"], rel=1e-5)


# ------------------------------------------------------------------------------------- from pretraining


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pretraining run of the same encoder."""
    folder = tmp_path_factory.mktemp("pretraining")
    recipe = load_recipe(
        "croco_nano",
        dict(
            model_args=TINY | dict(decoder_dim=32, decoder_depth=1, decoder_num_heads=2),
            data=dict(source="scenes", image_size=32),
            batch_size=2,
            schedule=dict(unit="steps", warmup=0, length=1),
        ),
    )
    train(recipe, folder, workers=0, progress=False)
    return folder


def test_fine_tuning_starts_from_a_run(pretraining: Path, tmp_path: Path) -> None:
    recipe = tiny(init=str(pretraining), **{"schedule.length": 2})
    there = load_file(pretraining / "model.safetensors")
    model = make_model(recipe)
    for key, value in model.state_dict().items():
        assert key.startswith("head.") or torch.equal(value, there[f"encoder.{key}"])
    again = make_model(recipe)
    assert torch.equal(model.head.weight, again.head.weight), "drawn with the recipe's seed"
    train(recipe, tmp_path, workers=0, progress=False)
    assert load_recipe(tmp_path / "recipe.yaml").init == str(pretraining)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["init"] == str(pretraining)


def test_wrong_starts(pretraining: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no weights .*nowhere\.safetensors"):
        make_model(tiny(init=str(tmp_path / "nowhere.safetensors")))
    with pytest.raises(RecipeError, match=r"no model\.safetensors"):
        make_model(tiny(init=str(tmp_path)))
    with pytest.raises(UnknownVariantError, match="croco_nano"):
        make_model(tiny(init="croco_nano_patch8"))
    with pytest.raises(CheckpointMismatchError, match="width"):
        make_model(tiny(init=str(pretraining), **{"model_args.embed_dim": 64}))
    with pytest.raises(UnknownVariantError, match="resnet10t"):
        make_model(tiny(init=str(pretraining), model="resnet10t", model_args={}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": dict(source="scenes", image_size=32)}, "no labels"),
        ({"model_args.num_classes": 5}, r"8 classes and the model has 5; set model_args\.num_classes=8"),
        ({"validation": dict(seed=3)}, "unknown settings data.seed"),
        ({"validation": dict(samples=2**62)}, r"validation\.samples"),
        ({"objective.splat": 1}, "unknown settings objective.splat"),
        ({"objective.mixup": 1.0, "batch_size": 3}, "even"),
        ({"validation": dict(source="scenes", samples=2)}, "of 0 classes, are not of those"),
    ],
)
def test_wrong_recipes(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        train(tiny(**changes), tmp_path, workers=0, progress=False)


def test_other_classes_are_not_validated_on(colors: Path, tmp_path: Path) -> None:
    for name in ("red", "green"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), name).save(tmp_path / "val" / name / "a.png")
    with pytest.raises(RecipeError, match="not of those that are trained on"):
        train(on_colors(colors, validation=dict(path=str(tmp_path), split="val")), tmp_path / "run", progress=False)


@pytest.mark.parametrize("name", ["convmae_base_finetune", "convmae_base_linear"])
def test_published_recipes(colors: Path, name: str) -> None:
    """Their settings fit, on a small model."""
    changes = dict(model="croco_nano_patch8_64", model_args=TINY | dict(num_classes=2), init="")
    recipe = load_recipe(name, changes | {"data.path": str(colors), "batch_size": 32})
    source = make_source(recipe)
    objective = make_objective(recipe, source)
    assert make_plan(recipe, len(source)).validate_every == 1, "an epoch"
    make_optimizer(recipe, objective)
    rows = [objective.transform(source[i], i) for i in range(4)]
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (4, 3, 32, 32)
    objective(batch)["loss"].backward()
    assert objective.model.head.weight.grad is not None


def test_tasks_of_a_whole_data_set_are_not_validated(tmp_path: Path) -> None:
    recipe = load_recipe("pirl_nano", {"validation": dict(samples=4)})
    with pytest.raises(RecipeError, match="Pirl has nothing to validate"):
        train(recipe, tmp_path, workers=0, progress=False)


# ------------------------------------------------------------------------- classifiers of frozen networks


def test_plain_probe(colors: Path, tmp_path: Path) -> None:
    """Without a norm the classifier that is trained is the one that is written."""
    recipe = on_colors(colors, objective=dict(name="linear_probe", norm=False), optimizer=dict(name="momentum", lr=1.0))
    objective = make_objective(recipe, make_source(recipe))
    assert isinstance(objective, LinearProbe) and objective.norm is None
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(objective.eval().logits(images), objective.trained().eval()(images))


RESNET = dict(model="pirl_resnet50", model_args=dict(layers=(1, 1, 1, 1), channels=(4, 8, 8, 16), num_classes=2))


def test_linear_heads(colors: Path, tmp_path: Path) -> None:
    """Seven classifiers learn at once; the trained model has the average's, with the norm in it."""
    optimizer = dict(name="sgd", lr=0.05, momentum=0.9)
    recipe = on_colors(colors, **RESNET, objective=dict(name="linear_heads", scale=[0.5, 1.0]), optimizer=optimizer)
    train(recipe, tmp_path, workers=0, progress=False)
    last = read_log(tmp_path)[-1]
    heads = {key for key in last if key.startswith("validation_top1_")}
    assert len(heads) == 7 and last["validation_top1"] == max(last[key] for key in heads) > 80
    start, trained = (
        make_objective(recipe, make_source(recipe)).model.state_dict(),
        load_file(tmp_path / "model.safetensors"),
    )
    assert all(torch.equal(trained[key], start[key]) for key in start if not key.startswith("fc."))

    objective = make_objective(recipe, make_source(recipe)).eval()
    for module in objective.heads.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 1), module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2), module.bias.data.uniform_(-1, 1)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(objective.all_logits(images)["avgpool"], objective.trained().eval()(images))
    with pytest.raises(RecipeError, match="use linear_probe"):
        recipe = on_colors(colors, objective=dict(name="linear_heads"))
        make_objective(recipe, make_source(recipe))


def test_pooled_to_about_9000_numbers() -> None:
    model = timm.create_model("pirl_resnet50", num_classes=2, device="meta")
    recipe = load_recipe("pirl_resnet50_linear", {"data": dict(source="patterns", samples=8), "validation": {}})
    with torch.device("meta"):
        objective = make_objective(recipe, make_source(recipe), timm.create_model("pirl_resnet50", num_classes=8))
    sizes = {name: head[0].num_features for name, head in objective.heads.items() if name != "avgpool_plain"}
    assert sizes == dict(conv1=9216, res2=9216, res3=8192, res4=9216, res5=8192, avgpool=2048)
    assert model.num_classes == 2


def test_share_of_the_labels(colors: Path, tmp_path: Path) -> None:
    """A list names the images to take, with or without their folders; the classes stay those of all."""
    (tmp_path / "share.txt").write_text("red/0.jpg\nred/3.jpg\n\n")
    settings = dict(source="images", path=str(colors), names=str(tmp_path / "share.txt"))
    source = source_of(settings, 0, "image")
    assert len(source) == 2 and source.classes == ("blue", "red") and source[1]["label"] == 1
    (tmp_path / "share.txt").write_text("0.jpg\n")
    with pytest.raises(DataError, match="2 images are those of the 1 names"):
        source_of(settings, 0, "image")
    (tmp_path / "share.txt").write_text("99.jpg\n")
    with pytest.raises(DataError, match="0 images are those of the 1 names"):
        source_of(settings, 0, "image")
    with pytest.raises(DataError, match="can't be read"):
        source_of(settings | dict(names=str(tmp_path / "none.txt")), 0, "image")


def test_strongest_posterizing() -> None:
    """A magnitude of 10 leaves no bits, which Pillow 13 refuses; a recipe's rand-m9-mstd0.5 draws one now and then."""
    transform = LabeledTransform((8, 8), is_training=True, auto_augment="rand-m10-n9-p1-inc1", color_jitter=0.0)
    image = np.full((8, 8, 3), 200, dtype=np.uint8)
    seen = set()
    for seed in range(40):
        seed_python(seed)
        torch.manual_seed(seed)
        seen.add(int(transform(dict(image=image, label=0), seed)["image"].max()))
    assert 0 in seen
    black = _posterize(Image.fromarray(image), 0)
    assert not np.asarray(black).any() and np.asarray(_posterize(Image.fromarray(image), 1)).max() == 128
