"""`zoo eval ordering`: its tasks on cases whose answers are known, and the whole of it in a few steps."""

import json
import re
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.conftest import Run
from zoo import evaluate
from zoo.evaluate import ordering as tool
from zoo.evaluate import ordering_page, stereo_ordering
from zoo.scenes import SceneConfig
from zoo.scenes.torch.render import draw_batch, render
from zoo.train.recipe import load_recipe

ROOT = Path(__file__).parents[2]
CONFIG = SceneConfig(displacement=(0.03, 0.18), texture_scale=(0.5, 1.5))


class Describing(nn.Module):
    """An encoder whose tokens are a given function of the patches (B, N, pixels), which are values 0 to 1."""

    patch_size = 8
    pretrained_cfg: ClassVar = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def __init__(self, describe: Any) -> None:
        super().__init__()
        self.describe = describe

    def init_weights(self) -> None: ...

    def forward_features(self, images: Tensor) -> Tensor:
        return self.describe(nn.functional.unfold(images, 8, stride=8).mT)

    def forward_tokens(self, images: Tensor) -> tuple[Tensor, list]:
        return self.forward_features(images), []


def test_matching() -> None:
    """Centered pixels match some; tokens that say where a patch lies match as well as staying in place does."""
    sizes = tool.Sizes(pairs=30)
    places = Describing(lambda patches: torch.eye(patches.shape[1]).expand(len(patches), -1, -1))
    share, trivial = tool.matching(places, CONFIG, sizes)
    assert share == pytest.approx(trivial["same place"])
    pixels = Describing(lambda patches: patches - patches.mean(2, keepdim=True))
    share, trivial = tool.matching(pixels, CONFIG, sizes)
    assert share == pytest.approx(trivial["pixels"], abs=0.02) and share > 5 * trivial["chance"]


def test_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that holds the answer scores 1; one that holds nothing, 0 or less."""
    sizes = tool.Sizes(depth_scenes=40)
    nothing, trivial = tool.depth(Describing(torch.zeros_like), CONFIG, sizes)
    assert nothing < 0.01 and trivial["place in the image"] < 0.6
    draw = tool.render_views

    def show_depth(config: SceneConfig, scenes: Any) -> tuple[Tensor, Tensor]:
        images, depth = draw(config, scenes)
        return ((depth.log() + 2) * 50).to(torch.uint8)[:, :, None].expand_as(images), depth

    monkeypatch.setattr(tool, "render_views", show_depth)
    answer, _ = tool.depth(Describing(lambda patches: patches), CONFIG, sizes)
    assert answer > 0.99


def test_flow() -> None:
    """An untrained head predicts no flow, and a few steps with the answers in the images learn it."""

    class Told(nn.Module):
        patch_size, embed_dim = 8, 8
        pretrained_cfg: ClassVar = Describing.pretrained_cfg

        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(2 * 3 * 64, 8)

        def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
            tokens = self.read(nn.functional.unfold(torch.cat((img1, img2), 1), 8, stride=8).mT)
            seen.append(tokens.dtype)
            return tokens

    seen: list[torch.dtype] = []

    scenes = render(CONFIG, draw_batch(CONFIG, 0, range(4)))
    error = tool.end_point_error(tool.FlowModel(Told()), scenes)
    seen_by_both = scenes.covisible
    torch.testing.assert_close(error[seen_by_both], scenes.flow.norm(dim=1)[seen_by_both])
    hidden = scenes._replace(flow=torch.where(seen_by_both[:, None], scenes.flow, torch.inf))
    told = tool.FlowModel(Told())
    tool.end_point_error(told, hidden)[seen_by_both].mean().backward()
    assert told.head.bias.grad.isfinite().all(), "unknown flow is infinite"

    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        seen.clear()
        figure, trivial = tool.flow(Told(), CONFIG, tool.Sizes(flow_steps=1, flow_batch=2, flow_pairs=20), precision)
        assert trivial["the mean flow"] < trivial["no flow"]
        assert figure == pytest.approx(trivial["no flow"], rel=0.1), "one step changes little"
        assert seen == [dtype, torch.float32], "trained in the precision, measured in float32"


def test_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms differ in what they hold, and a token that holds the answer tells."""
    images, labels = tool.furnished_rooms(CONFIG, 5, 9)
    assert images.shape == (9, 3, 64, 64) and labels.tolist() == [0, 1, 2] * 3
    sizes = tool.Sizes(shape_images=60)
    nothing, trivial = tool.shape(Describing(lambda patches: torch.ones_like(patches)), CONFIG, sizes)
    assert nothing == trivial["chance"] == pytest.approx(1 / 3) and trivial["colors"] < 0.7

    def show_answers(config: SceneConfig, scenes: Any) -> tuple[Tensor, None]:
        boxes, balls = scenes.used[:, 1:6].sum(1), scenes.used[:, 6:].sum(1)
        assert ((boxes + balls) <= 1).all() and scenes.used[:, 0].all()
        answers = torch.stack((boxes, balls, 1 - boxes - balls), dim=1).to(torch.uint8) * 255
        return answers[:, None, :, None, None].expand(-1, 1, -1, 64, 64), None

    monkeypatch.setattr(tool, "render_views", show_answers)
    answer, _ = tool.shape(Describing(lambda patches: patches), CONFIG, sizes)
    assert answer == 1


def test_pretrained_parts_are_used(tmp_path: Path) -> None:
    fresh = tool.load_pair("untrained", 3, None).state_dict()
    for name, architecture in (("CroCo", tool.PAIR), ("MAE", "croco_nano_patch8_64_mae")):
        torch.manual_seed(7)
        state = timm.create_model(architecture).state_dict()
        tool.safetensors.torch.save_file(state, tmp_path / "model.safetensors")
        loaded = tool.load_pair(name, 3, tmp_path).state_dict()
        for key, value in loaded.items():
            source = state if key.startswith("encoder.") or name == "CroCo" else fresh
            assert torch.equal(value, source[key]), key


def test_missing_extra_is_named(zoo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(evaluate, "ordering")
    monkeypatch.delitem(sys.modules, "zoo.evaluate.ordering")
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    code, out, err = zoo("eval", "ordering", "-o", tmp_path / "page.md")
    assert (code, out) == (2, "") and "pip install 'pretext-zoo[eval]'" in err


def test_recipes_are_scaled_to_the_steps() -> None:
    rich, whole = tool.recipe_of("CroCo", 5, 600, "bf16", "nano_rich"), load_recipe("croco_nano_rich")
    (start, low), (end, high) = rich.curriculum["data.displacement"]
    share = whole.curriculum["data.displacement"][1][0] / whole.schedule.length
    assert start == 0 and end / 600 == pytest.approx(share, abs=0.002)  # of whole steps
    assert (low, high) == ([0.02, 0.06], whole.data["displacement"])
    assert (rich.seed, rich.schedule.warmup, rich.batch_size) == (5, 60, whole.batch_size)
    assert tool.recipe_of("MAE", 0, 600, "fp32").model == "croco_nano_patch8_64_mae"


def test_whole_comparison(zoo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dict(embed_dim=48, depth=1, decoder_dim=32, decoder_depth=1, decoder_num_heads=1)
    recipe_of, create = tool.recipe_of, timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **args: create(name, **(small | args)))
    monkeypatch.setattr(
        tool, "recipe_of", lambda *args: tool.replace(recipe_of(*args), batch_size=4, model_args=small, log_steps=5)
    )
    few = tool.Sizes(pairs=8, depth_scenes=8, flow_batch=2, flow_pairs=4, shape_images=24)
    monkeypatch.setattr(tool, "Sizes", lambda flow_steps: tool.replace(few, flow_steps=flow_steps))
    measured: list[tuple[str, int]] = []
    measure = tool.measure
    monkeypatch.setattr(tool, "measure", lambda *args: measured.append(args[:2]) or measure(*args))
    runs, output = tmp_path / "runs", tmp_path / "docs" / "page.md"
    command = ["eval", "ordering", "--steps", 10, "--flow-steps", 2, "--seeds", 1]
    command += ["--runs", runs, "--workers", 0, "-o", output]
    code, _, err = zoo(*command)
    assert code == 0, err
    assert zoo(*command, "--only", 0)[1].split() == [str(runs)] and len(measured) == 3, "it has been measured"
    result = json.loads(output.with_suffix(".json").read_text("utf-8"))
    assert list(result["figures"]) == ["CroCo", "MAE", "untrained"]
    assert all(set(figures) == set(ordering_page.TASKS) for some in result["figures"].values() for figures in some)
    assert load_recipe(runs / "mae_0" / "recipe.yaml").precision == "bf16"
    assert "in bfloat16" in output.read_text("utf-8") and "One seed" in output.read_text("utf-8")
    assert output.with_suffix(".png").stat().st_size > 10_000

    (runs / "mae_0" / "tasks_10.json").unlink()  # as if stopped there; the rest has been measured
    code, _, err = zoo(*command)
    assert code == 0, err
    assert measured == [("CroCo", 0), ("MAE", 0), ("untrained", 0), ("MAE", 0)]
    assert json.loads(output.with_suffix(".json").read_text("utf-8"))["figures"] == result["figures"]
    code, _, err = zoo(*command, "--precision", "fp32")
    assert code == 2 and "other settings (precision)" in err

    finished = ["eval", "ordering", "--croco", runs / "croco_0", "--flow-steps", 2, "-o", tmp_path / "finished.md"]
    finished += ["--runs", tmp_path / "more", "--seeds", 2]
    assert "go together" in zoo(*finished)[2]
    assert "not MAE's croco_nano_patch8_64_mae" in zoo(*finished, "--mae", runs / "croco_0")[2]
    code, _, err = zoo(*finished, "--mae", runs / "mae_0")
    assert code == 0, err
    more = json.loads((tmp_path / "finished.json").read_text("utf-8"))["figures"]
    assert {name: figures[0] for name, figures in more.items()} == {n: f[0] for n, f in result["figures"].items()}
    assert more["CroCo"][1]["matching"] == more["CroCo"][0]["matching"], "learns nothing: the same run"
    assert more["CroCo"][1]["flow"] != more["CroCo"][0]["flow"], "fine-tuned on other scenes"
    assert "one finished run of each" in (tmp_path / "finished.md").read_text("utf-8")
    assert not (tmp_path / "more" / "mae_0" / "recipe.yaml").exists()

    for figures in result["figures"].values():
        figures += [{task: value + 0.1 for task, value in figures[0].items()}]
    result["about"]["seeds"] += [1]
    text = ordering_page.page(result, "picture.png")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 6 and len({row.count("|") for row in rows}) == 1
    assert (
        "over 2 seeds" in text
        and f"zoo eval ordering --steps 10 --kind nano --seeds 1 --flow-steps 2 --precision bf16 --runs {runs}" in text
    )
    mean, spread = ordering_page.summary(result, "depth", "MAE")
    assert f"{mean:.3f} ± {spread:.3f}" in rows[3] and re.search(r"R2", rows[3])


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/3d_ordering*.md")), ids=lambda path: path.stem)
def test_pages_say_what_was_measured(page: Path) -> None:
    text, on_stereo = page.read_text("utf-8"), stereo_ordering.read_section(page)
    if on_stereo:
        result = json.loads(page.with_suffix(".stereo.json").read_text("utf-8"))
        assert on_stereo == stereo_ordering.section(result, f"{page.stem}.stereo.png")
        before, _, rest = text.partition("<!-- stereo: begin -->")
        text = before + rest.partition("<!-- stereo: end -->\n\n")[2]
    assert text == ordering_page.page(json.loads(page.with_suffix(".json").read_text("utf-8")), f"{page.stem}.png")
