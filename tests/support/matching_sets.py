"""Small copies of the public stereo and flow data sets, written by OpenCV, NumPy and h5py as these come."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import numpy as np

SIZE = (24, 40)
_RNG = np.random.default_rng(0)


def image(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), _RNG.integers(0, 255, (*size, 3), dtype=np.uint8))


def disparity(size: tuple[int, int] = SIZE) -> np.ndarray:
    values = (_RNG.random(size) * 9 + 1).astype(np.float32)
    values[0, 0] = np.inf
    return values


def flow(size: tuple[int, int] = SIZE) -> np.ndarray:
    return (_RNG.standard_normal((*size, 2)) * 3).astype(np.float32)


def pfm(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if values.ndim == 3:
        values = np.dstack([np.zeros(values.shape[:2], np.float32), values[..., 1], values[..., 0]])
    cv2.imwrite(str(path), values)


def png16(path: Path, values: np.ndarray, factor: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.where(np.isfinite(values), values * factor, 0).astype(np.uint16))


def hdf5(path: Path, key: str, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=values)


def write_stereo(root: Path) -> None:
    """Every stereo set with a few scenes, those of the validation among them."""
    for home, sequence in (
        ("FlyingThings", "TRAIN/A/0000"),
        ("FlyingThings", "TEST/A/0001"),
        ("Monkaa", "a"),
        ("Driving", "15mm/slow"),
    ):
        for frames in ("clean", "final"):
            for side in ("left", "right"):
                image(root / f"SceneFlow/{home}/frames_{frames}pass/{sequence}/{side}/0006.png")
        pfm(root / f"SceneFlow/{home}/disparity/{sequence}/left/0006.pfm", disparity())
        pfm(root / f"SceneFlow/{home}/disparity/{sequence}/right/0006.pfm", disparity())
    for kind in ("hole", "tree"):
        stem = root / f"crenet_stereo_trainset/stereo_trainset/crestereo/{kind}/0001"
        image(Path(f"{stem}_left.jpg"))
        image(Path(f"{stem}_right.jpg"))
        png16(Path(f"{stem}_left.disp.png"), disparity(), 32)
    lights = (("2005/train", ("Art", "Reindeer")), ("2006", ("Aloe", "Rocks1", "Wood2")))
    for home, scenes in lights:
        for scene in scenes:
            folder = root / "middlebury" / home / scene
            for light in (1, 2, 3):
                for exposure in (0, 1, 2):
                    for view in (0, 1, 5):
                        image(folder / f"Illum{light}/Exp{exposure}/view{view}.png")
            cv2.imwrite(str(folder / "disp1.png"), np.full(SIZE, 7, np.uint8))
    for scene in ("Adirondack-perfect", "Umbrella-imperfect", "Vintage-perfect"):
        for name in ("im0", "im1", "im1E", "im1L"):
            image(root / f"middlebury/2014/{scene}/{name}.png")
        pfm(root / f"middlebury/2014/{scene}/disp0.pfm", disparity())
    for scene in ("artroom1", "bandsaw1", "chess1"):
        for name in ("im0", "im1", "ambient/L0/im0e0", "ambient/L0/im1e0"):
            image(root / f"middlebury/2021/data/{scene}/{name}.png")
        pfm(root / f"middlebury/2021/data/{scene}/disp0.pfm", disparity())
    for home, scenes in (("train", ("Adirondack", "Vintage")), ("test", ("Australia",))):
        for scene in scenes:
            folder = root / f"middlebury/MiddEval3_F/{home}/{scene}"
            image(folder / "im0.png")
            image(folder / "im1.png")
            if home == "train":
                pfm(folder / "disp0GT.pfm", disparity())
    for home, scenes in (("train", ("delivery_area_1l", "delivery_area_3s", "electro_3l")), ("test", ("lakeside_1l",))):
        for scene in scenes:
            image(root / f"eth3d_lowres/{home}/{scene}/im0.png")
            image(root / f"eth3d_lowres/{home}/{scene}/im1.png")
            if home == "train":
                pfm(root / f"eth3d_lowres/train_gt/{scene}/disp0GT.pfm", disparity())
    for scene in ("Bathroom", "Bedroom", "Washer"):
        for camera in ("camera_00", "camera_02"):
            image(root / f"booster_gt/train/balanced/{scene}/{camera}/im0.png")
        np.save(root / f"booster_gt/train/balanced/{scene}/disp_00.npy", np.nan_to_num(disparity(), posinf=0))
    for year, left, right, truth in (
        ("2012", "colored_0", "colored_1", "disp_occ"),
        ("2015", "image_2", "image_3", "disp_occ_0"),
    ):
        for side in (left, right):
            for home in ("training", "testing"):
                image(root / f"kitti-stereo-{year}/{home}/{side}/000000_10.png")
                image(root / f"kitti-stereo-{year}/{home}/{side}/000000_11.png")
        png16(root / f"kitti-stereo-{year}/training/{truth}/000000_10.png", disparity(), 256)
    for sequence in ("0001", "0041"):
        for side in ("left", "right"):
            image(root / f"spring/train/{sequence}/frame_{side}/frame_{side}_0001.png")
        hdf5(root / f"spring/train/{sequence}/disp1_left/disp1_left_0001.dsp5", "disparity", disparity((48, 80)))


def write_flow(root: Path) -> None:
    """Every flow set, likewise."""
    for number in (1, 2, 3):
        for name in ("img1", "img2"):
            path = root / f"FlyingChairs/data/{number:05d}_{name}.ppm"
            image(path)
        cv2.writeOpticalFlow(str(root / f"FlyingChairs/data/{number:05d}_flow.flo"), flow())
    (root / "FlyingChairs/chairs_split.txt").write_text("1\n2\n1\n")
    for frames in ("clean", "final"):
        for number in (6, 7, 8):
            image(root / f"SceneFlow/FlyingThings/frames_{frames}pass/TRAIN/A/0000/left/{number:04d}.png")
    for direction, word in (("into_future", "IntoFuture"), ("into_past", "IntoPast")):
        for number in (6, 7, 8):
            name = f"OpticalFlow{word}_{number:04d}_L.pfm"
            pfm(root / f"SceneFlow/FlyingThings/optical_flow/TRAIN/A/0000/{direction}/left/{name}", flow())
    for scene in ("alley_1", "temple_2", "temple_3"):
        for frames in ("clean", "final"):
            for number in (1, 2, 3):
                image(root / f"MPI-Sintel/training/{frames}/{scene}/frame_{number:04d}.png")
        for number in (1, 2):
            path = root / f"MPI-Sintel/training/flow/{scene}/frame_{number:04d}.flo"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.writeOpticalFlow(str(path), flow())
            invalid = np.zeros(SIZE, np.uint8)
            invalid[3, 4] = 255
            (root / f"MPI-Sintel/training/invalid/{scene}").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / f"MPI-Sintel/training/invalid/{scene}/frame_{number:04d}.png"), invalid)
    folder = root / "TartanAir/office/Easy/P000"
    for number in (0, 1):
        image(folder / f"image_left/{number:06d}_left.png")
    (folder / "flow").mkdir(parents=True)
    np.save(folder / "flow/000000_000001_flow.npy", flow())
    np.save(folder / "flow/000000_000001_mask.npy", np.zeros(SIZE, np.uint8))
    for year, images in (("2012", "colored_0"), ("2015", "image_2")):
        for number in (10, 11):
            image(root / f"kitti-stereo-{year}/training/{images}/000000_{number}.png")
        coded = np.dstack([np.ones(SIZE), *(np.moveaxis(flow() * 64 + 2**15, -1, 0)[::-1])]).astype(np.uint16)
        (root / f"kitti-stereo-{year}/training/flow_occ").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"kitti-stereo-{year}/training/flow_occ/000000_10.png"), coded)
    for sequence in ("0001", "0041"):
        for side in ("left", "right"):
            for number in (1, 2):
                image(root / f"spring/train/{sequence}/frame_{side}/frame_{side}_{number:04d}.png")
            for name, number in ((f"flow_FW_{side}", 1), (f"flow_BW_{side}", 2)):
                hdf5(root / f"spring/train/{sequence}/{name}/{name}_{number:04d}.flo5", "flow", flow((48, 80)))
