"""Lines of code that load and use a variant, with the shapes that they give."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import timm
import torch

from zoo.catalog import Variant
from zoo.models.itpn import ITPNClip
from zoo.models.resnet import JigsawClusteringModel, JigsawModel
from zoo.models.shared.masked import MaskedAutoencoder


@cache
def _model(name: str, **args: Any) -> Any:
    """The variant's model without data: it knows the shapes of everything."""
    return timm.create_model(name, device="meta", **args).eval()


def _shape(tensor: torch.Tensor) -> str:
    return ", ".join(map(str, tensor.shape))


def timm_lines(variant: Variant) -> str:
    """Lines that run as they are; a comment that starts with numbers is the shape of what its line assigns."""
    body = {"encoder": _encoder_lines, "pretraining": _pretraining_lines, "binocular": _pair_lines}
    body["pointmaps"] = _pointmap_lines
    lines = body.get(variant.form, _dense_lines)(variant, ", pretrained=True" if variant.tag else "")
    head = ["import timm", "import torch", "from PIL import Image", "from PIL.ImageOps import exif_transpose"]
    if variant.form == "dense":
        head.append("from torchvision.transforms.functional import normalize, to_tensor")
    head += ["", "import zoo  # registers the zoo's architectures with timm", "", f'name = "{variant.name}"']
    return "```python\n" + "\n".join(head) + f"\n{lines}\n```"


def _image_lines(variant: Variant, *names: str) -> str:
    """Photos as the model takes them, under the names of their files."""
    return "\n".join(
        [
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # resize, normalize",
            *(
                f'{name} = transform(exif_transpose(Image.open("{name}.jpg")).convert("RGB")).unsqueeze(0)  # 1, '
                + ", ".join(map(str, variant.input_size))
                for name in names
            ),
        ]
    )


class _Shapes(NamedTuple):
    features: str
    vector: str
    maps: str
    strides: list[int]
    tokens: bool


@cache
def _encoder_shapes(name: str, input_size: tuple[int, int, int], size: tuple[int, int], sized: bool) -> _Shapes:
    """What a backbone gives for an image of its input size, and as features_only for one of `size`."""
    model, image = _model(name), torch.empty(1, *input_size, device="meta")
    backbone = _model(name, features_only=True, **({"img_size": size} if sized else {}))
    with torch.no_grad():
        features, vector = model.forward_features(image), model(image)
        maps = backbone(torch.empty(1, 3, *size, device="meta"))
    return _Shapes(
        _shape(features), _shape(vector), _shape(maps[-1]), backbone.feature_info.reduction(), features.ndim == 3
    )


def _encoder_lines(variant: Variant, weights: str) -> str:
    _, height, width = variant.input_size
    size = (height + 32, 2 * width)
    shapes = _encoder_shapes(variant.name, variant.input_size, size, sized(variant))
    tokens = "one for each patch, row by row" if shapes.tokens else "a map"
    result = f"scores of the {variant.num_classes:,} classes" if variant.num_classes else "their mean"
    at_size = ", img_size=size" if sized(variant) else ""
    strides = ", ".join(map(str, shapes.strides))
    return f"""model = timm.create_model(name{weights}).eval()
{_image_lines(variant, "photo")}
with torch.inference_mode():
    features = model.forward_features(photo)  # {shapes.features}: {tokens}
    vector = model(photo)  # {shapes.vector}: {result}

# maps for dense heads, at strides {strides}, of images of any size that {shapes.strides[-1]} divides
size = {size}
backbone = timm.create_model(name{weights}, features_only=True{at_size}).eval()
deepest = backbone(torch.rand(1, 3, *size))[-1]  # {shapes.maps}"""


def sized(variant: Variant) -> bool:
    """Whether a model is made for one input size; plain convolutional ones take any."""
    return variant.family not in ("pirl", "jigclu", "jigsaw", "rotnet", "npid", "clusterfit")


def _pretraining_lines(variant: Variant, weights: str) -> str:
    model, shape = _model(variant.name), ", ".join(map(str, variant.input_size))
    image = torch.empty(1, *variant.input_size, device="meta")
    lines = [f"model = timm.create_model(name{weights}).eval()", _image_lines(variant, "photo")]
    if isinstance(model, MaskedAutoencoder):
        lines.append(
            f"image = model.complete(photo, mask_ratio=0.75).image  # 1, {shape}: the photo, hidden patches predicted"
        )
    elif isinstance(model, ITPNClip):
        rows, columns = model.encoder.grid_size
        lines += [
            f"mask = torch.rand(1, {rows * columns}) < 0.4  # the patches that it is not to see",
            "with torch.inference_mode():",
            f"    tokens, auxiliary = model(photo, mask)  # 1, {rows * columns}, {model.head.out_features} both: the "
            "teacher's tokens, as predicted",
        ]
    elif isinstance(model, JigsawModel):
        side = variant.input_size[1] // 3
        cut = f"photo.unfold(2, {side}, {side}).unfold(3, {side}, {side}).flatten(2, 3).transpose(1, 2)"
        lines += [
            f"patches = {cut}  # 1, 9, 3, {side}, {side}",
            "with torch.inference_mode():",
            f"    scores = model(patches)  # 1, {model.permutations}: of the orders that the patches may be in",
        ]
    elif isinstance(model, JigsawClusteringModel):
        with torch.no_grad():
            vectors, places = model(image)
        lines += [
            "with torch.inference_mode():",
            f"    vectors, places = model(photo)  # of a montage's quarters: {_shape(vectors)} and {_shape(places)}",
        ]
    else:
        with torch.no_grad():
            embedding = _shape(model(image))
        lines += ["with torch.inference_mode():", f"    vector = model(photo)  # {embedding}: the image's embedding"]
    return "\n".join(lines)


def _pair_lines(variant: Variant, weights: str) -> str:
    _, height, width = variant.input_size
    patch, dim, shape = variant.args.get("patch_size", 16), variant.args["decoder_dim"], f"1, 3, {height}, {width}"
    num = (height // patch) * (width // patch)
    return f"""model = timm.create_model(name{weights}).eval()
{_image_lines(variant, "left", "right")}
with torch.inference_mode():
    tokens = model(left, right)  # 1, {num}, {dim}: the left image in the light of the right one
    tokens1, tokens2 = model(left, right, symmetric=True)  # both ways, encoding each image once
    maps = model.forward_intermediates(left, right, indices=4, output_fmt="NCHW")  # of the last four blocks
    image = model.complete(left, right, mask_ratio=0.9).image  # {shape}: the left one, hidden patches predicted"""


def _dense_lines(variant: Variant, weights: str) -> str:
    _, height, width = variant.input_size
    channels, crop = variant.args["out_chans"], f"[..., :{height}, :{width}]"
    return f"""model = timm.create_model(name{weights}).eval()


def read(path):
    image = exif_transpose(Image.open(path)).convert("RGB")  # upright
    return normalize(to_tensor(image), {list(variant.mean)}, {list(variant.std)})[None]


left, right = read("left.jpg"), read("right.jpg"){"  # a rectified pair" if channels == 2 else ""}
with torch.inference_mode():
    dense = model(left{crop}, right{crop})  # 1, {channels}, {height}, {width}: of a crop
    whole = model.forward_tiled(left, right)  # the same for images of any size"""


def _pointmap_lines(variant: Variant, weights: str) -> str:
    _, height, width = variant.input_size
    shape = f"1, {height}, {width}"
    lines = f"""model = timm.create_model(name{weights}).eval()
{_image_lines(variant, "left", "right")}
with torch.inference_mode():
    result = model(left, right)
points1 = result.points1  # {shape}, 3: what each pixel of the left photo shows, in its camera's frame
points2 = result.points2  # {shape}, 3: what those of the right one show, in the left camera's frame too
confidence = result.confidence1  # {shape}: more than 1, the more the surer
"""
    if variant.args["head_type"] == "catmlp+dpt":
        lines += f"descriptors = result.descriptors1  # {shape}, 24: alike where both photos show the same point\n"
    return lines.rstrip()


def hub_lines(variant: Variant) -> str:
    return f"""With torch.hub, from a clone of the repository (or by its name on GitHub, without `source`):

```python
import torch

model = torch.hub.load(
    "path/to/pretext-zoo", "{variant.architecture}", source="local", weights="{variant.tag}"
).eval()
```

There `weights` may also be a file that you have: a checkpoint of the reference code or safetensors of the zoo."""
