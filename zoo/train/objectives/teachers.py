"""Teachers whose tokens iTPN's CLIP form predicts. Any callable from images to tokens is one; here are ready-made ones.

A teacher sees the same crop as the student, as values from 0 to 1, and takes care of its own size and normalization.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import Normalize

from zoo.errors import RecipeError
from zoo.layers.positions.tables import Grid


class Teacher(nn.Module):
    """A frozen model's patch tokens: images (B, 3, H, W), values 0 to 1 -> tokens (B, N, dim), layer-normed without
    affine parameters.

    grid: rows and columns of the student's patches, which the teacher's are made to match by resizing the images.
    reference_range: map the images to (x + 1) / 2 first, as iTPN's reference does although its images are from 0 to 1
        already: its published weights were trained so.
    """

    def __init__(
        self,
        model: nn.Module,
        grid: Grid,
        patch_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        reference_range: bool = False,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.size = grid[0] * patch_size, grid[1] * patch_size
        self.normalize = Normalize(mean, std)
        self.reference_range = reference_range

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)  # a teacher stays as it is

    def tokens(self, x: Tensor) -> Tensor:
        """Images of the teacher's size and normalization -> patch tokens (B, N, dim)."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        if self.reference_range:
            images = (images + 1) / 2
        tokens = self.tokens(self.normalize(images)).float()
        return F.layer_norm(tokens, tokens.shape[-1:])


class TimmTeacher(Teacher):
    """A timm ViT's patch tokens behind its final norm."""

    def __init__(self, name: str, grid: Grid, pretrained: bool = True, reference_range: bool = False) -> None:
        model: Any = timm.create_model(name, pretrained, num_classes=0, dynamic_img_size=True)
        cfg = model.pretrained_cfg
        super().__init__(model, grid, model.feature_info[-1]["reduction"], cfg["mean"], cfg["std"], reference_range)

    def tokens(self, x: Tensor) -> Tensor:
        (tokens,) = self.model.forward_intermediates(x, 1, norm=True, output_fmt="NLC", intermediates_only=True)  # type: ignore[operator]
        return tokens


class OpenClipTeacher(Teacher):
    """Patch tokens of open_clip's image encoder, under the projection that CLIP applies to its image token."""

    def __init__(self, name: str, grid: Grid, pretrained: str | None, reference_range: bool = False) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise RecipeError(
                "Teachers from open_clip need the package open_clip_torch; get it with "
                "pip install 'pretext-zoo[teachers]'."
            ) from error
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained and pretrained not in tags:  # open_clip would take it for a file, and unpickle that
            raise RecipeError(f"open_clip has no weights '{pretrained}' of {name}; choose one of {', '.join(tags)}.")
        config = open_clip.get_model_config(name)
        patch_size = (config or {}).get("vision_cfg", {}).get("patch_size")
        if not patch_size:
            raise RecipeError(
                f"open_clip has no ViT called '{name}'; choose one of open_clip.list_models(), such as ViT-B-16."
            )
        size = grid[0] * patch_size, grid[1] * patch_size
        clip: Any = open_clip.create_model(name, pretrained, force_image_size=size, require_pretrained=bool(pretrained))
        visual = clip.visual
        super().__init__(visual, grid, patch_size, visual.image_mean, visual.image_std, reference_range)

    def tokens(self, x: Tensor) -> Tensor:
        visual: Any = self.model
        out = visual.forward_intermediates(
            x, 1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
        )
        return out["image_intermediates"][0] @ visual.proj


def make_teacher(name: str, grid: Grid, reference_range: bool = False) -> Teacher:
    """A ready-made teacher with its pretrained weights, fetched by its own library.

    name: "timm:MODEL", such as timm:vit_base_patch16_clip_224.openai, or "open_clip:MODEL/WEIGHTS", such as
    open_clip:ViT-B-16/openai (iTPN's, whose tokens have 512 channels). grid, reference_range: see `Teacher`.

    Raises RecipeError (a ValueError) for a name that can't be read, or without open_clip where it is needed.
    """
    library, _, model = name.partition(":")
    if library == "timm" and timm.is_model(model):
        return TimmTeacher(model, grid, reference_range=reference_range)
    if library == "open_clip" and "/" in model:
        model, weights = model.rsplit("/", 1)
        return OpenClipTeacher(model, grid, weights, reference_range)
    raise RecipeError(
        f"The teacher '{name}' is unknown; write timm:MODEL, or open_clip:MODEL/WEIGHTS like open_clip:ViT-B-16/openai."
    )
