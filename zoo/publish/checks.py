"""What is made sure of before anything is published: finite weights, which load back to the same model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import Tensor, nn

from zoo.catalog import Variant
from zoo.catalog.croco import CROCO_V2_PAPER
from zoo.errors import PublishError, UnknownVariantError, ZooError
from zoo.lookup import find_variant
from zoo.models import ZooModel
from zoo.models.shared.ancestry import Ancestor, ancestor_of, published_variant
from zoo.models.shared.masked import PatchPredictor
from zoo.models.shared.registry import BUILDERS
from zoo.publish.folder import CARD, CONFIG, metadata_of, own_file, write_sums
from zoo.publish.licenses import DEFAULT_LICENSE, choose_license
from zoo.train.plain_yaml import PlainYamlError, read_yaml
from zoo.weights.network.hub import HUB_FILENAME


def variant_of(model: nn.Module) -> Variant:
    """The catalog's entry of a model's architecture. Raises PublishError for what timm could not make again."""
    if isinstance(model, ZooModel) and hasattr(model, "_model_args"):
        architecture = model.pretrained_cfg.get("architecture", "")
        if architecture in BUILDERS:
            return _variant_of_pair(model)
        try:
            return find_variant(architecture)
        except UnknownVariantError:
            pass
    raise PublishError(
        f"This {type(model).__name__} was not made by timm.create_model from a name of `zoo list`, so it would not "
        "load back; make it that way (features_only: publish the model without it; create_pair_model: from an encoder "
        "that timm has made), and load your weights into it."
    )


def _variant_of_pair(model: Any) -> Variant:
    """An entry as the catalog's for a model of `create_pair_model`, which is none of its."""
    cfg, args = model.pretrained_cfg, model._model_args
    return Variant(
        architecture=cfg["architecture"],
        tag="",
        family="croco",
        form="binocular",
        description=f"A two-image decoder {args['decoder']} on timm's {args['encoder']}",
        args=args,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        license=cfg.get("license") or "",
        paper=CROCO_V2_PAPER,
        input_size=tuple(cfg["input_size"]),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )


def check_repository(repo: str) -> None:
    """Raise PublishError for what can't be the name of a repository on the Hub: before anything is computed."""
    try:
        validate_repo_id(repo)
        problem = None if repo.count("/") == 1 else "a repository is called OWNER/NAME"
    except HFValidationError as error:
        problem = str(error).partition("\n")[0].rstrip(".")
    if problem is not None:
        raise PublishError(f"{repo!r} can't be published: {problem}; give one such as me/croco_nano_rooms.")


def check_finite(state: dict[str, Tensor]) -> None:
    """Raise PublishError if any tensor holds NaN or infinity."""
    for name, tensor in state.items():
        if tensor.is_meta:
            raise PublishError(f"{name} has no values, being on the meta device; load weights into the model first.")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise PublishError(
                f"{name} is in {kind}, and models are made in float32, so it would not load back as it is; publish "
                "model.float()."
            )
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
    loaded.to(next(model.parameters()).device)
    ours, theirs = model.state_dict(), loaded.state_dict()
    if odd := [key for key in (*ours, *theirs) if key not in ours or key not in theirs]:
        raise PublishError(
            f"This model would not load back: {odd[0]} is only in one of it and what its name and arguments give. Make "
            "it with the arguments that it has, such as num_classes, and load your weights into it."
        )
    if changed := [key for key, value in ours.items() if not torch.equal(value, theirs[key])]:
        key = changed[0]
        if ours[key].shape != theirs[key].shape:
            raise PublishError(
                f"This model would not load back: {key} has the shape {tuple(ours[key].shape)} where its name and "
                f"arguments give {tuple(theirs[key].shape)}. Make it with the arguments that it has, such as "
                "num_classes, and load your weights into it."
            )
        raise PublishError(f"This model would not load back: {key} would have other values. Publish it as it was made.")
    training = model.training
    try:
        results = [_outputs(net.eval(), loaded) for net in (model, loaded)]
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        if isinstance(error, ZooError):
            raise
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise PublishError(
            f"This model can't be compared with what would load back ({reason}); publish one as timm.create_model "
            "makes it, not compiled or changed."
        ) from error
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
        if own_file(folder, name) is None:
            raise PublishError(f"{folder} has no {name}; export the model again, with `zoo push --dry-run`.")
    _check_architecture(folder / CONFIG)
    loaded = check_loads_back(folder)
    check_finite(loaded.state_dict())
    card = _metadata_of_card(folder / CARD)
    claimed = _license_of(card, folder / CARD)
    if license is not None and license.lower() != claimed.lower():
        raise PublishError(f"{folder / CARD} says that the license is {claimed}, not {license}; change it there.")
    for ancestor in _origins(folder, card):
        choose_license(claimed, ancestor)
    write_sums(folder)


def _origins(folder: Path, card: dict[str, Any]) -> Iterator[Ancestor | None]:
    """What the weights of a folder started from, by each of its files that says so."""
    about = metadata_of(folder / HUB_FILENAME)
    if about.keys() & {"license", "base_model", "variant"}:
        yield ancestor_of(about, "those of this file", "")
    license = json.loads((folder / CONFIG).read_bytes()).get("pretrained_cfg", {}).get("license")
    if isinstance(license, str):
        yield Ancestor(f"those of its {CONFIG}", license)
    bases = card.get("base_model") or []
    for name in bases if isinstance(bases, list) else [bases]:
        if isinstance(name, str) and (variant := published_variant(name)) is not None:
            yield Ancestor(name, variant.license.lower())


def _check_architecture(config: Path) -> None:
    """Raise PublishError unless timm will make one of the zoo's models of a config.json."""
    try:
        name = json.loads(config.read_bytes())["architecture"]
        if name not in BUILDERS:
            find_variant(name if isinstance(name, str) else "")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PublishError(f"{config} names no architecture of the zoo; export the model again.") from error


def _metadata_of_card(card: Path) -> dict[str, Any]:
    """What stands at the top of a card. Raises PublishError for what the Hub could not read."""
    text = card.read_text("utf-8", "replace")
    front = re.match(r"\s*---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    try:
        data = read_yaml(front[1]) if front else None
    except PlainYamlError as error:
        raise PublishError(f"The metadata at the top of {card} can't be read ({error}); correct it.") from error
    return data if isinstance(data, dict) else {}


def _license_of(metadata: dict[str, Any], card: Path) -> str:
    claimed = metadata.get("license")
    if not isinstance(claimed, str):
        raise PublishError(f"{card} names no license; add a line such as 'license: {DEFAULT_LICENSE}'.")
    return claimed
