"""Charts of metrics.jsonl over training steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any

from v2i_runtime.image_files import natural_key
from v2idetr.plot_style import ACCENT, COLOURS, INK, SOFT
from v2idetr.report.charts import FURTHER, Chart, Line, Point
from v2idetr.report.heldout import shown_rule
from v2idetr.runs.reading import RunFiles, StageFiles

# The paper's distillation losses: title and colour.
LOSSES = {
    "tfd": ("features (TFD)", COLOURS["student"]),
    "fd": ("features (FD)", COLOURS["plain"]),
    "ed": ("embeddings (ED)", COLOURS["teacher"]),
    "cqd": ("queries (CQD)", ACCENT),
    "qd": ("queries (QD)", SOFT),
}

COSINE = "agreement/cosine_layer"  # in metrics.jsonl, of CQD
PALETTE = (*COLOURS.values(), ACCENT, SOFT, *FURTHER)  # of layers, and of stages without labels


def charts(run: RunFiles) -> list[Chart]:
    """All charts for which the run has data."""
    rules = run.settings["evaluation"]["rules"]
    found = [_validation(run, "AP50", "Validation AP50")]
    if rules:
        rule = shown_rule(rules)
        found.append(_validation(run, f"{rule}/f1", f"Validation F1, {rule}"))
    found += [_detection(run), _distillation(run), _agreement(run), _pretraining(run)]
    return [chart for chart in found if chart.drawable()]


def distillation_losses(settings: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Title and colour of the distillation losses of a config, by their name in metrics.jsonl."""
    section = settings.get("distillation") or {}
    names = [name for name in [*LOSSES, *section] if name != "frames" and section.get(name)]
    return {f"loss_{name}": LOSSES.get(name, (name, INK)) for name in names}


def best_validation(stage: StageFiles, metric: str) -> Point | None:
    """Step and value of the best validation metric; the last of equal ones, as for best.pth."""
    points = _points(stage.validations, f"val/{metric}")
    return max(points, key=lambda point: (point[1], point[0])) if points else None


def _validation(run: RunFiles, metric: str, title: str) -> Chart:
    kept = metric == run.settings["train"]["best_metric"]
    lines = [
        Line(
            stage.title,
            _colour(stage),
            _points(stage.validations, f"val/{metric}"),
            ring=best_validation(stage, metric) if kept else None,
        )
        for stage in run.stages.values()
    ]
    note = "Higher is better, 1 is perfect."
    if metric.endswith("/f1"):
        note = "At the best threshold of each step."
    return Chart(title, note + " Ring: the best checkpoint." * kept, lines)


def _detection(run: RunFiles) -> Chart:
    lines = [
        Line(
            stage.title,
            _colour(stage),
            _points(stage.steps, "total_loss", less=distillation_losses(run.settings)),
        )
        for stage in run.stages.values()
        if _has_labels(stage)
    ]
    note = "Classification, L1 and GIoU, all layers, without distillation losses. Logarithmic."
    return Chart("Detection loss", note, lines, log=True)


def _distillation(run: RunFiles) -> Chart:
    steps = run.stages["student"].steps if "student" in run.stages else []
    lines = [
        Line(title, colour, _points(steps, name))
        for name, (title, colour) in distillation_losses(run.settings).items()
    ]
    note = "Weighted losses between V2I student and teacher. Logarithmic."
    return Chart("Distillation losses", note, lines, log=True)


def _agreement(run: RunFiles) -> Chart:
    steps = run.stages["student"].steps if "student" in run.stages else []
    keys = {key for line in steps for key in line if key.startswith(COSINE)}
    lines = [
        Line(f"layer {key.removeprefix(COSINE)}", colour, _points(steps, key))
        for key, colour in zip(sorted(keys, key=natural_key), cycle(PALETTE), strict=False)
    ]
    note = "Cosine of V2I student's and teacher's queries after each decoder layer; 1 is equal."
    return Chart("Agreement with the teacher", note, lines, markers=False)


def _pretraining(run: RunFiles) -> Chart:
    stages = [stage for stage in run.stages.values() if not _has_labels(stage)]
    lines = [
        Line(stage.title, colour, _points(stage.steps, "total_loss"))
        for stage, colour in zip(stages, cycle(PALETTE), strict=False)
    ]
    return Chart(
        "Losses without labels", "Stages that train no detector. Logarithmic.", lines, log=True
    )


def _has_labels(stage: StageFiles) -> bool:
    return not stage.steps or stage.steps[-1].get("labelled_frames") != 0


def _colour(stage: StageFiles) -> str:
    return COLOURS.get(stage.name, ACCENT)  # a stage of the user's own


def _points(lines: list[dict[str, Any]], key: str, less: Iterable[str] = ()) -> list[Point]:
    """(step, value) of lines that have `key`, minus the values of the keys `less`."""
    return [
        (float(line["iteration"]), float(line[key] - sum(line.get(name) or 0.0 for name in less)))
        for line in lines
        if line.get(key) is not None
    ]
