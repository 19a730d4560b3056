"""A video is looked at while it is processed; uploads are what they claim to be."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.review.tiny_review import write_video
from v2i_runtime.detections import Detections
from v2idetr.review import desk as desk_module
from v2idetr.review import frame_store, video_review
from v2idetr.review.choices import Choices
from v2idetr.review.desk import Desk
from v2idetr.review.frame_store import FrameStore
from v2idetr.review.review import NotThereError
from v2idetr.review.uploads import check_video, new_place
from v2idetr.review.video_review import VideoReview

WAIT_S = 30.0


class Bright:
    """Detector whose score is the mean grey value over 255; it waits where it is told to."""

    score_threshold: float | None = 0.25

    def __init__(self) -> None:
        self.class_names = ["polyp"]
        self.go, self.seen = threading.Event(), 0
        self.waits_at: int | None = None

    def __call__(self, frames: Sequence[np.ndarray]) -> list[Detections]:
        if self.seen == self.waits_at:
            self.go.wait(WAIT_S)
        self.seen += 1
        score = np.array([frames[0].mean() / 255], np.float32)
        return [Detections(score, np.zeros(1, np.int64), np.array([[1, 2, 30, 40]], np.float32))]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Bright:
    found = Bright()
    monkeypatch.setattr(video_review, "load_detector", lambda path: found)
    return found


def make_review(folder: Path, video: Path, **options: Any) -> VideoReview:
    return VideoReview(video, "a video", {"bright": Path("b.onnx")}, folder, **options)


def test_all_frames_come_with_their_times_and_detections(tmp_path: Path, detector: Bright) -> None:
    review = make_review(tmp_path, write_video(tmp_path / "v.mp4", frames=30))
    review.start()
    review.wait(WAIT_S)
    clip = review.clip(0, 0, 0)
    assert (clip["complete"], clip["status"]["state"]) == (True, "done")
    assert clip["times_s"] == pytest.approx([k / 25 for k in range(30)])
    rows = clip["detectors"][0]["frames"]
    assert [len(frame) for frame in rows[:3]] == [0, 0, 0]  # below the lowest score
    assert rows[25][0][:4] == [1, 2, 30, 40]
    assert rows[25][0][4] == pytest.approx(100 / 255, abs=0.02)
    grey = np.array(Image.open(io.BytesIO(review.jpeg(0, 0, 20)))).mean()
    assert grey == pytest.approx(80, abs=4)
    assert clip["shown"][0]["thresholds"] == {"endovis_center": 0.25, "iou50": 0.25}
    review.close()


def test_what_is_ready_can_be_seen_while_the_rest_is_processed(
    tmp_path: Path, detector: Bright
) -> None:
    detector.waits_at = 10
    review = make_review(tmp_path, write_video(tmp_path / "v.mp4", frames=30))
    review.start()
    for _ in range(1000):
        if len(review.clip(0, 0, 0)["times_s"]) == 10:
            break
        threading.Event().wait(0.01)
    part = review.clip(0, 0, 7)
    assert (part["start"], part["complete"], len(part["times_s"])) == (7, False, 3)
    assert (part["status"]["done"], part["status"]["total"]) == (10, 30)
    assert part["status"]["state"] == "running"
    with pytest.raises(NotThereError, match="10 are ready"):
        review.jpeg(0, 0, 10)
    detector.go.set()
    review.wait(WAIT_S)
    assert len(review.clip(0, 0, 10)["times_s"]) == 20
    review.close()


def test_a_stopped_video_keeps_what_is_there(tmp_path: Path, detector: Bright) -> None:
    detector.waits_at = 5
    review = make_review(tmp_path, write_video(tmp_path / "v.mp4", frames=30))
    review.start()
    review.stop()
    detector.go.set()
    review.wait(WAIT_S)
    clip = review.clip(0, 0, 0)
    assert clip["status"]["state"] == "stopped"
    assert len(clip["times_s"]) < 30
    review.close()


def test_a_damaged_video_is_shown_up_to_the_damage_and_named_by_its_title(
    tmp_path: Path, detector: Bright
) -> None:
    path = tmp_path / "upload_123.video"
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(40):
            pixels = noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = b"\xff" * 3000
    path.write_bytes(content)
    review = make_review(tmp_path, path)
    review.start()
    review.wait(WAIT_S)
    status = review.clip(0, 0, 0)["status"]
    assert status["state"] == "failed"
    assert 0 < status["done"] < 40
    assert status["words"].startswith("a video: is damaged")
    assert "upload_123" not in status["words"]
    review.close()


def test_an_error_of_a_detector_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise ValueError("b.onnx: is damaged")

    monkeypatch.setattr(video_review, "load_detector", fail)
    review = make_review(tmp_path, write_video(tmp_path / "v.mp4"))
    review.start()
    review.wait(WAIT_S)
    assert review.clip(0, 0, 0)["status"]["words"] == "b.onnx: is damaged"
    review.close()


def test_closing_removes_frames_and_the_upload(tmp_path: Path, detector: Bright) -> None:
    video, folder = write_video(tmp_path / "v.mp4", frames=3), tmp_path / "own"
    folder.mkdir()
    review = make_review(folder, video, remove=True)
    review.start()
    review.wait(WAIT_S)
    assert list(folder.iterdir())
    review.close()
    assert not list(folder.iterdir())
    assert not video.exists()


def test_a_full_disk_ends_the_processing_with_a_remedy(
    tmp_path: Path, detector: Bright, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_store, "FREE_BYTES", 2**62)
    review = make_review(tmp_path, write_video(tmp_path / "v.mp4"))
    review.start()
    review.wait(WAIT_S)
    assert "MiB of disk are free" in review.clip(0, 0, 0)["status"]["words"]
    review.close()


def test_frames_are_read_back_as_they_were_stored(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "frames")
    frames = [b"one", b"", b"three" * 1000]
    for frame in frames:
        store.append(frame)
    assert [store.read(k) for k in (2, 0, 1)] == [frames[2], frames[0], frames[1]]


def test_a_second_video_takes_the_place_of_the_first(
    tmp_path: Path, detector: Bright, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "check_video", lambda path, name: None)
    desk = Desk(Choices(tmp_path), tmp_path, 1000)
    model = tmp_path / "b.onnx"
    first = desk.open_video(write_video(tmp_path / "a.mp4"), "a", [model])
    second = desk.open_video(write_video(tmp_path / "b.mp4"), "b", [model])
    with pytest.raises(NotThereError, match="open it again"):
        desk.get(first)
    assert desk.get(second).title == "b"
    desk.close()


# ---------------------------------------------------------------------- uploads


def test_ordinary_videos_are_taken(tmp_path: Path) -> None:
    check_video(write_video(tmp_path / "upload.video"), "a.mp4")


@pytest.mark.parametrize(
    "content",
    [
        "hello",
        "",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nVIDEO\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile VIDEO\n",
        "<?xml version='1.0'?><MPD><Period><BaseURL>VIDEO</BaseURL></Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("suffix", [".video", ".m3u8", ".ffconcat", ".sdp"])
def test_a_file_that_names_others_or_is_no_video_is_refused(
    tmp_path: Path, content: str, suffix: str
) -> None:
    other = write_video(tmp_path / "secret.mp4", frames=3)
    path = tmp_path / f"upload{suffix}"
    path.write_text(content.replace("VIDEO", str(other)))
    with pytest.raises(ValueError, match=r"^<b>\.mp4: is no video file") as caught:
        check_video(path, "<b>.mp4")
    assert str(tmp_path) not in str(caught.value)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="holds no video"):
        check_video(tmp_path / "a.mp4", "a.mp4")


def test_an_upload_has_a_name_of_our_own(tmp_path: Path) -> None:
    one, other = new_place(tmp_path), new_place(tmp_path)
    assert one.parent == tmp_path
    assert one != other
