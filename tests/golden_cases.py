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
from zoo.models.croco import CrocoEncoder, DensePairModel, PairModel
from zoo.models.resnet import JigsawClusteringHeads, JigsawClusteringModel
from zoo.pretrain.jigsaw_clustering import cluster_loss, quarter_boxes, shuffle
from zoo.pretrain.pirl import Pirl
from zoo.weights import Checkpoint


def read_case(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The case's description and its tensors, everything floating in float32."""
    with safe_open(path, "pt") as file:
        case = json.loads(file.metadata()["case"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    return case, {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def compute(path: str) -> dict[str, Tensor]:
    """All outputs and gradient norms of the golden case in the file `path`, computed by the zoo."""
    case, tensors = read_case(path)
    family = case["name"].split("_")[0]
    if "head" in case["config"]:
        family = "croco_dense"
    return _FAMILIES[family](case["config"], tensors)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _load(model: ZooModel, weights: dict[str, Tensor]) -> None:
    """Strict conversion and loading, as `load_pretrained` does with a file."""
    state = model.convert(Checkpoint(tensors={k: v.clone() for k, v in weights.items()}, extra={}, path=Path("golden")))
    model.load_state_dict(model.adapt_state(state), strict=True)


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


def _pair_args(config: dict[str, Any]) -> dict[str, Any]:
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
    model = PairModel(**_pair_args(config)).eval()
    weights = _part(tensors, "weights.")
    _load(model, weights)
    img1, img2, mask = (tensors[f"input.{key}"] for key in ("img1", "img2", "mask"))
    hidden = int(mask[0].sum())
    out: dict[str, Tensor] = {}

    # the encoder alone, from the same checkpoint, as a timm backbone
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "pos_embed", "rope_base")
    encoder = CrocoEncoder(**{k: v for k, v in _pair_args(config).items() if k in names}).eval()
    _load(encoder, weights)
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
        assert math.isclose(loss.item(), reference_form.item(), rel_tol=1e-5)
        out["output.loss_normalised"] = loss.reshape(1)
    return {key: value.detach() for key, value in out.items()} | _gradnorms(model, loss)


def _croco_dense(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    head = config["head"]
    model = DensePairModel(
        out_chans=head["num_channels"],
        hooks=head["hooks_idx"],
        layer_dims=head["layer_dims"],
        feature_dim=head["feature_dim"],
        last_dim=head["last_dim"],
        **_pair_args(config),
    ).eval()
    _load(model, _part(tensors, "weights."))
    dense = model(tensors["input.img1"], tensors["input.img2"])
    return {"output.dense": dense.detach()} | _gradnorms(model, dense.square().mean())


def _jigclu(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    crops = torch.stack([tensors[f"input.crop{i}"] for i in range(4)], dim=1)  # n, 4, C, s, s
    shuffled = shuffle(crops, tensors["input.permutation"])
    weights = {f"module.encoder.{key}": value for key, value in _part(tensors, "weights.").items()}
    dim = weights["module.encoder.fc_loc.weight"].shape[1]
    heads = JigsawClusteringHeads(dim, config["dim"])
    (rules,) = JigsawClusteringModel.layouts.values()
    heads.load_state_dict(_part(rules.to_zoo(weights, name="golden"), "heads."), strict=True)

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
    bank, given = tensors["input.memory_before"], _part(tensors, "input.")
    embeddings = [given[f"{what}_embedding"].requires_grad_() for what in ("image", "patch")]
    candidates = [given["candidates_images"], given["candidates_patches"]]
    model = timm.create_model("pirl_nano_48_lin64", dim=bank.shape[1], device="meta")  # its embeddings are given
    settings = {key: config[key] for key in ("temperature", "negatives", "momentum")}
    losses = {}
    for loss in ("infonce", "nce"):
        objective = Pirl(model, range(len(bank)), loss=loss, **settings)
        objective.bank.vectors.copy_(bank)
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


_FAMILIES: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], dict[str, Tensor]]] = {
    "croco": _croco,
    "croco_dense": _croco_dense,
    "jigclu": _jigclu,
    "pirl": _pirl,
}
