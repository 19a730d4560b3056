"""SUN's layout by hand, with its traps, and as the generator writes it."""

from pathlib import Path

import pytest

from tests.datasets.layouts import boxes_by_file, names, picture
from v2idetr.data.coco_vid import load_split

PREFIX = "case_M_20181001100941_0U62372100109341_1_005_001-1"
PART1, PART2 = "sundatabase_positive_part1", "sundatabase_positive_part2"


def frame(recording: int, number: int) -> str:
    return f"{PREFIX}_a{recording}_ayy_image{number:04d}.jpg"


def case(root: Path, number: int, rows: dict[str, str], part: str = PART1) -> None:
    """Frames and the text file of one case; rows with an empty text have no line in it."""
    for name in rows:
        picture(root / part / f"case{number}" / name)
    texts = root / PART1 / "annotation_txt"
    texts.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} {text}" for name, text in sorted(rows.items()) if text]
    (texts / f"case{number}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def sun(tmp_path: Path) -> Path:
    root = tmp_path / "SUN"
    for number in range(1, 6):
        part = PART1 if number < 4 else PART2
        case(root, number, {frame(1, k): f"{k},2,{k + 10},12,0" for k in (1, 2)}, part)
    return root


def test_splits_are_by_case_and_the_same_on_every_run(convert, sun):
    first = convert("sun", sun)
    assert names(first["train"]) == ["case1", "case2", "case5"]
    assert (names(first["val"]), names(first["test"])) == (["case4"], ["case3"])
    assert convert("sun", sun) == first


def test_corners_become_x_y_width_height(convert, sun):
    boxes = boxes_by_file(convert("sun", sun)["train"])
    assert boxes[f"{PART1}/case1/{frame(1, 2)}"] == [[2, 2, 10, 10]]
    assert boxes[f"{PART2}/case5/{frame(1, 1)}"] == [[1, 2, 10, 10]]


def test_written_splits_can_be_trained_on(convert, sun, tmp_path):
    convert("sun", sun)
    split = load_split(tmp_path / "out" / "train.json", sun, class_names=["polyp"])
    assert (split.report.frames, split.report.boxes) == (6, 6)


def test_frames_are_in_order_of_time_with_a_scene_for_each_recording(convert, sun):
    order = [(9, 2), (9, 10), (10, 1)]  # a plain sort gives (10, 1), (9, 10), (9, 2)
    case(sun, 9, {frame(*place): "1,2,11,12,0" for place in reversed(order)})
    test = convert("sun", sun, "--test-cases", "9")["test"]
    assert [Path(image["file_name"]).name for image in test["images"]] == [
        frame(*place) for place in order
    ]
    assert [(i["frame_index"], i["scene_id"]) for i in test["images"]] == [(0, 0), (1, 0), (2, 1)]


def test_class_1_gives_no_box_and_is_counted(convert, sun):
    rows = {frame(1, 1): "0,0,0,0,1", frame(1, 2): "3,3,9,9,1", frame(1, 3): "1,2,11,12,0"}
    case(sun, 9, rows)
    written = convert("sun", sun, "--test-cases", "9")
    assert list(boxes_by_file(written["test"]).values()) == [[], [], [[1, 2, 10, 10]]]
    notes = written["audit"]["notes"]["box of class 1 (non-polyp) is no lesion"]
    assert notes["count"] == 2
    assert notes["examples"][1] == "case9.txt line 2: 3,3,9,9,1"


def test_several_boxes_of_a_frame_are_kept(convert, sun):
    case(sun, 9, {frame(1, 1): "1,2,11,12,0 20,2,30,12,0"})
    text = sun / PART1 / "annotation_txt" / "case9.txt"
    text.write_text(f"{text.read_text()}{frame(1, 1)} 1,20,11,28,0\n{frame(1, 1)} 1,2,11,12,0\n")
    written = convert("sun", sun, "--test-cases", "9")
    assert list(boxes_by_file(written["test"]).values()) == [
        [[1, 2, 10, 10], [20, 2, 10, 10], [1, 20, 10, 8]]
    ]
    assert written["audit"]["notes"]["box is listed twice"]["count"] == 1
    assert {a["instance_id"] for a in written["test"]["annotations"]} == {9}


def test_the_polyp_of_a_case_is_one_instance(convert, sun):
    assert {a["instance_id"] for a in convert("sun", sun)["test"]["annotations"]} == {3}


def test_boxes_outside_are_clipped_and_counted(convert, sun):
    case(sun, 9, {frame(1, 1): "-3,2,11,12,0", frame(1, 2): "50,2,60,12,0"})
    written = convert("sun", sun, "--test-cases", "9")
    assert list(boxes_by_file(written["test"]).values()) == [[[0, 2, 11, 10]], []]
    report = written["audit"]["splits"]["test"]
    assert (report["bad_boxes"], report["clipped"], report["dropped"]) == ({"outside": 2}, 1, 1)
    lost = written["audit"]["notes"]["frames lost all their boxes and count as lesion-free"]
    assert lost["examples"] == ["1 in test"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "frame of a positive case without a row is left out"),
        ("1,2,11,0", "row that cannot be read is not used"),
        ("1,2,x,12,0", "row that cannot be read is not used"),
        ("1,2,11,12,7", "box of a class that SUN does not have is not used"),
    ],
)
def test_rows_that_cannot_be_used_are_noted(convert, sun, text, kind):
    case(sun, 9, {frame(1, 1): text, frame(1, 2): "1,2,11,12,0"})
    written = convert("sun", sun, "--test-cases", "9")
    assert written["audit"]["notes"][kind]["count"] == 1


def test_what_is_missing_on_disk_is_noted(convert, sun):
    (sun / PART1 / "case1" / frame(1, 1)).unlink()
    for path in (sun / PART2 / "case5").iterdir():
        path.unlink()
    (sun / PART2 / "case5").rmdir()
    (sun / PART1 / "annotation_txt" / "case2.txt").unlink()
    notes = convert("sun", sun)["audit"]["notes"]
    assert notes["row of a frame that is not on disk"]["count"] == 1
    assert notes["case with a text file, but no frames (is a part not unpacked?)"]["examples"] == [
        "case5"
    ]
    assert notes["case without a text file is left out"]["examples"] == [f"{PART1}/case2"]


def test_broken_picture_is_left_out_and_noted(convert, sun):
    (sun / PART1 / "case1" / frame(1, 1)).write_bytes(b"not a picture")
    written = convert("sun", sun)
    assert written["audit"]["splits"]["train"]["frames"] == 5
    assert written["audit"]["notes"]["frame cannot be used and is left out"]["count"] == 1


def test_lesion_free_cases_are_read_and_spread(convert, sun):
    for number in (1, 2, 3):
        for recording in (2, 11):
            name = f"{PREFIX}_a{recording}_ayy_image000001.jpg"
            picture(sun / f"sundatabase_negative_part{number}" / f"case{number}" / name)
    written = convert("sun", sun)
    assert "negative_case2" in names(written["test"])
    assert "negative_case3" in names(written["val"])
    images = written["train"]["images"][-2:]
    assert [image["scene_id"] for image in images] == [0, 1]
    assert written["audit"]["splits"]["train"]["lesion_free_frames"] == 2
    chosen = convert("sun", sun, "--test-cases", "1,n3", "--val-cases", "2-3, n1")
    assert names(chosen["test"]) == ["case1", "negative_case3"]
    assert names(chosen["val"]) == ["case2", "case3", "negative_case1"]
    without = convert("sun", sun, "--no-negatives")
    assert without["audit"]["splits"]["train"]["lesion_free_frames"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--test-cases", "77"), r"cases \[77\] do not exist"),
        (("--test-cases", "1", "--val-cases", "1"), r"cases \[1\] twice"),
        (("--val-cases", "1-"), "--val-cases 1-: '1-' is neither a number nor a range"),
        (("--test-cases", "1-4", "--val-cases", "5"), "split 'train' has no frames"),
    ],
)
def test_cases_that_cannot_be_chosen_are_refused(convert, sun, options, message):
    with pytest.raises(SystemExit, match=message):
        convert("sun", sun, *options)


def test_another_folder_is_refused_with_the_expected_layout(convert, sun, tmp_path):
    with pytest.raises(
        SystemExit, match="not the expected layout; it holds annotation_txt"
    ) as error:
        convert("sun", sun / PART2.replace("2", "1"))
    assert "annotation_txt/case<N>.txt" in str(error.value)
    with pytest.raises(SystemExit, match="no such folder"):
        convert("sun", tmp_path / "nowhere")


def test_names_of_another_form_keep_natural_order(convert, sun):
    case(sun, 9, {f"frame{k}.jpg": "1,2,11,12,0" for k in (10, 9, 1)})
    written = convert("sun", sun, "--test-cases", "9")
    files = [Path(image["file_name"]).stem for image in written["test"]["images"]]
    assert files == ["frame1", "frame9", "frame10"]
    assert written["audit"]["notes"]["names unlike SUN's: natural order, no cuts"]["count"] == 1


def test_generator_and_converter_agree(convert, synthetic, tmp_path):
    options = ("--train-clips", "5", "--negative-clips", "2", "--frames-per-clip", "8")
    source = synthetic("sun", *options, "--defects")
    written = convert("sun", source)
    audit = written["audit"]
    assert sum(split["frames"] for split in audit["splits"].values()) == 7 * 8
    assert audit["notes"]["row of a frame that is not on disk"]["count"] == 1
    assert sum(sum(s["bad_boxes"].values()) for s in audit["splits"].values()) == 1
    for split in ("train", "val", "test"):
        load_split(tmp_path / "out" / f"{split}.json", source, class_names=["polyp"])
