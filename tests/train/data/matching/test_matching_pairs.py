"""Public data sets of stereo and flow with their splits, lists of one's own, and mixtures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.matching_sets import SIZE, image, pfm, write_flow, write_stereo
from zoo.errors import DataError
from zoo.train.data.matching.augment import MatchingTransform
from zoo.train.data.matching.pairs import MatchingPairs, parse_mix

STEREO = {  # pairs of each split in the small copies
    "sceneflow:train_all": 6,
    "sceneflow:train_clean": 3,
    "sceneflow:test_final": 1,
    "sceneflow:test1of100_clean": 1,
    "crestereo:train": 2,
    "middlebury_2005:train": 18,
    "middlebury_2005:subval": 9,
    "middlebury_2005:subtrain": 9,
    "middlebury_2006:subval": 18,
    "middlebury_2006:subtrain": 9,
    "middlebury_2014:train": 9,
    "middlebury_2014:subval": 6,
    "middlebury_2021:subval": 4,
    "middlebury_2021:subtrain": 2,
    "middlebury_eval3:train_full": 2,
    "middlebury_eval3:subval_full": 1,
    "middlebury_eval3:all_full": 3,
    "eth3d:train": 3,
    "eth3d:subval": 2,
    "eth3d:subtrain": 1,
    "eth3d:test": 1,
    "booster:subval_balanced": 2,
    "booster:subtrain_balanced": 1,
    "kitti_2012:train": 1,
    "kitti_2015:train": 1,
    "kitti_2015:test": 1,
    "spring:train": 2,
    "spring:subval": 1,
}
FLOW = {
    "flying_chairs:train": 2,
    "flying_chairs:val": 1,
    "flying_things:train_all": 8,
    "flying_things:train_clean": 4,
    "sintel:subval_clean": 4,
    "sintel:subtrain_final": 2,
    "sintel:train_all": 12,
    "tartanair:train": 1,
    "kitti_2012:train": 1,
    "kitti_2015:train": 1,
    "spring:train": 8,
    "spring:subval": 4,
}


@pytest.fixture(scope="module")
def stereo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stereo")
    write_stereo(root)
    return root


@pytest.fixture(scope="module")
def flow_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flow")
    write_flow(root)
    return root


@pytest.mark.parametrize("split", STEREO)
def test_stereo_sets(stereo_root: Path, split: str) -> None:
    pairs = MatchingPairs("stereo", stereo_root, split)
    assert len(pairs) == STEREO[split]
    if "test" in split.split(":")[1] and "sceneflow" not in split:
        with pytest.raises(DataError, match="predictions only"):
            pairs[0]
        return
    for index in range(len(pairs)):
        if split == "middlebury_eval3:all_full" and index == 2:
            continue  # of the test scenes
        sample = pairs[index]
        assert sample["image1"].shape == sample["image2"].shape == (*SIZE, 3)
        assert sample["disparity"].shape == SIZE and sample["disparity"].dtype == np.float32
        assert np.isfinite(sample["disparity"]).mean() > 0.9 and sample["disparity"][5:].min() > 0
    assert {path.parent != Path() for path in pairs.entry(0)[1][:2]} == {True}


@pytest.mark.parametrize("split", FLOW)
def test_flow_sets(flow_root: Path, split: str) -> None:
    pairs = MatchingPairs("flow", flow_root, split)
    assert len(pairs) == FLOW[split]
    for index in range(len(pairs)):
        sample = pairs[index]
        entry = pairs.entry(index)[1]
        assert entry.image1 != entry.image2 and sample["flow"].shape == (*SIZE, 2)
        assert np.isfinite(sample["flow"]).all() != split.startswith("sintel")  # whose masks leave a pixel out


def test_own_folder_of_a_set(stereo_root: Path) -> None:
    """The path may be the data set's own folder, too."""
    for split, folder in (("eth3d:subval", "eth3d_lowres"), ("middlebury_2006:subval", "middlebury/2006")):
        assert len(MatchingPairs("stereo", stereo_root / folder, split)) == STEREO[split]
    for folder in ("middlebury", "middlebury/MiddEval3_F"):
        assert len(MatchingPairs("stereo", stereo_root / folder, "middlebury_eval3:subval_full")) == 1


def test_spring_is_twice_as_large(stereo_root: Path) -> None:
    whole = MatchingPairs("stereo", stereo_root, "spring:subval", whole_truth=True)[0]["disparity"]
    half = MatchingPairs("stereo", stereo_root, "spring:subval")[0]["disparity"]
    assert whole.shape == (2 * SIZE[0], 2 * SIZE[1])
    np.testing.assert_array_equal(half, whole[::2, ::2])


def test_mixtures(stereo_root: Path) -> None:
    mix = MatchingPairs("stereo", stereo_root, "crestereo:train + 3 * eth3d:subval")
    assert len(mix) == 2 + 3 * 2 and mix.set_names == ("crestereo:train", "eth3d:subval")
    assert [mix[i]["set"] for i in range(8)] == [0, 0] + [1] * 6
    assert len({mix.entry(i)[1] for i in range(8)}) == 4
    order = mix.order(np.random.default_rng(0))
    assert sorted(order) == list(range(8))
    fewer = MatchingPairs("stereo", stereo_root, "crestereo:train + 3 * eth3d:subval", epoch=3)
    assert len(fewer) == 3 and len(set(fewer.order(np.random.default_rng(0)))) == 3
    more = MatchingPairs("stereo", stereo_root, "crestereo:train", epoch=5)
    assert sorted(more.order(np.random.default_rng(0))[:2]) == [0, 1] and len(more.order(np.random.default_rng(1))) == 5
    assert parse_mix("40*sintel:x+list") == [(40, "sintel", "x"), (1, "list", "")]


def test_what_is_not_there(stereo_root: Path, tmp_path: Path) -> None:
    for mix, message in (
        ("nowhere:train", "no stereo data set 'nowhere'"),
        ("eth3d:val", "no split 'val'"),
        ("eth3d:train", "holds no pairs of eth3d:train"),
        ("0 * eth3d:train", "can't be read"),
        ("eth3d:train - spring", "can't be read"),
        ("list", "list of pairs"),
    ):
        with pytest.raises(DataError, match=message):
            MatchingPairs("stereo", tmp_path, mix)


def test_own_lists(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / f"{name}.png")
    pfm(tmp_path / "t.pfm", np.full(SIZE, 3, np.float32))
    for text in (
        "a.png b.png t.pfm\n",
        "a.png, b.png, t.pfm\n",
        "left,right,disparity\na.png,b.png,t.pfm\n",
        f"# mine\n\n{tmp_path / 'a.png'} b.png t.pfm",
    ):
        (tmp_path / "list.txt").write_text(text)
        pairs = MatchingPairs("stereo", tmp_path / "list.txt")
        assert len(pairs) == 1 and (pairs[0]["disparity"] == 3).all()
    for text, message in (("", "is empty"), ("a.png b.png\n", "Line 1"), ("a.png b.png t.pfm x.y\n", "Line 1")):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            MatchingPairs("stereo", tmp_path / "list.txt")


def test_sizes_that_differ(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "small.png", (20, 40))
    pfm(tmp_path / "t.pfm", np.full((20, 40), 3, np.float32))
    for row, message in (("a.png small.png t.pfm", "differ in size"), ("a.png a.png t.pfm", "they must be alike")):
        (tmp_path / "list.txt").write_text(row)
        with pytest.raises(DataError, match=message):
            MatchingPairs("stereo", tmp_path / "list.txt")[0]


@pytest.mark.parametrize("task", ["stereo", "flow"])
def test_rows_and_whole_images_give_the_same_samples(task: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / f"{name}.png")
    truth = np.ones(SIZE if task == "stereo" else (*SIZE, 2), np.float32)
    np.save(tmp_path / "t.npy", truth)
    (tmp_path / "list.txt").write_text("a.png b.png t.npy")
    sample = MatchingPairs(task, tmp_path / "list.txt")[0]
    assert not isinstance(sample["image1"], np.ndarray)  # nothing is decoded yet
    whole = sample | {name: np.asarray(sample[name]) for name in ("image1", "image2")}
    transform = MatchingTransform(task, (SIZE[0] // 2, SIZE[1] // 2))
    for seed in range(10):
        found, expected = transform(sample, seed), transform(whole, seed)
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
