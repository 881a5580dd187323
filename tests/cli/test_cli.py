"""The `zoo` command, called as users call it: what it prints, what it writes, how it fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import Run
from zoo import cli
from zoo.catalog import VARIANTS
from zoo.pictures import to_input
from zoo.weights import save_safetensors, verify
from zoo.weights.disk import records

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
PAIR, ENCODER = "croco_nano_patch8_64_dec128d4.scenes_far", "croco_nano_patch8_64.scenes_far"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of the small two-image model, untrained, as `zoo train` writes it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    model = timm.create_model(PAIR)
    save_safetensors(model.state_dict(), path, {"architecture": PAIR.partition(".")[0]})
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two photos, one of them in a subfolder, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for i, name in enumerate(("a.png", "more/b.jpg")):
        noise = np.random.default_rng(i).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture(autouse=True)
def no_weights_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine that the tests run on: an empty cache, no mirror."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["list"], ["list", "--json"], ["train", "--help"], ["eval", "--help"]]
)
def test_light_commands_import_neither_torch_nor_timm(args: list[str]) -> None:
    heavy = {"torch", "timm", "numpy", "huggingface_hub", "matplotlib"}
    code = f"import sys; from zoo import cli\ntry: cli.main()\nfinally: assert not {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout and not done.stderr


def test_module_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "zoo.cli", "info", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no variant called 'nonsense'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [c.callback.__name__.rstrip("_").replace("_", "-") for c in cli.app.registered_commands]
    + [f"eval {c.name}" for group in cli.app.registered_groups for c in group.typer_instance.registered_commands],
)
def test_help_has_one_example(zoo: Run, command: str) -> None:
    code, out, err = zoo(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.count(f"Example: zoo {command} ") == 1


def test_list(zoo: Run) -> None:
    _, everything, _ = zoo("list")
    assert all(variant.name in everything for variant in VARIANTS)
    _, dense, _ = zoo("list", "crocov2*", "--form", "dense", "--family", "croco", "--pretrained")
    names = [line.split()[0] for line in dense.splitlines()[1:]]
    published = [variant.name for variant in VARIANTS if variant.form == "dense" and variant.name.startswith("crocov2")]
    assert names == published
    _, out, _ = zoo("list", "--pretrained", "--json")
    assert [entry["name"] for entry in json.loads(out)] == [variant.name for variant in VARIANTS if variant.sources]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_info(zoo: Run, variant) -> None:
    code, out, err = zoo("info", variant.name)
    assert (code, err) == (0, "")
    assert variant.paper.arxiv in out and f"{variant.parameters:,}" in out and variant.license in out
    assert all(source.location in out for source in variant.sources)
    assert f'timm.create_model("{variant.name}"' in out


def test_info_tells_what_is_cached(zoo: Run, tmp_path: Path, weights: Path) -> None:
    name = "crocov2_base_patch16_224.habitat_real_basedec"
    assert "none yet" in zoo("info", name)[1]
    path = tmp_path / "cache" / f"{name}.safetensors"
    path.parent.mkdir()
    path.write_bytes(weights.read_bytes())
    records.write_record(path, variant=name, kind="url", location="https://example.org/x.pth", source_sha256="0" * 64)
    assert f"{path} (from url https://example.org/x.pth, 20" in zoo("info", name)[1]


def test_features(zoo: Run, tmp_path: Path, weights: Path, photos: Path) -> None:
    out = tmp_path / "features.safetensors"
    code, text, err = zoo("features", ENCODER, photos, "-o", out, "--weights", weights, "--batch-size", 1)
    assert code == 0, err
    assert "2 tensors of shape (192,)" in text
    found = load_file(out)
    assert set(found) == {(photos / name).as_posix() for name in ("a.png", "more/b.jpg")}
    model = timm.create_model(ENCODER, pretrained=True, pretrained_cfg_overlay=dict(file=str(weights))).eval()
    with torch.inference_mode():
        for path, vector in found.items():
            torch.testing.assert_close(vector, model(to_input(path, model))[0])

    args = ("features", ENCODER, photos / "a.png", "-o", out, "--weights", weights, "--maps", "--size", "48x96")
    assert zoo(*args)[0] == 0
    (encoder_map,) = load_file(out).values()
    assert encoder_map.shape == (192, 6, 12)
    args = ("features", PAIR, photos / "a.png", "-o", out, "--weights", weights, "--maps", "--size", "48x96")
    assert zoo(*args)[0] == 0
    torch.testing.assert_close(load_file(out)[(photos / "a.png").as_posix()], encoder_map)


def test_complete(zoo: Run, tmp_path: Path, weights: Path, photos: Path) -> None:
    pictures = []
    for name, seed in (("1.png", 3), ("2.png", 3), ("3.png", 4)):
        path = tmp_path / "new" / name
        code, text, err = zoo(
            *("complete", photos / "a.png", photos / "more" / "b.jpg", "-o", path, "--weights", weights),
            *("--seed", seed, "--mask-ratio", 0.75),
        )
        assert code == 0, err
        assert text == f"{path}\n"
        pictures.append(np.asarray(Image.open(path)))
    assert pictures[0].shape[1] > 1000
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).any()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_export_and_convert_are_inverse(zoo: Run, tmp_path: Path, weights: Path, suffix: str) -> None:
    theirs, ours = tmp_path / f"theirs{suffix}", tmp_path / "ours.safetensors"
    code, _, err = zoo("export", weights, "--format", "reference", "-o", theirs)
    assert code == 0, err
    state = load_file(theirs) if suffix == ".safetensors" else torch.load(theirs, weights_only=True)["model"]
    assert "enc_blocks.0.attn.qkv.weight" in state and "dec_blocks.3.cross_attn.projq.weight" in state
    code, _, err = zoo("convert", theirs, "--variant", PAIR, "-o", ours)
    assert code == 0, err
    before, after = load_file(weights), load_file(ours)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    (result,) = verify(ours, progress=False)
    assert result.recorded and result.problem is None
    assert zoo("export", ours, "--format", "zoo", "-o", theirs)[0] == 0  # its variant is in its header


def test_verify(zoo: Run, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "crocov2_base_patch16_224.habitat_real_basedec"
    code, text, _ = zoo("verify", name)
    assert (code, text) == (0, "No weights of these variants are on this machine.\n")
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(weights.read_bytes())
    code, text, _ = zoo("verify", name)
    assert code == 0 and text.startswith("no record")
    records.write_record(path, variant=name, kind="file", location="here", source_sha256="0" * 64)
    code, text, _ = zoo("verify", name)
    assert code == 0 and text.startswith("ok")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, text, err = zoo("verify", name)
    assert code == 2 and text.startswith("BAD") and str(path) in text
    assert err.startswith("1 of 1 weights files")


def test_train(zoo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ("batch_size=2", "schedule.length=2", "schedule.warmup=9", "log_steps=1", "optimizer.lr=1e-4")
    args = ("train", "croco_nano", "--workers", 0, *(word for setting in settings for word in ("--set", setting)))
    code, text, err = zoo(*args, "--dry-run")
    assert code == 0, err
    assert (
        "2 of 2 samples, the first 2 warm up" in text and "peak learning rate 0.0001" in text and "GiB at peak" in text
    )
    assert not (tmp_path / "runs").exists()
    code, text, err = zoo(*args)
    assert code == 0, err
    assert text.splitlines()[-1] == "runs/croco_nano/model.safetensors"
    assert len(load_file("runs/croco_nano/model.safetensors")) > 100
    code, text, err = zoo("export", "runs/croco_nano/model.safetensors", "-o", "croco.pth")
    assert code == 0 and text.endswith(f" tensors of {PAIR.partition('.')[0]}, reference names\n"), err  # of no tag
    code, _, err = zoo(*args, "--set", "seed=1")
    assert code == 2 and "holds a run with other settings (seed)" in err


FAILURES = {
    "no such command": (["nonsense"], "No such command"),
    "no such option": (["list", "--nonsense"], "No such option"),
    "no such form": (["list", "--form", "round"], "round"),
    "nothing listed": (["list", "resnet*"], "no variant like that"),
    "near name": (["info", "croco_base_patch16"], "did you mean croco_base_patch16_224"),
    "size in words": (["features", ENCODER, "a.png", "-o", "x", "--size", "large"], "384x512"),
    "size that patches don't fill": (
        ["features", ENCODER, "a.png", "-o", "x", "--weights", "WEIGHTS", "--size", "60x64"],
        "multiples of 8",
    ),
    "no image": (["features", ENCODER, "notes.txt", "-o", "x", "--weights", "WEIGHTS"], "notes.txt is not an image"),
    "missing image": (["features", ENCODER, "nowhere.png", "-o", "x"], "nowhere.png"),
    "folder without photos": (["features", ENCODER, "empty", "-o", "x"], "holds no photos"),
    "weights of another model": (
        ["features", "croco_base_patch16_224", "a.png", "-o", "x", "--weights", "WEIGHTS"],
        "is no checkpoint of croco_base_patch16_224",
    ),
    "variant without weights": (
        ["complete", "a.png", "a.png", "-o", "x.png", "--model", "croco_base_patch16_224_cat512d8"],
        "train it with `zoo train croco_base --set model=croco_base_patch16_224_cat512d8`, name the run's folder; or "
        "choose one of `zoo list --form binocular --pretrained`",
    ),
    "encoder to complete": (["complete", "a.png", "a.png", "-o", "x.png", "--model", ENCODER], "can't complete photos"),
    "encoder to demonstrate": (["demo", "--model", ENCODER], "zoo list --form binocular"),
    "picture format": (["complete", "a.png", "a.png", "-o", "x.abc", "--weights", "WEIGHTS"], "choose another path"),
    "mask ratio": (["complete", "a.png", "a.png", "-o", "x.png", "--mask-ratio", "1"], "mask-ratio"),
    "no checkpoint": (["convert", "notes.txt", "--variant", PAIR, "-o", "x"], "notes.txt is neither"),
    "export's suffix": (["export", "WEIGHTS", "-o", "x.bin"], ".safetensors"),
    "export of no variant": (["export", "nowhere.safetensors", "-o", "x.pth"], "no variant called"),
    "no such recipe": (["train", "croco_nan"], "did you mean croco_nano or"),
    "recipe without data": (["train", "croco_base"], "with --data"),
    "setting without value": (["train", "croco_nano", "--set", "seed"], "KEY=VALUE"),
    "setting without sense": (["train", "croco_nano", "--set", "seed=[1"], "is no YAML"),
    "unknown setting": (["train", "croco_nano", "--set", "sead=1"], "unknown settings sead"),
}


def test_train_tells_of_its_data(zoo: Run) -> None:
    code, text, err = zoo("train", "classify_nano", "--dry-run", "--workers", 0, "--set", "batch_size=2")
    assert code == 0, err
    assert "from croco_nano_patch8_64.scenes_far" in text and "patterns; 8 classes" in text
    assert "every 75 steps; 500 samples; 8 classes" in text


@pytest.mark.parametrize("case", FAILURES)
def test_failures(
    zoo: Run, tmp_path: Path, weights: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    args, message = FAILURES[case]
    monkeypatch.chdir(photos)
    monkeypatch.setenv("COLUMNS", "200")  # usage errors come in a box, which shall not break the message
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    (photos / "empty").mkdir(exist_ok=True)
    before = sorted(photos.rglob("*"))
    code, out, err = zoo(*(str(weights) if arg == "WEIGHTS" else arg for arg in args))
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err
    if case == "weights of another model":
        assert err.count(": left out ") == 2, "more than its own conversion: those tried to tell whose the file is"
    assert sorted(photos.rglob("*")) == before


def test_interrupt_is_quiet(zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.demo.run_demo", interrupted)
    assert zoo("demo") == (130, "", "")


def test_missing_extra_is_named(
    zoo: Run, tmp_path: Path, weights: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    photo = photos / "a.png"
    code, out, err = zoo("complete", photo, photo, "-o", tmp_path / "x.png", "--weights", weights)
    assert (code, out) == (2, "")
    assert "pip install 'pretext-zoo[demo]'" in err


@pytest.mark.parametrize("args", [["list"], ["list", "--json"], ["info", PAIR], ["--help"], ["--version"], ["recipes"]])
def test_output_that_is_full(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    reads: Callable[[object], None],
    args: list[str],
) -> None:
    """Whether it is written while the command runs or at its end."""
    monkeypatch.setattr(sys, "argv", ["zoo", *args])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as end:
            cli.main()
        monkeypatch.undo()
    assert end.value.code == 2
    reads(capfd.readouterr().err.rstrip("\n"))


@pytest.mark.parametrize("args", [["list", "--json"], ["info", PAIR]])
def test_pipe_that_is_closed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], args: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["zoo", *args])
    reader, writer = os.pipe()
    os.close(reader)
    error_stream = sys.stderr
    with open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "stderr", error_stream)  # typer puts others in their place
        with pytest.raises(SystemExit) as end:
            cli.main()
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
    assert (end.value.code, capfd.readouterr().err) == (1, "")


def test_full_output_and_errors_end(tmp_path: Path) -> None:
    """In a process of its own, since Python writes at its end once more; with both streams full nothing can be told."""
    command = f"{sys.executable} -m zoo.cli"
    for line, code in (("list > /dev/full 2> err", 2), ("list >&- 2> err", 0), ("info x 2> /dev/full", 2)):
        done = subprocess.run(
            f"{command} {line}", shell=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == code, line
    assert not (tmp_path / "err").read_text()
    done = subprocess.run(f"{command} list 2> {tmp_path}/err | head -1", shell=True, capture_output=True, cwd=ROOT)
    assert done.stdout.startswith(b"variant") and not (tmp_path / "err").read_text()


PHOTOS = ("a.png", "more/b.jpg")
NEEDS = {
    "complete": ([*PHOTOS, "-o", "x.png"], "demo", ("matplotlib",)),
    "demo": ([], "demo", ("matplotlib", "skimage", "cv2")),
    "stereo": ([*PHOTOS], "demo", ("matplotlib",)),
    "flow": ([*PHOTOS], "demo", ("matplotlib",)),
    "points": ([*PHOTOS, "--glb", "--picture", "x.png"], "points", ("trimesh",)),
    "train": (["croco_nano"], "train", ("accelerate", "matplotlib", "yaml")),
    "recipes": ([], "train", ("yaml",)),
    "show-batch": (["croco_nano", "-o", "x.png"], "train", ("accelerate", "matplotlib", "yaml")),
    "push": (["more", "--repo", "me/mine"], "train", ("accelerate", "matplotlib", "yaml")),
    "eval pairs": ([PAIR, "--picture", "x.png"], "eval", ("accelerate", "matplotlib", "rich", "skimage", "yaml")),
    "eval points": ([PAIR, "--picture", "x.png"], "eval", ("accelerate", "matplotlib", "rich", "yaml")),
    "eval look": ([PAIR], "eval", ("accelerate", "matplotlib", "rich", "skimage", "yaml")),
    "eval stereo": ([PAIR, "--data", "x"], "eval", ("accelerate", "matplotlib")),
    "eval flow": ([PAIR, "--data", "x"], "eval", ("accelerate", "matplotlib")),
    "eval pretext": (["more"], "train", ("accelerate", "yaml")),
    "eval ordering": (["-o", "x.md"], "eval", ("matplotlib", "skimage", "sklearn", "yaml")),
    "eval stereo-ordering": (["-o", "x.md"], "eval", ("cv2", "matplotlib", "skimage", "yaml")),
}
PACKAGES = {"cv2": "opencv-python-headless", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def in_extra(extra: str) -> set[str]:
    """The packages that an extra of pyproject.toml brings, without versions."""
    found = set()
    for line in EXTRAS[extra]:
        if line.startswith("pretext-zoo["):
            found |= {name for other in line[12:].rstrip("]").split(",") for name in in_extra(other)}
        found.add(re.split(r"[<>=\[]", line)[0])
    return found


@pytest.mark.parametrize("command", NEEDS)
def test_missing_extra_is_told_at_once(
    zoo: Run, photos: Path, monkeypatch: pytest.MonkeyPatch, reads: Callable[[object], None], command: str
) -> None:
    """Before a model is made, and by an extra that brings it."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a model was made")

    monkeypatch.setattr("timm.create_model", refuse)
    monkeypatch.chdir(photos)
    args, extra, packages = NEEDS[command]
    for package in packages:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            code, out, err = zoo(*command.split(), *args)
        assert (code, out) == (2, "") and f"needs {package};" in err and f"[{extra}]" in err
        assert PACKAGES.get(package, package) in in_extra(extra)
        reads(err.rstrip("\n"))


def test_every_extra_is_named() -> None:
    """In the README and on the page about installing, in a table; but for those of the zoo's own development."""
    for page in ("README.md", "docs/install.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
        assert {name for name in named if name in EXTRAS} == set(EXTRAS), page
