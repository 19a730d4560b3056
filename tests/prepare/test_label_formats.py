"""Labels of every format, written by other libraries where they can, give back their boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.prepare.tiny_labels import (
    HEIGHT,
    TRUTH,
    WIDTH,
    cvat_box,
    cvat_images,
    cvat_video,
    dataset,
    frames_of,
    imported,
    label_studio,
    labelme,
    write_images,
)
from v2idetr.prepare.labels.shapes import box_of_brush, box_of_rotated, box_of_rotated_ellipse
from v2idetr.prepare.labels.tracks import Keyframe, boxes_of_track


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def same(found, tolerance: float = 1e-4) -> bool:
    assert {v: list(frames) for v, frames in found.items()} == {v: [*f] for v, f in TRUTH.items()}
    for video, frames in TRUTH.items():
        for number, box in frames.items():
            assert found[video][number] == pytest.approx(box, abs=tolerance), (video, number)
    return True


def test_coco_of_supervision(images: Path, tmp_path: Path) -> None:
    dataset(images).as_coco(annotations_path=str(tmp_path / "coco.json"))
    assert same(imported(images, tmp_path / "coco.json")[0])


def test_yolo_of_supervision(images: Path, tmp_path: Path) -> None:
    yolo = tmp_path / "yolo"
    dataset(images).as_yolo(
        annotations_directory_path=str(yolo / "labels"), data_yaml_path=str(yolo / "data.yaml")
    )
    assert same(imported(images, yolo)[0], tolerance=0.01)
    assert same(imported(images, yolo / "labels")[0], tolerance=0.01)  # names beside the folder


def test_pascal_voc_of_supervision(images: Path, tmp_path: Path) -> None:
    dataset(images).as_pascal_voc(annotations_directory_path=str(tmp_path / "voc"))
    assert same(imported(images, tmp_path / "voc")[0], tolerance=1.01)  # it counts pixels from 1


def test_labelme(images: Path, tmp_path: Path) -> None:
    for video, frames in TRUTH.items():
        for number, (x, y, w, h) in frames.items():
            corners = [[x + w, y + h], [x, y]]  # drawn from the lower right
            shape = {"label": "polyp", "shape_type": "rectangle", "points": corners}
            name = f"{video}_{number:06d}.json"
            write(tmp_path / "labelme" / name, labelme(video, number, [shape]))
    found, notes = imported(images, tmp_path / "labelme")
    assert same(found)
    assert any("compared by the end of its name" in kind for kind in notes.notes.counts)


def test_cvat_of_images(images: Path, tmp_path: Path) -> None:
    assert same(imported(images, write(tmp_path / "annotations.xml", cvat_images()))[0])


def test_label_studio_of_images(images: Path, tmp_path: Path) -> None:
    assert same(imported(images, write(tmp_path / "export.json", label_studio()))[0])


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_is_no_part_of_a_label_file(
    images: Path, tmp_path: Path, mark: str
) -> None:
    for name, text in (("a.xml", cvat_images()), ("b.json", label_studio())):
        assert same(imported(images, write(tmp_path / name, mark + text))[0])


def track_of(*boxes: str, label: str = "polyp") -> str:
    return f'<track id="4" label="{label}">{"".join(boxes)}</track>'


def xywh_by_frame(text: str, tmp_path: Path) -> dict[int | None, list[float] | None]:
    frames = frames_of(text, tmp_path / "a.xml")
    return {frame.number: frame.boxes[0].xywh for frame in frames if frame.boxes}


def test_a_cvat_track_moves_evenly_between_keyframes_and_ends_outside(tmp_path: Path) -> None:
    track = track_of(
        cvat_box(2, [0, 0, 10, 10]),
        cvat_box(6, [8, 4, 18, 10]),
        cvat_box(8, [8, 4, 18, 10], outside=1),
        cvat_box(12, [20, 20, 5, 5]),
        cvat_box(13, [20, 20, 5, 5], outside=1),
    )
    found = xywh_by_frame(cvat_video(track), tmp_path)
    assert sorted(found) == [2, 3, 4, 5, 6, 7, 12]
    assert found[3] == [2, 1, 12, 10] and found[4] == [4, 2, 14, 10] and found[7] == [8, 4, 18, 10]


def test_a_cvat_track_without_an_end_is_held_to_the_last_frame(tmp_path: Path) -> None:
    track = track_of(cvat_box(3, [0, 0, 9, 9]), cvat_box(5, [2, 2, 9, 9]))
    assert sorted(xywh_by_frame(cvat_video(track, frames=9), tmp_path)) == [3, 4, 5, 6, 7, 8]


def test_a_cvat_track_that_lists_every_frame_ends_where_the_list_ends(tmp_path: Path) -> None:
    track = track_of(*(cvat_box(k, [0, 0, 9, 9]) for k in range(3, 7)))
    assert sorted(xywh_by_frame(cvat_video(track, frames=9), tmp_path)) == [3, 4, 5, 6]


def test_a_cvat_task_of_every_fifth_frame_has_no_boxes_between_them(tmp_path: Path) -> None:
    track = track_of(cvat_box(0, [0, 0, 9, 9]), cvat_box(15, [15, 0, 9, 9]))
    text = cvat_video(track, meta="<frame_filter>step=5</frame_filter>")
    found = xywh_by_frame(text, tmp_path)
    assert found == {0: [0, 0, 9, 9], 5: [5, 0, 9, 9], 10: [10, 0, 9, 9], 15: [15, 0, 9, 9]}


def test_a_cvat_video_lists_its_frames_without_a_box_too(tmp_path: Path) -> None:
    text = cvat_video(track_of(cvat_box(1, [0, 0, 9, 9]), cvat_box(2, [0, 0, 9, 9], outside=1)))
    frames = frames_of(text, tmp_path / "a.xml")
    assert [frame.number for frame in frames] == list(range(20))
    assert [frame.number for frame in frames if frame.boxes] == [1]
    assert frames[0].video == "case1.mp4" and frames[0].size == (WIDTH, HEIGHT)


def test_tracks_of_a_cvat_project_belong_to_their_tasks(tmp_path: Path) -> None:
    def task(number: int) -> str:
        size = f"<original_size><width>{WIDTH}</width><height>{HEIGHT}</height></original_size>"
        frames = "<start_frame>0</start_frame><stop_frame>1</stop_frame>"
        return f"<task><id>{number}</id><source>v{number}.mp4</source>{frames}{size}</task>"

    tracks = "".join(
        f'<track id="0" task_id="{k}" label="polyp">{cvat_box(0, [k, 0, 9, 9])}'
        f"{cvat_box(1, [k, 0, 9, 9], outside=1)}</track>"
        for k in (7, 8)
    )
    meta = f"<project><tasks>{task(7)}{task(8)}</tasks></project>"
    text = f"<annotations><meta>{meta}</meta>{tracks}</annotations>"
    frames = frames_of(text, tmp_path / "a.xml")
    first = {frame.video: frame.boxes[0].xywh for frame in frames if frame.boxes}
    assert first == {"v7.mp4": [7, 0, 9, 9], "v8.mp4": [8, 0, 9, 9]}


def test_a_label_studio_video_counts_from_1_and_is_hidden_behind_a_disabled_keyframe(
    tmp_path: Path,
) -> None:
    sequence = [
        {"frame": 1, "enabled": True, "x": 0, "y": 0, "width": 10, "height": 10, "rotation": 0},
        {"frame": 3, "enabled": False, "x": 20, "y": 10, "width": 10, "height": 10, "rotation": 0},
        {"frame": 6, "enabled": True, "x": 50, "y": 50, "width": 10, "height": 10, "rotation": 0},
    ]
    value = {"framesCount": 7, "duration": 0.28, "sequence": sequence, "labels": ["polyp"]}
    result = [{"id": "a", "type": "videorectangle", "value": value}]
    task = {
        "data": {"video": "/data/upload/1/0a1b2c3d-case1.mp4"},
        "annotations": [{"result": result}],
    }
    frames = frames_of(json.dumps([task]), tmp_path / "a.json")
    boxes = {f.number: [round(v, 4) for v in f.boxes[0].xywh or ()] for f in frames if f.boxes}
    assert boxes == {
        0: [0, 0, 0.1, 0.1],
        1: [0.1, 0.05, 0.1, 0.1],
        2: [0.2, 0.1, 0.1, 0.1],
        5: [0.5, 0.5, 0.1, 0.1],
        6: [0.5, 0.5, 0.1, 0.1],
    }
    assert all(frame.relative for frame in frames) and len(frames) == 7


def test_tracks_are_filled_between_keyframes() -> None:
    keyframes = [Keyframe(0, [0.0, 0.0, 4.0, 4.0]), Keyframe(4, [4.0, 8.0, 8.0, 4.0])]
    assert boxes_of_track(keyframes, last=None)[0][1] == [1, 2, 5, 4]
    boxes, held = boxes_of_track(keyframes, last=6)
    assert (sorted(boxes), held) == ([0, 1, 2, 3, 4, 5, 6], 2)


def test_a_quarter_turn_swaps_the_sides_of_a_box() -> None:
    assert box_of_rotated([0.0, 0.0, 10.0, 4.0], 90.0) == pytest.approx([3, -3, 4, 10])
    assert box_of_rotated([5.0, 5.0, 10.0, 4.0], 90.0, (5.0, 5.0)) == pytest.approx([1, 5, 4, 10])
    assert box_of_rotated_ellipse((5.0, 5.0), (4.0, 2.0), 90.0) == pytest.approx([3, 1, 4, 8])


def packed(mask: np.ndarray) -> list[int]:
    """Label Studio's code of a mask as an RGBA image: runs, and a stretch of single values."""
    values = np.repeat(mask.astype(int).ravel()[:, None] * 255, 4, axis=1).ravel().tolist()
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    place = 0
    while place < len(values):
        end = place
        while end < len(values) and values[end] == values[place] and end - place < 2**16:
            end += 1
        if place == 0:  # the first values one by one
            end = min(5, len(values))
            bits += "0" + "01" + f"{end - 1:04b}" + "".join(f"{v:08b}" for v in values[:end])
        else:
            bits += "1" + "11" + f"{end - place - 1:016b}" + f"{values[place]:08b}"
        place = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def test_a_brush_mask_of_label_studio_gives_the_box_around_it() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:20, 5:30] = mask[25, 40] = True
    assert box_of_brush(packed(mask), (WIDTH, HEIGHT)) == [5, 10, 36, 16]
    assert box_of_brush(packed(np.zeros_like(mask)), (WIDTH, HEIGHT)) is None
    with pytest.raises(ValueError, match="cut off"):
        box_of_brush(packed(mask)[:20], (WIDTH, HEIGHT))
    with pytest.raises(ValueError, match="not of 9 x 9"):
        box_of_brush(packed(mask), (9, 9))


SHAPES = {
    '<polygon label="polyp" points="3.5,2;10,2;5,9"/>': ("polygon", [3.5, 2, 6.5, 7]),
    '<ellipse label="polyp" cx="20" cy="20" rx="5" ry="3"/>': ("ellipse", [15, 17, 10, 6]),
    '<mask label="polyp" rle="0,40" left="2" top="3" width="8" height="5"/>': (
        "mask",
        [2, 3, 8, 5],
    ),
    '<box label="polyp" xtl="0" ytl="0" xbr="10" ybr="4" rotation="90"/>': (
        "rotated box",
        [3, -3, 4, 10],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_of_cvat_give_the_box_around_them_and_are_counted(
    images: Path, tmp_path: Path, shape: str
) -> None:
    kind, box = SHAPES[shape]
    path = write(tmp_path / "a.xml", cvat_images(shapes=shape))
    _, found = imported(images, path)
    assert found.frames[0].boxes[1].xywh == pytest.approx(box)
    assert found.notes.counts[f"{kind}: the box around it is used"] == 1


def test_masks_and_polygons_of_coco_without_boxes_give_the_box_around_them(
    images: Path, tmp_path: Path
) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:20, 5:30] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    masks = [
        {"size": rle["size"], "counts": rle["counts"].decode()},
        [[3, 4, 13, 4, 13, 10, 3, 10]],
    ]
    content = {
        "images": [{"id": 1, "file_name": "case2_000003.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 9, "name": "polyp"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 9, "iscrowd": 1 - k, "segmentation": mask}
            for k, mask in enumerate(masks)
        ],
    }
    _, found = imported(images, write(tmp_path / "a.json", json.dumps(content)))
    assert [box.xywh for box in found.frames[0].boxes] == [[5, 10, 25, 10], [3, 4, 10, 6]]
    assert found.notes.counts["mask or polygon without bbox: the box around it is used"] == 2


def test_polygons_corners_and_tracks_of_yolo(images: Path, tmp_path: Path) -> None:
    lines = "0 0.1 0.2 0.5 0.2 0.3 0.6\n0 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4\n0 0.5 0.5 0.5 0.5 12\n"
    write(tmp_path / "case2_000003.txt", lines)
    _, found = imported(images, tmp_path, yolo_names=["polyp"], only="yolo")
    boxes = found.frames[0].boxes
    shares = [[0.1, 0.2, 0.4, 0.4], [0.1, 0.1, 0.2, 0.3], [0.25, 0.25, 0.5, 0.5]]
    for box, share in zip(boxes, shares, strict=True):
        scaled = [v * side for v, side in zip(share, (WIDTH, HEIGHT) * 2, strict=True)]
        assert box.xywh == pytest.approx(scaled)
    assert [box.track for box in boxes] == [None, None, 12]
    assert found.notes.counts["polygon or rotated box: the box around it is used"] == 2


def test_a_turned_box_of_label_studio_turns_about_its_corner(images: Path, tmp_path: Path) -> None:
    turned = {"x": 50, "y": 0, "width": 25, "height": 12.5, "rotation": 90}
    _, found = imported(images, write(tmp_path / "a.json", label_studio(**turned)))
    assert found.frames[0].boxes[0].xywh == pytest.approx([26, 0, 6, 16])


def test_a_turned_ellipse_of_label_studio_has_the_box_around_it(
    images: Path, tmp_path: Path
) -> None:
    task = json.loads(label_studio())[0]
    value = {"x": 50, "y": 50, "radiusX": 12.5, "radiusY": 12.5 * WIDTH / HEIGHT, "rotation": 45}
    region = {"id": "e", "type": "ellipselabels", "value": value | {"ellipselabels": ["polyp"]}}
    region |= {"original_width": WIDTH, "original_height": HEIGHT}
    task["annotations"][0]["result"] = [region]  # a circle with a radius of 8 px
    _, found = imported(images, write(tmp_path / "a.json", json.dumps([task])))
    assert found.frames[0].boxes[0].xywh == pytest.approx([24, 16, 16, 16])


def test_a_shape_that_is_labelled_by_a_control_of_its_own_is_one_lesion(
    images: Path, tmp_path: Path
) -> None:
    tasks = json.loads(label_studio())
    for task in tasks:
        (region,) = task["annotations"][0]["result"]
        shape = {k: v for k, v in region["value"].items() if k != "rectanglelabels"}
        named = region | {"type": "labels", "value": shape | {"labels": ["polyp"]}}
        bare = region | {"type": "rectangle", "value": shape}
        task["annotations"][0]["result"] = [bare, named]
    found, read = imported(images, write(tmp_path / "a.json", json.dumps(tasks)))
    assert same(found)
    assert [len(frame.boxes) for frame in read.frames] == [1] * 4


@pytest.mark.parametrize(
    "line", ["0 0.5 0.5 0.1 0.1 0.87 3", "0 0.5 0.5 0.1 0.1 0.4 0.4 2.5 0.6 0.6 2"]
)
def test_scores_with_tracks_and_key_points_are_no_polygons(
    images: Path, tmp_path: Path, line: str
) -> None:
    write(tmp_path / "case2_000003.txt", line)
    with pytest.raises(ValueError, match="a score and a track, or with key points"):
        imported(images, tmp_path, yolo_names=["polyp"], only="yolo")


def test_lesions_of_coco_are_told_apart_by_any_of_the_usual_keys(tmp_path: Path) -> None:
    ids = [{"track_id": 7}, {"unique_id": "001_2"}, {"unique_id": "001_3"}, {"unique_id": "001_2"}]
    ids += [{"instance_id": 4}, {"attributes": {"track_id": 5}}, {}]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "polyp"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], **one}
            for k, one in enumerate(ids)
        ],
    }
    (frame,) = frames_of(json.dumps(content), tmp_path / "a.json")
    assert [box.track for box in frame.boxes] == [7, 1, 2, 1, 4, 5, None]
