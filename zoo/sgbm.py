"""OpenCV's semi-global matching (Hirschmüller, PAMI 2008), what a learned stereo model is to be seen against."""

from __future__ import annotations

import numpy as np

from zoo.errors import DataError

SETTINGS = "block 3, 96 disparities, three paths, left-right checked, speckles of up to 100 pixels removed"


def semi_global_matching(left: np.ndarray, right: np.ndarray, disparities: int = 96, whole: bool = False) -> np.ndarray:
    """uint8 images (H, W, 3) -> disparity (H, W), float32, its holes filled from the background.

    disparities: how many are searched, a multiple of 16. whole: repeat the left edge, so that the first
    `disparities` columns are searched too, which OpenCV leaves out; always done where there are no others.

    Raises DataError (a ValueError) without OpenCV.
    """
    try:
        import cv2
    except ImportError as error:
        raise DataError(
            "Semi-global matching needs OpenCV; install it with pip install 'pretext-zoo[demo]'."
        ) from error
    block, channels = 3, 3
    matcher = cv2.StereoSGBM.create(
        minDisparity=0,
        numDisparities=disparities,
        blockSize=block,
        P1=8 * channels * block**2,  # as OpenCV's documentation advises
        P2=32 * channels * block**2,
        disp12MaxDiff=1,
        uniquenessRatio=10,
        speckleWindowSize=100,
        speckleRange=2,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    more = disparities if whole or left.shape[1] <= disparities else 0
    padded = [np.pad(image[..., ::-1], ((0, 0), (more, 0), (0, 0)), mode="edge") for image in (left, right)]
    found = matcher.compute(*padded)[:, more:].astype(np.float32) / 16
    return fill_from_background(np.where(found < 0, np.inf, found))


def fill_from_background(disparity: np.ndarray) -> np.ndarray:
    """(H, W) with infinite pixels replaced by the smaller, farther one of the nearest known on their row; rows without
    any by 0."""
    width = disparity.shape[1]
    known, place = np.isfinite(disparity), np.arange(width)
    before = np.maximum.accumulate(np.where(known, place, -1), axis=1)
    after = np.minimum.accumulate(np.where(known, place, width)[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(disparity, ((0, 0), (1, 1)), constant_values=np.inf)
    rows = np.arange(len(disparity))[:, None]
    filled = np.where(known, disparity, np.minimum(padded[rows, before + 1], padded[rows, after + 1]))
    return np.where(np.isfinite(filled), filled, 0).astype(np.float32)
