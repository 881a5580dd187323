"""Teachers of iTPN's CLIP form: patch tokens of the student's grid, layer-normed, from timm and from open_clip."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from zoo.errors import RecipeError
from zoo.train.objectives.teachers import OpenClipTeacher, TimmTeacher, make_teacher


def test_timm_teacher() -> None:
    teacher = TimmTeacher("test_vit", (3, 5), pretrained=False).train()
    assert not teacher.model.training and not any(p.requires_grad for p in teacher.parameters())
    images = torch.rand(2, 3, 48, 80, requires_grad=True)
    tokens = teacher(images)
    vit = teacher.model
    assert tokens.shape == (2, 15, vit.embed_dim) and not tokens.requires_grad
    cfg = vit.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    direct = vit.forward_features((images - mean) / std)[:, vit.num_prefix_tokens :]
    torch.testing.assert_close(tokens, F.layer_norm(direct, direct.shape[-1:]))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 15), atol=1e-5, rtol=0)

    teacher.reference_range = True  # the reference's own mistake, by name only
    shifted = vit.forward_features(((images + 1) / 2 - mean) / std)[:, vit.num_prefix_tokens :]
    torch.testing.assert_close(teacher(images), F.layer_norm(shifted, shifted.shape[-1:]))
    assert not torch.allclose(teacher(images), tokens)


def test_the_teachers_grid_is_the_students() -> None:
    teacher = TimmTeacher("test_vit", (2, 4), pretrained=False)  # patches of 16
    small = torch.rand(1, 3, 16, 32)  # as a student with patches of 8 sees them
    tokens = teacher(small)
    assert tokens.shape[:2] == (1, 8)
    resized = F.interpolate(small, (32, 64), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(tokens, teacher(resized))


def test_open_clip_teacher(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    config = dict(
        embed_dim=24,
        vision_cfg=dict(image_size=32, layers=2, width=32, head_width=16, patch_size=16),
        text_cfg=dict(context_length=8, vocab_size=50, width=16, heads=2, layers=1),
    )
    (tmp_path / "zoo-test-vit.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    teacher = OpenClipTeacher("zoo-test-vit", (2, 3), pretrained=None)
    images = torch.rand(2, 3, 32, 48)
    tokens = teacher(images)
    assert tokens.shape == (2, 6, 24) and not tokens.requires_grad

    visual = teacher.model
    visual.output_tokens = True
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    _, direct = visual((images - mean) / std)
    direct = direct @ visual.proj
    torch.testing.assert_close(tokens, F.layer_norm(direct, direct.shape[-1:]))
    with pytest.raises(RecipeError, match="no ViT called 'RN50'"):
        OpenClipTeacher("RN50", (14, 14), None)


def test_teachers_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vit_base_patch16_224", "timm:no_such_vit", "open_clip:ViT-B-16"):
        with pytest.raises(RecipeError, match="timm:MODEL, or open_clip:MODEL/WEIGHTS"):
            make_teacher(name, (14, 14))
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(RecipeError, match=r"pretext-zoo\[teachers\]"):
        make_teacher("open_clip:ViT-B-16/openai", (14, 14))
    made = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, **kw: made.append(pretrained) or create(name, **kw)
    )
    assert make_teacher("timm:test_vit", (2, 2), reference_range=True).reference_range and made == [True]
