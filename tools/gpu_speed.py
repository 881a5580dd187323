"""What tools/gpu.py measures of speed, memory and exactness: its stages a to e.

Times are medians of many repeats, on a GPU by its own events. "share" is of the bf16 matrix product's rate on the same
card in the same run. Everything is measured on random data.
"""

from __future__ import annotations

import copy
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.golden_cases import compute, read_case
from tools.gpu import ROOT, Lab, rows_of
from zoo.layers.masking import take_tokens
from zoo.models.making.compiling import compile_blocks
from zoo.scenes import SceneConfig, sample_scene
from zoo.scenes.torch.draw import draw_scenes
from zoo.scenes.torch.render import SceneBatch, draw_batch, render_in_torch, render_views_in_torch
from zoo.train import build
from zoo.train.data.loading import StepSampler, make_loader
from zoo.train.recipe import Recipe, load_recipe

BF16 = torch.bfloat16


def seconds_of(run: Callable[[], object], device: str, budget: float = 1.0, least: int = 3, most: int = 50) -> float:
    """Median time of a call, of as many as fit into about `budget` seconds, behind warm-up calls."""
    run()
    _wait(device)
    begun = time.perf_counter()
    run()
    _wait(device)
    once = time.perf_counter() - begun
    times = []
    for _ in range(max(least, min(most, int(budget / max(once, 1e-6))))):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            times.append((start, end))
        else:
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
    _wait(device)
    return median(pair[0].elapsed_time(pair[1]) / 1e3 if isinstance(pair, tuple) else pair for pair in times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def teraflop(run: Callable[[], object]) -> float:
    """Floating point operations of a call, by torch's counter, / 10^12."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


@contextmanager
def tf32(enable: bool) -> Iterator[None]:
    """Whether matrix products and convolutions of float32 may be rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = enable
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _fill(lab: Lab) -> str:
    """The device, with memory that is full of nothing measured before."""
    if lab.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return lab.device


def _backend(lab: Lab) -> str:
    return "aot_eager" if lab.tiny else "inductor"  # which takes minutes on a CPU


def _gib(lab: Lab) -> dict[str, float]:
    return dict(peak_gib=torch.cuda.max_memory_allocated() / 2**30) if lab.device == "cuda" else {}


# --- a: ceilings --------------------------------------------------------------------------------------------


def matrix_rate(lab: Lab, dtype: torch.dtype = BF16) -> float:
    """TFLOP/s of a large matrix product of random numbers."""
    side = 256 if lab.tiny else 8192
    a, b = torch.randn(2, side, side, device=lab.device).to(dtype).unbind()
    return 2 * side**3 / seconds_of(lambda: a @ b, lab.device) / 1e12


def ceilings(lab: Lab) -> None:
    """Matrix products in three precisions; a copy, counted in bytes read and written."""
    lab.attempt("matrix product, bf16", lambda: dict(tflop_s=matrix_rate(lab)))

    def copying() -> dict[str, Any]:
        source = torch.randn((2**20 if lab.tiny else 2**30), device=lab.device)
        target = torch.empty_like(source)
        return dict(tb_s=2 * 4 * source.numel() / seconds_of(lambda: target.copy_(source), lab.device) / 1e12)

    lab.attempt("copy", copying)
    for name, enable in (("tf32", True), ("fp32", False)):
        with tf32(enable):
            lab.attempt(f"matrix product, {name}", lambda: dict(tflop_s=matrix_rate(lab, torch.float32)))


def _ceiling(lab: Lab) -> float:
    """The bf16 matrix rate: stage a's, or measured now."""
    found = [
        row["tflop_s"] for row in rows_of(lab.output) if row["name"] == "matrix product, bf16" and "tflop_s" in row
    ]
    return found[-1] if found else matrix_rate(lab)


# --- b: golden cases ----------------------------------------------------------------------------------------


BARS = dict(outputs=2e-5, losses=1e-5, gradients=1e-3, runs=1e-4)  # of the tests on the CPU


def golden(lab: Lab) -> None:
    """Each case in float32 (no TF32) and under bf16 autocast: the largest deviation of an output, as a share of its
    largest number (of 1, if that is smaller), of a loss, of a gradient's norm, and of what whole runs end with."""
    cases = sorted((ROOT / "tests" / "golden").glob("*.safetensors"))
    with tf32(False):
        for precision in ("fp32", "bf16"):
            for path in cases[:2] if lab.tiny else cases:
                lab.attempt(path.stem, partial(_deviation, path, lab.device, precision), precision=precision)


def _deviation(path: Path, device: str, precision: str) -> dict[str, Any]:
    _, tensors = read_case(path)
    with torch.autocast(device, BF16, enabled=precision == "bf16"):
        computed = compute(path, device)
    worst: dict[str, Any] = dict(outputs=0.0, losses=0.0, gradients=0.0, runs=0.0)
    for key, got in computed.items():
        want, got = tensors[key].double(), got.double().cpu()
        relative = ((got - want).abs() / want.abs()).nan_to_num().max().item()
        if not got.isfinite().all():
            return dict(error=f"{key} is not finite")
        if key.startswith("gradnorm."):
            if want.item() > 1e-7:  # else it is of what has no influence
                worst["gradients"] = max(worst["gradients"], relative)
        elif key.startswith(("output.after.", "output.batch.", "output.dataset.")) or (
            want.ndim == 1 and len(want) > 1
        ):
            worst["runs"] = max(worst["runs"], relative)
        elif key.startswith("output.loss"):
            worst["losses"] = max(worst["losses"], relative)
        else:
            worst["outputs"] = max(worst["outputs"], ((got - want).abs().max() / want.abs().max().clamp(min=1)).item())
    if precision == "fp32":
        worst["holds"] = all(worst[kind] <= bar for kind, bar in BARS.items())
    return worst


# --- c: forward passes --------------------------------------------------------------------------------------

FORWARDS = {  # by what a reader knows them as; the first is what the bar is of
    "CroCo v2 large, pair": "crocov2_large_patch16_224_dec768d12",
    "CroCo v2 large, encoder": "crocov2_large_patch16_224",
    "CroCo v2 large, stereo 352x704": "crocov2_large_patch16_dec768d12_stereo",
    "ViT-L (timm)": "vit_large_patch16_224",
    "ViT-B (timm)": "vit_base_patch16_224",
    "ConvMAE-B": "convmae_base_patch16_224",
    "HiViT-B": "hivit_base_patch16_224",
    "iTPN-B": "itpn_base_patch16_224",
    "Fast-iTPN-B": "fast_itpn_base_patch16_224",
    "PIRL ResNet-50": "pirl_resnet50",
}
TINY_FORWARDS = {"pair": "croco_nano_patch8_64_dec128d4", "ConvMAE": "convmae_nano_patch16_64"}


def forwards(lab: Lab) -> None:
    """Weights and images in bf16, images of the size that a model is made for; of two-image models pairs."""
    ceiling = _ceiling(lab)
    names = TINY_FORWARDS if lab.tiny else FORWARDS
    main, others = (2, ()) if lab.tiny else (64, (1, 8, 256))
    models: dict[str, nn.Module] = {}
    compiled: dict[str, nn.Module] = {}
    work: dict[str, float] = {}

    def model_of(name: str, how: str) -> nn.Module:
        if name not in models:
            with torch.device(lab.device):
                models[name] = timm.create_model(names[name]).to(BF16).eval()
        if how != "compiled":
            return models[name]
        if name not in compiled:
            compiled[name] = compile_blocks(copy.deepcopy(models[name]), _backend(lab))
        return compiled[name]

    def measure(name: str, how: str, batch: int) -> dict[str, Any]:
        model = model_of(name, how)
        size = model.pretrained_cfg["input_size"]
        _fill(lab)
        with torch.inference_mode():
            images = torch.randn(2 if hasattr(model, "decoder") else 1, batch, *size, device=lab.device, dtype=BF16)
            forward = getattr(model, "forward_features", model)
            if name not in work:
                work[name] = teraflop(lambda: forward(*images[:, :1]))
            begun = time.perf_counter()
            run = partial(forward, *images)
            if how == "graph":
                run = _captured(run)
            run()
            _wait(lab.device)
            first = time.perf_counter() - begun
            took = seconds_of(run, lab.device, budget=0.2 if lab.tiny else 0.4)
        rate = work[name] * batch / took
        return dict(per_second=batch / took, ms=1e3 * took, share=rate / ceiling, first_s=first, **_gib(lab))

    def cells() -> Iterator[tuple[str, str, int]]:
        first, *_ = names
        yield first, "eager", main
        yield first, "compiled", main
        yield from ((name, "eager", main) for name in names if name != first)
        yield from ((name, "compiled", main) for name in names if name != first)
        yield from ((name, "eager", batch) for batch in others for name in names)
        if lab.device == "cuda":
            yield from ((name, "graph", batch) for batch in others if batch <= 8 for name in names)
        yield from ((name, "compiled", batch) for batch in reversed(others) for name in names)

    for name, how, batch in cells():
        needs = 12 if how == "compiled" and not lab.tiny else 2
        lab.attempt(name, partial(measure, name, how, batch), needs, how=how, batch=batch)


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    """The same work on the same memory as one CUDA graph; fails if any of it waits for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _make_capturable(optimizer: torch.optim.Optimizer, device: str) -> None:
    """Before its first step."""
    for group in optimizer.param_groups:
        group |= dict(capturable=True, lr=torch.tensor(group["lr"], device=device))


# --- d: pretraining steps -----------------------------------------------------------------------------------

STEPS = [  # the recipe, samples of a step on the card, and the ways it is computed, in the order of their worth
    ("crocov2_large", 64, ("eager", "compiled", "graph", "checkpointed", "compiled checkpointed")),
    ("crocov2_large", 192, ("compiled",)),
    ("convmae_base", 128, ("eager", "dense", "compiled", "dense compiled", "checkpointed")),
    ("itpn_base_pixel", 256, ("eager", "compiled", "checkpointed")),
    ("pirl_resnet50", 64, ("eager", "channels-last", "channels-last compiled")),
]
TINY_STEPS = [("croco_nano", 4, ("eager", "compiled")), ("convmae_nano", 4, ("eager", "dense"))]


class RandomImages:
    """Stands for a recipe's photos: as many, all of noise."""

    def __init__(self, pairs: bool) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return 1_281_167  # as many as ImageNet-1K's: PIRL has a vector for each

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        images = (torch.randint(256, (256, 256, 3), generator=generator, dtype=torch.uint8).numpy() for _ in range(2))
        return dict(zip(("image1", "image2") if self.pairs else ("image",), images)) | {"index": index}


def make_batch(objective: Any, source: Any, size: int, device: str) -> dict[str, Tensor]:
    """A batch as the loader gives it: up to eight different samples, over and over."""
    samples = []
    for index in range(min(size, 8)):
        torch.manual_seed(index)
        samples.append(objective.transform(source[index], index))
    rows = [samples[i % len(samples)] for i in range(size)]
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]).to(device) for key in rows[0]}


def steps(lab: Lab) -> None:
    """Forward, backward, optimizer step on one batch that lies on the device; bf16 autocast, float32 weights."""
    ceiling = _ceiling(lab)
    cells = [
        (rank, recipe, size, how)
        for recipe, size, ways in (TINY_STEPS if lab.tiny else STEPS)
        for rank, how in enumerate(ways)
    ]
    work: dict[str, float] = {}  # of a sample, by recipe
    for _, name, size, how in sorted(cells, key=lambda cell: cell[0] // 2):  # the first two ways of all come first
        needs = (20 if "compiled" in how else 5) if not lab.tiny else 0
        lab.attempt(name, partial(_measure_step, lab, name, size, how, ceiling, work), needs, how=how, batch=size)


def _measure_step(lab: Lab, name: str, size: int, how: str, ceiling: float, work: dict[str, float]) -> dict[str, Any]:
    device = _fill(lab)
    recipe = load_recipe(name, {"batch_size": size})
    objective = _objective(recipe, device)
    batch = make_batch(objective, _source(recipe), size, device)
    if "dense" in how:
        objective.model.sparse = False
        objective.forward = partial(_dense_loss, objective)
    optimizer = build.make_optimizer(recipe, objective, fused=device == "cuda")
    if "graph" in how:
        _make_capturable(optimizer, device)
    step = training_step(objective, optimizer, device)
    kind = name + (", dense" if "dense" in how else "")
    if kind not in work:
        few = {key: value[: min(8, size)] for key, value in batch.items()}
        work[kind] = teraflop(lambda: step(few)) / min(8, size)
    if "checkpointed" in how:
        objective.model.set_grad_checkpointing(True)
    if "channels-last" in how:
        objective.model.to(memory_format=torch.channels_last)
    if "compiled" in how:
        compile_blocks(objective, _backend(lab))
    run: Callable[[], object] = partial(step, batch)
    begun = time.perf_counter()
    run()
    _wait(device)
    first = time.perf_counter() - begun
    if "graph" in how:
        run = _captured(run)
    took = seconds_of(run, device, budget=0.1 if lab.tiny else 1.5)
    tflop = work[kind] * size
    mfu = tflop / took / ceiling
    return dict(per_second=size / took, ms=1e3 * took, mfu=mfu, tflop=tflop, first_s=first, **_gib(lab))


def _source(recipe: Recipe) -> Any:
    if recipe.data["source"] == "scenes":
        return build.make_source(recipe)
    return RandomImages(pairs=build.objective_class(recipe).sample == "pair")


def _objective(recipe: Recipe, device: str) -> Any:
    with torch.device(device):
        model = timm.create_model(recipe.model, **recipe.model_args)
    return build.make_objective(recipe, _source(recipe), model).to(device).train()


def _dense_loss(objective: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """ConvMAE's step as its reference computes it: hidden patches too, all of them decoded to the end."""
    image = objective.to_input(batch["image"])
    prediction, index = objective.model.predict(image, batch["mask"], objective.hidden, all_patches=True)
    return dict(loss=objective.model._target_loss(image, take_tokens(prediction, index), index))


def training_step(objective: Any, optimizer: torch.optim.Optimizer, device: str) -> Callable[[dict[str, Tensor]], None]:
    """What the engine does with a batch."""

    def step(batch: dict[str, Tensor]) -> None:
        with torch.autocast(device, BF16):
            loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


# --- e: scenes ----------------------------------------------------------------------------------------------


def scenes(lab: Lab) -> None:
    """Pairs a second: rendered on the device, with and without their geometry, drawn there too, drawn by processes of
    the CPU, and trained on by the small CroCo."""
    count = 4 if lab.tiny else 512
    for size in (32,) if lab.tiny else (64, 128):
        config = SceneConfig(image_size=size)
        drawn = draw_batch(config, 0, range(min(count, 64)))
        batch = SceneBatch(*(x.repeat(-(-count // len(x)), *[1] * (x.ndim - 1))[:count].to(lab.device) for x in drawn))
        for name, render in (("rendered", render_views_in_torch), ("rendered with geometry", render_in_torch)):

            def measure(
                render: Any = render, config: SceneConfig = config, batch: SceneBatch = batch
            ) -> dict[str, Any]:
                _fill(lab)
                took = seconds_of(lambda: render(config, batch), lab.device, budget=0.5)
                return dict(pairs_per_second=count / took, **_gib(lab))

            lab.attempt(f"{name}, {size}x{size}", measure, batch=count)

        def draw(config: SceneConfig = config) -> dict[str, Any]:
            index = torch.arange(count, device=_fill(lab))
            took = seconds_of(lambda: render_views_in_torch(config, draw_scenes(config, 0, index)), lab.device)
            return dict(pairs_per_second=count / took, **_gib(lab))

        lab.attempt(f"drawn and rendered, {size}x{size}", draw, batch=count)
    ways = (("eager", 0), ("graph", 3), ("blocks compiled", 15), ("blocks and scenes compiled", 25))
    for how, needs in ways[:1] if lab.tiny else ways:
        for size in (4,) if lab.tiny else (512,):
            work = partial(_train_on_scenes, lab, size, how)
            lab.attempt("croco_nano_rich with its scenes", work, needs, batch=size, how=how)
    for processes in (1, 2) if lab.tiny else (1, 8, 16):
        lab.attempt(f"drawn by {processes} processes", partial(_draw_together, processes, 20 if lab.tiny else 1000))


def _train_on_scenes(lab: Lab, size: int, how: str) -> dict[str, Any]:
    """A training step from the scenes' numbers on. how: "graph" is everything as one CUDA graph."""
    device = _fill(lab)
    recipe = load_recipe("croco_nano_rich", {"batch_size": size})
    source = build.make_source(recipe)
    objective = _objective(recipe, device)
    loader = make_loader(source, objective.transform, StepSampler(len(source), size, 0, 0, 1, 1, 0, 1), 0, False)
    batch = {key: value.to(device) for key, value in next(iter(loader)).items()}
    if "blocks" in how:
        compile_blocks(objective, _backend(lab))
    if "scenes" in how:
        source.compile()
    optimizer = build.make_optimizer(recipe, objective, fused=device == "cuda")
    if how == "graph":
        _make_capturable(optimizer, device)
    step = training_step(objective, optimizer, device)

    def run() -> None:
        step(source.render_batch(batch))

    begun = time.perf_counter()
    run()
    _wait(device)
    first = time.perf_counter() - begun
    took = seconds_of(_captured(run) if how == "graph" else run, device)
    return dict(pairs_per_second=size / took, ms=1e3 * took, first_s=first, **_gib(lab))


def _draw_together(processes: int, each: int) -> dict[str, Any]:
    begun = time.perf_counter()
    workers = [multiprocessing.get_context("fork").Process(target=_draw, args=(i, each)) for i in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return dict(pairs_per_second=processes * each / (time.perf_counter() - begun))


def _draw(worker: int, count: int) -> None:
    torch.set_num_threads(1)
    config = SceneConfig()
    for index in range(count):
        sample_scene(config, worker, index)
