"""SUN-SEG's layout by hand, with its traps, and as the generator writes it."""

import json
from pathlib import Path

import pytest

from tests.datasets.layouts import HEIGHT, WIDTH, boxes_by_file, mask, names, picture
from v2idetr.data.coco_vid import load_split

PREFIX = "case_M_20181001100941_0U62372100109341_1_005_001-1"
TRAIN = "TrainDataset"
TESTS = ("TestEasyDataset/Seen", "TestEasyDataset/Unseen", "TestHardDataset/Seen")
BOX = (20, 4, 8, 12)  # far from the diagonal: swapped, it is elsewhere


def frame(number: int, recording: int = 1) -> str:
    return f"{PREFIX}_a{recording}_ayy_image{number:04d}"


def unseen(written: dict[str, dict]) -> dict[str, list]:
    """Boxes of the Unseen easy test frames, by file."""
    boxes = boxes_by_file(written["test_easy"])
    return {name: found for name, found in boxes.items() if name.startswith(TESTS[1])}


class Part:
    """One of SUN-SEG's folders: frames, masks and the JSON, in any order of the numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[dict] = []
        self.boxes: list[dict] = []

    def clip(self, name: str, *stems: str, box: tuple[int, ...] | None = BOX) -> "Part":
        for stem in stems:
            picture(self.folder / "Frame" / name / f"{stem}.jpg")
            mask(self.folder / "GT" / name / f"{stem}.png", *([box] if box else []))
            identity = f"{name}-{stem[-12:]}"
            size = {"width": WIDTH, "height": HEIGHT}
            self.images.append({"id": identity, **size, "case_name": name, "file_name": stem})
            self.boxes += [{"id": identity, "bbox": list(box)}] if box else []
        return self

    def save(self, order: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        path = self.folder / "Detection" / "bbox_annotation.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        boxes = [{**box, "bbox": [box["bbox"][k] for k in order]} for box in self.boxes]
        path.write_text(json.dumps({"info": {}, "images": self.images, "annotation": boxes}))


@pytest.fixture
def sunseg(tmp_path: Path) -> Path:
    """Cases 1 to 4 are trained on, 1 and 2 are in Seen tests, 7 is unseen."""
    root = tmp_path / "SUN-SEG"
    train = Part(root / TRAIN)
    for name in ("case1_1", "case2_1", "case3", "case4_1", "case4_10", "case4_2"):
        train.clip(name, frame(1), frame(2))
    train.save()
    for folder, name in zip(TESTS, ("case1_2", "case7_1", "case2_2"), strict=True):
        Part(root / folder).clip(name, frame(1), frame(2)).save()
    return root


def test_seen_and_unseen_clips_are_groups_of_one_split(convert, sunseg):
    written = convert("sunseg", sunseg)
    assert set(written) - {"audit"} == {
        "train",
        "val",
        "test_easy",
        "test_hard",
    }
    groups = [(v["name"], v["group"]) for v in written["test_easy"]["videos"]]
    assert groups == [("case1_2", "seen"), ("case7_1", "unseen")]
    assert [v["group"] for v in written["test_hard"]["videos"]] == ["seen"]
    assert "group" not in written["train"]["videos"][0]


def test_validation_takes_whole_cases_that_have_no_test_clip(convert, sunseg):
    written = convert("sunseg", sunseg)
    assert names(written["val"]) == ["case4_1", "case4_2", "case4_10"]
    assert names(written["train"]) == ["case1_1", "case2_1", "case3"]
    chosen = convert("sunseg", sunseg, "--val-cases", "1-2")
    assert names(chosen["val"]) == ["case1_1", "case2_1"]


@pytest.mark.parametrize("cases", ["9", "1-4", ""])
def test_validation_cases_that_cannot_be_are_refused(convert, sunseg, cases):
    with pytest.raises(SystemExit, match="choose some, not all, of TrainDataset's cases"):
        convert("sunseg", sunseg, "--val-cases", cases)


def test_written_splits_can_be_trained_on(convert, sunseg, tmp_path):
    convert("sunseg", sunseg)
    split = load_split(tmp_path / "out" / "train.json", sunseg, class_names=["polyp"])
    assert (split.report.frames, split.report.boxes) == (6, 6)


def test_ids_are_unique_over_all_splits(convert, sunseg):
    written = convert("sunseg", sunseg)
    for key in ("videos", "images", "annotations"):
        ids = [entry["id"] for name in written if name != "audit" for entry in written[name][key]]
        assert len(set(ids)) == len(ids)


def test_frames_are_in_order_of_time_with_a_scene_for_each_recording(convert, sunseg):
    stems = [frame(2, 9), frame(10, 9), frame(1, 10)]
    Part(sunseg / TESTS[1]).clip("case8_1", *reversed(stems)).clip("case7_1", frame(1)).save()
    test = convert("sunseg", sunseg)["test_easy"]
    images = [image for image in test["images"] if "case8_1" in image["file_name"]]
    assert [Path(image["file_name"]).stem for image in images] == stems
    assert [(i["frame_index"], i["scene_id"]) for i in images] == [(0, 0), (1, 0), (2, 1)]


@pytest.mark.parametrize(
    ("order", "name"), [((0, 1, 2, 3), "xywh"), ((1, 0, 2, 3), "yxwh"), ((1, 0, 3, 2), "yxhw")]
)
def test_order_of_the_numbers_is_found_with_the_masks(convert, sunseg, order, name):
    part = Part(sunseg / TESTS[1]).clip("case7_1", frame(1), frame(2))
    part.save(order)
    written = convert("sunseg", sunseg)
    assert list(unseen(written).values()) == [[list(BOX)]] * 2
    assert list(boxes_by_file(written["train"]).values()) == [[list(BOX)]] * 6
    kinds = [kind for kind in written["audit"]["notes"] if kind.startswith("order of the boxes")]
    assert any(kind.startswith(f"order of the boxes is {name}") for kind in kinds)


def test_corners_are_understood_too(convert, sunseg):
    part = Part(sunseg / TESTS[1]).clip("case7_1", frame(1), frame(2))
    for box in part.boxes:
        box["bbox"] = [20, 4, 28, 16]
    part.save()
    written = convert("sunseg", sunseg)
    assert list(unseen(written).values()) == [[list(BOX)]] * 2


def test_order_that_no_mask_confirms_is_refused(convert, sunseg):
    part = Part(sunseg / TESTS[1]).clip("case7_1", frame(1), frame(2))
    for box in part.boxes:
        box["bbox"] = [1, 20, 5, 5]
    part.save()
    with pytest.raises(SystemExit, match=r"is not clear from 2 masks.*--boxes mask"):
        convert("sunseg", sunseg)
    written = convert("sunseg", sunseg, "--box-order", "yxwh")
    assert list(unseen(written).values()) == [[[20, 1, 5, 5]]] * 2


def test_boxes_on_the_diagonal_need_no_order(convert, sunseg):
    Part(sunseg / TESTS[1]).clip("case7_1", frame(1), frame(2), box=(8, 8, 10, 12)).save()
    written = convert("sunseg", sunseg)
    assert list(unseen(written).values()) == [[[8, 8, 10, 12]]] * 2


def test_without_masks_the_order_must_be_given(convert, sunseg):
    for path in (sunseg / TESTS[1] / "GT" / "case7_1").iterdir():
        path.unlink()
    with pytest.raises(SystemExit, match=r"there are no masks under .*GT to measure.*--box-order"):
        convert("sunseg", sunseg)
    written = convert("sunseg", sunseg, "--box-order", "xywh")
    assert sum(map(len, unseen(written).values())) == 2


def test_missing_json_falls_back_on_masks_and_missing_masks_are_noted(convert, sunseg):
    (sunseg / TESTS[1] / "Detection" / "bbox_annotation.json").unlink()
    (sunseg / TESTS[1] / "GT" / "case7_1" / f"{frame(2)}.png").unlink()
    written = convert("sunseg", sunseg)
    assert list(unseen(written).values()) == [[list(BOX)]]
    notes = written["audit"]["notes"]
    assert notes["no Detection/bbox_annotation.json: boxes from masks"]["count"] == 1
    assert notes["frame without a mask is left out"]["count"] == 1


def test_masks_give_one_box_a_part_and_no_specks(convert, sunseg):
    path = sunseg / TESTS[1] / "GT" / "case7_1" / f"{frame(1)}.png"
    mask(path, (2, 3, 6, 5), (20, 10, 10, 8), (38, 0, 2, 2), value=1)
    path.with_name(f"{frame(2)}.png").write_bytes(b"broken")
    written = convert("sunseg", sunseg, "--boxes", "mask")
    assert list(unseen(written).values()) == [[[2, 3, 6, 5], [20, 10, 10, 8]]]
    ids = [a["instance_id"] for a in written["test_easy"]["annotations"]]
    assert ids == [1, 1, 7, 7], "one polyp a case"
    notes = written["audit"]["notes"]
    assert notes["mask with specks, which give no box"]["count"] == 1
    assert notes["frame with a mask that cannot be used is left out"]["count"] == 1


def test_a_folder_of_negatives_that_does_not_exist_is_said_to_be_missing(convert, sunseg):
    with pytest.raises(SystemExit, match=r"no such folder \(--negatives\)"):
        convert("sunseg", sunseg, "--negatives", str(sunseg / "nowhere"))


def test_a_mask_of_unclear_meaning_is_left_out_and_does_not_stop_the_others(convert, sunseg):
    want = unseen(convert("sunseg", sunseg))
    mask(sunseg / TESTS[1] / "GT" / "case7_1" / f"{frame(2)}.png", (2, 3, 6, 5), value=100)
    assert unseen(convert("sunseg", sunseg)) == want, "boxes of the JSON, their order by masks"
    notes = convert("sunseg", sunseg, "--boxes", "mask")["audit"]["notes"]
    reason = "frame with a mask that cannot be used is left out"
    assert notes[reason]["count"] == 1


def test_the_only_part_of_a_mask_gives_a_box_however_small(convert, sunseg):
    mask(sunseg / TESTS[1] / "GT" / "case7_1" / f"{frame(1)}.png", (30, 0, 3, 2))
    written = convert("sunseg", sunseg, "--boxes", "mask")
    first, _ = unseen(written).values()
    assert first == [[30, 0, 3, 2]]


def test_frame_listed_without_a_box_is_lesion_free_and_unlisted_ones_are_left_out(convert, sunseg):
    part = Part(sunseg / TESTS[1]).clip("case7_1", frame(1)).clip("case7_1", frame(2), box=None)
    part.save()
    picture(sunseg / TESTS[1] / "Frame" / "case7_1" / f"{frame(3)}.jpg")
    written = convert("sunseg", sunseg)
    assert [len(b) for b in unseen(written).values()] == [1, 0]
    notes = written["audit"]["notes"]
    assert notes["frame that the JSON does not list is left out"]["count"] == 1


def test_one_json_above_seen_and_unseen_serves_both(convert, sunseg):
    part = Part(sunseg / "TestEasyDataset")
    for folder, name in zip(TESTS[:2], ("case1_2", "case7_1"), strict=True):
        (sunseg / folder / "Detection" / "bbox_annotation.json").unlink()
        stems = (frame(1), frame(2))
        part.images += Part(sunseg / folder).clip(name, *stems).images
        part.boxes += Part(sunseg / folder).clip(name, *stems).boxes
    part.save()
    written = convert("sunseg", sunseg)
    assert [len(b) for b in boxes_by_file(written["test_easy"]).values()] == [1] * 4


def test_undivided_first_release_is_grouped_by_case(convert, sunseg):
    easy = Part(sunseg / "TestEasyDataset")
    easy.clip("case1_2", frame(1)).clip("case7_1", frame(1)).save()
    for folder in TESTS[:2]:
        (sunseg / folder / "Frame").rename(sunseg / folder / "Frames_of_v2")
    written = convert("sunseg", sunseg)
    assert [v["group"] for v in written["test_easy"]["videos"]] == ["seen", "unseen"]


def test_first_release_beside_the_second_is_not_counted_twice(convert, sunseg):
    Part(sunseg / "TestEasyDataset").clip("case1_2", frame(1)).clip("case7_1", frame(1)).save()
    written = convert("sunseg", sunseg)
    assert names(written["test_easy"]) == ["case1_2", "case7_1"]
    assert len(written["test_easy"]["images"]) == 4
    kind = "Frame beside Seen and Unseen, of the first release, is left out"
    assert written["audit"]["notes"][kind]["examples"] == ["TestEasyDataset"]


def test_unseen_clip_of_a_trained_case_is_noted_as_a_leak(convert, sunseg):
    Part(sunseg / TESTS[1]).clip("case7_1", frame(1)).clip("case1_3", frame(1)).save()
    notes = convert("sunseg", sunseg)["audit"]["notes"]
    leak = notes["clip in Unseen, but its case is in TrainDataset"]
    assert leak["examples"] == ["TestEasyDataset/Unseen: case1_3"]


def test_resized_frames_are_refused(convert, sunseg):
    picture(sunseg / TESTS[1] / "Frame" / "case7_1" / f"{frame(1)}.jpg", size=(20, 15))
    with pytest.raises(SystemExit, match=r"was it resized\?.*is \(20, 15\).*for \(40, 30\)"):
        convert("sunseg", sunseg)


def test_foreign_json_is_refused(convert, sunseg):
    (sunseg / TRAIN / "Detection" / "bbox_annotation.json").write_text('{"images": []}')
    with pytest.raises(SystemExit, match=r"is not SUN-SEG's bbox_annotation\.json"):
        convert("sunseg", sunseg)


def test_annotations_without_frames_are_refused_with_the_way_out(convert, sunseg):
    (sunseg / TRAIN / "Frame").rename(sunseg / TRAIN / "Edge")
    with pytest.raises(SystemExit, match="reorganize script puts them into Frame/"):
        convert("sunseg", sunseg)


def test_lesion_free_cases_are_added_on_request(convert, sunseg, tmp_path):
    for number in range(1, 6):
        name = f"{PREFIX}_a1_ayy_image000001.jpg"
        picture(tmp_path / "SUN-Negative" / f"case{number}" / name)
    written = convert("sunseg", sunseg, "--negatives", str(tmp_path / "SUN-Negative"))
    assert names(written["test_negative"]) == ["negative_case3"]
    assert names(written["val"])[-1] == "negative_case4"
    assert written["audit"]["splits"]["train"]["lesion_free_frames"] == 3
    load_split(tmp_path / "out" / "test_negative.json", sunseg)


def test_lesion_free_cases_beside_a_link_to_the_source_are_found(convert, sunseg, tmp_path):
    for number in range(1, 6):
        name = f"{PREFIX}_a1_ayy_image000001.jpg"
        picture(tmp_path / "data" / "SUN-Negative" / f"case{number}" / name)
    link = tmp_path / "data" / "SUN-SEG"
    link.symlink_to(sunseg)
    convert("sunseg", link, "--negatives", str(tmp_path / "data" / "SUN-Negative"))
    assert len(load_split(tmp_path / "out" / "test_negative.json", link).records) == 1


def test_too_few_lesion_free_cases_are_refused(convert, sunseg, tmp_path):
    for number in (1, 2):
        name = f"{PREFIX}_a1_ayy_image000001.jpg"
        picture(tmp_path / "SUN-Negative" / f"case{number}" / name)
    with pytest.raises(SystemExit, match="2 lesion-free cases, but train, val and test need one"):
        convert("sunseg", sunseg, "--negatives", str(tmp_path / "SUN-Negative"))


def test_generator_and_converter_agree(convert, synthetic, tmp_path):
    options = ("--train-clips", "4", "--test-easy-clips", "3", "--test-hard-clips", "3")
    source = synthetic(
        "sunseg", *options, "--negative-clips", "3", "--frames-per-clip", "5", "--defects"
    )
    written = convert("sunseg", source, "--negatives", str(source / "SUN-Negative"))
    audit = written["audit"]
    assert sum(split["frames"] for split in audit["splits"].values()) == 13 * 5
    assert any("yxwh" in kind for kind in audit["notes"])
    from_masks = convert("sunseg", source, "--boxes", "mask")
    for split in set(from_masks) - {"audit"}:
        found, expected = boxes_by_file(written[split]), boxes_by_file(from_masks[split])
        assert [found[name] for name in expected] == list(expected.values())
        load_split(tmp_path / "out" / f"{split}.json", source, class_names=["polyp"])
