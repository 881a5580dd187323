"""What a second view teaches: CroCo, a masked autoencoder and an untrained network of one size, on tasks in 3D.

One command trains what isn't trained yet, measures, and writes a table, a plot and all numbers:

    zoo eval ordering --output docs/3d_ordering.md                              # the whole: hours of a CPU
    zoo eval ordering --steps 600 --seeds 1 --flow-steps 100 --output short.md  # a look at it
    zoo eval ordering --croco RUN --mae RUN --output mine.md                    # of two finished trainings

The tasks, all on scenes that no training saw:

- matching: share of the patches that both views show whose best match, by cosine of frozen tokens, lies within a
  patch width of the truth
- depth: R2 of a ridge regression from a patch's frozen token to its mean log depth
- flow: end-point error in pixels of encoder, two-image decoder and a linear head after a short fine-tuning
- shape: accuracy of nearest neighbors, by frozen mean tokens of single images, in telling whether a room holds
  nothing, a box or a ball
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from zoo.errors import TrainingError
from zoo.evaluate.pairs import BATCH, HELD_OUT_SEED, match_hits, scene_pairs
from zoo.evaluate.runs import TrainedModel, load_run
from zoo.layers.patchify import patchify, unpatchify
from zoo.models.croco import PairModel
from zoo.scenes import Scene, SceneConfig, sample_scene
from zoo.scenes.torch.draw import draw_scenes
from zoo.scenes.torch.render import draw_batch, render, render_views, stack_scenes
from zoo.train import engine
from zoo.train.curriculum import scaled
from zoo.train.data.sources import make_source
from zoo.train.recipe import Recipe, load_recipe
from zoo.train.run import read_log
from zoo.weights.disk.files import write_json

PAIR = "croco_nano_patch8_64_dec128d4"
RECIPES = dict(CroCo="croco_{}", MAE="mae_{}")  # of a kind: nano, for a CPU, or nano_rich, for a GPU
UNTRAINED = "untrained"
TRAIN_SEED = HELD_OUT_SEED + 1  # of the scenes that probes and fine-tuning learn from
SHAPES = {"nothing": slice(1, 1), "a box": slice(1, 6), "a ball": slice(6, 9)}  # rows in a scene's solids


@dataclass(frozen=True)
class Sizes:
    """How much is measured with. pairs: scenes to match in. depth_scenes: to learn depth from, half as many to test
    on. flow_steps, flow_batch: of the fine-tuning; flow_pairs: scenes to test on. shape_images: to learn shapes from,
    half as many to test on."""

    pairs: int = 300
    depth_scenes: int = 300
    flow_steps: int = 300
    flow_batch: int = 32
    flow_pairs: int = 200
    shape_images: int = 600


def to_input(images: Tensor, model: Any) -> Tensor:
    """uint8 images (B, 3, H, W) -> the model's input."""
    mean, std = (torch.tensor(model.pretrained_cfg[key], device=images.device).view(3, 1, 1) for key in ("mean", "std"))
    return (images / 255 - mean) / std


@torch.inference_mode()
def tokens_of(encoder: Any, images: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) -> frozen tokens (B, N, D)."""
    return torch.cat([encoder.forward_features(to_input(part, encoder)) for part in images.split(BATCH)])


# --- The tasks ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def matching(encoder: Any, config: SceneConfig, sizes: Sizes) -> tuple[float, dict[str, float]]:
    """The share of patches that match, and of those by normalized pixels, by staying in place, and by chance."""
    pairs = scene_pairs(config, HELD_OUT_SEED, sizes.pairs, encoder, 0.9)
    found: dict[str, list[Tensor]] = {}
    for parts in zip(*(x.split(BATCH) for x in pairs)):
        batch = type(pairs)(*parts)
        every = torch.arange(batch.mask.shape[1]).expand_as(batch.mask)
        hits, counts, _ = match_hits(dict(tokens=encoder), batch, every, [], encoder.patch_size)
        for name, hit in hits.items():
            found.setdefault(name, []).append(hit[counts])
    shares = {name.replace("_", " "): torch.cat(hit).mean().item() for name, hit in found.items()}
    return shares.pop("tokens"), shares


def depth(encoder: Any, config: SceneConfig, sizes: Sizes, learn: int = TRAIN_SEED) -> tuple[float, dict[str, float]]:
    """R2 on held-out scenes, and that of a probe which knows a patch's place only.

    learn: seed of the scenes that it learns from.
    """
    sets = []
    for seed, count in ((learn, sizes.depth_scenes), (HELD_OUT_SEED, sizes.depth_scenes // 2)):
        images, z = render_views(config, draw_batch(config, seed, range(count)))
        depths = patchify(z[:, :1].log(), encoder.patch_size).mean(-1)  # B, N
        places = torch.eye(depths.shape[1]).expand(count, -1, -1)
        sets.append((tokens_of(encoder, images[:, 0]), places, depths.flatten().numpy()))
    (tokens, places, target), (test_tokens, test_places, truth) = sets

    def score(train: Tensor, test: Tensor) -> float:
        probe = make_pipeline(StandardScaler(), Ridge(alpha=10.0)).fit(train.flatten(0, 1).numpy(), target)
        return float(probe.score(test.flatten(0, 1).numpy(), truth))

    return score(tokens, test_tokens), {"place in the image": score(places, test_places)}


class FlowModel(nn.Module):
    """A two-image model with the lightest head there is: from a token to the flow of its patch's pixels."""

    def __init__(self, pair: PairModel) -> None:
        super().__init__()
        self.pair = pair
        self.head = nn.Linear(pair.embed_dim, 2 * pair.patch_size**2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> flow (B, 2, H, W) in pixels."""
        size = self.pair.patch_size
        grid = (img1.shape[-2] // size, img1.shape[-1] // size)
        return unpatchify(self.head(self.pair(img1, img2)), size, grid) * size


def flow(
    pair: PairModel, config: SceneConfig, sizes: Sizes, precision: str, learn: int = TRAIN_SEED
) -> tuple[float, dict[str, float]]:
    """The end-point error on co-visible pixels after fine-tuning all of `pair`, and that of no and of the mean flow.

    Steps, scenes, learning rates and their order are the same for whatever model. precision: of the training's
    forward pass, "fp32" or "bf16" (autocast). learn: seed of its scenes. It is done on a GPU if there is one, which
    then draws its own scenes.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = FlowModel(pair).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    total, warmup = sizes.flow_steps, max(1, sizes.flow_steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)))
    )
    model.train()
    for step in range(total):
        places = range(step * sizes.flow_batch, (step + 1) * sizes.flow_batch)
        drawn = (
            draw_batch(config, learn, places)
            if device.type == "cpu"
            else draw_scenes(config, learn, torch.arange(places.start, places.stop, device=device))
        )
        scenes = render(config, drawn)
        errors = end_point_error(model, scenes, precision)
        error = (errors * scenes.covisible).sum() / scenes.covisible.sum()
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    model.eval()
    held_out = render(config, draw_batch(config, HELD_OUT_SEED, range(sizes.flow_pairs)))
    held_out = type(held_out)(*(part.to(device) for part in held_out))
    truth = held_out.flow.movedim(1, -1)[held_out.covisible]
    with torch.inference_mode():
        parts = [type(held_out)(*part) for part in zip(*(x.split(BATCH) for x in held_out))]
        errors = torch.cat([end_point_error(model, part)[part.covisible] for part in parts])
    trivial = {
        "no flow": truth.norm(dim=-1).mean().item(),
        "the mean flow": (truth - truth.mean(0)).norm(dim=-1).mean().item(),
    }
    return errors.mean().item(), trivial


def end_point_error(model: FlowModel, scenes: Any, precision: str = "fp32") -> Tensor:
    """(B, H, W), in pixels, float32; what it is where the views don't show the same means nothing."""
    img1, img2 = (to_input(scenes.images[:, view], model.pair) for view in (0, 1))
    with torch.autocast(img1.device.type, torch.bfloat16, enabled=precision == "bf16"):
        found = model(img1, img2)
    # unknown flow is infinite: it must not reach the gradient
    truth = torch.where(scenes.covisible[:, None], scenes.flow, 0)
    return (found.float() - truth).norm(dim=1)


def furnished_rooms(config: SceneConfig, seed: int, count: int) -> tuple[Tensor, np.ndarray]:
    """Views of rooms that hold nothing, one box or one ball: uint8 (count, 3, H, W), and which of `SHAPES` (count,)."""
    labels = np.arange(count) % len(SHAPES)
    scenes: list[Scene] = []
    for index in itertools.count():
        if len(scenes) == count:
            break
        scene = sample_scene(config, seed, index)
        slots = list(SHAPES.values())[labels[len(scenes)]]
        used = np.arange(len(scene.solids.used)) == 0  # the room
        if slots.start < slots.stop:
            sizes = apparent_sizes(scene)[slots]
            if not sizes.max() > 0:
                continue  # a scene without such an object in view
            used[slots.start + sizes.argmax()] = True
        scenes.append(replace(scene, solids=scene.solids._replace(used=used)))
    images, _ = render_views(config, stack_scenes(scenes))
    return images[:, 0], labels


def apparent_sizes(scene: Scene) -> np.ndarray:
    """How large view 1 sees each solid (S,), in image widths; 0 for those whose middle it doesn't see."""
    camera, solids = scene.cameras[0], scene.solids
    x, y, z = camera[:3, :3] @ solids.centers.T + camera[:3, 3:]
    inside = solids.used & (z > 0) & (np.maximum(np.abs(x), np.abs(y)) < 0.5 * z / scene.focal)
    return np.where(inside, np.linalg.norm(solids.half_sizes, axis=1) * scene.focal / np.maximum(z, 1e-3), 0)


def shape(encoder: Any, config: SceneConfig, sizes: Sizes, learn: int = TRAIN_SEED) -> tuple[float, dict[str, float]]:
    """Accuracy on held-out rooms, and that of the colors' means and deviations, and of chance. learn: seed of the
    rooms that are known."""
    sets = [
        furnished_rooms(config, seed, count)
        for seed, count in ((learn, sizes.shape_images), (HELD_OUT_SEED, sizes.shape_images // 2))
    ]

    def accuracy(describe: Callable[[Tensor], Tensor], metric: str) -> float:
        (images, labels), (test_images, truth) = sets
        neighbors = KNeighborsClassifier(n_neighbors=10, weights="distance", metric=metric)
        neighbors.fit(describe(images).numpy(), labels)
        return float(neighbors.score(describe(test_images).numpy(), truth))

    def colors(images: Tensor) -> Tensor:
        pixels = images.float().flatten(2)
        return torch.cat((pixels.mean(2), pixels.std(2)), dim=1)

    trivial = {"colors": accuracy(colors, "euclidean"), "chance": 1 / len(SHAPES)}
    return accuracy(lambda images: tokens_of(encoder, images).mean(1), "cosine"), trivial


# --- The models ---------------------------------------------------------------------------------------------


def recipe_of(name: str, seed: int, steps: int, precision: str, kind: str = "nano") -> Recipe:
    """The recipe for a run of `steps`, to which its warm-up and curriculum are scaled."""
    recipe = load_recipe(RECIPES[name].format(kind))
    changes = {
        "curriculum": scaled(recipe.curriculum, steps / recipe.schedule.length),
        "seed": seed,
        "schedule.length": steps,
        "schedule.warmup": steps // 10,
        "precision": precision,
        "checkpoint_steps": 1000,  # few, so a short run writes one; Ctrl-C writes one, too
    }
    return load_recipe(RECIPES[name].format(kind), changes)


def load_pair(name: str, seed: int, run: Path | None) -> PairModel:
    """A two-image model that starts where `name` ends: what its run has not trained is drawn with the seed."""
    torch.manual_seed(seed)
    pair: Any = timm.create_model(PAIR)
    if run is not None:
        state = safetensors.torch.load_file(run / "model.safetensors")
        if name == "MAE":  # only its encoder has a place here: its decoder knows one image
            state = {key: value for key, value in state.items() if key.startswith("encoder.")}
        missing, unexpected = pair.load_state_dict(state, strict=False)
        assert not unexpected and all(key.startswith(("decoder.", "head.")) for key in missing)
    pair.encoder.pretrained_cfg = pair.pretrained_cfg
    return pair.eval()


def measure(
    name: str,
    seed: int,
    run: Path | None,
    config: SceneConfig,
    sizes: Sizes,
    precision: str,
    learn: int = TRAIN_SEED,
) -> dict[str, Any]:
    """Every task's figure, the trivial ones it is to be seen against, and the seconds all took. learn: seed of the
    scenes that probes and fine-tuning learn from."""
    start = time.monotonic()
    encoder = load_pair(name, seed, run).encoder
    found = dict(
        matching=matching(encoder, config, sizes),
        depth=depth(encoder, config, sizes, learn),
        shape=shape(encoder, config, sizes, learn),
        flow=flow(load_pair(name, seed, run), config, sizes, precision, learn),
    )
    figures = {task: figure for task, (figure, _) in found.items()}
    trivial = {task: others for task, (_, others) in found.items()}
    return dict(figures=figures, trivial=trivial, seconds=round(time.monotonic() - start, 1))


def _finished(name: str, folder: Path) -> TrainedModel:
    """A training run that is to stand for `name`."""

    def check(model: nn.Module, recipe: Recipe) -> None:
        wanted = load_recipe(RECIPES[name].format("nano")).model
        if recipe.model != wanted:
            raise TrainingError(f"{folder} trains {recipe.model}, not {name}'s {wanted}; name a run that does.")

    run = load_run(folder, check)
    if run.weights.name != "model.safetensors":
        raise TrainingError(f"{folder} has not ended; go on with it by `zoo train {folder}`.")
    return run


# --- The comparison -----------------------------------------------------------------------------------------


def compare(
    steps: int,
    seeds: list[int],
    runs: Path,
    sizes: Sizes,
    precision: str,
    workers: int,
    command: str,
    kind: str = "nano",
    finished: dict[str, Path] | None = None,
) -> dict[str, Any]:
    """Train what isn't trained yet, and measure what isn't measured yet: both are kept in `runs`.

    precision: of all training, "fp32" or "bf16". command: what the page shall say that made it. kind: of `RECIPES`.
    finished: a training run for each of `RECIPES`, to be compared in place of runs of one's own; steps and kind are
    theirs then.

    Raises TrainingError (a RuntimeError), also when it was stopped: the next call goes on.
    """
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in (*RECIPES, UNTRAINED)}
    minutes: dict[str, list[float]] = {name: [] for name in RECIPES}
    trivial: dict[str, Any] = {}
    given = {name: _finished(name, run) for name, run in (finished or {}).items()}
    recipes = {name: given[name].recipe if given else recipe_of(name, 0, steps, precision, kind) for name in RECIPES}
    config = make_source(recipes["CroCo"].data, HELD_OUT_SEED, "pair").config
    for seed in seeds:
        for name in figures:
            folder = runs / f"{name.lower()}_{seed}"
            run = None
            settings: dict[str, Any] = dict(sizes=asdict(sizes), precision=precision)
            if given:
                run = given[name].weights.parent if name in given else None
                settings |= dict(weights=given[name].sha256 if name in given else "", scenes=repr(config))
            elif name in RECIPES:
                run = folder
                engine.train(recipe_of(name, seed, steps, precision, kind), run, workers=workers)
            if run is not None:
                minutes[name].append(read_log(run)[-1]["seconds"] / 60)
            kept = folder / ("tasks_finished.json" if given else f"tasks_{steps}.json")
            found = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
            if any(found.get(key) != value for key, value in settings.items()):
                learn = TRAIN_SEED + seed if given else TRAIN_SEED
                found = measure(name, seed, run, config, sizes, precision, learn) | settings
                write_json(kept, found)
            figures[name].append(found["figures"])
            trivial = found["trivial"]
    about = dict(
        command=command,
        steps=steps,
        seeds=seeds,
        precision=precision,
        sizes=asdict(sizes),
        scene_config=asdict(config),
        training_minutes={name: statistics.fmean(taken) for name, taken in minutes.items()},
        machine=torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} thread(s) of a {platform.machine()} CPU",
        pairs_a_step=recipes["CroCo"].batch_size,
        torch=torch.__version__,
        date=datetime.now(timezone.utc).date().isoformat(),
    )
    if given:
        about |= dict(
            steps=int(recipes["CroCo"].schedule.length),
            finished={
                name: dict(recipe=recipe.name, steps=int(recipe.schedule.length), batch=recipe.batch_size)
                for name, recipe in recipes.items()
            },
        )
    return dict(about=about, figures=figures, trivial=trivial)
