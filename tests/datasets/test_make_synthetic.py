"""The synthetic generator: bytes, layouts, boxes, motion, and what it does with its folders."""

import hashlib
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[2] / "datasets"))

import make_synthetic
from synthetic import clips, degrade
from synthetic.clips import ClipSpec, render_clip
from synthetic.tracks import leave_view, random_track

# Shift of the box centre from frame to frame, as a share of the picture, in LDPolypVideo's 31,182
# pairs of frames with one box: percentiles 25, 50, 75, 90; then over five frames: 25, 50, 75.
REAL_SHIFT = np.array([0.0041, 0.0083, 0.0165, 0.0313])
REAL_SHIFT_5 = np.array([0.0154, 0.0316, 0.0622])

SMALL = ["--size", "80x60", "--workers", "1"]
ARGUMENTS = {
    "sunseg": [
        "--train-clips",
        "11",
        "--test-easy-clips",
        "4",
        "--test-hard-clips",
        "3",
        "--negative-clips",
        "3",
        "--frames-per-clip",
        "4",
    ],
    "sun": ["--train-clips", "5", "--negative-clips", "5", "--frames-per-clip", "8"],
    "buv": ["--train-clips", "5", "--test-easy-clips", "3", "--frames-per-clip", "18"],
}


def run(layout: str, output: Path, *extra: str) -> int:
    arguments = ["--layout", layout, "--output", str(output), *SMALL, *ARGUMENTS[layout], *extra]
    return make_synthetic.main(arguments)


def frames_of(root: Path) -> list[dict]:
    return json.loads((root / "generator_frames.json").read_text())


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def extent(mask: np.ndarray) -> list[int] | None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("synthetic")
    folders = {layout: root / layout for layout in ARGUMENTS}
    for layout, folder in folders.items():
        assert run(layout, folder) == 0
    return folders


def test_same_arguments_give_same_bytes_with_any_number_of_workers(
    made: dict[str, Path], tmp_path: Path
) -> None:
    assert run("sunseg", tmp_path / "again", "--workers", "2") == 0
    assert digest(tmp_path / "again") == digest(made["sunseg"])


def test_another_seed_gives_other_pictures(made: dict[str, Path], tmp_path: Path) -> None:
    assert run("buv", tmp_path / "other", "--seed", "1") == 0
    first, second = (sorted(p.rglob("000000.png"))[0] for p in (made["buv"], tmp_path / "other"))
    assert not np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))


def test_sunseg_layout_is_complete(made: dict[str, Path]) -> None:
    root = made["sunseg"]
    groups = ["TrainDataset"] + [
        f"Test{kind}Dataset/{group}" for kind in ("Easy", "Hard") for group in ("Seen", "Unseen")
    ]
    for group in groups:
        document = json.loads((root / group / "Detection/bbox_annotation.json").read_text())
        rows = (root / group / "Classification/classification.txt").read_text().splitlines()
        assert set(document) == {"info", "images", "annotation"}
        identities = [image["id"] for image in document["images"]]
        assert len(set(identities)) == len(identities) == len(rows)
        for image in document["images"]:
            folder = root / group / "Frame" / image["case_name"]
            assert (folder / f"{image['file_name']}.jpg").is_file()
            assert (
                root / group / "GT" / image["case_name"] / f"{image['file_name']}.png"
            ).is_file()
            case, acquisition, number = image["id"].rsplit("-", 2)
            assert case == image["case_name"]
            assert f"_{acquisition}_ayy_{number}" in image["file_name"]
    assert len(list((root / "SUN-Negative").glob("case*/*.jpg"))) == 12


def test_seen_clips_share_their_case_with_training_and_unseen_ones_do_not(
    made: dict[str, Path],
) -> None:
    cases = defaultdict(set)
    for frame in frames_of(made["sunseg"]):
        cases[frame["split"]].add(frame["clip"].split("_")[0])
    for kind in ("Easy", "Hard"):
        assert cases[f"Test{kind}Dataset/Seen"] <= cases["TrainDataset"]
        assert not cases[f"Test{kind}Dataset/Unseen"] & cases["TrainDataset"]


def test_boxes_are_the_extents_of_the_masks(made: dict[str, Path]) -> None:
    root = made["sunseg"]
    listed = {}
    for path in root.rglob("bbox_annotation.json"):
        document = json.loads(path.read_text())
        boxes = {row["id"]: row["bbox"] for row in document["annotation"]}
        for image in document["images"]:
            listed[image["file_name"]] = boxes.get(image["id"])
    checked = 0
    for path in root.rglob("GT/*/*.png"):
        box = extent(np.asarray(Image.open(path)) > 127)
        expected = None if box is None else [*box[:2], box[2] - box[0], box[3] - box[1]]
        assert listed[path.stem] == expected
        checked += box is not None
    assert checked > 50


def test_sun_layout_is_complete(made: dict[str, Path]) -> None:
    root = made["sun"]
    texts = sorted((root / "sundatabase_positive_part1" / "annotation_txt").glob("case*.txt"))
    assert [path.stem for path in texts] == ["case1", "case2", "case3", "case4", "case5"]
    for path in texts:
        (folder,) = root.glob(f"sundatabase_positive_part[12]/{path.stem}")
        rows = [line.split(" ") for line in path.read_text().splitlines()]
        assert {name for name, _ in rows} == {p.name for p in folder.glob("*.jpg")}
        for _, values in rows:
            x0, y0, x1, y1, label = map(int, values.split(","))
            assert label in (0, 1)
            assert label == 1 or (0 <= x0 < x1 <= 80 and 0 <= y0 < y1 <= 60)
    negatives = list(root.glob("sundatabase_negative_part[1-4]/case*/*.jpg"))
    assert len(negatives) == 40


def test_cuts_break_a_clip_and_plain_sorting_breaks_their_order(made: dict[str, Path]) -> None:
    shots: dict[str, list[int]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    for frame in frames_of(made["sun"]):
        if frame["split"] == "positive":
            shots[frame["clip"]].append(frame["shot"])
            names[frame["clip"]].append(frame["file"])
    assert all(len(set(clip)) > 1 for clip in shots.values())
    assert any(sorted(clip) != clip for clip in names.values())


def test_buv_layout_is_complete(made: dict[str, Path]) -> None:
    root = made["buv"]
    frames_listed = {}
    for split, name in (("train", "imagenet_vid_train_15frames"), ("val", "imagenet_vid_val")):
        document = json.loads((root / f"{name}.json").read_text())
        assert [c["name"] for c in document["categories"]] == ["benign", "malignant"]
        per_video = defaultdict(int)
        for image in document["images"]:
            path = root / "rawframes" / image["file_name"]
            assert path.is_file()
            assert image["frame_id"] == int(path.stem)
            per_video[image["video_id"]] += 1
        assert set(per_video.values()) == {15 if split == "train" else 18}
        assert {a["image_id"] for a in document["annotations"]} == {
            image["id"] for image in document["images"]
        }
        frames_listed[split] = len(per_video)
        names = {video["id"]: video["name"] for video in document["videos"]}
        for annotation in document["annotations"]:
            label = names[annotation["video_id"]].split("/")[0]
            assert annotation["category_id"] == {"benign": 1, "malignant": 2}[label]
    assert frames_listed == {"train": 5, "val": 3}


def test_defects_reproduce_the_known_faults(tmp_path: Path) -> None:
    few = ["--size", "64x48", "--workers", "1", "--train-clips", "2", "--defects"]
    buv, seg = tmp_path / "buv", tmp_path / "seg"
    few_buv = [*few, "--test-easy-clips", "1", "--frames-per-clip", "2"]
    assert make_synthetic.main(["--layout", "buv", "--output", str(buv), *few_buv]) == 0
    document = json.loads((buv / "imagenet_vid_train_15frames.json").read_text())
    boxes = np.array([a["bbox"] for a in document["annotations"]])
    assert (boxes[:, 2] < 0).any()
    assert (boxes[:, 0] < 0).any()
    one = buv / "rawframes/benign/x66ef02e7f1b9a0ef/000001.png"
    assert (
        one.read_bytes() == (buv / "rawframes/malignant/x3b88488853e8b7d1/000001.png").read_bytes()
    )

    few_seg = [*few, "--test-easy-clips", "0", "--test-hard-clips", "0", "--negative-clips", "0"]
    assert make_synthetic.main(["--layout", "sunseg", "--output", str(seg), *few_seg]) == 0
    frames = {Path(f["file"]).stem: f["box"] for f in frames_of(seg)}
    document = json.loads((seg / "TrainDataset/Detection/bbox_annotation.json").read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    for row in document["annotation"]:
        assert row["bbox"][:2] == frames[names[row["id"]]][1::-1]
    assert "\0" in (seg / "TrainDataset/Classification/classification.txt").read_text()


def test_tracks_move_as_real_lesions_do() -> None:
    one, five = [], []
    for seed in range(400):
        centre = random_track(np.random.default_rng(seed), 24, margin=0.25).centre
        one.append(np.hypot(*np.diff(centre, axis=0).T))
        five.append(np.hypot(*(centre[5:] - centre[:-5]).T))
    # The target's own share of the motion is 0.82; zoom, roll and outline add the rest.
    shift = np.percentile(np.concatenate(one), [25, 50, 75, 90])
    np.testing.assert_allclose(shift, 0.82 * REAL_SHIFT, rtol=0.15)
    shift_5 = np.percentile(np.concatenate(five), [25, 50, 75])
    np.testing.assert_allclose(shift_5, 0.87 * REAL_SHIFT_5, rtol=0.15)


def test_rendered_boxes_move_as_real_lesions_do() -> None:
    shifts = []
    for seed in range(50):
        spec = ClipSpec("breast", (128, 96), (seed, 0), (seed, 1), (9,))
        boxes = np.array([frame.box for frame in render_clip(spec)], float)
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / np.array([128, 96])
        shifts.append(np.hypot(*np.diff(centre, axis=0).T))
    median, late = np.percentile(np.concatenate(shifts), [50, 90])
    assert median == pytest.approx(REAL_SHIFT[1], rel=0.30)
    assert late == pytest.approx(REAL_SHIFT[3], rel=0.30)


def test_a_track_that_leaves_starts_or_ends_outside() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        centre = leave_view(rng, random_track(rng, 8, margin=0.3)).centre
        outside = ((centre < 0) | (centre > 1)).any(axis=1)
        assert outside[0] or outside[-1]
        assert not outside.all()


def test_most_frames_show_their_lesion_and_about_a_third_is_spoiled(made: dict[str, Path]) -> None:
    frames = [f for f in frames_of(made["sunseg"]) if f["split"] == "TrainDataset"]
    with_box = [f for f in frames if f["box"]]
    assert len(with_box) >= 0.8 * len(frames)
    assert 0.1 <= np.mean([bool(f["event"]) for f in with_box]) <= 0.5
    sides = [max((b[2] - b[0]) / 80, (b[3] - b[1]) / 60) for b in (f["box"] for f in with_box)]
    assert 0.15 <= np.median(sides) <= 0.45


def test_difficulty_zero_spoils_nothing() -> None:
    spec = ClipSpec("colon", (64, 48), (5,), (6,), (4,), difficulty=0.0)
    frames = list(render_clip(spec))
    assert not any(frame.event or frame.decoy for frame in frames)


@pytest.mark.parametrize(
    ("style", "hiding", "weak"),
    [
        ("colon", degrade.COLON_EVENTS, degrade.COLON_WEAK_EVENTS),
        ("breast", degrade.BREAST_EVENTS, degrade.BREAST_WEAK_EVENTS),
    ],
)
def test_events_are_of_the_chosen_kind(style: str, hiding: dict, weak: dict) -> None:
    def seen(degradation: str) -> set[str]:
        shots = (40,) if style == "breast" else (24,)
        spec = ClipSpec(style, (48, 36), (1,), (2,), shots, difficulty=2.0, degradation=degradation)
        return {frame.event for frame in render_clip(spec)} - {""}

    assert seen("hide") and seen("hide") <= hiding.keys()
    assert seen("weaken") and seen("weaken") <= weak.keys()
    both = degrade.event_weights(hiding, weak, "both")
    assert both.keys() == hiding.keys() | weak.keys()
    assert sum(both.values()) == pytest.approx(1.0)
    assert sum(both[name] for name in weak) == pytest.approx(0.5)


def test_weak_evidence_looks_more_like_the_clear_frame_than_hidden_lesions_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def around_lesions(event: str) -> list[np.ndarray]:
        monkeypatch.setattr(clips, "_events", lambda _rng, count, *_: [event] * count)
        found = []
        for seed in range(10):
            (frame,) = render_clip(ClipSpec("colon", (96, 72), (seed, 0), (seed, 1), (1,)))
            x0, y0, x1, y1 = frame.box or (0, 0, 96, 72)
            grey = ndimage.gaussian_filter(frame.image.mean(-1), 1.0)
            found.append(grey[max(0, y0 - 4) : y1 + 4, max(0, x0 - 4) : x1 + 4].ravel())
        return found

    clear = around_lesions("")
    alike = {
        event: np.median(
            [np.corrcoef(*pair)[0, 1] for pair in zip(clear, around_lesions(event), strict=True)]
        )
        for event in (*degrade.COLON_WEAK_EVENTS, "debris", "glare", "instrument")
    }
    weak = [alike[event] for event in degrade.COLON_WEAK_EVENTS]
    hidden = [alike[event] for event in ("debris", "glare", "instrument")]
    assert min(weak) > max(hidden) + 0.1, alike


def test_what_was_made_before_there_was_a_choice_is_still_found(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "old"
    shutil.copytree(made["buv"], copy)
    record = json.loads((copy / "generator.json").read_text())
    del record["arguments"]["degradation"]
    (copy / "generator.json").write_text(json.dumps(record))
    assert run("buv", copy) == 0
    assert "already made" in capsys.readouterr().out
    assert run("buv", copy, "--degradation", "weaken") == 2
    assert "degradation hide -> weaken" in capsys.readouterr().err


def test_lesion_free_clips_have_no_mask(made: dict[str, Path]) -> None:
    negative = [f for f in frames_of(made["sunseg"]) if f["split"] == "negative"]
    assert len(negative) == 12
    assert not any(frame["box"] for frame in negative)


def test_a_lesion_stands_out_from_its_surroundings() -> None:
    contrast = []
    for seed in range(12):
        spec = ClipSpec("colon", (96, 72), (seed, 0), (seed, 1), (1,), difficulty=0.0)
        (frame,) = render_clip(spec)
        x0, y0, x1, y1 = frame.box or (0, 0, 1, 1)
        around = np.zeros_like(frame.mask)
        around[max(0, y0 - 4) : y1 + 4, max(0, x0 - 4) : x1 + 4] = True
        pixels = frame.image.astype(float)
        inside, outside = pixels[frame.mask], pixels[around & ~frame.mask]
        contrast.append(np.abs(inside.mean(0) - outside.mean(0)).max())
    assert np.median(contrast) > 20


def test_second_run_returns_at_once(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_synthetic, "render_all", None)
    assert run("sun", made["sun"]) == 0
    assert "already made" in capsys.readouterr().out


def test_other_arguments_are_refused_until_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "data"
    tiny = ["--layout", "buv", "--output", str(output), "--size", "32x32", "--workers", "1"]
    tiny += ["--train-clips", "1", "--test-easy-clips", "1", "--frames-per-clip"]
    assert make_synthetic.main([*tiny, "1"]) == 0
    assert make_synthetic.main([*tiny, "2"]) == 2
    assert "frames_per_clip 1 -> 2" in capsys.readouterr().err
    assert make_synthetic.main([*tiny, "2", "--overwrite"]) == 0
    assert len(frames_of(output)) == 4


def test_output_that_cannot_be_made_is_named_before_rendering(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_synthetic, "plan", lambda options: pytest.fail("it began to work"))
    (tmp_path / "file").write_text("in the way")
    output = tmp_path / "file" / "data"
    assert make_synthetic.main(["--layout", "buv", "--output", str(output)]) == 2
    assert f"--output {output}: {tmp_path / 'file'} is no folder" in capsys.readouterr().err


def test_a_full_disk_is_reported_with_the_file(tmp_path: Path) -> None:
    class Full(Image.Image):
        def save(self, *arguments: object, **settings: object) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError) as caught:
        make_synthetic.save(Full(), tmp_path / "frame.png")
    assert caught.value.filename == str(tmp_path / "frame.png")


def test_a_foreign_folder_is_never_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert run("buv", tmp_path, "--overwrite") == 2
    assert "was not made by this program" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_an_interrupted_run_is_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "data"
    tiny = ["--layout", "buv", "--output", str(output), "--size", "32x32", "--workers", "1"]
    tiny += ["--train-clips", "2", "--test-easy-clips", "1", "--frames-per-clip", "1"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make_synthetic, "annotate", stop)
        with pytest.raises(KeyboardInterrupt):
            make_synthetic.main(tiny)
    assert not output.exists()
    assert make_synthetic.main(tiny) == 0
    assert len(frames_of(output)) == 3
    assert not (tmp_path / "data.incomplete").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "buv", "--negative-clips", "2"], "--negative-clips"),
        (["--layout", "sun", "--test-hard-clips", "2"], "--test-hard-clips"),
        (["--layout", "sunseg", "--size", "large"], "--size large"),
        (["--layout", "sunseg", "--size", "8x8"], "at least 32"),
        (["--layout", "sunseg", "--train-clips", "-1"], "--train-clips -1"),
        (["--layout", "sunseg", "--frames-per-clip", "0"], "--frames-per-clip 0"),
        (["--layout", "sunseg", "--difficulty", "-1"], "--difficulty -1"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_synthetic.main([*arguments, "--output", str(tmp_path / "data")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
