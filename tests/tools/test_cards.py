"""Model cards: up to date, complete, and with lines that run."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torchvision.transforms.functional as functional
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.support.kinds import first_of_each
from tests.support.meta import leave_out_blocks
from tools import make_cards
from tools.cards import records, sections
from zoo import fetch, find_variant
from zoo.catalog import VARIANTS, Variant
from zoo.errors import UnknownVariantError
from zoo.evaluate import pairs
from zoo.evaluate.pairs import evaluation as evaluation_of_pairs
from zoo.models.croco import dense
from zoo.train.data.sources import make_source
from zoo.train.recipe import load_recipe

REPOSITORY = Path(__file__).resolve().parents[2]

NANO = find_variant("croco_nano_patch8_64_dec128d4.scenes_rich")


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NAME = attrgetter("name")
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=NAME)


def network(variant: Variant) -> tuple[str, ...]:
    return (variant.architecture, str(variant.num_classes), str(variant.input_size), str(variant.args))


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards of bundled weights without the records of their training, which other tests are about."""
    monkeypatch.setattr(sections, "SECTIONS", [s for s in sections.SECTIONS if s is not records.measured])


@pytest.fixture
def quick_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_blocks(monkeypatch)


@each_variant
def test_card_is_what_the_tool_makes(variant: Variant, quick_blocks: None) -> None:
    path = REPOSITORY / "model_cards" / f"{variant.name}.md"
    assert path.read_text(encoding="utf-8") == sections.card(variant), "run tools/make_cards.py"


def test_nothing_else_is_stale() -> None:
    files, _ = make_cards.wanted()
    assert make_cards.stale(files) == [], "run tools/make_cards.py"


@each_variant
def test_catalog_counts_parameters_right(variant: Variant) -> None:
    model = timm.create_model(variant.name, device="meta")
    assert variant.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


@each_variant
def test_front_matter(variant: Variant, bundled: None) -> None:
    _, header, body = sections.card(variant).split("---\n", 2)
    matter = yaml.safe_load(header)
    assert set(matter) == {"license", "library_name", "pipeline_tag", "tags"}
    assert matter["license"] in ("apache-2.0", "cc-by-nc-sa-4.0", "mit", "unknown")
    assert matter["license"] == variant.license.lower()
    assert matter["library_name"] == "timm" and variant.family in matter["tags"]
    assert body.startswith(f"\n# {variant.name}\n")


@pytest.mark.parametrize("variant", first_of_each(VARIANTS, network), ids=NAME)
def test_loading_lines_run_and_give_the_shapes_they_say(
    variant: Variant, bundled: None, quick_blocks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The lines of the card, with models and images on the meta device: real names and shapes, no arithmetic."""
    code = re.sub(r"torch\.rand\(([^)]*)\)", r'torch.rand(\1, device="meta")', _code_blocks(variant)[0])
    create, created = timm.create_model, []

    def create_on_meta(name: str, pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        created.append((name, pretrained))
        return create(name, device="meta", **kwargs)

    monkeypatch.setattr(timm, "create_model", create_on_meta)
    monkeypatch.setattr(functional, "normalize", lambda image, *mean_and_std: image.to("meta"))
    monkeypatch.setattr(dense, "tile_starts", lambda *args: [0])  # one tile of many has the same shape
    for name in ("photo.jpg", "left.jpg", "right.jpg"):
        Image.new("RGB", (1280, 360)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)

    names: dict[str, Any] = {}
    exec(code, names)
    assert created and set(created) == {(variant.name, bool(variant.tag))}
    promised = dict(re.findall(r"^ *(\w+) = .*  # ([\d, ]+\d)", code, re.MULTILINE))
    assert promised
    for name, shape in promised.items():
        assert isinstance(names[name], Tensor) and str(list(names[name].shape)) == f"[{shape}]", name
    if variant.form == "dense":
        assert list(names["whole"].shape) == [1, variant.args["out_chans"], 360, 1280]


@each_variant
def test_hub_lines_name_what_there_is(variant: Variant, bundled: None) -> None:
    blocks = _code_blocks(variant)
    if not variant.tag:
        assert len(blocks) == 1
        return
    eval_of = ast.parse(blocks[1]).body[-1].value.func  # type: ignore[attr-defined]
    call = eval_of.value
    assert eval_of.attr == "eval" and ast.unparse(call.func) == "torch.hub.load"
    architecture = ast.literal_eval(call.args[1])
    weights = {word.arg: ast.literal_eval(word.value) for word in call.keywords}["weights"]
    assert f"{architecture}.{weights}" == variant.name
    assert timm.is_model_pretrained(architecture) and variant.name in timm.list_pretrained(architecture + ".*")


@each_variant
def test_relative_links_lead_somewhere(variant: Variant, bundled: None) -> None:
    cards = {f"{v.name}.md" for v in VARIANTS}
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", sections.card(variant)):
        assert target in cards or (REPOSITORY / "model_cards" / target).exists(), target


@pytest.fixture
def write_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Makes the bundled nano weights' records: of a run, and of an evaluation by `zoo eval pairs` on a few pairs."""
    recipe = load_recipe(NANO.recipe)
    model = timm.create_model(NANO.architecture).eval()
    weights = tmp_path / NANO.sources[0].location
    weights.write_bytes(b"weights")
    subject = pairs.Subject(NANO.name, model, recipe, weights, sha256(b"weights").hexdigest(), None)
    held_out = recipe.seed + 1
    few = pairs.scene_pairs(make_source(recipe.data, held_out, "pair").config, held_out, 8, model, 0.9)
    monkeypatch.setattr(evaluation_of_pairs, "photo_pairs", lambda *args: few)
    evaluation, _, _ = pairs.evaluate(subject, 8, held_out)
    steps = int(recipe.schedule.length)
    run = dict(
        command=f"zoo train {recipe.name}",
        recipe=recipe.name,
        seed=recipe.seed,
        steps=steps,
        samples=steps * recipe.batch_size,
        hours=1.44,
        machine="one core of a CPU",
        torch="2.6.0",
        date="2026-01-01",
        final_loss=0.51234,
        first_losses=[1.5, 1.25],
        reproduced_losses=[0.123456789, 0.1],
    )
    monkeypatch.setattr(records, "BUNDLED", tmp_path)

    def write(**changes: Any) -> None:
        weights.with_suffix(".training.json").write_text(json.dumps(run | changes))
        weights.with_suffix(".evaluation.json").write_text(json.dumps(evaluation))

    write()
    return write


def test_bundled_weights_say_how_they_were_made(
    write_records: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = sections.card(NANO)
    for piece in (
        "zoo train croco_nano_rich",
        "1.4 hours",
        "1.5000, 1.2500",
        "0.5123",
        "0.123456789 0.1",
        "8 scenes that training never saw",
    ):
        assert piece in text
    assert text.count("the model, with the true second view") == 1
    assert text.count("cross-attention of decoder block") == NANO.args["decoder_depth"]
    assert "It makes use of the second image (`uses_reference`): **no**" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 7
    for table in tables:
        assert len({line.count(" |") for line in table[:1] + table[2:]}) == 1

    monkeypatch.setattr(records, "CARDS", tmp_path)
    (tmp_path / NANO.architecture).mkdir()
    (tmp_path / NANO.architecture / "loss.png").touch()
    assert f"![loss]({NANO.architecture}/loss.png)" in sections.card(NANO)


def test_records_that_are_missing_or_do_not_fit_are_named(write_records: Callable[..., None], tmp_path: Path) -> None:
    def complaint() -> str:
        with pytest.raises(records.CardError) as error:
            sections.card(NANO)
        return str(error.value)

    write_records(steps=3)
    assert "training.json: it describes another run than the recipe croco_nano_rich" in complaint()
    write_records(hours=None)
    assert "training.json lacks or misstates" in complaint()
    write_records()
    path = tmp_path / f"{NANO.sources[0].location.removesuffix('.safetensors')}.evaluation.json"
    evaluation = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in evaluation.items() if key != "verdict"}))
    assert complaint() == f"{path} lacks or misstates 'verdict'; write it again"
    evaluation["model"]["sha256"] = "0" * 64
    path.write_text(json.dumps(evaluation))
    assert "evaluation.json: it is about other weights" in complaint()
    path.unlink()
    assert complaint() == f"{path} is missing; cards of weights in the package are made from it"


def test_a_second_run_must_give_the_same_losses(tmp_path: Path) -> None:
    bundle = load_tool("bundle")

    def run(name: str, losses: list[float], **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text(
            yaml.safe_dump(load_recipe(NANO.recipe, {"log_steps": 1} | changes).to_dict()), "utf-8"
        )
        rows = [json.dumps(dict(step=step, loss=loss)) for step, loss in enumerate(losses, 1)]
        (folder / "log.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
        return folder

    first = run("first", [0.1, 0.2, 0.3])
    assert bundle.reproduced_losses(first, run("again", [0.1, 0.2], **{"schedule.stop": 2})) == [0.1, 0.2]
    with pytest.raises(SystemExit, match="Step 2 of"):
        bundle.reproduced_losses(first, run("other", [0.1, 0.2 + 1e-9], **{"schedule.stop": 2}))
    with pytest.raises(SystemExit, match="must repeat the recipe"):
        bundle.reproduced_losses(first, run("seed", [0.1, 0.2], seed=7))


def test_readme_table_replaces_what_is_between_its_markers() -> None:
    text = f"before\n{make_cards.BEGIN}\nold\n{make_cards.END}\nafter\n"
    made = make_cards.readme(text)
    assert made.startswith("before\n") and made.endswith("\nafter\n") and "old" not in made
    assert all(f"\n| {variant.family} |" in made for variant in VARIANTS)
    assert all(f"| [`{variant.name}`]({variant.name}.md) |" in make_cards.index() for variant in VARIANTS)
    assert make_cards.readme(made) == made
    assert make_cards.readme("no markers\n") == "no markers\n"


def test_check_names_stale_cards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], bundled: None
) -> None:
    monkeypatch.setattr(make_cards, "ROOT", tmp_path)
    monkeypatch.setattr(make_cards, "CARDS", tmp_path / "model_cards")
    monkeypatch.setattr(make_cards, "README", tmp_path / "README.md")
    (tmp_path / "model_cards").mkdir()
    (tmp_path / "README.md").write_text(f"{make_cards.BEGIN}\n{make_cards.END}\n")
    arguments = ["make_cards.py"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert make_cards.main() == 0
    arguments.append("--check")
    assert make_cards.main() == 0
    capsys.readouterr()
    (tmp_path / "model_cards" / f"{NANO.name}.md").write_text("edited")
    (tmp_path / "model_cards" / "gone.md").touch()
    assert make_cards.main() == 1
    assert capsys.readouterr().out.splitlines() == [f"stale: model_cards/{NANO.name}.md", "stale: model_cards/gone.md"]
    arguments.pop()
    assert make_cards.main() == 0
    assert not (tmp_path / "model_cards" / "gone.md").exists()


def _code_blocks(variant: Variant) -> list[str]:
    return re.findall(r"```python\n(.*?)```", sections.card(variant), re.DOTALL)


def test_small_weights_of_before_are_still_the_same() -> None:
    """The small CroCo's weights of before keep loading under their own tag, and the first ones say what to take."""
    before, newest = (fetch(f"croco_nano_patch8_64_dec128d4.{tag}") for tag in ("scenes_far", "scenes_rich"))
    assert sha256(before.read_bytes()).hexdigest() == "7bddc3b2b1226dbbee4e14639712b8284abcec81ff146546a4a617e669ea22a7"
    assert load_file(before).keys() == load_file(newest).keys() and before.read_bytes() != newest.read_bytes()
    assert fetch("croco_nano_patch8_64") == newest, "the bare name loads the newest"
    for name in ("croco_nano_patch8_64_dec128d4.scenes", "croco_nano_patch8_64.scenes"):
        for load in (fetch, find_variant, timm.create_model):
            with pytest.raises(UnknownVariantError, match="take croco_nano_patch8_64.*scenes_rich"):
                load(name)
