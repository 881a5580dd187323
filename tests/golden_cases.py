"""Run any golden case of a family we have through our own models and conversion.

`compute(path)` builds the model that the case's config describes, converts and loads the case's weights the
way real reference checkpoints are loaded, runs it, and returns tensors under the file's own keys:
`output.*`, and `gradnorm.*` under the reference's parameter names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from zoo.layers.masking import patch_loss, split_mask, take_tokens
from zoo.layers.patchify import normalize_patches, patchify
from zoo.models import ZooModel
from zoo.models.convmae import ConvMAE, ConvMAEPretraining
from zoo.models.croco import CrocoEncoder, DensePairModel, PairModel
from zoo.models.fast_itpn import FastITPN
from zoo.models.hivit import HiViT, HiViTMAE
from zoo.models.itpn import ITPN, ITPNClip, ITPNPixel
from zoo.models.pointmaps import PointmapModel
from zoo.models.resnet import JigsawClusteringHeads, JigsawClusteringModel
from zoo.models.shared.masked import MaskedAutoencoder
from zoo.train.objectives.dense.pointmap_losses import (
    confidence_loss,
    point_distances,
    regression_loss,
    to_first_camera,
)
from zoo.train.objectives.jigsaw.clustering import cluster_loss, quarter_boxes, shuffle
from zoo.train.objectives.jigsaw.pirl import Pirl
from zoo.weights import Checkpoint


def read_case(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The case's description and its tensors, everything floating in float32."""
    with safe_open(path, "pt") as file:
        case = json.loads(file.metadata()["case"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    return case, {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def compute(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All outputs and gradient norms of the golden case in the file `path`, computed by the zoo on `device`."""
    from tests.golden_matching import matching_losses, training  # which takes its models from here

    case, tensors = read_case(path)
    tensors = {key: value.to(device) for key, value in tensors.items()}
    config = case["config"]
    if "steps" in config:
        return training(case, tensors)
    if set(config) == {"task"}:
        return matching_losses(tensors)
    if "tile_conf_mode" in config:
        family = "croco_tiles"
    elif "head" in config and "kind" not in config:
        family = "croco_dense"
    else:  # the longest name that fits: fast_itpn, convmae, croco
        family = max((name for name in _FAMILIES if case["name"].startswith(name)), key=len)
    return _FAMILIES[family](config, tensors)


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def load_weights(model: ZooModel, weights: dict[str, Tensor]) -> None:
    """Strict conversion and loading, as `load_pretrained` does with a file."""
    state = model.convert(Checkpoint(tensors={k: v.clone() for k, v in weights.items()}, extra={}, path=Path("golden")))
    model.load_state_dict(model.adapt_state(state), strict=True)
    model.to(next(iter(weights.values())).device)


def _gradnorms(model: ZooModel, loss: Tensor) -> dict[str, Tensor]:
    """L2 norm of the loss's gradient for each parameter, under the reference's names."""
    model.zero_grad()
    loss.backward()
    (rules,) = [rules for name, rules in model.layouts.items() if name.endswith("reference")]
    return {
        f"gradnorm.{rules.reference_name(name)}": parameter.grad.norm().reshape(1)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def pair_args(config: dict[str, Any]) -> dict[str, Any]:
    """Our constructor's arguments for the reference's."""
    positions = config["pos_embed"]
    return dict(
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        embed_dim=config["enc_embed_dim"],
        depth=config["enc_depth"],
        num_heads=config["enc_num_heads"],
        decoder_dim=config["dec_embed_dim"],
        decoder_depth=config["dec_depth"],
        decoder_num_heads=config["dec_num_heads"],
        norm_memory=config.get("norm_im2_in_dec", True),
        **(
            dict(pos_embed="rope", rope_base=float(positions.removeprefix("RoPE")))
            if positions.startswith("RoPE")
            else dict(pos_embed="sincos")
        ),
    )


def _croco(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    model = PairModel(**pair_args(config)).eval()
    weights = part_of(tensors, "weights.")
    load_weights(model, weights)
    img1, img2, mask = (tensors[f"input.{key}"] for key in ("img1", "img2", "mask"))
    hidden = int(mask[0].sum())
    out: dict[str, Tensor] = {}

    # the encoder alone, from the same checkpoint, as a timm backbone
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "pos_embed", "rope_base")
    encoder = CrocoEncoder(**{k: v for k, v in pair_args(config).items() if k in names}).eval()
    load_weights(encoder, weights)
    final, blocks = encoder.forward_intermediates(img2, output_fmt="NLC")
    for i, block in enumerate([*blocks[:-1], final]):
        out[f"output.encoder.{i}"] = block

    depth = config["enc_depth"]
    for i, block in enumerate(model.forward_intermediates(img1, img2)[depth:]):
        out[f"output.binocular.{i}"] = block

    visible, hidden_index = split_mask(mask, hidden)
    out["output.visible"] = model.encoder.forward_tokens(img1, visible)[0]
    prediction, _ = model.predict(img1, img2, mask, hidden, all_patches=True)
    out["output.prediction"] = prediction
    loss = prediction.square().mean()
    if img1.shape[-2] == img1.shape[-1]:
        target = patchify(img1, model.patch_size)
        out["output.target"] = target
        out["output.loss_pixels"] = patch_loss(
            take_tokens(prediction, hidden_index), take_tokens(target, hidden_index)
        ).reshape(1)
        loss = model.completion_loss(img1, img2, mask, hidden)  # what training minimizes
        reference_form = patch_loss(
            take_tokens(prediction, hidden_index), take_tokens(normalize_patches(target), hidden_index)
        )
        assert torch.is_autocast_enabled(img1.device.type) or math.isclose(
            loss.item(), reference_form.item(), rel_tol=1e-5
        )
        out["output.loss_normalised"] = loss.reshape(1)
    return {key: value.detach() for key, value in out.items()} | _gradnorms(model, loss)


def dense_model(config: dict[str, Any], **args: Any) -> DensePairModel:
    """The case's dense two-image model, with random weights."""
    head = config["head"]
    return DensePairModel(
        out_chans=head["num_channels"],
        hooks=head["hooks_idx"],
        layer_dims=head["layer_dims"],
        feature_dim=head["feature_dim"],
        last_dim=head["last_dim"],
        **pair_args(config),
        **args,
    )


def _croco_dense(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    model = dense_model(config).eval()
    load_weights(model, part_of(tensors, "weights."))
    dense = model(tensors["input.img1"], tensors["input.img2"])
    return {"output.dense": dense.detach()} | _gradnorms(model, dense.square().mean())


def _croco_tiles(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    tiling = dict(tile_overlap=config["overlap"], tile_confidence=config["tile_conf_mode"])
    model = dense_model(config, tile_size=config["img_size"], **tiling).eval()
    load_weights(model, part_of(tensors, "weights."))
    large, small = (
        model.forward_tiled(tensors[f"input.{size}1"], tensors[f"input.{size}2"]) for size in ("large", "small")
    )
    return {
        "output.large.prediction": large[:, :-1],
        "output.large.confidence": large[:, -1],
        "output.small.prediction": small[:, :-1],
    }


def _grid(size: int | list[int], patch: int = 16) -> tuple[int, int]:
    """Rows and columns of patches of an image of `size` pixels: one number, or height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch, width // patch


def _tell_grid(weights: dict[str, Tensor], key: str, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Positions (1, N, D) as 1, rows, columns, D: real checkpoints have square grids, some cases don't, and only
    their settings tell."""
    return weights | {key: weights[key].unflatten(1, grid)}


def _hivit_weights(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The case's weights, with the grid told in positions and bias tables."""
    weights, (rows, columns) = part_of(tensors, "weights."), _grid(config["img_size"])
    for key in weights:
        if key.endswith("relative_position_bias_table"):
            weights[key] = weights[key].unflatten(0, (2 * rows - 1, 2 * columns - 1))
    return _tell_grid(weights, "absolute_pos_embed", (rows, columns))


def _trunk_args(config: dict[str, Any]) -> dict[str, Any]:
    """Our arguments for the backbone of HiViT and iTPN."""
    if "depths" in config:
        stem1, stem2, main = config["depths"]
        depths = (2 * stem1, 2 * stem2, main)
        stem_mlp_ratio = config["stem_mlp_ratio"]
    else:
        depths = (
            config.get("mlp_depth1", config.get("mlp_depth")),
            config.get("mlp_depth2", config.get("mlp_depth")),
            config["depth"],
        )
        stem_mlp_ratio = config["bridge_mlp_ratio"]
    return dict(
        img_size=config["img_size"],
        embed_dim=config["embed_dim"],
        depths=depths,
        num_heads=config["num_heads"],
        stem_mlp_ratio=stem_mlp_ratio,
        mlp_ratio=config["mlp_ratio"],
        rel_pos=config["rpe"],
        init_values=config.get("init_values"),
    )


def _fpn_args(config: dict[str, Any]) -> dict[str, Any]:
    return dict(fpn_dim=config["fpn_dim"], fpn_depth=config["fpn_depth"])


def _decoder_args(config: dict[str, Any]) -> dict[str, Any]:
    return dict(
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_num_heads=config["decoder_num_heads"],
    )


def _detached(out: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in out.items()}


def _hivit(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    run = _hivit_masked if "decoder_embed_dim" in config else _hivit_classifier
    return run(config, tensors)


def _itpn(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    forms = dict(num_classes=_hivit_classifier, teacher_dim=_itpn_clip, decoder_embed_dim=_itpn_masked)
    run = next((form for argument, form in forms.items() if argument in config), _itpn_pyramid)
    return run(config, tensors)


def _hivit_classifier(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    cls = HiViT if "depths" in config else ITPN
    model = cls(num_classes=config["num_classes"], **_trunk_args(config)).eval()
    weights = _hivit_weights(config, tensors)
    load_weights(model, weights)
    image = tensors["input.image"]
    high, mid, tokens = model.encode(image)
    logits = model(image)
    out = {"output.tokens": model.forward_features(image), "output.logits": logits}
    assert torch.equal(out["output.tokens"], tokens)
    if "output.high" in tensors:
        out |= {"output.high": high, "output.mid": mid}
    if "input.larger" in tensors:
        plain = cls(num_classes=config["num_classes"], dynamic_img_size=True, **_trunk_args(config)).eval()
        load_weights(plain, weights)
        for block in plain.blocks:
            block.rel_pos = None
        out["output.larger_tokens"] = plain.forward_features(tensors["input.larger"])
    return _detached(out) | _gradnorms(model, logits.square().mean())


def _hivit_masked(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    model = HiViTMAE(**_trunk_args(config), **_decoder_args(config)).eval()
    load_weights(model, _hivit_weights(config, tensors))
    return _masked(model, tensors["input.image"], tensors["input.mask"].bool(), {})


def _itpn_masked(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    model = ITPNPixel(**_trunk_args(config), **_fpn_args(config), **_decoder_args(config)).eval()
    weights = _hivit_weights(config, tensors)
    load_weights(model, weights)
    encoder = ITPN(**_trunk_args(config), **_fpn_args(config)).eval()  # alone, from the same checkpoint
    load_weights(encoder, weights)
    image, mask = tensors["input.image"], tensors["input.mask"].bool()
    levels = encoder.forward_pyramid(image)
    return _masked(model, image, mask, {f"pyramid.stride{4 * 2**i}": level for i, level in enumerate(levels)})


def _itpn_clip(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    model = ITPNClip(teacher_dim=config["teacher_dim"], **_trunk_args(config), **_fpn_args(config)).eval()
    load_weights(model, _hivit_weights(config, tensors))
    image, mask, target = (tensors[f"input.{key}"] for key in ("image", "mask", "target"))
    main, aux = model(image, mask)
    loss = model.token_loss(image, mask, target)
    out = {"output.main": main, "output.aux": aux, "output.loss": loss.reshape(1)}
    return _detached(out) | _gradnorms(model, loss)


def _itpn_pyramid(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    model = ITPN(features="dense", **_trunk_args(config), **_fpn_args(config)).eval()
    load_weights(model, _hivit_weights(config, tensors))
    maps = model.forward_intermediates(tensors["input.image"], list(range(config["num_outs"])), intermediates_only=True)
    out = {f"output.level{i}": level for i, level in enumerate(maps)}
    return _detached(out) | _gradnorms(model, sum(level.square().mean() for level in maps))


def _convmae(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = part_of(tensors, "weights.")
    size = config["img_size"][0]
    args = dict(
        img_size=size,
        embed_dim=config["embed_dim"],
        depths=config["depth"],
        num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config.get("qkv_bias", True),
    )
    image = tensors["input.image"]
    if "num_classes" in config:
        model = ConvMAE(num_classes=config["num_classes"], **args).eval()
        load_weights(model, _tell_grid(weights, "pos_embed", _grid(size)))
        tokens, (stage1, stage2) = model.forward_intermediates(image, [0, 1])
        logits = model(image)
        out = {"stage1": stage1, "stage2": stage2, "stage3": tokens, "logits": logits}
        return _detached({f"output.{k}": v for k, v in out.items()}) | _gradnorms(model, logits.square().mean())

    model = ConvMAEPretraining(
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_num_heads=config["decoder_num_heads"],
        decoder_mlp_ratio=config["mlp_ratio"][0],
        **args,
    ).eval()
    load_weights(model, weights)
    out = {"latent": model.encode(image, tensors["input.ids_keep"])}
    return _masked(model, image, tensors["input.mask"].bool(), out)


def _fast_itpn(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    stem_ratio, ratio = config["bridge_mlp_ratio"], config["mlp_ratio"]
    model = FastITPN(
        img_size=config["img_size"],
        num_classes=config["num_classes"],
        embed_dim=config["embed_dim"],
        depths=(config["depth_stage1"], config["depth_stage2"], config["depth"]),
        num_heads=config["num_heads"],
        mlp_ratio=(stem_ratio, stem_ratio, ratio),
        qkv_bias=config["qkv_bias"],
        init_values=config["init_values"],
    ).eval()
    load_weights(model, _tell_grid(part_of(tensors, "weights."), "pos_embed", _grid(config["img_size"])))
    features = model.forward_features(tensors["input.image"])
    logits = model.forward_head(features)
    out = {"output.pooled": model.forward_head(features, pre_logits=True), "output.logits": logits}
    return _detached(out) | _gradnorms(model, logits.square().mean())


def _masked(model: MaskedAutoencoder, image: Tensor, mask: Tensor, out: dict[str, Tensor]) -> dict[str, Tensor]:
    """Further outputs `out`, and what all masked autoencoders compute: prediction, both losses, gradients."""
    hidden = int(mask[0].sum())
    out["prediction"] = model(image, mask, hidden)
    for name, norm_target in (("loss_pixels", False), ("loss_normalised", True)):
        model.norm_target = norm_target
        loss = model.completion_loss(image, mask, hidden)
        out[name] = loss.reshape(1)
    return _detached({f"output.{k}": v for k, v in out.items()}) | _gradnorms(model, loss)


def _jigclu(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    crops = torch.stack([tensors[f"input.crop{i}"] for i in range(4)], dim=1)  # n, 4, C, s, s
    shuffled = shuffle(crops, tensors["input.permutation"])
    weights = {f"module.encoder.{key}": value for key, value in part_of(tensors, "weights.").items()}
    dim = weights["module.encoder.fc_loc.weight"].shape[1]
    heads = JigsawClusteringHeads(dim, config["dim"])
    (rules,) = JigsawClusteringModel.layouts.values()
    heads.load_state_dict(part_of(rules.to_zoo(weights, name="golden"), "heads."), strict=True)
    heads.to(crops.device)

    embedding, logits = heads(tensors["input.features"].flatten(2).transpose(1, 2))
    cluster = cluster_loss(
        embedding.flatten(0, 1), shuffled.image.flatten(), config["temperature"], config["base_temperature"]
    )
    location = F.cross_entropy(logits.flatten(0, 1), shuffled.location.flatten())
    (cluster + location).backward()
    return {
        "output.montage": shuffled.montages,
        "output.embedding": embedding.detach().transpose(0, 1).flatten(0, 1),  # cell by cell
        "output.location_logits": logits.detach().transpose(0, 1).flatten(0, 1),
        "output.loss_cluster": cluster.detach().reshape(1),
        "output.loss_location": location.detach().reshape(1),
        "output.crop_boxes": quarter_boxes(tensors["input.image_sizes"], config["overlap"]),
    } | {f"gradnorm.{name}": parameter.grad.norm().reshape(1) for name, parameter in heads.named_parameters()}


def _pirl(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    bank, given = tensors["input.memory_before"], part_of(tensors, "input.")
    embeddings = [given[f"{what}_embedding"].requires_grad_() for what in ("image", "patch")]
    candidates = [given["candidates_images"], given["candidates_patches"]]
    model = timm.create_model("pirl_nano_48_lin64", dim=bank.shape[1], device="meta")  # its embeddings are given
    settings = {key: config[key] for key in ("temperature", "negatives", "momentum")}
    losses = {}
    for loss in ("infonce", "nce"):
        objective = Pirl(model, range(len(bank)), loss=loss, **settings)
        del objective.model
        objective.to(bank.device).bank.vectors.copy_(bank)
        losses[loss] = objective.losses(*embeddings, *candidates)
    losses["nce"]["loss"].backward()
    objective.bank.update(given["index"], embeddings[0].detach())
    return {
        "output.Z": objective.normalizer.reshape(1),
        "output.loss": losses["nce"]["loss"].detach().reshape(1),
        "output.loss_images": losses["nce"]["image_loss"].detach().reshape(1),
        "output.loss_patches": losses["nce"]["view_loss"].detach().reshape(1),
        "output.infonce_images": losses["infonce"]["image_loss"].detach().reshape(1),
        "output.infonce_patches": losses["infonce"]["view_loss"].detach().reshape(1),
        "output.grad.image_embedding": embeddings[0].grad,
        "output.grad.patch_embedding": embeddings[1].grad,
        "output.memory_after": objective.bank.vectors,
    }


def _pointmaps(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    weights, sizes = part_of(tensors, "weights."), pair_args(config)
    for argument in ("norm_memory", "pos_embed"):  # this model has no choice of them
        del sizes[argument]
    kind = config["kind"]
    head_type = {"mast3r": "catmlp+dpt"}.get(kind, kind)
    local = weights.get("downstream_head1.head_local_features.fc2.bias", torch.empty(0))
    descriptor_dim = len(local) // config["patch_size"] ** 2 - 1
    model = PointmapModel(head_type=head_type, descriptor_dim=descriptor_dim, **config["head"], **sizes).eval()
    load_weights(model, weights)
    given = part_of(tensors, "input.")
    img1, img2 = given["img1"], given["img2"]
    out: dict[str, Tensor] = {}
    x1, x2 = model.encode(img1, img2)
    out["encoder1"], out["encoder2"] = x1, x2
    grids = [_grid([*x.shape[-2:]], config["patch_size"]) for x in (img1, img2)]
    depth = config["dec_depth"]
    for side, taken in zip((1, 2), model.decoder(x1, x2, *grids, [0, depth - 1])):
        out[f"decoder{side}.first"], out[f"decoder{side}.last"] = taken[0], taken[-1]
    result = model(img1, img2)
    out |= result._asdict()

    valid = given["valid1"].bool(), given["valid2"].bool()
    true1, true2 = (to_first_camera(given[f"true_points{i}"], given["camera_to_world1"]) for i in (1, 2))
    distances = point_distances((result.points1, result.points2), (true1, true2), valid)
    loss = confidence_loss(distances, (result.confidence1, result.confidence2), valid)
    out["loss_confidence"] = loss.reshape(1)
    out["loss_regression"] = regression_loss(distances, valid).reshape(1)
    unreached = [result.descriptors1.sum(), result.descriptors2.sum()] if descriptor_dim > 0 else []
    gradnorms = _gradnorms(model, loss + 0 * sum(unreached))  # the case's gradients of what the loss does not reach
    return _detached({f"output.{key}": value for key, value in out.items()}) | gradnorms


_FAMILIES: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], dict[str, Tensor]]] = {
    "convmae": _convmae,
    "croco": _croco,
    "croco_dense": _croco_dense,
    "croco_tiles": _croco_tiles,
    "dust3r": _pointmaps,
    "fast_itpn": _fast_itpn,
    "hivit": _hivit,
    "itpn": _itpn,
    "jigclu": _jigclu,
    "mast3r": _pointmaps,
    "pirl": _pirl,
}
