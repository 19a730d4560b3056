"""An exported file has a card beside it that says what is known, and what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.runtime.tiny_models import tiny_info
from v2idetr.checkpoints.files import sha256
from v2idetr.deploy.model_card import as_markdown, model_card

CARD = {
    "stage": "student",
    "training_data": "data/train.json",
    "validation": {},
    "tests": {},
    "intended_use": "research; not a medical device, not for diagnosis or treatment",
}
COST = {
    "parameters": 4233839,
    "flops": 418_607_360,
    "frames_per_second": 34.6,
    "input_height": 96,
    "input_width": 128,
    "machine": "a CPU",
}


def split(f1: float) -> dict[str, Any]:
    rule = {"threshold": 0.4, "precision": 0.5, "recall": 1.0, "f1": f1, "f1_interval": [0.1, 0.9]}
    return {
        "frames": 20,
        "lesions": 12,
        "coco": {"AP": 0.25, "AP50": 0.5},
        "rules": {"iou50": rule},
    }


def evaluation() -> dict[str, Any]:
    return {
        "thresholds": {"iou50": 0.4},
        "val": split(0.7),
        "tests": {"easy": split(0.6)},
        "cost": COST,
    }


def card(folder: Path, evaluation: dict[str, Any] | None = None, **changes: Any) -> str:
    path = folder / "student.onnx"
    path.write_bytes(b"weights")
    info = tiny_info(card=CARD, parity={"score": 1e-6, "box": 2e-6})
    return model_card(replace(info, **changes), [path], evaluation)


def rows(text: str) -> list[list[str]]:
    """Cells of all rows of tables, as a reader sees them."""
    found: list[list[str]] = []
    before = ""
    for token in MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2]):
        if token.type == "tr_open":
            found.append([])
        elif token.type == "inline" and before in ("th_open", "td_open"):
            found[-1].append("".join(child.content for child in token.children or []))
        before = token.type
    return found


def test_the_card_has_the_metrics_of_every_split_with_the_threshold(tmp_path: Path) -> None:
    table = [row for row in rows(card(tmp_path, evaluation())) if len(row) == 10]
    last = ["20", "12", "25.0", "50.0", "iou50", "0.400", "50.0", "100.0"]
    assert table[1:] == [
        ["validation", *last, "70.0 (10.0 to 90.0)"],
        ["easy", *last, "60.0 (10.0 to 90.0)"],
    ]


def test_front_matter_is_yaml_with_the_results_of_test_splits_alone(tmp_path: Path) -> None:
    front = yaml.safe_load(card(tmp_path, evaluation()).split("---\n", 2)[1])
    assert front["license"] == "unknown" and front["pipeline_tag"] == "object-detection"
    (results,) = front["model-index"][0]["results"]
    assert results["dataset"]["name"] == "easy"
    assert {m["type"]: m["value"] for m in results["metrics"]}["F1 iou50"] == 0.6
    assert "model-index" not in card(tmp_path, evaluation() | {"tests": {}})


def test_a_split_without_lesions_has_no_metrics(tmp_path: Path) -> None:
    found = evaluation()
    negative = split(0.0) | {"lesions": 0, "coco": {"AP": None, "AP50": None}}
    found["tests"] = {"easy": split(0.6), "negative": negative}
    text = card(tmp_path, found)
    (row,) = [row for row in rows(text) if row[0] == "negative"]
    assert row[1:3] == ["20", "0"] and set(row[3:-1]) == {"-"} and "false alarms" in row[-1]
    (model,) = yaml.safe_load(text.split("---\n")[1])["model-index"]
    assert [result["dataset"]["name"] for result in model["results"]] == ["easy"]


def test_files_are_named_with_the_checksums_that_sha256sum_prints(tmp_path: Path) -> None:
    table = rows(card(tmp_path))
    assert ["file", f"student.onnx, 0.0 MiB, SHA-256 {sha256(tmp_path / 'student.onnx')}"] in table
    assert ["weights", f"best.pth, SHA-256 {'0' * 64}"] in table


def test_what_is_not_known_is_said_to_be_unknown(tmp_path: Path) -> None:
    text = card(
        tmp_path,
        score_threshold=None,
        threshold_source="unknown: none",
        parity={"score": 0.0, "box": 0.0},
    )
    assert "no evaluation of these weights" in text
    assert ["score threshold", "unknown: none"] in rows(text)
    bare = {"thresholds": {"iou50": 0.4}, "val": {"coco": None, "rules": {"iou50": {"f1": 0.5}}}}
    (row,) = [r for r in rows(card(tmp_path, bare)) if r[0] == "validation"]
    assert row == ["validation", *["unknown"] * 4, "iou50", "0.400", "unknown", "unknown", "50.0"]
    assert "No test split was evaluated" in card(tmp_path, bare)


def test_int8_is_compared_with_float32(tmp_path: Path) -> None:
    both = {
        "validation_fp32": {"AP50": 0.5, "F1 iou50": 0.6},
        "validation_int8": {"AP50": 0.25, "F1 iou50": 0.75},
    }
    table = rows(card(tmp_path, card=CARD | both))
    assert table[table.index(["", "float32", "INT8"]) + 1 :][:2] == [
        ["AP50", "50.0", "25.0"],
        ["F1 iou50", "60.0", "75.0"],
    ]


HOSTILE = "a|b <img src=x onerror=alert(1)> [me](https://evil.example) `c` **d**\n# e @all www.f"


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": [HOSTILE]},
        {"checkpoint": HOSTILE},
        {"threshold_source": HOSTILE},
        {"versions": {HOSTILE: HOSTILE}},
        {"card": CARD | {"training_data": HOSTILE, "stage": HOSTILE}},
    ],
)
def test_texts_of_a_config_are_text_in_the_card(tmp_path: Path, changes: dict[str, Any]) -> None:
    text = card(tmp_path, evaluation(), **changes)
    tokens = MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2])
    parts = [c for token in tokens for c in token.children or []]
    kinds = {part.type for part in [*tokens, *parts]}
    assert not {"html_inline", "html_block", "image"} & kinds
    links = [part.attrs["href"] for part in parts if part.type == "link_open"]
    assert links == ["https://arxiv.org/abs/2408.14051"]
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert "e" not in "".join(h for h in headings if h.startswith("e "))
    assert len(headings) == 7
    assert HOSTILE.replace("\n", " ") in " ".join(
        "".join(c.content for c in token.children or []) for token in tokens
    )


def test_names_of_splits_and_files_are_text_in_the_card(tmp_path: Path) -> None:
    content = evaluation()
    content["tests"] = {"x: [1]\n---\n# y": split(0.5)}
    front = yaml.safe_load(card(tmp_path, content).split("---\n", 2)[1])
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "x: [1] --- # y"


def test_every_special_character_is_escaped_and_control_characters_go() -> None:
    assert as_markdown("a_b|c") == "a\\_b\\|c"
    assert as_markdown("a\nb\u202ec\x00") == "a b c "
    assert as_markdown(None) == "unknown"
