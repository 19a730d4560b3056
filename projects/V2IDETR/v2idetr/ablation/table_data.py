"""The content of a table as one JSON-able mapping, the source of its text and plot.

table, heading, dataset, student, seeds, unit, ...
blocks    the pooled test splits, then each of them, with their sizes
metrics   in the order of the columns
rows      name, number ("" for all if any has none), title, switches, run; metrics and
          difference by block and metric; paired: difference of F1 on all test videos with its
          95 % interval, by rule; to_control: difference to the control, in Tables III and IV;
          in the table of controls, cost by seed (including the teacher's) and curve (steps and
          best_metric on validation); in Tables I and II, detection: what a detection costs
teachers  the same for the teachers of these rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from v2idetr.ablation.aggregation import (
    COCO,
    PER_RULE,
    Metrics,
    VideoCounts,
    metrics_of,
    paired_f1,
    read_result,
    spread,
    video_counts,
)
from v2idetr.ablation.run_records import check_data, commits_of
from v2idetr.ablation.runs import Plan, Run
from v2idetr.ablation.tables import COMPARISONS, CONTROL, CONTROLS, WITH_CONTROL, Row, Table
from v2idetr.config.yaml_text import parse_yaml
from v2idetr.evaluation.table import ALL_TESTS
from v2idetr.runs.training_log import TrainingCost

PAPER = Path("ablations", "paper.yaml")  # relative to the folder of configs
SWITCHES = ("TFD", "MSI", "CQD")
MOST_NAMED = 6  # rows in the title of a teacher


def build_content(
    table: Table, plan: Plan, seeds: Sequence[int], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of a table from the finished runs of its folder.

    Args:
        table: the table.
        plan: plan of the folder.
        seeds: seeds that are looked for.
        facts: further entries, such as the command; "data" is `data_fingerprint` by split.

    Raises:
        ValueError: runs used different data.
    """
    settings = plan.settings
    runs = plan.runs(table.rows, seeds)
    check_data(runs, facts["data"])
    rows, teachers = _rows(table, plan, seeds), _teachers(table, plan, seeds)
    sizes: dict[str, dict[str, int]] = {}
    for line in (*rows, *teachers):
        _add_sizes(sizes, line.results.sizes)
    blocks = sorted(sizes, key=lambda title: not title.startswith(ALL_TESTS))
    paper = _paper(settings.configs, table.key)
    metrics = _metrics(plan.config(table.rows[0]), paper, everything=table.key in COMPARISONS)
    known = {row.key: line.results for row, line in zip(table.rows, rows, strict=True)}
    control = known.get(CONTROL) or _control(table, plan, seeds)
    if control is not None and not control.metrics:
        control = None

    def described(lines: Sequence[_Line]) -> list[dict[str, Any]]:
        found = []
        for line in lines:
            entry = line.words | _compared(line.results, known.get(line.reference), blocks, metrics)
            if control is not None:
                entry["to_control"] = _difference(line.results, control, blocks, metrics)
            found.append(entry)
        return found

    return {
        "table": table.label,
        "key": table.key,
        "heading": table.heading,
        "axes": list(table.axes),
        "dataset": settings.dataset,
        "student": settings.student,
        "overrides": list(settings.overrides),
        **facts,
        "commits": commits_of(runs),
        "unit": "percent",
        "seeds": list(seeds),
        "blocks": [{"title": title, **sizes[title]} for title in blocks],
        "metrics": metrics,
        "best_metric": plan.config(table.rows[0])["train"]["best_metric"],
        "headline": [m for m in metrics if m == "AP50"] + [m for m in metrics if "/f1" in m][:1],
        "rows": described(rows),
        "teachers": described(teachers),
        "paper": paper,
    }


@dataclass(frozen=True)
class _Results:
    """Results of one row by seed, and sizes by block.

    Attributes:
        costs, curves: of training, for controls only.
        detections: costs of detection, for Tables I and II only.
    """

    metrics: dict[int, Metrics]
    sizes: dict[str, dict[str, int]]
    videos: dict[int, VideoCounts]
    costs: dict[int, TrainingCost]
    curves: dict[int, list[tuple[int, float]]]
    detections: dict[int, dict[str, Any]]


@dataclass(frozen=True)
class _Line:
    """A row or teacher: its descriptive entries, its results, the key of its reference row."""

    words: dict[str, Any]
    results: _Results
    reference: str


def _results(runs: Sequence[Run], table: str = "") -> _Results:
    metrics: dict[int, Metrics] = {}
    sizes: dict[str, dict[str, int]] = {}
    videos: dict[int, VideoCounts] = {}
    costs: dict[int, TrainingCost] = {}
    curves: dict[int, list[tuple[int, float]]] = {}
    detections: dict[int, dict[str, Any]] = {}
    for run in runs:
        if run.finished:
            result = read_result(run.evaluation)
            metrics[run.seed], found = metrics_of(result)
            _add_sizes(sizes, found)
            videos[run.seed] = video_counts(result)
            if table == CONTROLS:
                costs[run.seed], curves[run.seed] = run.cost_with_teacher, run.curve
            if table in COMPARISONS:
                detections[run.seed] = {**result["cost"], "look_ahead": result["look_ahead"]}
    return _Results(metrics, sizes, videos, costs, curves, detections)


def _add_sizes(sizes: dict[str, dict[str, int]], found: Mapping[str, dict[str, int]]) -> None:
    """Add sizes of blocks; ValueError if a block is known with another size."""
    for title, size in found.items():
        known = sizes.setdefault(title, size)
        if known != size:
            raise ValueError(
                f"The runs of this table were evaluated on different data: {title} has {size} in "
                f"one, {known} in another. Use another --output."
            )


def _rows(table: Table, plan: Plan, seeds: Sequence[int]) -> list[_Line]:
    lines = []
    for row in table.rows:
        teacher = plan.first_taught_like(row)
        words = {
            "name": row.name,
            "number": table.numbers[row.name],
            "title": row.title,
            "switches": _switches(plan.config(row)),
            "run": plan.first_like(row).key,
            "teacher": None if teacher is None else teacher.key,
            "reference": row.reference.partition("/")[2],
        }
        runs = [plan.run(row, seed) for seed in seeds]
        results = _results(runs, table.key)
        lines.append(_Line(words, results, row.reference))
    return lines


def _control(table: Table, plan: Plan, seeds: Sequence[int]) -> _Results | None:
    """Results of the control in this folder, for tables that are compared with it; else None."""
    row = plan.rows.get(CONTROL)
    if table.key not in WITH_CONTROL or row is None:
        return None
    return _results([plan.run(row, seed) for seed in seeds])


def _switches(config: Mapping[str, Any]) -> dict[str, bool]:
    """Parts of the method that are on."""
    if "student" not in config["train"]["stages"]:
        return dict.fromkeys(SWITCHES, False)
    losses = config["distillation"]
    return {
        "TFD": losses.get("tfd") is not None,
        "MSI": config["teacher"]["model"]["net"]["fusion"] is not None,
        "CQD": losses.get("cqd") is not None,
    }


def _teachers(table: Table, plan: Plan, seeds: Sequence[int]) -> list[_Line]:
    """One line for each teacher of the table's rows."""
    taught: dict[str, list[Row]] = {}
    for row in table.rows:
        if (first := plan.first_taught_like(row)) is not None:
            taught.setdefault(first.key, []).append(row)
    lines = []
    for key, rows in taught.items():
        named = [table.numbers[row.name] or row.title for row in rows]
        words = {
            "run": key,
            "teaches": [row.name for row in rows],
            "title": _teacher_title(named, is_only=len(taught) == 1),
        }
        runs = [run for run in (plan.teacher(rows[0], seed) for seed in seeds) if run is not None]
        results = _results(runs, table.key)
        lines.append(_Line(words, results, rows[0].reference))
    return lines


def _teacher_title(rows: Sequence[str], *, is_only: bool) -> str:
    if is_only:
        return "teacher"
    return f"teacher of {', '.join(rows) if len(rows) <= MOST_NAMED else f'{len(rows)} rows'}"


def _compared(
    results: _Results, reference: _Results | None, blocks: Sequence[str], metrics: Sequence[str]
) -> dict[str, Any]:
    """Means and, with a reference, differences by seed."""
    spreads = {
        title: {m: spread(results.metrics, title, m).as_json() for m in metrics} for title in blocks
    }
    paired: dict[str, Any] = {}
    if reference is not None and reference is not results:
        rules = dict.fromkeys(metric.partition("/")[0] for metric in metrics if "/" in metric)
        paired = {rule: paired_f1(results.videos, reference.videos, rule) for rule in rules}
    return {
        "seeds": sorted(results.metrics),
        "metrics": spreads,
        "difference": _difference(results, reference, blocks, metrics),
        "paired": paired,
        "cost": {str(seed): asdict(cost) for seed, cost in sorted(results.costs.items())},
        "curve": {str(seed): curve for seed, curve in sorted(results.curves.items())},
        "detection": _detection(results.detections),
    }


def _detection(costs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Costs of a detection: counts, and the median speed of the seeds; {} without any."""
    if not costs:
        return {}
    last = costs[max(costs)]
    counts = ("parameters", "flops", "frames_per_detection", "look_ahead", "machine")
    speeds = [cost["frames_per_second"] for cost in costs.values()]
    return {key: last[key] for key in counts} | {"frames_per_second": median(speeds)}


def _difference(
    results: _Results, reference: _Results | None, blocks: Sequence[str], metrics: Sequence[str]
) -> dict[str, Any]:
    """Differences by block and metric, paired by seed; {} for the reference itself."""
    if reference is None or reference is results:
        return {}

    def less(title: str, metric: str) -> dict[str, Any]:
        theirs = spread(reference.metrics, title, metric)
        return spread(results.metrics, title, metric).minus(theirs).as_json()

    return {title: {metric: less(title, metric) for metric in metrics} for title in blocks}


def _metrics(
    config: Mapping[str, Any], paper: Mapping[str, Any] | None, *, everything: bool
) -> list[str]:
    """Metrics of the table; AP75 only for everything, or if the paper's table has it."""
    columns = [c for part in (paper or {}).get("parts", ()) for c in part["columns"]]
    shown = [m for m in COCO if everything or m != "AP75" or m in columns]
    evaluation = config["evaluation"]
    names = shown if evaluation["coco_ap"] else []
    return names + [f"{rule}/{name}" for rule in evaluation["rules"] for name in PER_RULE]


def _paper(configs: Path, key: str) -> dict[str, Any] | None:
    """The paper's numbers for a table; None if it has none."""
    path = configs / PAPER
    content = parse_yaml(path.read_text(encoding="utf-8")) if path.exists() else {}
    parts = content.get("tables", {}).get(key)
    return None if parts is None else {"source": content["source"], **parts}
