"""CroCo-Stereo and CroCo-Flow: all that was published of CroCo v2 fine-tuned for stereo matching and optical flow.

The files, by the reference's stereoflow/README.MD and download_model.sh. Crop, criterion and confidence mode
stand in each file's own `args` and go before what is written here (see zoo/models/croco/dense.py); they don't hold the
overlap of the published figures, 0.9, of flow on KITTI 0.99 (same README).
"""

from __future__ import annotations

from typing import Any

from zoo.catalog.croco import CROCO
from zoo.catalog.entry import Metric, Source, Variant

_URL = "https://download.europe.naverlabs.com/ComputerVision/CroCo/StereoFlow_models/"
_PAIRS = {variant.architecture: variant for variant in CROCO if variant.form == "binocular"}
_LARGE = _PAIRS["crocov2_large_patch16_224_dec768d12"]
_BASE = _PAIRS["crocov2_base_patch16_224_dec768d12"]
_NANO = _PAIRS["croco_nano_patch8_64_dec128d4"]
_BASE_SMALL_DECODER = _PAIRS["crocov2_base_patch16_224_dec512d8"]

_STEREO = dict(tile_size=(352, 704), tile_overlap=0.9, tile_confidence="conf_expsigmoid_15_3")
_STEREO_ETH3D = {**_STEREO, "tile_confidence": "conf_expbeta3"}
_STEREO_KITTI = {**_STEREO, "tile_size": (352, 1216)}
_FLOW = dict(tile_size=(320, 384), tile_overlap=0.9, tile_confidence="conf_expsigmoid_10_5")
_FLOW_KITTI = {**_FLOW, "tile_size": (352, 1216), "tile_overlap": 0.99}

_NANO_HEAD = dict(layer_dims=(32, 48, 64, 96), feature_dim=64, last_dim=32, unit=8.0)
_NANO_STEREO = {**_STEREO, "tile_size": (96, 192), "tile_overlap": 0.7, "photo_scale": 0.7}
_NANO_FLOW = {**_FLOW, "tile_size": (128, 128), "tile_overlap": 0.7, "photo_scale": 0.5}

_TABLES = "tables of other papers and leaderboards; not checked against CroCo v2's paper"


def _figure(task: str, dataset: str, name: str, value: float, conditions: str, source: str = _TABLES) -> Metric:
    return Metric(task, dataset, name, value, conditions, source, secondary=source == _TABLES)


def _stereo_figure(dataset: str, name: str, value: float, conditions: str) -> Metric:
    return _figure("stereo matching", dataset, name, value, conditions)


def _flow_figure(dataset: str, name: str, value: float, conditions: str, source: str = _TABLES) -> Metric:
    return _figure("optical flow", dataset, name, value, conditions, source)


def _stereo(pair: Variant, parameters: int, tag: str, training: str, file: str = "", **more: Any) -> Variant:
    """A file of CroCo-Stereo; `file`: its name after "crocostereo"."""
    return _dense(pair, "stereo", f"crocostereo{file}.pth", tag, parameters, training, **{"tiles": _STEREO, **more})


def _flow(pair: Variant, parameters: int, tag: str, training: str, file: str = "", **more: Any) -> Variant:
    """A file of CroCo-Flow; `file`: its name after "crocoflow"."""
    return _dense(pair, "flow", f"crocoflow{file}.pth", tag, parameters, training, **{"tiles": _FLOW, **more})


def _dense(
    pair: Variant,
    task: str,
    file: str,
    tag: str,
    parameters: int,
    training: str,
    tiles: dict[str, Any],
    metrics: tuple[Metric, ...] = (),
) -> Variant:
    size = "large" if "_large_" in pair.architecture else "base"
    decoder = "base" if pair.args["decoder_dim"] == 768 else "small"
    predicted = {"stereo": "disparity (pixels)", "flow": "optical flow (x, y in pixels)"}[task]
    return Variant(
        architecture=f"{pair.architecture.replace('_224_', '_')}_{task}",
        tag=tag,
        family="croco",
        form="dense",
        description=f"CroCo-{task.title()}: CroCo v2 {size} with the {decoder} decoder and a DPT head for {predicted} "
        "and its confidence",
        args={**pair.args, "out_chans": {"stereo": 2, "flow": 3}[task], **tiles},
        parameters=parameters,
        license=pair.license,
        paper=pair.paper,
        input_size=(3, *tiles["tile_size"]),
        sources=(Source("url", _URL + file),),
        recipe=tag if size == "large" else f"croco{task}_base_{decoder}dec",
        training=training,
        metrics=metrics,
    )


_FROM = "Fine-tuned from CroCo v2 {}"
_STEREO_SETS = "CREStereo, SceneFlow, ETH3D, Middlebury and Booster"
_STEREO_SUBTRAIN = f"{_STEREO_SETS}, without the scenes that are left to validate"
_FLOW_SETS = "MPI-Sintel (without the scenes temple_2 and temple_3), FlyingThings, FlyingChairs and TartanAir"
_SMALL = "base with the {} decoder"

CROCO_DENSE = (
    _stereo(
        _LARGE,
        437_417_890,
        "crocostereo",
        f"{_FROM.format('large')} on all of {_STEREO_SETS}: the file of the Middlebury submission.",
        metrics=(
            Metric(
                "stereo matching", "KITTI 2012", "D1 (%)", 14.00, "zero-shot", "a user, in issue 9 of naver/croco", True
            ),
            Metric(
                "stereo matching", "KITTI 2015", "D1 (%)", 19.38, "zero-shot", "a user, in issue 9 of naver/croco", True
            ),
        ),
    ),
    _stereo(
        _LARGE,
        437_417_890,
        "crocostereo_subtrain",
        f"{_FROM.format('large')} on {_STEREO_SUBTRAIN}: the file of the validation figures.",
        "_subtrain",
    ),
    _stereo(
        _LARGE,
        437_417_890,
        "crocostereo_eth3d",
        f"{_FROM.format('large')} with an unbounded Laplacian loss: the file of the ETH3D submission.",
        "_eth3d",
        tiles=_STEREO_ETH3D,
        metrics=(
            _stereo_figure("ETH3D", "bad@1 (%)", 0.99, "test set, pixels that both images see"),
            _stereo_figure("ETH3D", "bad@0.5 (%)", 3.27, "test set, pixels that both images see"),
            _stereo_figure("ETH3D", "average error (pixels)", 0.14, "test set, pixels that both images see"),
        ),
    ),
    _stereo(
        _LARGE,
        437_417_890,
        "crocostereo_kitti",
        "Fine-tuned from crocostereo for 20 epochs on KITTI 2012 and 2015, in crops of 352x1216.",
        "_finetune_kitti",
        tiles=_STEREO_KITTI,
        metrics=(_stereo_figure("KITTI 2015", "D1-all (%)", 1.59, "test set"),),
    ),
    _stereo(
        _LARGE,
        437_417_890,
        "crocostereo_spring",
        "Fine-tuned from crocostereo for 8 epochs on Spring.",
        "_finetune_spring",
        metrics=(_stereo_figure("Spring", "1px (%)", 7.13, "test set"),),
    ),
    _stereo(
        _BASE_SMALL_DECODER,
        139_403_682,
        "crocostereo_subtrain",
        f"{_FROM.format(_SMALL.format('small'))} on {_STEREO_SUBTRAIN}.",
        "_subtrain_vitb_smalldecoder",
    ),
    _stereo(
        _BASE,
        219_744_418,
        "crocostereo_subtrain",
        f"{_FROM.format(_SMALL.format('base'))} on {_STEREO_SUBTRAIN}.",
        "_subtrain_vitb_basedecoder",
    ),
    _flow(
        _LARGE,
        437_417_923,
        "crocoflow",
        f"{_FROM.format('large')} on {_FLOW_SETS}: the file of the MPI-Sintel submission.",
        metrics=(
            *(
                _flow_figure(
                    f"MPI-Sintel, {rendering} pass",
                    "EPE (pixels)",
                    value,
                    "test set, tiles overlapping by 0.9",
                    "CroCo-Flow's row of table 4 in arXiv 2609.11486, conditions from the reference's "
                    "stereoflow/README.MD",
                )
                for rendering, value in (("clean", 1.09), ("final", 2.44))
            ),
            *(
                _flow_figure(f"MPI-Sintel, {rendering} pass", "EPE (pixels)", value, "scenes temple_2 and temple_3")
                for rendering, value in (("clean", 1.43), ("final", 1.99))
            ),
        ),
    ),
    _flow(
        _LARGE,
        437_417_923,
        "crocoflow_kitti",
        "Fine-tuned from crocoflow for 150 epochs on KITTI, in crops of 352x1216.",
        "_finetune_kitti",
        tiles=_FLOW_KITTI,
        metrics=(_flow_figure("KITTI 2015", "Fl-all (%)", 3.64, "test set, tiles overlapping by 0.99"),),
    ),
    _flow(
        _LARGE,
        437_417_923,
        "crocoflow_spring",
        "Fine-tuned from crocoflow for 12 epochs on Spring.",
        "_finetune_spring",
        metrics=(
            _flow_figure("Spring", "EPE (pixels)", 0.498, "test set"),
            _flow_figure("Spring", "1px (%)", 4.565, "test set"),
            _flow_figure("Spring", "Fl (%)", 1.508, "test set"),
            _flow_figure("Spring", "WAUC", 93.66, "test set"),
        ),
    ),
    _flow(
        _BASE_SMALL_DECODER,
        139_403_715,
        "crocoflow",
        f"{_FROM.format(_SMALL.format('small'))} on {_FLOW_SETS}.",
        "_vitb_smalldecoder",
    ),
    _flow(
        _BASE, 219_744_451, "crocoflow", f"{_FROM.format(_SMALL.format('base'))} on {_FLOW_SETS}.", "_vitb_basedecoder"
    ),
    Variant(
        architecture="croco_nano_patch8_dec128d4_stereo",
        tag="scenes",
        family="croco",
        form="dense",
        description="CroCo-Stereo in small: a CPU can run it, and train it in two hours",
        args={**_NANO.args, **_NANO_HEAD, "out_chans": 2, **_NANO_STEREO},
        parameters=3_819_490,
        license="Apache-2.0",
        paper=_NANO.paper,
        input_size=(3, 96, 192),
        sources=(Source("package", "croco_nano_patch8_dec128d4_stereo.scenes.safetensors", layout="zoo"),),
        recipe="croco_nano_stereo",
        training="Fine-tuned on rectified procedural scenes, photos of scikit-image on half of their surfaces, from "
        "the small CroCo that `croco_nano_rich` trains on such scenes.",
    ),
    Variant(
        architecture="croco_nano_patch8_dec128d4_flow",
        tag="scenes",
        family="croco",
        form="dense",
        description="CroCo-Flow in small: a CPU can run it, and train it in two hours",
        args={**_NANO.args, **_NANO_HEAD, "out_chans": 3, **_NANO_FLOW},
        parameters=3_819_523,
        license="Apache-2.0",
        paper=_NANO.paper,
        input_size=(3, 128, 128),
        sources=(Source("package", "croco_nano_patch8_dec128d4_flow.scenes.safetensors", layout="zoo"),),
        recipe="croco_nano_flow",
        training="Fine-tuned on procedural scenes that two free cameras see, photos of scikit-image on half of their "
        "surfaces, from the small stereo model that `croco_nano_stereo` trains.",
    ),
)
