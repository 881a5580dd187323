"""What is made sure of before anything is published: finite weights, which load back to the same model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import ModelCard
from torch import Tensor, nn

from zoo.catalog import Variant
from zoo.errors import PublishError, UnknownVariantError
from zoo.lookup import find_variant
from zoo.models import Ancestor, ZooModel
from zoo.models._masked import PatchPredictor
from zoo.publish.folder import CARD, CONFIG, metadata_of, write_sums
from zoo.publish.licenses import DEFAULT_LICENSE, choose_license
from zoo.weights.hub import HUB_FILENAME


def variant_of(model: nn.Module) -> Variant:
    """The catalog's entry of a model's architecture. Raises PublishError for what timm could not make again."""
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture", "")
    if isinstance(model, ZooModel) and hasattr(model, "_model_args"):
        try:
            return find_variant(architecture)
        except UnknownVariantError:
            pass
    raise PublishError(
        f"This {type(model).__name__} was not made by timm.create_model from a name of `zoo list`, so it would not "
        "load back; make it that way (features_only: publish the model without it), and load your weights into it."
    )


def check_finite(state: dict[str, Tensor]) -> None:
    """Raise PublishError if any tensor holds NaN or infinity."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise PublishError(
                f"{name} holds {count} values that are NaN or infinite, so the weights can't be published; go back to "
                "an earlier checkpoint."
            )


def check_loads_back(folder: Path, model: nn.Module | None = None) -> nn.Module:
    """Load a folder as users of the Hub will, and compare outputs with those of `model`; returns what was loaded.

    Raises PublishError if timm can't make the model, or if it computes something else.
    """
    try:
        loaded: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (TypeError, ValueError, RuntimeError, OSError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise PublishError(
            f"This model would not load back: {reason.rstrip('.')}. Publish one whose layers are those that its name "
            "and arguments give."
        ) from error
    if model is None:
        return loaded
    like = next(model.parameters())
    loaded.to(like.device, like.dtype)
    theirs = loaded.state_dict()
    if changed := [key for key, value in model.state_dict().items() if not torch.equal(value, theirs[key])]:
        raise PublishError(
            f"This model would not load back: {changed[0]} would have other values. Publish it in the precision that "
            "it was made in."
        )
    training = model.training
    try:
        results = [_outputs(net.eval(), loaded) for net in (model, loaded)]
    finally:
        model.train(training)
    for ours, theirs in zip(*results, strict=True):
        difference = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else math.inf
        if not difference <= 1e-4 * max(1.0, ours.abs().max().item()):
            raise PublishError(
                f"This model would not load back: made again from its name and arguments, it gives other outputs (by "
                f"{difference:.2g}). Publish one that was not changed after timm.create_model had made it."
            )
    return loaded


@torch.inference_mode()
def _outputs(model: Any, like: ZooModel) -> list[Tensor]:
    """What a model makes of noise of `like`'s own input size: all tensors, as float32."""
    generator, form = torch.Generator().manual_seed(0), variant_of(like).form
    images = torch.randn(2, 1, *like.pretrained_cfg["input_size"], generator=generator).to(next(model.parameters()))
    if form in ("binocular", "dense"):
        output = model(*images)
    elif form == "encoder":
        output = model(images[0])
    else:  # pretext tasks differ in what they take, their backbones don't
        output = [model.encoder(images[0])]
        if isinstance(model, PatchPredictor):
            output.append(model.complete(images[0], generator=generator).image)  # type: ignore[operator]
    return [tensor.float() for tensor in _tensors(output)]


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


def check_folder(folder: str | Path, license: str | None = None) -> None:
    """Check a folder that was exported before and maybe edited since, and bring its SHA256SUMS up to date.

    license: what the card must say, if given.

    Raises PublishError for a missing file, weights that are not finite, a model that would not load back, a card that
    the Hub would refuse, and a license that the weights may not have.
    """
    folder = Path(folder)
    for name in (CONFIG, HUB_FILENAME, CARD):
        if not (folder / name).is_file():
            raise PublishError(f"{folder} has no {name}; export the model again, with `zoo push --dry-run`.")
    loaded = check_loads_back(folder)
    check_finite(loaded.state_dict())
    try:
        claimed = ModelCard.load(folder / CARD).data.license
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise PublishError(
            f"The metadata at the top of {folder / CARD} can't be read ({reason}); correct it."
        ) from error
    if not isinstance(claimed, str):
        raise PublishError(f"{folder / CARD} names no license; add a line such as 'license: {DEFAULT_LICENSE}'.")
    if license is not None and license.lower() != claimed.lower():
        raise PublishError(f"{folder / CARD} says that the license is {claimed}, not {license}; change it there.")
    about = metadata_of(folder / HUB_FILENAME)
    if about.get("license"):
        choose_license(
            claimed, Ancestor(about.get("base_model", about.get("variant", "those of this file")), about["license"])
        )
    write_sums(folder)
