"""`zoo eval pairs` on cases whose answers are known."""

import copy
import json
import math
from pathlib import Path

import pytest
import timm
import torch
import yaml
from torch import Tensor

from tests.conftest import Run
from zoo.errors import RecipeError, TrainingError
from zoo.evaluate import pairs as tool
from zoo.evaluate.pairs import baselines, claims, losses
from zoo.evaluate.pictures import draw_learning
from zoo.layers.masking import random_mask, split_mask, take_tokens
from zoo.layers.patchify import normalize_patches, patchify
from zoo.models.croco import PairModel
from zoo.scenes import SceneConfig
from zoo.train.recipe import load_recipe
from zoo.weights import save_safetensors

SMALL = dict(embed_dim=48, depth=1, decoder_dim=32, decoder_depth=2, decoder_num_heads=1)
RECIPE = dict(
    model="croco_nano_patch8_64_dec128d4",
    model_args=SMALL,
    objective=dict(name="cross_view_completion", mask_ratio=0.9),
    data=dict(source="scenes", image_size=64),
    batch_size=2,
    schedule=dict(unit="steps", warmup=1, length=4),
    optimizer=dict(lr=1e-3),
    seed=5,
)


@pytest.fixture(scope="module")
def model() -> PairModel:
    torch.manual_seed(0)
    return timm.create_model(RECIPE["model"], **SMALL).eval()


def shifted_pairs(dx: int, dy: int, count: int = 3, size: int = 64) -> tool.Pairs:
    """Pairs cut out of one noise image: what image 1 shows at (x, y) lies in image 2 at (x + dx, y + dy)."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(count, 3, size + 64, size + 64, generator=generator)
    image1 = noise[:, :, 32 : 32 + size, 32 : 32 + size]
    image2 = noise[:, :, 32 - dy : 32 - dy + size, 32 - dx : 32 - dx + size]
    flow = torch.tensor([dx, dy], dtype=torch.float32).view(1, 2, 1, 1).expand(count, 2, size, size)
    x = torch.arange(size) + dx
    y = torch.arange(size)[:, None] + dy
    covisible = ((x >= 0) & (x < size) & (y >= 0) & (y < size)).expand(count, size, size)
    patches = (size // 8) ** 2
    mask = random_mask(count, patches, 0.9, generator)
    order = torch.rand(count, patches, generator=generator).argsort(1)
    return tool.Pairs(image1, image2, image2.roll(1, 0), flow, covisible, mask, order)


def normalized(image: Tensor) -> Tensor:
    return normalize_patches(patchify(image, 8))


def test_color_and_structure_add_up_to_the_loss():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 4, 5, 192, generator=generator)
    found = losses.moments(prediction, target)
    for scale in (1.0, 0.3):
        parts = losses.loss_parts(found.error(scale))
        assert parts["loss"] == pytest.approx((scale * prediction - target).square().mean().item(), rel=1e-5)
        assert parts["loss"] == pytest.approx(parts["color"] + parts["structure"])
    difference = torch.tensor([1.0, -2.0, 0.5])
    only_color = losses.loss_parts(losses.moments(target + difference.repeat(64), target).error())
    assert only_color["color"] == pytest.approx(difference.square().mean().item(), rel=1e-5)
    assert only_color["structure"] == pytest.approx(0, abs=1e-6)


def test_fitted_scalars():
    target = torch.randn(4, 5, 192, generator=torch.Generator().manual_seed(0))
    color = target.unflatten(2, (-1, 3)).mean(2).repeat(1, 1, 64)
    found = losses.moments(2 * target, target)
    assert found.one_scalar().tolist() == pytest.approx([0.5, 0.5])
    found = losses.moments(4 * color + 0.5 * (target - color), target)
    assert found.two_scalars().tolist() == pytest.approx([0.25, 2.0], rel=1e-4)
    assert losses.loss_parts(found.error(found.two_scalars()))["loss"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dx, dy", [(0, 0), (5, -3), (-11, 2), (16, -16)])
def test_shift_is_found(dx: int, dy: int):
    pairs = shifted_pairs(dx, dy)
    visible, _ = split_mask(torch.zeros(3, 64, dtype=torch.bool).index_fill_(1, torch.arange(0, 64, 2), True), 32)
    target = take_tokens(normalized(pairs.image1), visible)
    found = baselines.best_shift(pairs.image2, target, visible, 8, 16)
    assert found.tolist() == [[dx, dy]] * 3
    moved = baselines.shift_image(pairs.image2, found)
    seen = pairs.covisible[:, None].expand_as(moved)
    torch.testing.assert_close(moved[seen], pairs.image1[seen])


def test_baselines_on_a_shifted_pair():
    pairs = shifted_pairs(6, 4)
    visible, index = split_mask(pairs.mask, 57)
    target = normalized(pairs.image1)
    predictions = baselines.baseline_predictions(pairs, target, visible, index, 8)
    hidden = take_tokens(target, index)
    whole = patchify(pairs.covisible[:, None].float(), 8).amin(-1).gather(1, index).bool()
    errors = {name: losses.moments(p, hidden).error().sum(-1) for name, p in predictions.items()}
    assert errors["oracle"][whole].max() < 1e-5
    assert errors["global_shift"][whole].max() < 1e-5
    assert errors["zeros"].mean().item() == pytest.approx(191 / 192, rel=1e-3)
    assert errors["copy"].mean().item() == pytest.approx(2 * 191 / 192, rel=0.05)  # independent noise


def test_warp_leaves_hidden_pixels_neutral():
    pairs = shifted_pairs(12, 0)  # the last 12 columns of image 1 lie outside of image 2
    warped = patchify(baselines.warp_image(pairs.image2, pairs.flow, pairs.covisible, 8), 8).unflatten(1, (8, 8))
    assert (warped[:, :, 7] == 0).all()
    half = warped[:, :, 6].unflatten(-1, (8, 8, 3))  # columns 4 to 7 are unseen: the mean color of the others
    unseen, mean = half[..., 4:, :], half[..., :4, :].mean((-3, -2), keepdim=True)
    torch.testing.assert_close(unseen, mean.expand_as(unseen))


def test_displacement_is_the_median_by_patch():
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 0, :8, :8], flow[:, 1, :8, :8] = 3, 4
    flow[:, 0, :3, :8] = 100  # not the median's business
    flow[:, :, 8:, 8:] = math.nan
    found = losses.patch_displacement(flow, 8)[0].tolist()
    assert found[:3] == [5, 0, 0] and math.isnan(found[3])
    assert losses.displacement_bins(64) == {"0-4": (0, 4), "4-7": (4, 7), "7-10": (7, 10), "10+": (10, math.inf)}
    assert list(losses.displacement_bins(128)) == ["0-8", "8-14", "14-20", "20+"]


def test_matches_on_a_shifted_pair():
    pairs = shifted_pairs(16, 0)
    index = torch.arange(64).expand(3, 64)
    centers, targets, counts = tool.true_matches(pairs, 8)
    assert centers[:9].tolist() == [[4 + 8 * i, 4] for i in range(8)] + [[4, 12]]
    assert counts[0].view(8, 8)[0].tolist() == [True] * 6 + [False] * 2
    assert targets[0, 0].tolist() == [20, 4]
    perfect = torch.eye(64).roll(2, 1).expand(3, 64, 64)
    hits, counted, far = tool.match_hits({}, pairs, index, [perfect], 8)
    assert torch.equal(counted, counts) and torch.equal(far, counts)
    assert hits["attention_0"][counts].all() and hits["pixels"][counts].all()
    assert not hits["same_place"][counts].any()
    assert hits["chance"][0, 9].item() == 5 / 64  # the place itself and its four neighbors


def test_attention_is_the_models_own(model: PairModel):
    pairs = shifted_pairs(0, 0)
    seen = []
    attention = model.decoder.blocks[0].cross_attn
    handle = attention.register_forward_hook(lambda module, args, output: seen.append((args[1], output)))
    with torch.no_grad(), tool.recorded_attention(model) as maps:
        model.predict(pairs.image1, pairs.image2, pairs.mask, 57)
    handle.remove()
    memory, output = seen[0]
    assert len(maps) == 2 and maps[0].shape == (3, 64, 64)
    torch.testing.assert_close(attention.proj(maps[0] @ attention.v_proj(memory)), output)  # one head
    assert not attention._forward_hooks


def test_untrained_model_does_not_use_its_reference(model: PairModel):
    pairs = tool.scene_pairs(SceneConfig(), tool.HELD_OUT_SEED, 30, model, 0.9)
    result = tool.measure(model, pairs)
    losses = result["losses"]
    assert losses["right"]["loss"] == pytest.approx(losses["wrong"]["loss"], rel=0.03)
    assert losses["zeros"]["loss"] == pytest.approx(191 / 192, rel=0.01)
    assert losses["oracle"]["loss"] < losses["global_shift_two_scalars"]["loss"] < losses["zeros"]["loss"]
    assert losses["global_shift_two_scalars"]["loss"] <= losses["global_shift_one_scalar"]["loss"]
    assert losses["color_copy"]["structure"] == pytest.approx(losses["zeros"]["structure"])
    assert sum(result["share_of_patches_by_displacement"].values()) == pytest.approx(1)
    shares = result["matches"]["within_patch_width"]
    assert list(shares)[:3] == ["features", "untrained_features", "pixels"] and "attention_1" in shares
    assert result["matches"]["within_patch_width_moved"]["same_place"] == 0
    assert result == tool.measure(copy.deepcopy(model), pairs)
    expected = {"pairs": 30, "hidden_patches": 57}
    assert {key: result[key] for key in expected} == expected


def test_photos(model: PairModel):
    pytest.importorskip("skimage")
    pairs = tool.photo_pairs((64, 64), model, 0.9)
    assert len(pairs.mask) > 100
    medians = -pairs.flow[:, 0].flatten(1).nanmedian(1).values
    assert medians.min() >= 8 and medians.max() <= 16
    warped = baselines.warp_image(pairs.image2, pairs.flow, pairs.covisible, 8)
    seen = pairs.covisible[:, None].expand_as(warped)

    def distance(image: Tensor) -> float:
        return (image - pairs.image1)[seen].abs().mean().item()

    assert distance(warped) < 0.35 * distance(pairs.image2) < 0.35 * distance(pairs.wrong)


def trial() -> tuple[dict, dict]:
    """The figures of a model that uses the reference and does not match, and of its photos."""

    def row(loss: float, structure: float = 0.0) -> dict:
        return dict(loss=loss, structure=structure)

    scenes = dict(
        losses=dict(
            right=row(0.653, 0.519),
            wrong=row(1.092),
            zeros=row(0.993),
            color_copy=row(0.784),
            global_shift_two_scalars=row(0.578, 0.466),
            self=row(0.558),
        ),
        share_right_below_wrong=0.97,
        matches=dict(
            within_patch_width=dict(
                features=0.4, untrained_features=0.3, pixels=0.35, attention_0=0.8, attention_1=0.7, same_place=0.6
            ),
            within_patch_width_moved=dict(features=0.3, attention_0=0.1, attention_1=0.6),
        ),
    )
    return scenes, dict(losses=dict(right=row(0.734), wrong=row(0.856)))


def test_verdict_of_the_trial():
    found = claims.verdict(*trial())
    assert found["uses_reference"]["holds"] and not found["matches_views"]["holds"]
    failed = [item["name"] for item in found["matches_views"]["conditions"] if not item["holds"]]
    assert failed == ["right, against global shift", "structure, against global shift's"]


def test_verdict_needs_every_condition():
    scenes, photos = trial()
    scenes["losses"]["global_shift_two_scalars"] = dict(loss=0.66, structure=0.53)
    assert claims.verdict(scenes, photos)["matches_views"]["holds"]
    assert claims.verdict(scenes, photos)["matches_views"]["matched_by"] == "attention_1"
    scenes["matches"]["within_patch_width"]["same_place"] = 0.71
    assert not claims.verdict(scenes, photos)["matches_views"]["holds"]
    assert claims.verdict(scenes, photos)["uses_reference"]["holds"]
    scenes, photos = trial()
    scenes["losses"]["global_shift_two_scalars"] = dict(loss=0.66, structure=0.53)
    scenes["share_right_below_wrong"] = 0.94
    found = claims.verdict(scenes, photos)
    assert not found["uses_reference"]["holds"] and not found["matches_views"]["holds"]


def test_encoders_are_refused():
    with pytest.raises(RecipeError, match="binocular"):
        tool.load_subject("croco_nano_patch8_64")


def test_runs_of_one_image_models_are_refused(zoo: Run, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(load_recipe("jigsaw_nano").to_dict()), "utf-8")
    code, out, err = zoo("eval", "pairs", tmp_path)
    assert (code, out) == (2, "") and "completes no pairs; name" in err


def test_runs_are_loaded_and_evaluated(zoo: Run, tmp_path: Path, model: PairModel):
    pytest.importorskip("skimage")
    with pytest.raises(TrainingError, match="checkpoint"):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), "utf-8")
        tool.load_subject(str(tmp_path))

    tensors = {f"objective.model.{key}": value for key, value in model.state_dict().items()}
    tensors["optimizer.0.exp_avg"] = torch.zeros(2)
    save_safetensors(tensors, tmp_path / "checkpoint.safetensors", {"run": json.dumps(dict(step=3))})
    subject = tool.load_subject(str(tmp_path))
    assert subject.step == 3 and subject.weights.name == "checkpoint.safetensors"
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in subject.model.state_dict().items())
    with pytest.raises(RecipeError, match="another --seed"):
        tool.evaluate(subject, 8, seed=5)

    save_safetensors(model.state_dict(), tmp_path / "model.safetensors", {"steps": "4"})
    output, picture = tmp_path / "result.json", tmp_path / "picture.png"
    code, out, err = zoo("eval", "pairs", tmp_path, "--pairs", 8, "--output", output, "--picture", picture)
    assert code == 0, err
    result = json.loads(output.read_text("utf-8"))
    assert result["model"]["step"] == 4 and len(result["model"]["sha256"]) == 64
    assert result["settings"]["scene_seed"] == tool.HELD_OUT_SEED
    assert result["settings"]["scene_config"]["image_size"] == 64
    assert not result["verdict"]["uses_reference"]["holds"]
    assert picture.stat().st_size > 10_000
    assert "does not hold" in out and str(picture) in out

    code, out, err = zoo("eval", "look", tmp_path, "--output", tmp_path / "look")
    assert code == 0, err
    names = {path.name for path in (tmp_path / "look").iterdir()}
    assert names == {"attention.png", "before_after.png", "feature_maps.png", "pair_matches.png"}
    assert all(str(tmp_path / "look" / name) in out for name in names)


def test_untrained_models_are_drawn_whole(model: PairModel):
    fresh, state = tool.untrained(model), model.state_dict()
    changed = {key for key, value in fresh.state_dict().items() if not torch.equal(value, state[key])}
    assert {"encoder.patch_embed.proj.weight", "decoder.mask_token", "head.weight"} <= changed
    again = tool.untrained(model).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in fresh.state_dict().items()), "and always the same"


def test_decoders_without_cross_attention_are_not_drawn(tmp_path: Path):
    model = timm.create_model(RECIPE["model"], **SMALL, decoder_block="cat").eval()
    with pytest.raises(RecipeError, match="no cross-attention"):
        draw_learning(tool.Subject("cat", model, None, tmp_path, "", None), tmp_path)
