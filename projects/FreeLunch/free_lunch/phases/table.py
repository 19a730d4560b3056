"""Results of phase recognition as a text table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

SHOWN = {"accuracy": "acc", "precision": "P", "recall": "R", "jaccard": "J"}


def phase_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One block per test split, one row per model, a probe's k-NN below it; in percent.

    Args:
        results: results of phase stages by row name.
    """
    blocks = []
    for test in dict.fromkeys(name for result in results.values() for name in result["tests"]):
        rows = []
        for name, result in results.items():
            rows.append(_row(name, result, result["tests"][test]))
            retrieval = result.get("retrieval", {}).get(test)
            if retrieval is not None:
                rows[-1]["retrieval\nof video"] = _percent(retrieval)
            if "knn" in result:
                label = f"{name}, {result['knn']['k']}-NN"
                rows.append(_row(label, result, result["knn"]["tests"][test]))
        counts = next(iter(results.values()))["tests"][test]
        blocks.append(
            f"{test} (videos: {counts['videos']}, frames: {counts['frames']})\n"
            + tabulate(rows, headers="keys", disable_numparse=True, stralign="right")
        )
    note = (
        "Phases, in percent: accuracy by video, its mean and standard deviation over videos; "
        "precision, recall and Jaccard by video and phase. Relaxed: 10 s at boundaries. Retrieval: "
        "the nearest frame, 5 s away or of another video, is of the same video."
    )
    return "\n\n".join([*blocks, note])


def _row(name: str, result: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, str]:
    row = {"": name, "labelled\nvideos": str(result["labelled_videos"] or "-")}
    for kind in ("strict", "relaxed"):
        values = metrics[kind]
        spread = _percent(values["accuracy_std"])
        row[f"{kind}\nacc (std)"] = f"{_percent(values['accuracy'])} ({spread})"
        others = list(SHOWN)[1:]
        title = " / ".join(f"{SHOWN[key]:>4}" for key in others)
        row[f"{kind}\n{title}"] = " / ".join(_percent(values[key]) for key in others)
    return row


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
