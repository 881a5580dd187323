"""Speed and memory of the zoo against timm and against plain versions, as ratios within one run.

    python tools/bench.py                      # everything, a table
    python tools/bench.py --only encoder pair  # some of it
    python tools/bench.py --json bench.json
    python tools/bench.py --tiny               # whether every row still runs, in seconds; no figure means anything

Compared runs alternate, and a ratio is the median of the pairs' ratios, so that a machine that is busy for a
while disturbs both sides alike. All in float32 on two threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from timm.layers import set_fused_attn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this clone's zoo, installed or not

from tools.bench_compare import compare, gflop, seconds  # noqa: E402
from tools.bench_compiled import bench_compiled  # noqa: E402
from tools.bench_features import bench_decoding  # noqa: E402
from tools.bench_matching import bench_stereo_reading, bench_stereo_step, bench_stereo_tiles  # noqa: E402
from tools.bench_scale import BACKBONES, FULL, HIERA, MASKED, TINY, VIT, VIT_LARGE, Scale  # noqa: E402
from zoo.layers.masking import take_tokens  # noqa: E402
from zoo.scenes import SceneConfig, sample_scene  # noqa: E402
from zoo.scenes.render import render_views  # noqa: E402
from zoo.scenes.torch import render as scenes_torch  # noqa: E402
from zoo.weights import save_safetensors  # noqa: E402
from zoo.weights.disk import records  # noqa: E402

THREADS = 2


def bench_encoder(repeats: int, scale: Scale) -> dict[str, Any]:
    """crocov2_base's forward against timm's ViT-B/16 forward_features: at most 1.05 of its time."""
    encoder, vit = scale.create("crocov2_base_patch16_224").eval(), scale.create(VIT).eval()
    x = scale.images()
    with torch.inference_mode():
        result = compare(lambda: encoder.forward_features(x), lambda: vit.forward_features(x), repeats)
    return result | dict(
        images_per_second=len(x) / result["seconds"], bar="ratio <= 1.05", holds=result["ratio"] <= 1.05
    )


def bench_pair(repeats: int, scale: Scale) -> dict[str, Any]:
    """Binocular v2 base/base forward: at least 0.9 of the GFLOP/s that timm's ViT-B/16 reaches."""
    pair, vit = scale.create("crocov2_base_patch16_224_dec768d12").eval(), scale.create(VIT).eval()
    x, y = scale.images(), scale.images()
    with torch.inference_mode():
        work, vit_work = gflop(lambda: pair(x, y)), gflop(lambda: vit.forward_features(x))
        result = compare(lambda: pair(x, y), lambda: vit.forward_features(x), repeats)
    ratio = work / vit_work / result.pop("ratio")
    return result | dict(
        gflop=work,
        gflop_per_second=work / result["seconds"],
        reference_gflop_per_second=vit_work / result["reference_seconds"],
        gflop_per_second_ratio=ratio,
        bar="gflop_per_second_ratio >= 0.9",
        holds=ratio >= 0.9,
    )


def bench_pointmaps(repeats: int, scale: Scale) -> dict[str, Any]:
    """DUSt3R 512 dpt's forward of two images of 288x384: at least 0.9 of the GFLOP/s that timm's ViT-L/16 reaches on as
    many tokens."""
    size = scale.pointmaps_pixels
    model = scale.create("dust3r_large_patch16_512_dpt").eval()
    vit = scale.create(VIT_LARGE, img_size=size).eval()
    x, y = torch.randn(2, 1, 3, *size)
    both = torch.cat((x, y))
    with torch.inference_mode():
        work, vit_work = gflop(lambda: model(x, y)), gflop(lambda: vit.forward_features(both))
        result = compare(lambda: model(x, y), lambda: vit.forward_features(both), repeats)
    ratio = work / vit_work / result.pop("ratio")
    return result | dict(
        gflop=work,
        gflop_per_second=work / result["seconds"],
        reference_gflop_per_second=vit_work / result["reference_seconds"],
        gflop_per_second_ratio=ratio,
        bar="gflop_per_second_ratio >= 0.9",
        holds=ratio >= 0.9,
    )


def bench_step(repeats: int, scale: Scale) -> dict[str, Any]:
    """A pretraining step (forward + backward), v2 base/base: at most 1034 GFLOP; time against unfused attention."""
    name = "crocov2_base_patch16_224_dec768d12"
    fused = scale.create(name)
    set_fused_attn(False)
    plain = scale.create(name)
    set_fused_attn(True)
    x, y = scale.images(), scale.images()
    mask, hidden = scale.mask(0.9)

    def step(model: torch.nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        model.completion_loss(x, y, mask, hidden).backward()

    work, plain_work = gflop(lambda: step(fused)), gflop(lambda: step(plain))
    result = compare(lambda: step(fused), lambda: step(plain), max(1, repeats // 3))
    return result | dict(
        gflop=work,
        unfused_gflop=plain_work,
        images_per_second=len(x) / result["seconds"],
        unfused_images_per_second=len(x) / result["reference_seconds"],
        bar="gflop <= 1034",
        holds=work <= 1034,
    )


def bench_backbone(repeats: int, scale: Scale, family: str) -> dict[str, Any]:
    """A family's base model, forward_features, against timm's ViT-B/16 and Hiera-B: images/s, GFLOP/s and memory."""
    names = dict(zip(("", "vit_", "hiera_"), (BACKBONES[family], VIT, HIERA)))
    models = {key: scale.create(name, num_classes=0).eval() for key, name in names.items()}
    x = scale.images()
    result: dict[str, Any] = {}
    with torch.inference_mode():
        work = {key: gflop(lambda m=model: m.forward_features(x)) for key, model in models.items()}
        for key in ("vit_", "hiera_"):
            times = compare(
                lambda: models[""].forward_features(x), lambda m=models[key]: m.forward_features(x), repeats
            )
            result |= {
                "images_per_second": len(x) / times["seconds"],
                f"{key}images_per_second": len(x) / times["reference_seconds"],
                f"{key}gflop_per_second_ratio": work[""] / work[key] / times["ratio"],
            }
    for key, name in names.items():
        result[f"{key}gflop"] = work[key]
        result[f"{key}peak_mib"] = _peak_mib(scale, f"model = {scale.code(name, num_classes=0)}.eval()", FORWARD)
    return result


FORWARD = """
with torch.inference_mode():
    model.forward_features(x)
"""
STEP = """
model.completion_loss(x, mask, hidden).backward()
"""


def bench_masked_step(repeats: int, scale: Scale, family: str) -> dict[str, Any]:
    """A pretraining step (forward + backward) of a masked autoencoder, three quarters hidden, against the same step
    computed the plain way: for ConvMAE as its reference does (convolutions on hidden patches too, unfused attention,
    all patches decoded to the end: 541 GFLOP by the counter), for the others with unfused attention."""
    name, other = MASKED[family]
    ours = scale.create(name)
    set_fused_attn(False)
    plain = scale.create(name)
    set_fused_attn(True)
    if other == "dense":
        plain.sparse = False
    x = scale.images()
    mask, hidden = scale.mask(0.75)

    def step() -> None:
        ours.zero_grad(set_to_none=True)
        ours.completion_loss(x, mask, hidden).backward()

    def plain_step() -> None:
        plain.zero_grad(set_to_none=True)
        if other == "dense":
            prediction, index = plain.predict(x, mask, hidden, all_patches=True)
            plain._target_loss(x, take_tokens(prediction, index), index).backward()
        else:
            plain.completion_loss(x, mask, hidden).backward()

    work, plain_work = gflop(step), gflop(plain_step)
    result = compare(step, plain_step, repeats)
    plainly = dict(dense="model.sparse = False", unfused="")[other]
    build = f"model = {scale.code(name)}"
    peak = _peak_mib(scale, f"set_fused_attn(True); {build}", STEP)
    plain_peak = _peak_mib(scale, f"set_fused_attn(False); {build}; {plainly}", STEP)
    result |= {
        "gflop": work,
        f"{other}_gflop": plain_work,
        "images_per_second": len(x) / result["seconds"],
        f"{other}_images_per_second": len(x) / result["reference_seconds"],
        "peak_mib": peak,
        f"{other}_peak_mib": plain_peak,
    }
    if family == "convmae":
        holds = work <= 310 and result["ratio"] <= 0.60 and peak < plain_peak
        result |= dict(bar="ratio <= 0.60, gflop <= 310, peak_mib < dense_peak_mib", holds=holds)
    return result


def _peak_mib(scale: Scale, build: str, run: str) -> float:
    """Mebibytes that a forward or a step needs at its peak beyond the model: growth of a fresh process's resident
    memory, with the model already built and its pages touched."""
    program = textwrap.dedent(f"""
        import json, re
        import timm, torch, zoo
        from timm.layers import set_fused_attn
        from tools.bench_scale import FULL, TINY
        torch.set_num_threads({THREADS})
        {build}
        scale = {"TINY" if scale is TINY else "FULL"}
        x = scale.images()
        mask, hidden = scale.mask(0.75)
        def kib(name):
            return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
        before = kib("VmRSS")
    """)
    program += run + textwrap.dedent("""
        print(json.dumps(dict(mib=(kib("VmHWM") - before) / 1024)))  # unlike getrusage's, not inherited
    """)
    return _run_python(program)["mib"]


def bench_cold_start(repeats: int, scale: Scale, variant: str, most_seconds: float) -> dict[str, Any]:
    """create_model(..., pretrained=True) from a cached file, behind `import zoo`: at most `most_seconds` and 1.15 of
    the file's size in new resident memory, the first forward of two images included in a second figure."""
    name = variant.partition(".")[0]
    program = textwrap.dedent(f"""
        import json, sys, time
        import timm, zoo, torch
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096
        before, start = resident(), time.perf_counter()
        model = {scale.code(name, pretrained=True)}.eval()
        created, memory = time.perf_counter() - start, resident() - before
        x = torch.randn(1, 3, {scale.pixels}, {scale.pixels})
        with torch.inference_mode():
            model(x, x)
        print(json.dumps(dict(seconds=created, new_bytes=memory, new_bytes_after_forward=resident() - before,
                              seconds_with_first_forward=time.perf_counter() - start)))
    """)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{variant}.safetensors"
        state = scale.create(name, device="meta").state_dict()
        save_safetensors({key: torch.zeros(value.shape) for key, value in state.items()}, path, {})
        records.write_record(path, variant=variant, kind="file", location="made by the benchmark", source_sha256="")
        size = path.stat().st_size
        rows = [_run_python(program, ZOO_CACHE=folder, ZOO_WEIGHTS="") for _ in range(max(1, repeats // 3))]
    result = {key: median(row[key] for row in rows) for key in rows[0]}
    holds = result["seconds"] <= most_seconds and result["new_bytes"] <= 1.15 * size
    return result | dict(
        file_bytes=size,
        new_bytes_per_file=result["new_bytes"] / size,
        new_bytes_per_file_after_forward=result["new_bytes_after_forward"] / size,
        bar=f"seconds <= {most_seconds}, new_bytes_per_file <= 1.15",
        holds=holds,
    )


def bench_scenes(repeats: int, scale: Scale) -> dict[str, Any]:
    """Rendering batches of 64x64 pairs on the CPU against numpy's renderer alone, which does the work there; and that
    of torch, which is meant for GPUs; one thread. Drawing a scene, which is numpy's in all cases, is given too: a GPU
    is fed by so many workers as draw what it renders."""
    count, config = scale.pairs, SceneConfig()
    scenes = [sample_scene(config, 0, index) for index in range(count)]
    batch = scenes_torch.stack_scenes(scenes)
    torch.set_num_threads(1)

    def by_numpy() -> object:
        return [render_views(config, scene) for scene in scenes]

    result = compare(lambda: scenes_torch.render_views(config, batch), by_numpy, repeats)
    in_torch = compare(lambda: scenes_torch.render_views_in_torch(config, batch), by_numpy, repeats)
    drawing = median(seconds(lambda: scenes_torch.draw_batch(config, 0, range(count))) for _ in range(repeats)) / count
    torch.set_num_threads(THREADS)
    return dict(
        pairs_per_second=count / result["seconds"],
        reference_pairs_per_second=count / result["reference_seconds"],
        ratio=result["ratio"],
        in_torch_ratio=in_torch["ratio"],
        drawn_per_second_and_worker=1 / drawing,
        bar="ratio <= 1.05",
        holds=result["ratio"] <= 1.05,
    )


def bench_import(repeats: int, scale: Scale) -> dict[str, Any]:
    """`import zoo, timm` (so that the models are registered) against `import timm` alone: at most 1.1."""
    program = (
        "import json, time; t = time.perf_counter(); import {}; print(json.dumps(dict(s=time.perf_counter() - t)))"
    )
    pairs = [
        (_run_python(program.format("zoo, timm"))["s"], _run_python(program.format("timm"))["s"])
        for _ in range(repeats)
    ]
    ratio = median(a / b for a, b in pairs)
    return dict(
        seconds=median(a for a, _ in pairs),
        reference_seconds=median(b for _, b in pairs),
        ratio=ratio,
        zoo_alone_seconds=median(_run_python(program.format("zoo"))["s"] for _ in range(max(1, repeats // 3))),
        bar="ratio <= 1.1",
        holds=ratio <= 1.1,
    )


def bench_pirl_loss(repeats: int, scale: Scale, images: int) -> dict[str, Any]:
    """PIRL's NCE loss, forward + backward, of 32 embeddings with 32,000 negatives in a bank of `images` vectors,
    against gathering all rows in one piece: no slower, and at most 64 MB besides the bank and the indices."""
    images = round(images * scale.banks_share)
    program = textwrap.dedent(f"""
        import json, torch, torch.nn.functional as F
        from functools import partial
        from tools.bench_compare import compare
        from zoo.train.objectives.jigsaw.pirl import bank_loss, nce
        torch.set_num_threads({THREADS})
        bank = torch.rand({images}, 128).sub_(0.5)
        F.normalize(bank, out=bank)  # in place, so that making it doesn't need more than what is measured
        embedding = F.normalize(torch.randn(32, 128)).requires_grad_()
        candidates = torch.randint({images}, (32, {scale.negatives} + 1))
        criterion = partial(nce, normalizer=torch.tensor(float({images})), images={images})
        def ours():
            bank_loss(embedding, bank, candidates, 0.07, criterion)[0].backward()
        def one_piece():
            criterion((bank[candidates] @ embedding.unsqueeze(2)).squeeze(2) / 0.07).mean().backward()
        def high_water():
            return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
        def peak(run):
            before = high_water()
            run()
            return high_water() - before
        result = dict(peak_bytes=peak(ours), one_piece_peak_bytes=peak(one_piece))
        print(json.dumps(result | compare(ours, one_piece, {repeats})))
    """)
    result: dict[str, Any] = _run_python(program)
    holds = result["ratio"] <= 1 and result["peak_bytes"] <= 64e6
    return result | dict(bar="ratio <= 1, peak_bytes <= 64e6", holds=holds)


def _run_python(program: str, **environment: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


BENCHES: dict[str, Callable[[int, Scale], dict[str, Any]]] = {
    "encoder": bench_encoder,
    "pair": bench_pair,
    "pointmaps": bench_pointmaps,
    "step": bench_step,
    **{family: partial(bench_backbone, family=family) for family in BACKBONES},
    **{f"{family}_step": partial(bench_masked_step, family=family) for family in MASKED},
    "stereo_step": bench_stereo_step,
    "stereo_tiles": bench_stereo_tiles,
    "stereo_reading": bench_stereo_reading,
    "decoding": bench_decoding,
    "scenes": bench_scenes,
    "cold_start": partial(
        bench_cold_start, variant="crocov2_large_patch16_224_dec768d12.habitat_real", most_seconds=0.8
    ),
    "pointmaps_cold_start": partial(bench_cold_start, variant="dust3r_large_patch16_512_dpt.naver", most_seconds=1.0),
    "compiled": bench_compiled,
    "import": bench_import,
    "pirl_loss_200k": partial(bench_pirl_loss, images=200_000),
    "pirl_loss_1280k": partial(bench_pirl_loss, images=1_280_000),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES), help="which to run")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of runs that a median is taken of")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--tiny", action="store_true", help="small models, one run of each: whether all of it works")
    args = parser.parse_args(arguments)
    repeats, scale = (1, TINY) if args.tiny else (args.repeats, FULL)
    torch.set_num_threads(THREADS)
    results: dict[str, Any] = {}
    for name in args.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = BENCHES[name](repeats, scale)
        if args.tiny:  # bars are of the full size
            results[name].update(bar="", holds=True)
    table = Table("bench", "figure", "value", "bar", "holds")
    for name, result in results.items():
        for key, value in result.items():
            if key not in ("bar", "holds"):
                measured = bool(result.get("bar")) and key == result["bar"].split()[0]
                table.add_row(
                    name,
                    key,
                    f"{value:,.4g}",
                    result["bar"] if measured else "",
                    "yes" if measured and result["holds"] else "no" if measured else "",
                )
    Console().print(table)
    if args.json:
        about = dict(machine=platform.machine(), threads=THREADS, torch=torch.__version__, timm=timm.__version__)
        args.json.write_text(json.dumps(about | {"results": results}, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(result.get("holds", True) for result in results.values()) else 1)


if __name__ == "__main__":
    main()
