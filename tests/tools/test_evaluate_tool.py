"""tools/evaluate.py: its two files, its agreement with a run's evaluation, hostile input."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor

from tests.evaluation.labelled_videos import HEIGHT, LESION, WIDTH, Videos, write_videos
from tests.modeling.transformers_models import tiny_resnet
from v2idetr.data.coco_vid import read_split
from v2idetr.evaluation.evaluator import evaluate_predictions, write_evaluation
from v2idetr.evaluation.predictions import read_predictions, write_predictions
from v2idetr.report import deployment_page

RNG = np.random.default_rng(5)
HOSTILE = "<img src=x onerror=alert(1)>.jpg"
SCRIPT = "</script></svg><script>alert(2)</script>"


@pytest.fixture(autouse=True)
def one_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest; `two_detectors` is drawn before, with all charts."""
    draw = deployment_page.charts
    monkeypatch.setattr(deployment_page, "charts", lambda *results: draw(*results)[:1])


def random_videos(skill: float, videos: int = 4, frames: int = 12) -> Videos:
    """One lesion a video from its third frame on, found with this probability."""

    def frame(index: int) -> Any:
        found = [("hit", float(RNG.uniform(0.3, 0.9)))] * int(index > 2 and RNG.random() < skill)
        found += [("wrong", float(RNG.uniform(0.1, 0.6)))] * int(RNG.random() < 0.4)
        return index > 2, found

    return [[frame(index) for index in range(frames)] for _ in range(videos)]


def run(output: Path, *arguments: object) -> dict[str, Any]:
    """Content of the JSON of a successful run."""
    options = ["--resamples", "100", "--output", output]
    assert evaluate.main([str(a) for a in (*arguments, *options)]) == 0
    return json.loads((output / "deployment.json").read_text())


class Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def two_detectors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Page]:
    """Folder, JSON and page of two detectors with validation data, at 10 frames a second."""
    folder = tmp_path_factory.mktemp("two_detectors")
    files: dict[str, Path] = {}
    for name, skill in (("good", 0.9), ("bad", 0.4)):
        for split in ("test", "val"):
            truth, results = write_videos(folder, random_videos(skill), name=f"{split}")
            files[f"{name}_{split}"] = results.rename(folder / f"{name}_{split}.json")
            files[split] = truth
    for index, name in enumerate(sorted(p["file_name"] for p in images_of(files["test"]))):
        pixels = np.full((HEIGHT, WIDTH, 3), index, dtype=np.uint8)
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    content = run(
        folder / "out",
        *(files["good_test"], files["test"], "--against", files["bad_test"], "--fps", 10),
        *("--validation", files["good_val"], files["val"]),
        *("--against-validation", files["bad_val"], "--names", "good", "bad"),
    )
    return folder, content, Page(folder / "out" / "deployment.html")


def images_of(truth: Path) -> list[dict[str, Any]]:
    return json.loads(truth.read_text())["images"]


def test_written_predictions_give_the_metrics_of_the_runs_evaluation_again(tmp_path: Path) -> None:
    splits, files, arguments = {}, {}, []
    for name in ("val", "easy", "hard"):
        truth, results = write_videos(tmp_path, random_videos(0.7), name=name)
        content = json.loads(truth.read_text())
        for image in content["images"]:  # splits that share files would not be pooled
            image["file_name"] = f"{name}/{image['file_name']}"
            (tmp_path / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / image["file_name"]).write_bytes(b"0")
        truth.write_text(json.dumps(content))
        split = read_split(truth, tmp_path)
        splits[name] = (split, read_predictions(results, split))
        files[name] = tmp_path / f"predictions_{name}.json.gz"
        write_predictions(files[name], *splits[name])
        arguments += [files[name], truth] if name != "val" else []
    want = evaluate_predictions(
        val=splits.pop("val"), tests=splits, rules=["endovis_center", "iou50"], coco_ap=True
    )
    write_evaluation(tmp_path / "evaluation.json", want)
    validation = ("--validation", files["val"], tmp_path / "val.json")
    content = run(tmp_path / "out", *arguments, *validation)
    (detector,) = content["detectors"].values()
    assert detector["metrics"] == json.loads((tmp_path / "evaluation.json").read_text())
    pooled = want["all_tests"]
    assert detector["ap"]["AP"]["value"] == pooled["coco"]["AP"]
    for rule, metrics in pooled["rules"].items():
        ours = {key: detector["rules"][rule][key]["value"] for key in ("precision", "recall", "f1")}
        assert ours == {key: metrics[key] for key in ours}


def test_the_threshold_is_chosen_on_validation_data(two_detectors: Any) -> None:
    _, content, page = two_detectors
    assert content["chosen_on"] == "validation"
    for detector in content["detectors"].values():
        for rule, point in detector["operating_points"].items():
            best = detector["metrics"]["val"]["rules"][rule]
            assert (point["threshold"], point["reached"]) == (best["threshold"], best["f1"])
    assert "Thresholds were chosen on validation data: highest F1." in page.text


def test_tables_by_video_size_and_lesion_add_up(two_detectors: Any) -> None:
    _, content, _ = two_detectors
    for detector in content["detectors"].values():
        for rule, whole in detector["metrics"]["tests"]["test"]["rules"].items():
            rows = [row["rules"][rule] for row in detector["by_video"]]
            assert sum(row["tp"] for row in rows) == whole["tp"]
            assert sum(row["rules"][rule]["found"] for row in detector["by_size"]) == whole["tp"]
            minutes = sum(row["minutes"] for row in detector["by_video"])
            assert minutes == pytest.approx(4 * 12 / 10 / 60)
            a_minute = sum(row["false_alarms"] for row in rows) / minutes
            stated = detector["rules"][rule]["false_alarms_a_minute"]
            assert stated["value"] == pytest.approx(a_minute)
            assert stated["interval"][0] <= a_minute <= stated["interval"][1]
        assert len(detector["true_colon"]["lesion"]["records"]) == 4


def test_two_detectors_are_compared_on_the_same_videos(two_detectors: Any) -> None:
    _, content, page = two_detectors
    (comparison,) = content["comparison"]
    assert (comparison["ours"], comparison["theirs"]) == ("good", "bad")
    rows = {(row["metric"], row["rule"]): row for row in comparison["metrics"]}
    recall = rows["recall", "iou50"]
    assert recall["difference"] == recall["ours"] - recall["theirs"] > 0
    assert recall["exact"] and recall["p_value"] >= 0.125  # four videos
    assert rows["AP50", None]["p_value"] is None and rows["AP50", None]["interval"] is not None
    assert "permutation test" in page.text


def test_the_page_needs_nothing_from_outside(two_detectors: Any) -> None:
    _, _, page = two_detectors
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert links and all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert any(link.startswith("data:") for link in links)  # the worst frames
    titles = {"FROC", "AFROC", "Time to the first detection", "F1 over the score threshold"}
    labels = [value.partition(":")[0] for name, value in page.attributes if name == "aria-label"]
    assert titles <= set(labels)
    policy = [value for name, value in page.attributes if name == "content"]
    assert any("default-src 'none'" in value for value in policy)


def test_without_validation_data_the_page_says_loudly_where_the_threshold_is_from(
    tmp_path: Path,
) -> None:
    truth, results = write_videos(tmp_path, random_videos(0.8))
    content = run(tmp_path / "out", results, truth)
    assert content["chosen_on"] == "test"
    text = (tmp_path / "out" / "deployment.html").read_text()
    assert 'class="missing">The thresholds were chosen on the data that is evaluated here' in text
    fixed = run(tmp_path / "out", results, truth, "--threshold", 0.4)
    assert fixed["chosen_on"] == "fixed"
    (detector,) = fixed["detectors"].values()
    assert {p["threshold"] for p in detector["operating_points"].values()} == {0.4}
    text = (tmp_path / "out" / "deployment.html").read_text()
    assert "chosen on the data that is evaluated" not in text


def test_validation_frames_among_the_test_frames_are_said(tmp_path: Path) -> None:
    truth, results = write_videos(tmp_path, random_videos(0.8))
    content = run(tmp_path / "out", results, truth, "--validation", results, truth)
    assert "48 of 48 validation frames are test frames" in content["remarks"][0]


def test_frames_of_two_pooled_files_are_said_to_count_twice(tmp_path: Path) -> None:
    one = write_videos(tmp_path, random_videos(0.8), name="one")[::-1]
    other = write_videos(tmp_path, random_videos(0.8), name="other")[::-1]
    remarks = run(tmp_path / "out", *one, *other)["remarks"]
    assert "48 frames of one are frames of other, too, and count twice." in remarks


def test_what_is_undefined_is_said_with_its_reason(tmp_path: Path, capsys: Any) -> None:
    videos = [[(True, [("hit", 0.9)])] * 3, [(True, [("wrong", 0.8)])] * 3]
    truth, results = write_videos(tmp_path, videos, lesion_ids=False)
    run(tmp_path / "out", results, truth, "--threshold", 0.5)
    page = Page(tmp_path / "out" / "deployment.html")
    for text in (page.text, capsys.readouterr().out):
        assert "there are no lesion-free frames" in text
        assert "add instance_id" in text
        assert "unknown without the frame rate (--fps)" in text


def test_missing_frames_are_said_and_boxes_are_drawn_all_the_same(tmp_path: Path) -> None:
    truth, results = write_videos(tmp_path, random_videos(0.6))
    run(tmp_path / "out", results, truth, "--threshold", 0.3)
    page = Page(tmp_path / "out" / "deployment.html")
    assert "frames below cannot be shown; boxes are drawn without them" in page.text
    assert "no such file" in page.text
    assert ("class", "box b-d0") in page.attributes


def test_a_frame_outside_the_image_root_is_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)).save(secret)
    inside = tmp_path / "data"
    inside.mkdir()
    for name in ("../secret.png", str(secret)):
        truth, results = write_videos(inside, [[(True, [])]], file_name=name)
        run(tmp_path / "out", results, truth, "--threshold", 0.3)
        page = Page(tmp_path / "out" / "deployment.html")
        assert "is not below the image root" in page.text
        assert not any(value.startswith("data:") for _, value in page.attributes)


def test_texts_of_files_are_escaped(tmp_path: Path) -> None:
    truth, results = write_videos(
        tmp_path, random_videos(0.5), file_name="{video}_{frame}" + HOSTILE
    )
    content = json.loads(truth.read_text())
    for video in content["videos"]:
        video["name"] += SCRIPT
    for annotation in content["annotations"]:
        annotation["unique_id"] = f"{annotation['image_id'] // 12}{SCRIPT}"
    content["categories"][0]["name"] = SCRIPT
    hostile = tmp_path / f"{HOSTILE}.json"
    hostile.write_text(json.dumps(content))
    names = (f"$\\frac{SCRIPT}", f"_{HOSTILE}")
    run(
        tmp_path / "out",
        *(results, hostile, "--against", results, "--threshold", 0.3, "--names", *names),
    )
    page = Page(tmp_path / "out" / "deployment.html")
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in page.text and SCRIPT in page.text  # as they are, and as text
    assert page.tags.count("svg") == page_text(tmp_path).count("</svg>")


def page_text(folder: Path) -> str:
    return (folder / "out" / "deployment.html").read_text(encoding="utf-8")


def test_results_of_a_transformers_model_are_taken_as_they_are(tmp_path: Path) -> None:
    """Its ids of images, its scores, no file names; the ground truth is a plain COCO file."""
    torch.manual_seed(0)
    config = DetrConfig(
        backbone_config=tiny_resnet("stage4"),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        num_labels=2,
        num_queries=5,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    model = DetrForObjectDetection(config).eval()
    images, results = [], []
    for index in range(4):
        path = tmp_path / f"patient{index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
        images.append({"id": 100 + index, "file_name": str(path.relative_to(tmp_path))})
        images[-1] |= {"width": WIDTH, "height": HEIGHT}
        processor = DetrImageProcessor(size={"height": 64, "width": 64})
        with torch.no_grad():
            output = model(**processor(images=Image.open(path), return_tensors="pt"))
        (found,) = processor.post_process_object_detection(
            output, threshold=0.0, target_sizes=[(HEIGHT, WIDTH)]
        )
        for score, label, (x0, y0, x1, y1) in zip(
            *(found[key].tolist() for key in ("scores", "labels", "boxes")), strict=True
        ):
            entry = {"image_id": 100 + index, "category_id": label, "score": score}
            results.append(entry | {"bbox": [x0, y0, x1 - x0, y1 - y0]})
    truth = {
        "images": images,
        "annotations": [
            {"id": 1, "image_id": 100, "category_id": 1, "bbox": LESION, "iscrowd": 0, "area": 400}
        ],
        "categories": [{"id": 0, "name": "benign"}, {"id": 1, "name": "malignant"}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    content = run(tmp_path / "out", tmp_path / "results.json", tmp_path / "gt.json")
    (detector,) = content["detectors"].values()
    assert len(results) == 20 == detector["true_colon"]["n_preds"]
    assert content["class_names"] == ["benign", "malignant"]
    assert "2 videos, the folders of file_name" in " ".join(content["remarks"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "b", "c"], "c has no partner"),
        (["a", "b", "--against", "c", "d"], r"one file per ground truth \(1\), not 2"),
        (["a", "b", "--names", "x", "y"], "--names: needs 1"),
        (["a", "b", "--against", "c", "--validation", "v", "g"], "--against-validation: give it 1"),
        (["a", "b", "--against-validation", "v"], "needs --validation"),
        (["a", "b", "--threshold", "0.5", "--validation", "v", "g"], "leave one out"),
        (["a", "b", "--threshold", "0.5", "0.6"], "--threshold: needs one"),
        (["a", "b", "--resamples", "5"], "--resamples 5"),
        (["none.json", "gt.json"], "gt.json: does not exist"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: Any, capsys: Any, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([*arguments, "--output", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate: ") and re.search(said, error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--recall=1.5", "--alert-rate=0", "--fps=x", "--threshold=nan"])
def test_numbers_out_of_range_are_usage_errors(option: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate.parse(["a", "b", "--output", "out", option])
    assert stop.value.code == 2 and option.split("=")[0] in capsys.readouterr().err


def test_a_folder_with_other_files_is_not_written_into(tmp_path: Path, capsys: Any) -> None:
    truth, results = write_videos(tmp_path, [[(True, [])]])
    assert evaluate.main([str(results), str(truth), "--output", str(tmp_path)]) == 2
    assert "holds no deployment report" in capsys.readouterr().err


def test_names_come_from_the_part_of_the_paths_that_differs() -> None:
    files = [Path(f"/run/{stage}/predictions_easy.json.gz") for stage in ("teacher", "plain")]
    assert evaluate.detector_names(files) == ["teacher", "plain"]
    assert evaluate.detector_names(files[:1]) == ["teacher"]
    assert evaluate.detector_names([Path("/a/yolo.json"), Path("/a/detr.json")]) == ["yolo", "detr"]


def test_pairs_of_one_name_stay_apart() -> None:
    pairs = [Path("p.json"), Path("a/test.json"), Path("q.json"), Path("b/test.json")]
    assert evaluate.split_names(pairs) == ["test", "test_2"]
    assert evaluate.split_names([Path("predictions_easy.json.gz"), Path("x.json")]) == ["easy"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.slow
def test_the_page_runs_nothing_in_a_browser(tmp_path: Path) -> None:
    import subprocess

    truth, results = write_videos(
        tmp_path, random_videos(0.5), file_name="{video}_{frame}" + HOSTILE
    )
    run(tmp_path / "out", results, truth, "--threshold", 0.3, "--names", SCRIPT)
    page = tmp_path / "out" / "deployment.html"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<h1>" in done.stdout and "<script" not in done.stdout and "<img" not in done.stdout
