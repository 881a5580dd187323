"""The public data sets of stereo and flow: where their files lie, and which of them belong to a split.

Folders are laid out as the data sets come, under the names that CroCo's own README for stereo and flow gives them
(naver/croco, stereoflow/README.MD). `subtrain` and `subval` are CroCo v2's: what its validation figures are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from zoo.errors import DataError
from zoo.train.data.lists import read_lines


class Entry(NamedTuple):
    """A pair of images and the file of its truth, None in test splits. kind: see `zoo.train.data.matching.maps.KINDS`.

    invalid: an image that isn't black where the truth is not to be used.
    """

    image1: Path
    image2: Path
    truth: Path | None
    kind: str = ""
    invalid: Path | None = None


@dataclass(frozen=True)
class PairSet:
    """One data set for one task.

    home: its folder among those of the README. splits: what it is divided into. entries: its folder and a split ->
    the pairs, in order. step: by how much its truth is larger than the images.
    """

    home: str
    splits: tuple[str, ...]
    entries: Callable[[Path, str], Iterable[Entry]]
    step: int = 1

    def find(self, path: str | Path) -> Path:
        """Its folder: `path` itself, or what the README calls it within `path`."""
        root, parts = Path(path), Path(self.home).parts
        for first in range(len(parts)):
            if (root / Path(*parts[first:])).is_dir():
                return root / Path(*parts[first:])
        return root


def list_pairs(name: str, task: str, split: str, path: str | Path) -> list[Entry]:
    """The pairs of a split of the data set `name`. Raises DataError (a ValueError) where there are none."""
    sets = SETS[task]
    if name not in sets:
        raise DataError(f"There is no {task} data set '{name}'; choose {', '.join(sets)}, or give a list of your own.")
    if split not in sets[name].splits:
        raise DataError(f"The data set {name} has no split '{split}'; choose {', '.join(sets[name].splits)}.")
    folder = sets[name].find(path)
    entries = list(sets[name].entries(folder, split))
    if not entries:
        raise DataError(
            f"{folder} holds no pairs of {name}:{split}; it should be laid out as {sets[name].home} in CroCo's README "
            "for stereo and flow."
        )
    return entries


def _scenes(folder: Path, split: str, validation: Iterable[str] | int) -> list[Path]:
    """The folders of scenes in `folder` that belong to a split: validation names those of `subval`, or says how many
    of the last ones they are."""
    scenes = sorted(path for path in folder.glob("*") if path.is_dir())
    chosen = {path.name for path in scenes[-validation:]} if isinstance(validation, int) else set(validation)
    if split.startswith("subval"):
        return [path for path in scenes if path.name in chosen]
    if split.startswith("subtrain"):
        return [path for path in scenes if path.name not in chosen]
    return scenes


# --- Stereo -------------------------------------------------------------------------------------------------


def _sceneflow(folder: Path, split: str) -> Iterator[Entry]:
    part, rendering = split.rsplit("_", 1)
    for frames in ("clean", "final") if rendering == "all" else (rendering,):
        found: list[Entry] = []
        for home in ("FlyingThings", *(() if part.startswith("test") else ("Monkaa", "Driving"))):
            disparities = folder / home / "disparity"
            within = {"FlyingThings": "TEST" if part.startswith("test") else "TRAIN"}.get(home, ".")
            for truth in sorted((disparities / within).rglob("left/*.pfm")):
                left = folder / home / f"frames_{frames}pass" / truth.relative_to(disparities).with_suffix(".png")
                found.append(Entry(left, left.parent.parent / "right" / left.name, truth))
        yield from found[::100] if part == "test1of100" else found


def _crestereo(folder: Path, split: str) -> Iterator[Entry]:
    for left in sorted(folder.rglob("*_left.jpg")):
        stem = left.name.removesuffix("_left.jpg")
        yield Entry(left, left.with_name(f"{stem}_right.jpg"), left.with_name(f"{stem}_left.disp.png"), "crestereo")


def _middlebury_lights(validation: tuple[str, ...]) -> Callable[[Path, str], Iterator[Entry]]:
    """2005 and 2006: each scene under three lights in three exposures."""

    def entries(folder: Path, split: str) -> Iterator[Entry]:
        for scene in _scenes(folder, split, validation):
            for left in sorted(scene.glob("Illum*/Exp*/view1.png")):
                yield Entry(left, left.with_name("view5.png"), scene / "disp1.png", "middlebury")

    return entries


def _middlebury_2014(folder: Path, split: str) -> Iterator[Entry]:
    for scene in _scenes(folder, split, ("Umbrella-imperfect", "Vintage-perfect")):
        for right in ("im1.png", "im1E.png", "im1L.png"):  # as the left one, in another exposure, in another light
            if (scene / right).is_file():
                yield Entry(scene / "im0.png", scene / right, scene / "disp0.pfm")


def _middlebury_2021(folder: Path, split: str) -> Iterator[Entry]:
    for scene in _scenes(folder, split, 2):
        for left in sorted([*scene.glob("im0.png"), *scene.glob("ambient/*/im0*.png")]):
            right = left.with_name(left.name.replace("im0", "im1"))
            if right.is_file():
                yield Entry(left, right, scene / "disp0.pfm")


_EVAL3_SIZES = {"full": "F", "half": "H", "quarter": "Q"}


def _middlebury_eval3(folder: Path, split: str) -> Iterator[Entry]:
    part, size = split.rsplit("_", 1)
    within = folder / f"MiddEval3_{_EVAL3_SIZES[size]}"
    folder = within if within.is_dir() else folder
    for home in ("train", "test") if part == "all" else ("test" if part == "test" else "train",):
        for scene in _scenes(folder / home, split, 1):
            yield Entry(scene / "im0.png", scene / "im1.png", scene / "disp0GT.pfm" if home == "train" else None)


def _eth3d(folder: Path, split: str) -> Iterator[Entry]:
    validation = ("delivery_area_3s", "electro_3l", "playground_3l")
    for home in ("train", "test") if split == "all" else ("test" if split == "test" else "train",):
        for scene in _scenes(folder / home, split, validation):
            truth = folder / "train_gt" / scene.name / "disp0GT.pfm" if home == "train" else None
            yield Entry(scene / "im0.png", scene / "im1.png", truth)


def _booster(folder: Path, split: str) -> Iterator[Entry]:
    for scene in _scenes(folder / "train" / "balanced", split, 2):
        for left in sorted(scene.glob("camera_00/*.png")):
            yield Entry(left, scene / "camera_02" / left.name, scene / "disp_00.npy", "booster")


def _kitti_stereo(*folders: str) -> Callable[[Path, str], Iterator[Entry]]:
    left, right, truth = folders

    def entries(folder: Path, split: str) -> Iterator[Entry]:
        part = folder / ("training" if split == "train" else "testing")
        for image in sorted((part / left).glob("*_10.png")):
            known = part / truth / image.name if split == "train" else None
            yield Entry(image, part / right / image.name, known, "kitti")

    return entries


_SPRING_VALIDATION = ("0041",)


def _spring_stereo(folder: Path, split: str) -> Iterator[Entry]:
    for sequence in _scenes(folder / ("test" if split == "test" else "train"), split, _SPRING_VALIDATION):
        for left in sorted(sequence.glob("frame_left/*.png")):
            number = left.stem.rsplit("_", 1)[-1]
            right = sequence / "frame_right" / f"frame_right_{number}.png"
            truth = None if split == "test" else sequence / "disp1_left" / f"disp1_left_{number}.dsp5"
            yield Entry(left, right, truth)


# --- Flow ---------------------------------------------------------------------------------------------------


def _flying_chairs(folder: Path, split: str) -> Iterator[Entry]:
    listing = folder / "chairs_split.txt"
    if not listing.is_file():
        raise DataError(
            f"There is no {listing}, which says what of FlyingChairs is for training (1) and validation (2)."
        )
    numbers = [number for _, line in read_lines(listing) for number in line.split()]
    for number, part in enumerate(numbers, start=1):
        if part == ("1" if split == "train" else "2"):
            stem = folder / "data" / f"{number:05d}"
            yield Entry(Path(f"{stem}_img1.ppm"), Path(f"{stem}_img2.ppm"), Path(f"{stem}_flow.flo"))


def _flying_things(folder: Path, split: str) -> Iterator[Entry]:
    part, rendering = split.rsplit("_", 1)
    home = "TEST" if part == "test" else "TRAIN"
    flows = folder / "optical_flow" / home
    for frames in ("clean", "final") if rendering == "all" else (rendering,):
        images = folder / f"frames_{frames}pass" / home
        for direction, ahead in (("into_future", 1), ("into_past", -1)):
            for truth in sorted(flows.glob(f"*/*/{direction}/left/*.pfm")):
                number = truth.stem.split("_")[-2]  # OpticalFlowIntoFuture_0006_L
                sequence = images / truth.relative_to(flows).parent.parent.parent / "left"
                other = sequence / f"{int(number) + ahead:04d}.png"
                if other.is_file():  # the last frame's leads out of the sequence
                    yield Entry(sequence / f"{number}.png", other, truth)


def _sintel(folder: Path, split: str) -> Iterator[Entry]:
    part, rendering = split.rsplit("_", 1)
    home = folder / ("test" if part == "test" else "training")
    for frames in ("clean", "final") if rendering == "all" else (rendering,):
        for scene in _scenes(home / frames, part, ("temple_2", "temple_3")):
            images = sorted(scene.glob("*.png"))
            for first, second in pairwise(images):
                truth = home / "flow" / scene.name / f"{first.stem}.flo"
                invalid = home / "invalid" / scene.name / first.name
                known = None if part == "test" else truth
                yield Entry(first, second, known, invalid=invalid if invalid.is_file() else None)


def _tartanair(folder: Path, split: str) -> Iterator[Entry]:
    for truth in sorted(folder.rglob("flow/*_flow.npy")):
        first, second = truth.stem.split("_")[:2]  # 000000_000001_flow
        images = truth.parent.parent / "image_left"
        yield Entry(images / f"{first}_left.png", images / f"{second}_left.png", truth)


def _kitti_flow(images: str) -> Callable[[Path, str], Iterator[Entry]]:
    def entries(folder: Path, split: str) -> Iterator[Entry]:
        part = folder / ("training" if split == "train" else "testing")
        for image in sorted((part / images).glob("*_10.png")):
            known = part / "flow_occ" / image.name if split == "train" else None
            yield Entry(image, image.with_name(image.name.replace("_10.png", "_11.png")), known)

    return entries


def _spring_flow(folder: Path, split: str) -> Iterator[Entry]:
    """Both cameras, forwards and backwards: what the benchmark scores."""
    for sequence in _scenes(folder / ("test" if split == "test" else "train"), split, _SPRING_VALIDATION):
        for side in ("left", "right"):
            images = sorted(sequence.glob(f"frame_{side}/*.png"))
            for direction, pairs in (("FW", pairwise(images)), ("BW", zip(images[1:], images))):
                for first, second in pairs:
                    name = f"flow_{direction}_{side}"
                    truth = sequence / name / f"{name}_{first.stem.rsplit('_', 1)[-1]}.flo5"
                    yield Entry(first, second, None if split == "test" else truth)


_RENDERINGS = ("clean", "final", "all")
_THIRDS = ("train", "subtrain", "subval")
_KITTI = ("train", "test")


def _each(parts: Iterable[str], suffixes: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{part}_{suffix}" for part in parts for suffix in suffixes)


SETS: dict[str, dict[str, PairSet]] = {
    "stereo": {
        "sceneflow": PairSet("SceneFlow", _each(("train", "test", "test1of100"), _RENDERINGS), _sceneflow),
        "crestereo": PairSet("crenet_stereo_trainset/stereo_trainset/crestereo", ("train",), _crestereo),
        "middlebury_2005": PairSet("middlebury/2005/train", _THIRDS, _middlebury_lights(("Reindeer",))),
        "middlebury_2006": PairSet("middlebury/2006", _THIRDS, _middlebury_lights(("Rocks1", "Wood2"))),
        "middlebury_2014": PairSet("middlebury/2014", _THIRDS, _middlebury_2014),
        "middlebury_2021": PairSet("middlebury/2021/data", _THIRDS, _middlebury_2021),
        "middlebury_eval3": PairSet("middlebury", _each((*_THIRDS, "test", "all"), _EVAL3_SIZES), _middlebury_eval3),
        "eth3d": PairSet("eth3d_lowres", (*_THIRDS, "test", "all"), _eth3d),
        "booster": PairSet("booster_gt", _each(_THIRDS, ("balanced",)), _booster),
        "kitti_2012": PairSet(
            "kitti-stereo-2012", ("train", "test"), _kitti_stereo("colored_0", "colored_1", "disp_occ")
        ),
        "kitti_2015": PairSet(
            "kitti-stereo-2015", ("train", "test"), _kitti_stereo("image_2", "image_3", "disp_occ_0")
        ),
        "spring": PairSet("spring", (*_THIRDS, "test"), _spring_stereo, step=2),
    },
    "flow": {
        "flying_chairs": PairSet("FlyingChairs", ("train", "val"), _flying_chairs),
        "flying_things": PairSet("SceneFlow/FlyingThings", _each(("train", "test"), _RENDERINGS), _flying_things),
        "sintel": PairSet("MPI-Sintel", _each((*_THIRDS, "test"), _RENDERINGS), _sintel),
        "tartanair": PairSet("TartanAir", ("train",), _tartanair),
        "kitti_2012": PairSet("kitti-stereo-2012", _KITTI, _kitti_flow("colored_0")),
        "kitti_2015": PairSet("kitti-stereo-2015", _KITTI, _kitti_flow("image_2")),
        "spring": PairSet("spring", (*_THIRDS, "test"), _spring_flow, step=2),
    },
}
"""Data sets by task and name."""
