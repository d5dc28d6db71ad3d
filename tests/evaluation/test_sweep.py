"""One call against OpenCV at every level: largest regions, largest contours, all contours."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from i2c_fast.evaluation import Contours, PaperProtocol, WsolEvaluationProtocol, find_contours, largest_region_boxes
from i2c_fast.evaluation.boxes import EMPTY_BOX
from i2c_fast.evaluation.saved_maps import open_maps

from .maps import ADVERSARIAL, MAPS, as_gray, cam, random_map
from .opencv_loops import contours_of, largest_contour, largest_region, levels_of, tight_box

ALL = list(range(255))


def boxes_at(contours: Contours, i: int) -> list[list[int]]:
    """Boxes of the contours at the i-th threshold."""
    own = np.split(contours.boxes, contours.begins[1:])[contours.mask_of[i]].tolist()
    return [box for box in own if box != list(EMPTY_BOX)]


def check_regions(gray: np.ndarray, levels: list[int]) -> None:
    expected = [largest_region(gray > t) for t in levels]
    np.testing.assert_array_equal(largest_region_boxes(gray, np.array(levels)), expected)


def check_contours(gray: np.ndarray, levels: list[int]) -> None:
    contours = find_contours(gray, np.array(levels))
    np.testing.assert_array_equal(contours.largest, [largest_contour(gray > t) for t in levels])
    for i, t in enumerate(levels):
        assert sorted(map(tuple, boxes_at(contours, i))) == sorted(tight_box(c) for c in contours_of(gray > t)), t


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_regions_equal_labelling_at_every_level(name: str) -> None:
    check_regions(ADVERSARIAL[name], ALL)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_contours_equal_opencvs_at_every_level(name: str) -> None:
    check_contours(ADVERSARIAL[name], ALL)


@pytest.mark.parametrize("kind", MAPS)
def test_random_maps_equal_opencv_at_every_level(kind: str, exhaustive: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(500 if exhaustive else 100):  # a map is some hundred masks
        gray = random_map(rng, kind, side=12 if kind == "noise" else 28)
        levels = levels_of(gray)
        check_regions(gray, levels)
        check_contours(gray, levels)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_scattered_pixels_equal_opencv(fraction: float) -> None:
    # Many regions and holes of equal size: the rules for ties decide.
    rng = np.random.default_rng(int(10 * fraction))
    for _ in range(300):
        mask = (rng.random(rng.integers(1, 24, 2).tolist()) < fraction).astype(np.uint8)
        check_regions(mask, [0])
        check_contours(mask, [0])


@pytest.mark.parametrize(("cells", "sigma"), [(7, 1.0), (14, 1.5), (28, 1.5), (28, 0.6)])
def test_maps_as_networks_give_them_equal_opencv_at_every_level(cells: int, sigma: float) -> None:
    gray = as_gray(cam(cells, cells, 224, sigma))
    check_regions(gray, ALL)
    check_contours(gray, ALL)


@pytest.mark.timeout(1800)
@pytest.mark.skipif("I2C_FAST_MAPS" not in os.environ, reason="I2C_FAST_MAPS=FOLDER, from evaluate --maps, is not set")
def test_saved_maps_of_a_model_equal_opencv_at_every_level() -> None:
    maps = open_maps(Path(os.environ["I2C_FAST_MAPS"]))
    images = sorted(maps.images())
    assert images
    for image in images:
        raw = maps.read(image)
        for gray in (protocol.gray_map(raw, 250, 190) for protocol in (WsolEvaluationProtocol(), PaperProtocol())):
            levels = levels_of(gray)
            check_regions(gray, levels)
            check_contours(gray, levels)


def drawing(*rows: str) -> np.ndarray:
    return np.array([[255 * (c == "#") for c in row] for row in rows], np.uint8)


def test_of_equal_contours_opencv_lists_the_one_that_starts_last_first() -> None:
    twins = drawing("##....", "##..##", "....##")
    assert find_contours(twins).largest[0].tolist() == [4, 1, 5, 2]
    # Lines and single pixels have no area, so all are equal.
    lines = drawing("#####.", "......", "..#...", "......", "#.....")
    assert find_contours(lines).largest[0].tolist() == [0, 4, 0, 4]
    assert largest_contour(lines > 0) == (0, 4, 0, 4)


def test_largest_contour_goes_by_polygon_area_with_holes_filled_not_by_pixels() -> None:
    ring_and_block = drawing(
        ".#.......",
        "#.#...###",
        "#..#..###",
        ".##...###",
    )
    assert largest_region(ring_and_block > 0) == (6, 1, 8, 3)
    assert find_contours(ring_and_block).largest[0].tolist() == [0, 0, 3, 3]


def test_box_of_a_holes_contour_is_the_hole_grown_by_one() -> None:
    gray = drawing("#####", "#...#", "#.#.#", "#...#", "#####")
    assert sorted(boxes_at(find_contours(gray), 0)) == [[0, 0, 4, 4], [0, 0, 4, 4], [2, 2, 2, 2]]


def test_dark_spots_at_the_border_are_no_holes() -> None:
    assert boxes_at(find_contours(drawing("###", "..#", "###")), 0) == [[0, 0, 2, 2]]
    # A gap at a corner lets 4-connected darkness stay inside, and 8-connected light go on.
    assert len(boxes_at(find_contours(drawing(".##.", "#..#", "####")), 0)) == 2


def test_highest_value_of_the_contours_at_each_level() -> None:
    gray = drawing("##..", "##.#") // 2
    gray[1, 3] = 50
    contours = find_contours(gray)
    values = contours.boxes[:, 0].astype(np.float64)  # the further right, the better
    highest = contours.highest(values)
    assert highest[:50].tolist() == [3] * 50 and highest[50:127].tolist() == [0] * 77
    assert (contours.largest[127:] == EMPTY_BOX).all() and boxes_at(contours, 127) == []
    assert len(contours.begins) == 3  # masks that are equal share their contours


def test_thresholds_may_come_in_any_order_and_again() -> None:
    gray = as_gray(cam(1, 14, 60))
    some = np.array([200, 3, 254, 3, 90])
    contours, everywhere = find_contours(gray, some), find_contours(gray)
    np.testing.assert_array_equal(contours.largest, everywhere.largest[some])
    np.testing.assert_array_equal(largest_region_boxes(gray, some), largest_region_boxes(gray, np.array(ALL))[some])
    assert [boxes_at(contours, i) for i in range(5)] == [boxes_at(everywhere, t) for t in some]


def test_maps_of_more_runs_than_fit_in_memory_at_once_take_several_scans() -> None:
    # Stripes of every level: half as many runs as pixels in each mask, and 255 masks.
    gray = np.tile(np.arange(256, dtype=np.uint8)[:, None] * (np.arange(40) % 2 == 0), (2, 1)).astype(np.uint8)
    levels = [0, 1, 100, 253, 254]
    np.testing.assert_array_equal(find_contours(gray).largest[levels], [largest_contour(gray > t) for t in levels])
    np.testing.assert_array_equal(
        largest_region_boxes(gray, np.array(ALL))[levels], [largest_region(gray > t) for t in levels]
    )


@pytest.mark.parametrize("wrong", [-1, 255])
def test_threshold_that_is_no_gray_level_below_255_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="thresholds must be 0…254"):
        find_contours(as_gray(cam(0, 7, 30)), np.array([3, wrong]))


def test_threads_find_what_one_finds() -> None:
    maps = [as_gray(cam(seed, 14, 96)) for seed in range(24)]
    alone = [find_contours(gray) for gray in maps]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(find_contours, maps))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.largest, other.largest)
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_any_memory_layout_will_do() -> None:
    gray = as_gray(cam(0, 7, 30))
    expected = find_contours(gray).largest
    for view in (np.asfortranarray(gray), np.repeat(gray, 2, 1)[:, ::2], np.frombuffer(gray.tobytes(), np.uint8)):
        np.testing.assert_array_equal(find_contours(view.reshape(30, 30)).largest, expected)


def test_maps_of_another_kind_are_refused() -> None:
    for wrong in (np.zeros((3, 3)), np.zeros((3, 3), bool), np.zeros((3, 3, 1), np.uint8)):
        with pytest.raises(TypeError, match="uint8 map"):
            largest_region_boxes(wrong, np.array([0]))


def test_maps_stay_as_they_are() -> None:
    gray = as_gray(cam(0, 7, 30))
    before = gray.copy()
    find_contours(gray)
    largest_region_boxes(gray, np.array([0]))
    np.testing.assert_array_equal(gray, before)


SPOTS = """
import sys
import numpy as np
import i2c_fast, i2c_fast.evaluation
assert "numba" not in sys.modules, "loaded before it is needed"
print(i2c_fast.evaluation.find_contours(np.eye(3, dtype=np.uint8)).largest[0].tolist())
"""


def test_compiler_loads_when_it_is_needed() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", SPOTS], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[0, 0, 2, 2]\n", 0), done.stderr


DOUBLED = """
from i2c_fast.evaluation.sweep import compiled
@compiled("int64(int64)")
def doubled(x):
    return 2 * x
"""


@pytest.fixture
def doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Compile a function as the sweep's are, with a cache in that folder alone."""
    (tmp_path / "small.py").write_text(DOUBLED)

    def compile_it(folder: str) -> Any:
        monkeypatch.setattr(numba.core.config, "CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
        monkeypatch.setattr(numba.core.config, "CACHE_DIR", folder)
        return runpy.run_path(str(tmp_path / "small.py"))["doubled"]

    return compile_it


def test_what_is_compiled_runs_without_a_cache(doubled: Callable[[str], Any]) -> None:
    assert doubled("/dev/null/no-folder")(21) == 42


def test_damaged_cache_does_no_harm(doubled: Callable[[str], Any], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    doubled(str(folder))
    assert sum(doubled(str(folder)).stats.cache_hits.values()) == 1
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert len(kept) == 2  # index and code
    for path in kept:
        path.write_bytes(b"")
    assert doubled(str(folder))(21) == 42
