"""Lines of metrics.jsonl -> charts over training steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from v2idetr.report.charts import Chart, Series
from v2idetr.report.heldout import pictured_rule
from v2idetr.runs.reading import RunFiles, StageFiles

TAUGHT = {
    "loss_tfd": "features (TFD)",
    "loss_fd": "features (FD)",
    "loss_ed": "embeddings (ED)",
    "loss_cqd": "queries (CQD)",
    "loss_qd": "queries (QD)",
}

Point = tuple[float, float]


def charts(run: RunFiles) -> list[Chart]:
    """All charts that the run has numbers for."""
    found = [_validation(run, "AP50", "Validation AP50")]
    rules = run.settings["evaluation"]["rules"]
    for rule in [name for name in rules if name == pictured_rule(rules)]:
        found.append(_validation(run, f"{rule}/f1", f"Validation F1, {rule}"))
    found.append(
        Chart(
            "Detection loss",
            "Classification, L1 and GIoU, all layers, without what the teacher adds. Logarithmic.",
            [
                Series(stage.name, stage.title, _points(stage.steps, detection_loss))
                for stage in run.stages.values()
            ],
            log=True,
        )
    )
    found.append(_taught(run))
    return [chart for chart in found if any(series.points for series in chart.series)]


def taught(settings: Mapping[str, Any]) -> list[str]:
    """What the student imitates, by the run's config."""
    losses = settings.get("distillation") or {}
    return [title for name, title in TAUGHT.items() if losses.get(name.removeprefix("loss_"))]


def detection_loss(line: dict[str, Any]) -> float | None:
    """The total loss of a line without the distillation terms, so that all stages compare."""
    total = line.get("total_loss")
    if total is None:
        return None
    return total - sum(line.get(name) or 0.0 for name in TAUGHT)


def best_validation(stage: StageFiles, metric: str) -> Point | None:
    """Step and value of the highest validation figure; the last of equal ones, as best.pth is."""
    points = _points(stage.validations, lambda line: line.get(f"val/{metric}"))
    return max(points, key=lambda point: (point[1], point[0])) if points else None


def _validation(run: RunFiles, metric: str, title: str) -> Chart:
    kept = metric == run.settings["train"]["best_metric"]
    series = []
    for stage in run.stages.values():
        points = _points(stage.validations, lambda line: line.get(f"val/{metric}"))
        best = best_validation(stage, metric) if kept else None
        mark = (*best, f"{stage.title}: best weights, step {best[0]}") if best else None
        series.append(Series(stage.name, stage.title, points, mark=mark))
    if metric.endswith("/f1"):
        note = "At the threshold that is best at each moment."
    else:
        note = "Higher is better, 1 is perfect."
    if kept:
        note += " Ring: the best weights."
    values = [y for line in series for _, y in line.points]
    return Chart(title, note, series, dots=True, y_range=(0.0, max([0.1, *values])))


def _taught(run: RunFiles) -> Chart:
    steps = run.stages["student"].steps if "student" in run.stages else []
    series = [
        Series(name, title, _points(steps, lambda line, name=name: line.get(name)))
        for name, title in TAUGHT.items()
    ]
    series = [line for line in series if line.points]
    note = "How far the V2I student is from its teacher, weighted. Logarithmic."
    return Chart("Distillation losses", note, series, log=True)


def _points(
    lines: list[dict[str, Any]], read: Callable[[dict[str, Any]], float | None]
) -> list[Point]:
    values = ((float(line["iteration"]), read(line)) for line in lines)
    return [(step, float(value)) for step, value in values if value is not None]
