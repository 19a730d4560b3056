"""Evaluation results as a text table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

MISSING = "-"
ALL_TESTS = "all tests"  # title of the pooled test splits
RESERVED = ("val", ALL_TESTS)  # names that a test split cannot have


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Compare models: one block per test split (and group of its videos), one row per model.

    AP, F1, precision and recall are in percent; AP is over all classes and IoU 0.50:0.95; cost is
    for one detection (a multiply-add is two operations). An undefined metric is "-". For splits
    without lesions, false alarms are counted: detections at or above the threshold.

    Args:
        results: results of ``evaluate`` by row name, such as the stage.
    """
    if not results:
        raise ValueError("format_table: there is no result to show.")
    blocks = []
    for title in block_names(list(results.values())):
        shown = {row: block(result, title) for row, result in results.items()}
        present = {row: metrics for row, metrics in shown.items() if metrics is not None}
        rows = [_row(name, metrics, results[name]) for name, metrics in present.items()]
        size = next(iter(present.values()))
        blocks.append(
            f"{title} (videos: {size['videos']}, frames: {size['frames']}, of them lesion-free: "
            f"{size['lesion_free_frames']}, lesions: {size['lesions']})\n"
            + tabulate(rows, headers="keys", disable_numparse=True, stralign="right")
        )
    return "\n\n".join([*blocks, _footnote(results)])


def block_names(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Titles of the test splits, each followed by its groups of videos, and of all pooled."""
    names = []
    for result in results:
        splits = {**result["tests"], ALL_TESTS: result["all_tests"]}
        if not result["tests"]:
            splits = {"val": result["val"]}
        for split, metrics in splits.items():
            if metrics is not None:
                groups = metrics["groups"] if len(metrics["groups"]) > 1 else ()
                names += [split, *(_group_title(split, group) for group in groups)]
    return list(dict.fromkeys(names))


def block(result: Mapping[str, Any], title: str) -> Mapping[str, Any] | None:
    """The metrics of a result for a title of `block_names`; None if it has none."""
    splits = {**result["tests"], ALL_TESTS: result["all_tests"], "val": result["val"]}
    if title in splits:
        return splits[title]
    groups = {
        _group_title(split, group): found
        for split, metrics in splits.items()
        for group, found in (metrics or {"groups": {}})["groups"].items()
    }
    return groups.get(title)


def _group_title(split: str, group: str) -> str:
    return f"{split} / {group}"


def _row(name: str, metrics: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, str]:
    row = {"": name}
    if metrics["lesions"] == 0:
        for rule, counted in metrics["rules"].items():
            share = counted["fp"] / metrics["frames"]
            row[f"{rule}\nfalse alarms (a frame)"] = f"{counted['fp']} ({share:.2f})"
        return row | _cost(result)
    if metrics["coco"] is not None:
        row |= {key: _percent(metrics["coco"][key]) for key in ("AP50", "AP")}
    for rule, counted in metrics["rules"].items():
        shown = (f"{_percent(counted[key]):>5}" for key in ("f1", "precision", "recall"))
        row[f"{rule}\nF1 /    P /    R"] = " / ".join(shown)
    return row | _cost(result)


def _cost(result: Mapping[str, Any]) -> dict[str, str]:
    cost = result.get("cost")
    if cost is None:
        return {}
    return {
        "params\nM": f"{cost['parameters'] / 1e6:.1f}",
        "GFLOPs": f"{cost['flops'] / 1e9:.1f}",
        "FPS": f"{cost['frames_per_second']:.1f}",
    }


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _footnote(results: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["AP, F1, P, R in percent. Score thresholds, chosen on the validation split:"]
    for name, result in results.items():
        chosen = ", ".join(f"{rule} {value:.3f}" for rule, value in result["thresholds"].items())
        lines.append(f"  {name}: {chosen or 'none'}")
    machines = {r["cost"]["machine"] for r in results.values() if r.get("cost")}
    lines += [f"FPS at batch 1, files read and decoded beforehand: {m}" for m in sorted(machines)]
    if machines:
        lines.append("  timed one after the other; other load on the machine affects them")
    return "\n".join(lines)
