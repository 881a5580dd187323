"""What is particular to iTPN: the pyramid that comes with the backbone, and the three pretraining forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor

import zoo  # noqa: F401  (registers the models)
from zoo.errors import ImageError
from zoo.layers.masking import block_mask, random_mask, split_mask, take_tokens
from zoo.layers.positions.tables import stretch_table
from zoo.models.itpn import ITPN, ITPNClip, ITPNEma, ITPNPixel, Pyramid
from zoo.weights import save_safetensors

TRUNK: dict[str, Any] = dict(img_size=64, embed_dim=32, depths=(1, 1, 4), num_heads=2)
TINY: dict[str, Any] = dict(**TRUNK, fpn_dim=16, fpn_depth=1)
DECODER: dict[str, Any] = dict(decoder_dim=32, decoder_depth=1, decoder_num_heads=2)


def make(cls: Any, **args: Any) -> Any:
    torch.manual_seed(0)
    decoder = DECODER if issubclass(cls, ITPNPixel) else {}
    return cls(**{**TINY, **decoder, **args})


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask() -> Tensor:
    return random_mask(2, 16, 0.75, torch.Generator().manual_seed(2))


# ------------------------------------------------------------------------------------------- backbone


@pytest.mark.parametrize(
    ("features", "channels"),
    [("pyramid", [96, 96, 96, 96]), ("dense", [144, 192, 288, 288]), ("stages", [48, 96, 192, 192])],
)
def test_features_only(features: str, channels: list[int]) -> None:
    args: dict[str, Any] = {} if features == "pyramid" else dict(features=features)  # the pyramid is the default
    model = timm.create_model(
        "itpn_nano_patch16_64", features_only=True, out_indices=(0, 1, 2, 3), img_size=(64, 96), **args
    ).eval()
    assert model.feature_info.channels() == channels and model.feature_info.reduction() == [4, 8, 16, 32]
    maps = model(torch.randn(1, 3, 64, 96))
    assert [m.shape for m in maps] == [(1, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32))]
    torch.testing.assert_close(maps[3], F.max_pool2d(maps[2], 2))
    three = timm.create_model("itpn_nano_patch16_64", features_only=True, **args)
    assert three.feature_info.reduction() == [4, 8, 16]


def test_maps_lie_as_the_image_does(images: Tensor) -> None:
    """Sub-tokens of patches, rows and columns in their places: each map's cell comes from its own pixels."""
    for features in ("pyramid", "dense", "stages"):
        model = make(ITPN, features=features).eval()
        for block in model.blocks[4:]:
            block.attn.proj.weight.data.zero_()  # patches apart
        x = images.clone().requires_grad_()
        for level, stride in enumerate((4, 8, 16)):
            (grad,) = torch.autograd.grad(
                model.forward_intermediates(x, [level], intermediates_only=True)[0][
                    0, :, 5 * 4 // stride, 9 * 4 // stride
                ].sum(),
                x,
            )
            rows, columns = grad[0].abs().sum(0).nonzero().unbind(1)
            side = 16 if features != "stages" else stride  # top down, a level knows its whole patch
            top, left = 20 // side * side, 36 // side * side
            assert (rows.min(), columns.min()) == (top, left)
            assert (rows.max(), columns.max()) == (top + side - 1, left + side - 1)


def test_dense_levels_are_pyramid_and_stage(images: Tensor) -> None:
    dense = make(ITPN, features="dense").eval()
    pyramid, stages = make(ITPN).eval(), make(ITPN, features="stages").eval()
    pyramid.load_state_dict(dense.state_dict())
    stages.load_state_dict({key: value for key, value in dense.state_dict().items() if not key.startswith("pyramid.")})
    maps = [model.forward_intermediates(images, intermediates_only=True) for model in (dense, pyramid, stages)]
    for both, level, stage in zip(*maps):
        torch.testing.assert_close(both, torch.cat((level, stage), dim=1))
    final, _ = dense.forward_intermediates(images)
    torch.testing.assert_close(final, dense.forward_features(images))


def test_classifiers_have_no_pyramid_and_backbones_do_not_run_it(images: Tensor) -> None:
    classifier = make(ITPN, num_classes=3)
    assert classifier.pyramid is None
    classifier(images).sum().backward()
    assert all(p.grad is not None for p in classifier.parameters())
    backbone = make(ITPN)
    backbone.pyramid.register_forward_hook(lambda *_: pytest.fail("the pyramid ran"))
    backbone(images)
    backbone.forward_features(images)
    backbone.reset_classifier(3)
    assert backbone(images).shape == (2, 3)
    with pytest.raises(ValueError, match="choose pyramid, dense or stages"):
        make(ITPN, features="neck")


def test_files_of_all_forms_serve_backbones_and_classifiers(tmp_path: Path) -> None:
    """What was trained or saved here, loaded by name: with the pyramid, or without it where there is a classifier."""
    small = dict(depths=(1, 1, 1))
    forms = {
        "itpn_nano_patch16_64": lambda model: model,
        "itpn_nano_patch16_64_pixel": lambda model: model.encoder,
        "itpn_nano_patch16_64_ema": lambda model: model.encoder,
    }
    for name, encoder_of in forms.items():
        model = timm.create_model(name, **small)
        path = tmp_path / f"{name}.safetensors"
        save_safetensors(model.state_dict(), path, {})
        args = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **small)
        want = encoder_of(model).state_dict()
        backbone = timm.create_model("itpn_nano_patch16_64", **args)
        got = backbone.state_dict()
        assert all(torch.equal(got[key], value) for key, value in want.items()) and got.keys() >= want.keys()
        assert (
            len({group["lr_scale"] for group in param_groups_layer_decay(backbone, layer_decay=0.5)}) == 6
        )  # the pyramid with the last block
        classifier = timm.create_model("itpn_nano_patch16_64", num_classes=3, rel_pos=True, **args)
        assert classifier.pyramid is None and classifier.head.weight.std() > 0
        assert torch.equal(classifier.blocks[0].mlp.fc1.weight, want["blocks.0.mlp.fc1.weight"])
        assert classifier.blocks[-1].rel_pos.table.abs().sum() == 0


def test_a_patchs_pyramid_is_its_own() -> None:
    pyramid = Pyramid(32, 16, 2, 4.0)
    stages = torch.randn(2, 9, 4, 4, 8), torch.randn(2, 9, 2, 2, 16), torch.randn(2, 9, 32)
    few = tuple(stage[:, 2:5] for stage in stages)
    for some, level in zip(pyramid(few), pyramid(stages)):
        torch.testing.assert_close(some, level[:, 2:5])
    assert isinstance(Pyramid(32, 32, 1, 4.0).lateral16, torch.nn.Identity)


def test_positions_shift_only_where_patches_are_left_out(images: Tensor) -> None:
    """A quirk of the published pixel weights, which a backbone can be made without."""
    model = make(ITPN).eval()
    all_patches = torch.arange(16).expand(2, -1)
    visible = all_patches[:, 3:7]
    tokens = model.encode(images)[2]
    torch.testing.assert_close(model.encode(images, all_patches)[2], tokens)
    plain = make(ITPN, stretch_masked=False).eval()
    torch.testing.assert_close(plain.encode(images, all_patches)[2], tokens)
    shifted, unshifted = model.encode(images, visible)[2], plain.encode(images, visible)[2]
    assert not torch.allclose(shifted, unshifted, atol=1e-3)
    table = plain.pos_embed.table
    table.data = stretch_table(table.data.flatten(0, 1), (4, 4), (4, 4)).view_as(table)
    torch.testing.assert_close(plain.encode(images, visible)[2], shifted)


# --------------------------------------------------------------------------------------- pixel form


def test_pixel_form_trains_everything(images: Tensor, mask: Tensor) -> None:
    model = make(ITPNPixel)
    model.completion_loss(images, mask, 12).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    changed = torch.where(
        mask.view(2, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3), torch.randn(2, 3, 64, 64), images
    )
    torch.testing.assert_close(model(images, mask, 12), model(changed, mask, 12))  # hidden pixels are not seen
    result = model.complete(torch.randn(1, 3, 32, 96), mask_ratio=0.5)
    assert result.image.shape == (1, 3, 32, 96) and result.mask.sum() == 6


def test_the_mask_token_counts_once_a_level(images: Tensor, mask: Tensor) -> None:
    """Three levels with a mask token each, summed, are the sum of the levels with a token three times as large."""
    model = make(ITPNPixel).eval()
    visible, _ = split_mask(mask, 12)
    levels = model.encoder.forward_pyramid(images, visible)
    total = model.decoder.pos_embed((4, 4))
    for embed, level in zip(model.level_embed.levels, levels):
        tokens = embed(level).flatten(2)
        full = model.decoder.mask_token.expand(2, 16, 32).clone()
        total = total + full.scatter(1, visible.unsqueeze(2).expand_as(tokens), tokens)
    for block in model.decoder.blocks:
        total = block(total)
    torch.testing.assert_close(model.decoder.head(model.decoder.norm(total)), model(images, mask, 12))


# ---------------------------------------------------------------------------------------- CLIP form


def test_clip_form_takes_any_number_of_hidden_patches(images: Tensor) -> None:
    model = make(ITPNClip, teacher_dim=12)
    targets = torch.randn(2, 16, 12)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, :5], mask[1, 3:14] = True, True
    loss = model.token_loss(images, mask, targets)
    main, aux = model(images, mask)
    torch.testing.assert_close(loss, F.smooth_l1_loss(main, targets) + F.smooth_l1_loss(aux, targets))
    loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    with pytest.raises(ImageError, match="make it for this size"):
        model(images, mask[:, :9])


def test_clip_form_hides_patches_behind_the_second_merging(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(ITPNClip, rel_pos=False).eval()
    seen = {}
    run = model.encoder.forward_main
    monkeypatch.setattr(model.encoder, "forward_main", lambda x, *a, **k: seen.update(x=x) or run(x, *a, **k))
    mask = torch.arange(16).expand(2, -1) % 3 == 0
    model(images, mask)
    merged = model.encoder.forward_stem(images)[2]
    torch.testing.assert_close(seen["x"], torch.where(mask[..., None], model.mask_token, merged))
    assert model.aux_start == 3 and len(model.aux_blocks) == 2  # main block int(0.75 * 4)
    everything = torch.ones(2, 16, dtype=torch.bool)
    one, other = model(images, everything), model(images.flip(0), everything)
    torch.testing.assert_close(one[1], other[1])  # the auxiliary branch saw mask tokens only,
    assert not torch.allclose(one[0], other[0])  # the pyramid the unmasked stages too


def test_clip_form_shows_tokens(images: Tensor) -> None:
    model = make(ITPNClip, teacher_dim=12).eval()
    targets = torch.randn(2, 16, 12)
    result = model.complete(images, targets, generator=torch.Generator().manual_seed(3))
    again = model.complete(images, targets, mask=result.mask)
    assert torch.equal(result.prediction, again.prediction) and result.prediction.shape == targets.shape
    assert result.similarity.shape == (2, 16) and result.similarity.abs().max() <= 1
    torch.testing.assert_close(result.loss, F.smooth_l1_loss(result.prediction, targets))


@pytest.mark.parametrize(("grid", "target"), [((14, 14), 75), ((10, 20), 80)])
def test_block_masks(grid: tuple[int, int], target: int) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([block_mask(grid, target, generator) for _ in range(200)])
    counts = masks.sum(dim=1)
    assert masks.shape == (200, grid[0] * grid[1])
    assert counts.max() <= target and counts.float().mean() > 0.85 * target
    share = masks.float().mean(dim=0).view(grid)
    assert share.min() > 0.01 and share[0, 0] < share[grid[0] // 2, grid[1] // 2] < 0.8  # any place, corners less
    # blocks, not single patches: hidden patches have mostly hidden neighbors
    maps = masks.view(-1, *grid)
    pairs = (maps[:, 1:] & maps[:, :-1]).sum() / maps[:, 1:].sum()
    assert pairs > 0.75
    first = block_mask(grid, target, torch.Generator().manual_seed(5))
    assert torch.equal(first, block_mask(grid, target, torch.Generator().manual_seed(5)))


# ------------------------------------------------------------------------------- moving-average form


def test_moving_average_form_predicts_pixels_and_features(images: Tensor, mask: Tensor) -> None:
    model = make(ITPNEma, feature_weight=0.5).train()
    assert not any(module.training for module in model.teacher.modules())
    pixels, features = model.losses(images, mask, 12)
    loss = model.completion_loss(images, mask, 12)
    torch.testing.assert_close(loss, pixels + 0.5 * features)
    loss.backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == key.startswith("teacher."), key
        assert parameter.requires_grad != key.startswith("teacher."), key

    # the pixel part is the pixel form's, the features are of hidden patches of the whole image's pyramid
    pixel = make(ITPNPixel, stretch_masked=False)
    student = {k: v for k, v in model.state_dict().items() if not k.startswith(("teacher.", "predictors."))}
    pixel.load_state_dict(student)
    torch.testing.assert_close(pixels, pixel.completion_loss(images, mask, 12))
    visible, hidden = split_mask(mask, 12)
    tokens = model.decoder.forward_tokens(model.embed_visible(images, visible), visible, (4, 4), hidden)
    want = torch.zeros(())
    for predict, level in zip(model.predictors, model.teacher.forward_pyramid(images), strict=True):
        target = take_tokens(F.layer_norm(level, (16,), eps=1e-6).flatten(2), hidden)
        want = want + F.smooth_l1_loss(predict(tokens), target)
    torch.testing.assert_close(features, want)


def test_teacher_follows_the_student() -> None:
    model = make(ITPNEma)
    teacher, student = model.teacher.state_dict(), model.encoder.state_dict()
    assert all(torch.equal(teacher[key], student[key]) for key in student), "they start alike"
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    for progress in (0.0, 0.5, 1.0):
        before = {key: value.clone() for key, value in model.teacher.state_dict().items()}
        storage = [p.data_ptr() for p in model.teacher.parameters()]
        model.update_teacher(progress)
        momentum = 1 - 0.004 * (math.cos(math.pi * progress) + 1) / 2
        for key, value in model.teacher.state_dict().items():
            torch.testing.assert_close(
                value, momentum * before[key] + (1 - momentum) * student[key], rtol=1e-4, atol=1e-6
            )
        assert storage == [p.data_ptr() for p in model.teacher.parameters()], "in place"
    other = make(ITPNEma)
    other.load_state_dict(model.state_dict())  # the teacher is part of a checkpoint
    assert torch.equal(other.teacher.pos_embed.table, model.teacher.pos_embed.table)


def test_moving_average_form_learns(images: Tensor) -> None:
    model = make(ITPNEma).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(30):
        pixels, features = model.losses(images, random_mask(2, 16, 0.75, generator), 12)
        optimizer.zero_grad()
        (pixels + features).backward()
        optimizer.step()
        model.update_teacher(step / 30)
        losses.append((pixels.item(), features.item()))
    first, last = torch.tensor(losses[:5]).mean(0), torch.tensor(losses[-5:]).mean(0)
    assert last[0] < first[0] and last[1] < 0.8 * first[1]


# --------------------------------------------------------------------- what all pretraining forms share


def loss_of(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    if isinstance(model, ITPNClip):
        return model.token_loss(images, mask, torch.ones(2, 16, 512))
    return model.completion_loss(images, mask, 12)


FORMS = pytest.mark.parametrize("cls", [ITPNPixel, ITPNClip, ITPNEma])


@FORMS
def test_autocast(cls: Any, images: Tensor, mask: Tensor) -> None:
    model = make(cls)
    exact = loss_of(model, images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss_of(model, images, mask)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)
    rough.backward()


@pytest.mark.parametrize("cls", [ITPNClip, ITPNEma])  # the latter does all that the pixel form does
def test_compile_has_no_graph_breaks(cls: Any, images: Tensor, mask: Tensor) -> None:
    model = make(cls, depths=(1, 1, 1), rel_pos=True)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, m: loss_of(model, x, m), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, mask), loss_of(model, images, mask))


@FORMS
def test_gradient_checkpointing_changes_nothing(cls: Any, images: Tensor, mask: Tensor) -> None:
    model = make(cls).train()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        loss_of(model, images, mask).backward()
        grads.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(grads[0], grads[1])


def test_pyramid_exports(images: Tensor) -> None:
    model = timm.create_model("itpn_nano_patch16_64", features_only=True).eval()
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    more = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(program.module()(more), model(more), rtol=1e-4, atol=1e-4)
