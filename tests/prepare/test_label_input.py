"""Labels and media that do not fit, and label files that are damaged or hostile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.prepare.tiny_labels import (
    HEIGHT,
    WIDTH,
    cvat_box,
    cvat_images,
    cvat_video,
    frames_of,
    imported,
    label_studio,
    labelme,
    write_images,
)
from tests.runtime import tiny_videos
from v2idetr.data.audit import Findings
from v2idetr.prepare.labels.assemble import build_videos, choose_frames, label_step
from v2idetr.prepare.labels.classes import choose_classes
from v2idetr.prepare.labels.label_files import read_labels
from v2idetr.prepare.labels.label_set import LabelledBox, LabelledFrame, LabelSet
from v2idetr.prepare.labels.matching import match_frames, usable_frames
from v2idetr.prepare.labels.media import Clip, find_media


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_video(path: Path, *, frames: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return tiny_videos.write_video(path, frames=frames)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def coco(name: str = "case2_000003.png", **changes) -> str:
    image = {"id": 1, "file_name": name, "width": WIDTH, "height": HEIGHT}
    annotation = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [30, 20, 12, 16]}
    content = {
        "images": [image | changes.get("image", {})],
        "annotations": [annotation | changes.get("annotation", {})],
        "categories": [{"id": 1, "name": "polyp"}],
    }
    return json.dumps(content)


REFUSED = {
    "cut.json": ('{"images": [', r"cut\.json: is not JSON .* may be cut off"),
    "cut.xml": ("<annotations><image", r"cut\.xml: is not XML .* may be cut off"),
    "empty.json": (" ", r"empty\.json: is empty; export the labels again"),
    "scores.json": ('[{"image_id": 1, "bbox": [], "score": 1}]', "detections with scores"),
    "min.json": ('[{"image": "a.png", "annotation_id": 3}]', "JSON-MIN; export as JSON"),
    "bomb.xml": (
        '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotations>&c;</annotations>',
        "declares entities",
    ),
    "file.xml": (
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotations>&b;</annotations>',
        "declares entities",
    ),
    "nan.json": (coco(annotation={"bbox": [float("nan"), 1, 2, 3]}), "annotation 5: bbox is nan"),
    "three.json": (coco(annotation={"bbox": [1, 2, 3]}), "not a list of four numbers"),
    "class.json": (coco(annotation={"category_id": 4}), "category_id 4"),
    "image.json": (coco(annotation={"image_id": 4}), "image_id 4"),
    "ids.json": (coco(image={"id": [1]}), r"images\[0\]: its id is \[1\], not a number or text"),
    "listed.json": (
        coco(annotation={"category_id": {"id": 1}}),
        r"annotations\[0\]: its category_id is \{'id': 1\}, not a number or text",
    ),
    "nobox.xml": (
        "<annotation><filename>a.png</filename><object><name>polyp</name>"
        "<bndbox><xmin>1</xmin></bndbox></object></annotation>",
        r"nobox\.xml: object polyp: <ymin> is None, not a number",
    ),
    "huge.xml": (
        cvat_video(f'<track id="4" label="polyp">{cvat_box(10**12, [0, 0, 9, 9])}</track>'),
        "1000000000000, which is more frames than a video has",
    ),
    "long.json": (
        json.dumps([{"data": {"video": "a.mp4"}, "annotations": [{"result": [
            {"id": "a", "type": "videorectangle", "value": {"framesCount": 10**12, "sequence": []}}
        ]}]}]),
        "framesCount is 1000000000000, which is more frames",
    ),
    "shape.json": (
        labelme("case1", 0, [{"label": "polyp", "shape_type": "spline", "points": [[1, 2]]}]),
        "spline polyp: this shape is not known",
    ),
    "track.xml": (
        cvat_video(f'<track id="4" label="polyp">{cvat_box(1, [0, 0, 9, 9])}<box frame="x" xtl="0" '
                   'ytl="0" xbr="9" ybr="9"/></track>'),
        "frame of .*track 4 is 'x', not a number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_or_hostile_label_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    text, said = REFUSED[name]
    with pytest.raises(ValueError, match=said) as caught:
        frames_of(text, tmp_path / name)
    assert name in str(caught.value)


def test_all_damaged_files_are_named_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "{")
    (tmp_path / "b.json").write_bytes('{"images": "zähne"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="2 problems") as caught:
        read_labels(tmp_path, leave_out=tmp_path / "out")
    assert "a.json: is not JSON" in str(caught.value)
    assert "b.json: is not UTF-8" in str(caught.value)


LINES = {
    "3 0.5 0.5 0.1 0.1": "line 1: class 3, but the names are 0 polyp",
    "0 0.5 0.5 0.1": r"line 1: has 4 numbers",
    "0 0.5 0.5 0.1 0.1 0.87": "has a score, as predictions do",
    "0 120 80 30 20": "is in px, not in shares",
    "0 0.5 0.5 nan 0.1": "'nan' is 'nan', not a finite number|is nan, not a finite number",
    "0.5 0.5 0.5 0.1 0.1": "is no label file|no label files",
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_no_yolo_label_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match=LINES[line]):
        frames_of(line, tmp_path / "a.txt", yolo_names=["polyp"])


def test_yolo_without_names_of_classes_says_how_to_give_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--yolo-names"):
        frames_of("0 0.5 0.5 0.1 0.1", tmp_path / "labels" / "a.txt")


def test_yolo_with_two_lists_of_classes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.1 0.1")
    write(tmp_path / "labels" / "data.yaml", "names: [polyp, tool]")
    write(tmp_path / "classes.txt", "tool\npolyp\n")
    with pytest.raises(ValueError, match=r"0 tool, 1 polyp.*0 polyp, 1 tool"):
        read_labels(tmp_path / "labels", leave_out=tmp_path / "out")


def test_a_broken_file_beside_the_labels_is_noted_and_blocks_only_yolo_without_names(
    images: Path, tmp_path: Path
) -> None:
    write(tmp_path / "notes.yaml", "a: [")  # of something else
    write(tmp_path / "labels" / "a.json", coco())
    assert not imported(images, tmp_path / "labels")[1].notes.counts
    write(tmp_path / "yolo" / "case2_000003.txt", "0 0.5 0.5 0.25 0.5")
    with pytest.raises(ValueError, match=r"(?s)no names of .*notes\.yaml: .*--yolo-names"):
        imported(images, tmp_path / "yolo")
    write(tmp_path / "classes.txt", "polyp")
    found, read = imported(images, tmp_path / "yolo")
    assert found == {"case2": {3: [24, 12, 16, 24]}}
    (kind,) = read.notes.counts
    assert "beside the labels" in kind and "notes.yaml" in read.notes.examples[kind][0]
    write(tmp_path / "yolo" / "data.yaml", "a: [")
    with pytest.raises(ValueError, match=r"yolo/data\.yaml"):
        imported(images, tmp_path / "yolo")


def test_names_of_yolo_may_have_gaps_and_must_be_numbered(tmp_path: Path) -> None:
    write(tmp_path / "labels" / "data.yaml", "names: {3: polyp, 1: tool}")
    write(tmp_path / "labels" / "a.txt", "3 0.5 0.5 0.1 0.1")
    (found,) = read_labels(tmp_path / "labels", leave_out=tmp_path / "out")[1].frames
    assert [box.class_name for box in found.boxes] == ["polyp"]
    write(tmp_path / "labels" / "data.yaml", "names: {a: polyp}")
    with pytest.raises(ValueError, match="neither a list nor a mapping from numbers"):
        read_labels(tmp_path / "labels", leave_out=tmp_path / "out")


def test_labels_of_two_formats_are_refused_unless_one_is_chosen(
    images: Path, tmp_path: Path
) -> None:
    write(tmp_path / "labels" / "a.xml", cvat_images())
    write(tmp_path / "labels" / "b.json", coco())
    with pytest.raises(ValueError, match=r"several formats: cvat \(4 frames\), coco \(1 frames\)"):
        read_labels(tmp_path / "labels", leave_out=tmp_path / "out")
    found, read = imported(images, tmp_path / "labels", only="coco")
    assert found == {"case2": {3: [30, 20, 12, 16]}}
    assert read.notes.counts["file of the format cvat is not read (--format)"] == 1


def test_a_folder_without_labels_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "a" / "readme.txt", "nothing")
    write(tmp_path / "a" / "labels.zip", "PK")
    with pytest.raises(ValueError, match=r"no label files .*readme\.txt.*unpack labels\.zip first"):
        read_labels(tmp_path / "a", leave_out=tmp_path / "out")


def test_labels_without_media_are_refused_or_left_out_and_counted(
    images: Path, tmp_path: Path
) -> None:
    for path in images.glob("case1*"):
        path.unlink()
    labels = write(tmp_path / "a.xml", cvat_images())
    with pytest.raises(ValueError, match=r"not there: 3 \(case1_000000\.png \(a\.xml\)") as caught:
        imported(images, labels)
    assert "--allow-missing" in str(caught.value)
    found, read = imported(images, labels, allow_missing=True)
    assert list(found) == ["case2"]
    assert read.notes.counts["labels of a video or image that is not there"] == 3


def test_labels_for_another_size_than_the_videos_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "case1.mp4", frames=9)
    track = f'<track id="0" label="polyp">{cvat_box(1, [0, 0, 9, 9])}</track>'
    text = cvat_video(track, frames=9).replace(f"<width>{WIDTH}", "<width>640")
    labels = write(tmp_path / "a.xml", text)
    with pytest.raises(ValueError, match=r"another size .*\(640, 48\), case1 is \(64, 48\)"):
        imported(tmp_path / "videos", labels)


def test_a_box_beyond_the_end_of_its_video_is_refused_and_an_empty_frame_noted(
    tmp_path: Path,
) -> None:
    write_video(tmp_path / "videos" / "case1.mp4", frames=9)
    boxes = cvat_box(7, [0, 0, 9, 9]) + cvat_box(8, [0, 0, 9, 9])
    track = f'<track id="0" label="polyp">{boxes}</track>'
    labels = write(tmp_path / "a.xml", cvat_video(track, frames=12))
    found, read = imported(tmp_path / "videos", labels)
    assert found == {"case1": {7: [0, 0, 9, 9], 8: [0, 0, 9, 9]}}
    assert read.notes.counts["frame without a box beyond the end of its video"] == 3
    write(labels, cvat_video(track.replace('frame="8"', 'frame="9"'), frames=12))
    with pytest.raises(ValueError, match=r"beyond the end .*case1 has 9 frames"):
        imported(tmp_path / "videos", labels)


def test_frames_named_as_extracted_from_a_video_are_found_in_it(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "case1.mp4", frames=9)
    write_video(tmp_path / "videos" / "case2.mp4", frames=9)
    labels = tmp_path / "labels"
    write(labels / "data.yaml", "names: {0: polyp}")
    write(labels / "case1" / "obj_train_data" / "frame_000008.txt", "0 0.5 0.5 0.5 0.5")
    write(labels / "case2_000003.txt", "0 0.5 0.5 0.25 0.5")
    found, _ = imported(tmp_path / "videos", labels)
    assert found == {"case1": {8: [16, 12, 32, 24]}, "case2": {3: [24, 12, 16, 24]}}
    found, _ = imported(tmp_path / "videos", labels, first_number=1)
    assert {video: list(frames) for video, frames in found.items()} == {"case1": [7], "case2": [2]}


def test_two_videos_of_one_name_are_told_apart_by_their_folder_or_refused(tmp_path: Path) -> None:
    for folder in ("day1", "day2"):
        write_video(tmp_path / "videos" / folder / "exam.mp4", frames=9)
    track = f'<track id="0" label="polyp">{cvat_box(8, [0, 0, 9, 9])}</track>'
    text = cvat_video(track, frames=9, source="day2/exam.mp4")
    labels = write(tmp_path / "a.xml", text)
    assert list(imported(tmp_path / "videos", labels)[0]) == ["day2__exam"]
    write(labels, text.replace("day2/", ""))
    with pytest.raises(ValueError, match=r"may be of any of the videos .*day1/exam.*day2/exam"):
        imported(tmp_path / "videos", labels)
    shutil.copy(
        tmp_path / "videos" / "day1" / "exam.mp4", tmp_path / "videos" / "day1" / "exam.avi"
    )
    with pytest.raises(ValueError, match=r"are both a video 'day1__exam': rename one"):
        imported(tmp_path / "videos", labels)


@pytest.mark.parametrize(
    "name", ["../../secret/case2_000003.png", "/etc/case2_000003.png", "C:\\x\\case2_000003.png"]
)
def test_a_path_that_leads_out_of_the_folder_is_a_name_and_never_opened(
    images: Path, tmp_path: Path, name: str
) -> None:
    write_images(tmp_path / "secret", {"case2": {3: [0, 0, 1, 1]}})
    found, read = imported(images, write(tmp_path / "a.json", coco(name)))
    assert found == {"case2": {3: [30, 20, 12, 16]}}
    assert sum(n for kind, n in read.notes.counts.items() if "leads out" in kind) == 1
    with pytest.raises(ValueError, match="that is not there"):
        imported(images, write(tmp_path / "a.json", coco("../../../../../../etc/passwd")))


def test_a_frame_number_alone_does_not_match_an_image_of_another_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "case1", {"": {3: []}, "frame": {4: []}})
    for folder, file in (("case1", "_000003"), ("case2", "_000003"), ("case2", "frame_000004")):
        write(tmp_path / "labels" / folder / f"{file}.txt", "0 0.5 0.5 0.5 0.5")
    options = {"yolo_names": ["polyp"], "allow_missing": True}
    found, read = imported(tmp_path / "images", tmp_path / "labels", **options)
    assert found == {"case1": {3: [16, 12, 32, 24]}}
    assert read.notes.counts["labels of a video or image that is not there"] == 2


def test_an_image_of_the_same_name_in_another_folder_is_noted(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "P01", {"polyp": {1: []}})
    write(tmp_path / "labels" / "P02" / "polyp_000001.txt", "0 0.5 0.5 0.5 0.5")
    _, read = imported(tmp_path / "images", tmp_path / "labels", yolo_names=["polyp"])
    kind = "image is found by its name alone, in a folder of another name"
    assert read.notes.examples[kind] == [
        "P02/polyp_000001 (P02/polyp_000001.txt): P01/polyp_000001.png"
    ]
    write(tmp_path / "labels" / "P02" / "polyp_000001.txt", "")
    text = coco("polyp_000001.png")  # a list of names alone says nothing about folders
    _, read = imported(tmp_path / "images", write(tmp_path / "export" / "a.json", text))
    assert kind not in read.notes.counts


def test_labels_of_a_missing_image_do_not_land_on_its_neighbour_by_its_position(
    tmp_path: Path,
) -> None:
    source = write_images(tmp_path / "images", {"case2": {12: [], 14: []}})
    text = coco("case2_000013.png", image={"frame_index": 12, "video_id": 1})
    content = json.loads(text) | {"videos": [{"id": 1, "name": "case2"}]}
    with pytest.raises(ValueError, match="that is not there"):
        imported(source, write(tmp_path / "a.json", json.dumps(content)))


def test_frames_that_a_tool_counts_by_another_rate_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "case1.mp4", frames=20)
    box = {"x": 0, "y": 0, "width": 10, "height": 10, "enabled": True}

    def export(count: int) -> Path:
        value = {"framesCount": count, "sequence": [{"frame": 9, **box}], "labels": ["polyp"]}
        result = [{"id": "a", "type": "videorectangle", "value": value}]
        task = {"data": {"video": "case1.mp4"}, "annotations": [{"result": result}]}
        return write(tmp_path / "a.json", json.dumps([task]))

    assert min(imported(tmp_path / "videos", export(19))[0]["case1"]) == 8
    with pytest.raises(
        ValueError, match=r"another frame rate in the tool\?\).*of 16, case1 has 20"
    ):
        imported(tmp_path / "videos", export(16))


def test_numbers_of_images_that_cvat_has_not_named_count_from_the_given_one(
    tmp_path: Path,
) -> None:
    write_video(tmp_path / "videos" / "P01.mp4", frames=9)
    box = '<box label="polyp" xtl="0" ytl="0" xbr="9" ybr="9"/>'
    for name, frame in (("P01/frame_000003.jpg", 2), ("frame_000003", 3)):
        image = f'<image id="0" name="{name}" width="{WIDTH}" height="{HEIGHT}">{box}</image>'
        meta = "<meta><task><name>P01</name></task></meta>"
        labels = write(tmp_path / "a.xml", f"<annotations>{meta}{image}</annotations>")
        assert list(imported(tmp_path / "videos", labels, first_number=1)[0]["P01"]) == [frame]


def test_an_image_that_cannot_be_read_is_left_out_and_counted(images: Path, tmp_path: Path) -> None:
    (images / "case2_000003.png").write_bytes(b"\x89PNG broken")
    write(tmp_path / "labels" / "case2_000003.txt", "0 0.5 0.5 0.5 0.5")
    found, read = imported(images, tmp_path / "labels", yolo_names=["polyp"])
    assert found == {}
    assert read.notes.counts["image that cannot be read: its frame is left out"] == 1


def test_a_frame_number_alone_does_not_match_the_only_video(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "case1.mp4", frames=9)
    write(tmp_path / "labels" / "case2" / "frame_000004.txt", "0 0.5 0.5 0.5 0.5")
    with pytest.raises(ValueError, match="that is not there"):
        imported(tmp_path / "videos", tmp_path / "labels", yolo_names=["polyp"])


def test_a_frame_that_is_labelled_twice_is_refused(images: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "labels" / f"{name}.json", coco())
    with pytest.raises(ValueError, match=r"labelled twice: 1 \(.*a\.json\).*b\.json"):
        imported(images, tmp_path / "labels")


def test_images_of_one_video_in_train_and_val_are_one_video(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "train", {"case1": {0: [], 2: []}})
    write_images(tmp_path / "images" / "val", {"case1": {1: []}})
    (clip,) = find_media(tmp_path, Findings(), leave_out=tmp_path / "out")
    assert (clip.name, clip.numbers) == ("case1", [0, 1, 2])


def test_images_that_would_be_one_frame_ask_for_a_pattern(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        write_images(tmp_path / "all" / folder, {"": {1: []}})
    with pytest.raises(ValueError, match=r"both be frame 1 .*--video-pattern"):
        find_media(tmp_path / "all", Findings(), leave_out=tmp_path / "out")
    pattern = r"(?P<video>\w+)/_(?P<frame>\d+)"
    clips = find_media(tmp_path / "all", Findings(), leave_out=tmp_path / "out", pattern=pattern)
    assert [clip.name for clip in clips] == ["train", "val"]


@pytest.mark.parametrize(("pattern", "said"), [("(", "no regular"), ("a", "group"), ("(z)", "fit")])
def test_a_pattern_that_cannot_be_used_is_refused(images: Path, pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"--video-pattern .*{said}"):
        find_media(images, Findings(), leave_out=images / "out", pattern=pattern)


@pytest.mark.parametrize("box", [[3, 3, 0, 5], [3, 3, 5, 0], [90, 3, 5, 5]])
def test_a_frame_with_a_box_of_nothing_is_left_out_and_not_lesion_free(
    images: Path, tmp_path: Path, box: list[float]
) -> None:
    text = json.loads(coco())
    text["images"] += [{**text["images"][0], "id": 2, "file_name": "case1_000000.png"}]
    text["annotations"] += [{"id": 6, "image_id": 2, "category_id": 1, "bbox": box}]
    found, read = imported(images, write(tmp_path / "a.json", json.dumps(text)))
    assert list(found) == ["case2"]
    assert any("its frame is left out" in kind for kind in read.notes.counts)


@pytest.mark.parametrize("shape", ["points", "polyline"])
def test_a_frame_with_a_shape_that_has_no_box_is_left_out(
    images: Path, tmp_path: Path, shape: str
) -> None:
    text = cvat_images(shapes=f'<{shape} label="polyp" points="1,2;3,4"/>')
    found, read = imported(images, write(tmp_path / "a.xml", text))
    assert sorted(found["case1"]) == [1, 5]
    assert read.notes.counts[f"{shape}: its frame is left out"] == 1


def test_annotations_of_label_studio_that_were_cancelled_or_predicted_are_no_labels(
    images: Path, tmp_path: Path
) -> None:
    tasks = json.loads(label_studio())
    tasks[0]["annotations"][0]["was_cancelled"] = True
    tasks[1]["predictions"], tasks[1]["annotations"] = tasks[1]["annotations"], []
    found, read = imported(images, write(tmp_path / "a.json", json.dumps(tasks)))
    assert {video: list(frames) for video, frames in found.items()} == {"case1": [5], "case2": [3]}
    assert sum(n for kind, n in read.notes.counts.items() if "is not labelled" in kind) == 2


def label_set(*names: str) -> LabelSet:
    boxes = [LabelledBox(name, [0.0, 0.0, 9.0, 9.0]) for name in names]
    return LabelSet([LabelledFrame("a", name="x", boxes=boxes)], [*dict.fromkeys(names), "never"])


def test_classes_are_renamed_left_out_and_those_without_boxes_dropped() -> None:
    found = label_set("polyp", "Polyp", "tool")
    assert choose_classes(found, None, {"Polyp": "polyp", "tool": ""}) == ["polyp"]
    assert [box.class_name for box in found.frames[0].boxes] == ["polyp", "polyp"]
    assert found.notes.counts["class is left out (--rename)"] == 1
    assert found.notes.counts["class without a box is left out"] == 1


def test_classes_that_are_not_wanted_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"1 box of the class 'polip'.*--rename polip=polyp"):
        choose_classes(label_set("polip"), ["polyp"], {})
    with pytest.raises(ValueError, match=r"'polyp' and 'Polyp ' differ in case or spaces alone"):
        choose_classes(label_set("polyp", "Polyp "), None, {})
    with pytest.raises(ValueError, match="--rename tol=x: no label has the class 'tol'"):
        choose_classes(label_set("polyp"), None, {"tol": "x"})
    with pytest.raises(ValueError, match="without a name"):
        choose_classes(label_set(""), None, {})


def chosen_of(lesion_free: str, *, every: int = 1) -> tuple[dict, Findings]:
    clip = Clip("case1", images={number: f"{number}.png" for number in range(0, 12, 2)})
    bad = LabelledFrame("a", name="bad", boxes=[LabelledBox("polyp", None)])
    lesion = [LabelledBox("polyp", [0.0, 0.0, 9.0, 9.0])]
    labels = {"case1": {0: LabelledFrame("a", boxes=lesion, name="0"), 2: bad}}
    labels["case1"][4] = LabelledFrame("a", name="4")
    labels["case1"][8] = LabelledFrame("a", boxes=lesion, name="8")
    usable = {"case1": {n: frame for n, frame in labels["case1"].items() if frame is not bad}}
    notes = Findings()
    chosen = choose_frames(
        labels, usable, [clip, Clip("other", images={0: "o.png"})], notes,
        lesion_free=lesion_free, every=every,
    )  # fmt: skip
    return {name: list(boxes) for name, boxes in chosen.items()}, notes


def test_a_frame_without_a_box_is_lesion_free_only_if_that_is_said() -> None:
    chosen, notes = chosen_of("none")
    assert chosen == {"case1": [0, 8]}
    assert [n for kind, n in notes.counts.items() if "not known to be lesion-free" in kind] == [1]
    assert notes.counts["video without labels is left out"] == 1
    assert chosen_of("listed")[0] == {"case1": [0, 4, 8]}
    # A frame with a shape that gives no box stays out; one that no file lists does not.
    assert chosen_of("all")[0] == {"case1": [0, 4, 6, 8, 10], "other": [0]}


def test_every_other_frame_is_used_and_the_rest_counted() -> None:
    chosen, notes = chosen_of("listed", every=2)
    assert chosen == {"case1": [0, 8]}
    assert notes.counts["of 2 frames one is used (--every 2)"] == 1
    assert label_step({"a": {0: [], 5: [], 10: [], 11: []}}) == 5


def test_frames_of_a_video_are_decoded_and_images_stay_where_they_are(tmp_path: Path) -> None:
    source, frames = tmp_path / "source", tmp_path / "out" / "frames"
    write_images(source / "stills", {"case2": {3: []}})
    write_video(source / "case1.mp4", frames=9)
    clips = find_media(source, Findings(), leave_out=tmp_path / "out")
    box = [LabelledBox("polyp", [1.0, 2.0, 9.0, 9.0], track=4)]
    videos, root = build_videos(
        {"case1": {2: box, 5: []}, "stills__case2": {3: box}}, clips, source=source, frames=frames,
        class_names=["tool", "polyp"], patients={"case1": "P1", "stills__case2": "stills__case2"},
        sizes={"case1": {2: (64, 48)}},
    )  # fmt: skip
    first, second = videos["case1"], videos["stills__case2"]
    assert [frame.file_name for frame in first.frames] == ["case1/000002.jpg", "case1/000005.jpg"]
    assert [frame.frame_index for frame in first.frames] == [2, 5]
    assert first.further == {"patient": "P1", "frame_rate": 25.0}
    assert (first.frames[0].lesions[0].category_id, first.frames[0].boxes_for) == (2, (64, 48))
    assert (root / second.frames[0].file_name).samefile(source / "stills" / "case2_000003.png")
    assert (root / first.frames[0].file_name).is_file()


def test_matched_frames_are_those_of_the_clip(images: Path) -> None:
    clips = find_media(images, Findings(), leave_out=images / "out")
    frame = LabelledFrame("a", video="case1", number=1, relative=True, size=None, hints=("a",))
    frame.boxes = [LabelledBox("polyp", [0.5, 0.5, 0.25, 0.5])]
    labels = match_frames(LabelSet([frame]), clips)
    assert list(labels["case1"]) == [1]  # the second image in order
    usable = usable_frames(labels, clips, images, Findings())
    assert usable["case1"][1].boxes[0].xywh == [32, 24, 16, 24]


def test_labels_of_an_image_that_is_missing_do_not_land_on_the_image_in_its_place(
    tmp_path: Path,
) -> None:
    source = write_images(tmp_path / "images", {"case1": {n: [] for n in range(0, 50, 5)}})
    for name in ("case1_000000", "case1_3", "case1_000005", "case1_45"):
        write(tmp_path / "labels" / f"{name}.txt", "0 0.5 0.5 0.25 0.5")
    with pytest.raises(ValueError, match=r"that is not there: 1 \(case1_3 "):
        imported(source, tmp_path / "labels", yolo_names=["polyp"])
    options = {"yolo_names": ["polyp"], "allow_missing": True}
    found, _ = imported(source, tmp_path / "labels", **options)
    assert list(found["case1"]) == [0, 5, 45]  # 45 by its number, written with fewer zeros


def test_a_track_over_more_frames_than_there_are_images_is_refused(tmp_path: Path) -> None:
    source = write_images(tmp_path / "images", {"case1": {n: [] for n in range(0, 50, 5)}})
    track = f'<track id="0" label="polyp">{cvat_box(2, [0, 0, 9, 9])}'
    track += f"{cvat_box(3, [0, 0, 9, 9], outside=1)}</track>"
    labels = write(tmp_path / "a.xml", cvat_video(track, frames=10, source="case1"))
    assert list(imported(source, labels)[0]["case1"]) == [10]  # the third of its ten images
    write(labels, cvat_video(track, frames=50, source="case1"))
    with pytest.raises(ValueError, match=r"more frames are listed than there are images .*: 40 "):
        imported(source, labels)
    late = track.replace('frame="3"', 'frame="31"').replace('frame="2"', 'frame="30"')
    write(labels, cvat_video(late, frames=50, source="case1"))
    with pytest.raises(ValueError, match=r"beyond the end .*case1 has 10 frames"):
        imported(source, labels, allow_missing=True)
