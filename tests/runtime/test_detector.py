"""Exported files -> detections: the same in both runtimes, for every number and size of frames."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.tiny_models import SIZE, WEIGHTS, expected, tiny_info, write_model
from v2i_runtime import Detections, Detector
from v2i_runtime.detections import FrameDetector
from v2i_runtime.preprocess import FixedSize, Preprocess, ShortestEdge

SUFFIXES = (".onnx", ".xml")
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SEEDS = st.integers(0, 2**32 - 1)
in_both = pytest.mark.parametrize("suffix", SUFFIXES)


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Detector]:
    folder = tmp_path_factory.mktemp("models")
    return {suffix: Detector(write_model(folder / f"tiny{suffix}")) for suffix in SUFFIXES}


def resized(frame: np.ndarray) -> np.ndarray:
    return Preprocess(FixedSize(*SIZE)).resized(frame)


def noise(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, rng.integers(2, 257), (*size, 3), dtype=np.uint8)


def assert_equal(found: Detections, wanted: Detections, atol: float = 0.0) -> None:
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=0, atol=atol)
    np.testing.assert_array_equal(found.classes, wanted.classes)
    np.testing.assert_allclose(found.boxes_xyxy_px, wanted.boxes_xyxy_px, rtol=0, atol=40 * atol)


@in_both
def test_a_frame_has_the_networks_detections_in_pixels(detectors, suffix) -> None:
    frame = noise((30, 50))
    found = detectors[suffix](frame)
    scores, classes, boxes = (output[0] for output in expected(resized(frame)[None]))
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    np.testing.assert_array_equal(found.classes, classes)
    wanted = boxes * (50, 30, 50, 30)
    np.testing.assert_allclose(found.boxes_xyxy_px, np.clip(wanted, 0, (50, 30, 50, 30)), atol=1e-4)
    kinds = [found.scores.dtype, found.classes.dtype, found.boxes_xyxy_px.dtype]
    assert kinds == [np.float32, np.int64, np.float32]


@in_both
@given(size=SIZES, seed=SEEDS)
def test_boxes_stay_inside_their_frame(detectors, suffix, size, seed) -> None:
    boxes = detectors[suffix](noise(size, seed)).boxes_xyxy_px
    height, width = size
    assert (boxes >= 0).all() and (boxes <= (width, height, width, height)).all()


@in_both
@given(sizes=st.lists(SIZES, min_size=1, max_size=6), repeats=st.integers(1, 2), seed=SEEDS)
def test_frames_of_all_sizes_give_in_one_call_what_they_give_alone(
    detectors, suffix, sizes, repeats, seed
) -> None:
    frames = [noise(size, seed + i) for i, size in enumerate(sizes * repeats)]
    together = detectors[suffix](frames)
    assert len(together) == len(frames)
    for frame, found in zip(frames, together, strict=True):
        assert_equal(found, detectors[suffix](frame), atol=1e-6)


@in_both
def test_an_array_of_frames_is_a_list_of_them(detectors, suffix) -> None:
    frames = np.stack([noise(SIZE, seed) for seed in range(3)])
    for one, other in zip(detectors[suffix](frames), detectors[suffix](tuple(frames)), strict=True):
        assert_equal(one, other)


@in_both
def test_frames_are_resized_as_in_evaluation(tmp_path, suffix) -> None:
    preprocess = Preprocess(ShortestEdge(24, 90))
    detector = Detector(write_model(tmp_path / f"short{suffix}", preprocess=preprocess))
    frame = noise((37, 49))
    scores = expected(preprocess.resized(frame)[None])[0][0]
    np.testing.assert_allclose(detector(frame).scores, scores, atol=1e-6)


@in_both
def test_earlier_detections_survive_later_calls(detectors, suffix) -> None:
    first = detectors[suffix](noise(SIZE, 1))
    copy = Detections(first.scores.copy(), first.classes.copy(), first.boxes_xyxy_px.copy())
    detectors[suffix](noise(SIZE, 2))
    assert_equal(first, copy)


@in_both
def test_a_detector_may_be_called_from_several_threads(detectors, suffix) -> None:
    frames = [noise(SIZE, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detectors[suffix], frames))
    for frame, found in zip(frames, together, strict=True):
        assert_equal(found, detectors[suffix](frame))


@in_both
def test_number_of_threads_does_not_change_detections(tmp_path, detectors, suffix) -> None:
    path = write_model(tmp_path / f"tiny{suffix}")
    frame = noise(SIZE)
    assert_equal(Detector(path, threads=1)(frame), detectors[suffix](frame), atol=1e-6)
    with pytest.raises(ValueError, match="threads is 0, but must be at least 1"):
        Detector(path, threads=0)


def test_a_detector_is_one_of_frames(detectors) -> None:
    assert all(isinstance(detector, FrameDetector) for detector in detectors.values())


@in_both
def test_facts_of_the_export_are_at_hand(tmp_path, suffix) -> None:
    detector = Detector(write_model(tmp_path / f"läsion{suffix}", class_names=["Läsion", 'a"<&']))
    assert detector.class_names == ["Läsion", 'a"<&']
    assert detector.score_threshold == 0.6
    info = tiny_info(class_names=["Läsion", 'a"<&'], file_sha256=detector.info.file_sha256)
    assert detector.info == info


def test_detections_above_a_threshold_are_kept() -> None:
    found = Detections(np.array([0.9, 0.5, 0.1]), np.array([0, 1, 0]), np.zeros((3, 4)))
    assert len(found) == 3
    assert found.above(0.5).scores.tolist() == [0.9, 0.5]
    assert found.above(0.5).classes.tolist() == [0, 1]


@in_both
def test_a_frame_that_does_not_become_the_files_size_is_refused(tmp_path, suffix) -> None:
    preprocess = Preprocess(ShortestEdge(24, 90))
    path = write_model(tmp_path / f"short{suffix}", preprocess=preprocess)
    detector = Detector(path)
    detector(noise((48, 64)))
    message = r"exported for 24 x 32 px .*, but a frame of 50 x 50 becomes 24 x 24; .*--size"
    with pytest.raises(ValueError, match=message):
        detector(noise((50, 50)))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"the frame is grey \(4 x 5\)"),
        (np.zeros((4, 5, 1), np.uint8), "the frame is grey"),
        (np.zeros((4, 5, 4), np.uint8), "the frame has an alpha channel"),
        (np.zeros((3, 40, 50), np.uint8), "is 3 x 40 x 50, but must be height x width x 3"),
        (np.zeros((4, 5, 3), np.float32), "has float32 values, but must have uint8"),
        (np.zeros((0, 5, 3), np.uint8), r"is empty \(0 x 5 x 3\)"),
        (np.zeros((2, 4, 5), np.uint8)[None], r"frame 0 is 2 x 4 x 5, but must be"),
        ([np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5))], "frame 1 is grey"),
        ([np.zeros((4, 5, 3), np.uint8), "a.png"], "frame 1 is str; give a NumPy array"),
        ([], "there are no frames"),
        (np.zeros((0, 4, 5, 3), np.uint8), "there are no frames"),
        ("a.png", "frames are str; give a NumPy array"),
        (None, "frames are NoneType; give a NumPy array"),
    ],
)
def test_what_is_no_rgb_frame_is_refused(detectors, frames, message) -> None:
    with pytest.raises(ValueError, match=message):
        detectors[".onnx"](frames)


@in_both
def test_results_that_are_not_finite_are_refused(tmp_path, suffix) -> None:
    path = write_model(tmp_path / f"nan{suffix}", weights=np.full_like(WEIGHTS, np.nan))
    detector = Detector(path, verify=False)
    with pytest.raises(ValueError, match=rf"nan\{suffix}: scores or boxes of .* are not finite"):
        detector(noise(SIZE))
    with pytest.raises(ValueError, match="finds other detections"):
        Detector(path)


@in_both
def test_a_network_that_computes_otherwise_than_at_export_is_refused(tmp_path, suffix) -> None:
    path = write_model(tmp_path / f"other{suffix}", weights=WEIGHTS * np.float32(1.01))
    message = rf"other\{suffix}: \w+.* on CPU finds other detections .* versions .*\(onnx \d"
    with pytest.raises(ValueError, match=message):
        Detector(path)
    Detector(path, verify=False)(noise(SIZE))


@in_both
def test_a_batch_to_warm_up_with_has_frames(detectors, suffix) -> None:
    detectors[suffix].warm_up(batch=2)
    with pytest.raises(ValueError, match="batch is 0"):
        detectors[suffix].warm_up(batch=0)


def test_a_signal_is_received_after_two_detectors_are_gone_in_the_order_of_opening(
    tmp_path: Path,
) -> None:
    """Each of two plugins of OpenVINO would put back a stack for signals, the second one's gone."""
    program = """
import signal, sys
import numpy as np
from v2i_runtime import Detector
received = []
signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
detectors = [Detector(sys.argv[1]), Detector(sys.argv[1])]
for detector in detectors:
    detector(np.zeros((24, 32, 3), np.uint8))
del detector
detectors.pop(0)
detectors.pop(0)
signal.raise_signal(signal.SIGUSR1)
assert received == [signal.SIGUSR1]
"""
    path = write_model(tmp_path / "tiny.xml")
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_runtime_leaves_nothing_to_report_beside_the_detector(
    tmp_path: Path, suffix: str
) -> None:
    path, home = write_model(tmp_path / f"m{suffix}"), tmp_path / "home"
    home.mkdir()
    program = (
        "import sys, numpy as np; from v2i_runtime.detector import Detector\n"
        "Detector(sys.argv[1])(np.zeros((40, 60, 3), np.uint8))"
    )
    folders = {"HOME": home, "TMPDIR": home, "XDG_CACHE_HOME": home / "cache"}
    environment = {**os.environ, **{name: str(folder) for name, folder in folders.items()}}
    subprocess.run([sys.executable, "-c", program, path], env=environment, check=True)
    assert not list(home.rglob("*"))
