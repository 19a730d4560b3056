"""Comparison of the evaluated stages: a table, and conclusions with their uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from v2idetr.evaluation.bootstrap import f1_difference
from v2idetr.evaluation.rule_names import RULE_TITLES
from v2idetr.runs.reading import TITLES

Evaluation = Mapping[str, Any]

RULES = {
    "iou50": f"{RULE_TITLES['iou50']} (IoU ≥ 0.5)",
    "endovis_center": f"{RULE_TITLES['endovis_center']} (EndoVis rule)",
}
PRECISIONS = {
    "AP50": "average precision at IoU 0.5",
    "AP": "average precision, mean over IoU 0.5 to 0.95",
}
COUNTED = (
    ("f1", "F1", "harmonic mean of the two below"),
    ("precision", "Precision", "share of detections that are correct"),
    ("recall", "Recall", "share of lesions that are found"),
)
LEARNED_AP50 = 0.05  # below it two models cannot be compared
SAME_SPEED = 0.2  # relative difference of two timings of one network


@dataclass(frozen=True)
class Cell:
    """A metric of one model: text, share of 1 for a bar, and whether it is the best."""

    text: str
    share: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One metric of all models; ``difference`` is V2I student minus plain student."""

    name: str
    note: str
    cells: list[Cell]
    difference: str = ""


@dataclass(frozen=True)
class Section:
    """Rows of one kind."""

    title: str
    rows: list[Row]


@dataclass(frozen=True)
class Verdict:
    """The conclusion; ``tone`` is "better", "worse" or "open"."""

    tone: str
    headline: str
    sentences: list[str]


def held_out(evaluation: Evaluation) -> Mapping[str, Any]:
    """Metrics of the pooled test splits, else of the only one, else of the validation split."""
    tests = list(evaluation["tests"].values())
    return evaluation["all_tests"] or (tests[0] if tests else evaluation["val"])


def headline_table(evaluations: Mapping[str, Evaluation]) -> list[Section]:
    """Metrics on the held-out frames and costs, one column per stage in the given order."""
    return sections_of(
        {name: held_out(evaluation) for name, evaluation in evaluations.items()},
        costs={name: evaluation.get("cost") for name, evaluation in evaluations.items()},
    )


def sections_of(
    results: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Any] | None = None
) -> list[Section]:
    """The table of metrics by stage, with costs if given."""
    sections = []
    ranked = {stage: f["coco"] or {} for stage, f in results.items()}
    if any(ranked.values()):
        rows = [
            _percent_row(key, note, {stage: coco.get(key) for stage, coco in ranked.items()})
            for key, note in PRECISIONS.items()
        ]
        sections.append(Section("All detections, ranked by score (COCO)", rows))
    for rule in dict.fromkeys(rule for f in results.values() for rule in f["rules"]):
        counted = {stage: f["rules"].get(rule, {}) for stage, f in results.items()}
        rows = [
            _percent_row(name, note, {stage: c.get(key) for stage, c in counted.items()})
            for key, name, note in COUNTED
        ]
        sections.append(Section(RULES.get(rule) or rule, rows))
    if costs and any(costs.values()):
        sections.append(Section("Cost of one detection", _cost_rows(costs)))
    return sections


def verdict(evaluations: Mapping[str, Evaluation]) -> Verdict:
    """The conclusion about distillation that the run supports."""
    if not evaluations:
        return Verdict("open", "Nothing is evaluated yet", ["No stage has finished."])
    lesson = _teacher_sentence(evaluations)
    if not {"plain", "student"} <= evaluations.keys():
        missing = [TITLES[n] for n in ("plain", "student") if n not in evaluations]
        sentence = f"Not evaluated: {' and '.join(missing)}. The comparison needs both students."
        return Verdict("open", "The comparison is not complete", [sentence, *lesson])
    plain, student = held_out(evaluations["plain"]), held_out(evaluations["student"])
    sentences, signs, certain = [], [], []
    ours, theirs = ((one["coco"] or {}).get("AP50") for one in (student, plain))
    if ours is not None and theirs is not None:
        gain = _points(ours, theirs)
        signs.append(float(np.sign(gain)))
        sentences.append(
            f"AP50 is {_percent(ours)} for the V2I student and {_percent(theirs)} for the plain "
            f"student ({_signed(gain)} points), on {plain['frames']} held-out frames with "
            f"{plain['lesions']} lesions of {plain['videos']} videos."
        )
    for rule in (name for name in RULES if name in student["rules"] and name in plain["rules"]):
        paired = _f1_difference(student, plain, rule)
        if paired is None:
            continue
        gain, low, high = (round(100 * value, 1) for value in paired)
        signs.append(float(np.sign(gain)))
        certain.append(float(np.sign(low)) if np.sign(low) == np.sign(high) else 0.0)
        sentences.append(_f1_sentence(rule, gain, low, high))
    sentences += [*lesson, "One run with one seed: another seed can reverse a small difference."]
    if ours is not None and theirs is not None and max(ours, theirs) < LEARNED_AP50:
        return Verdict("open", "The students have hardly learned to detect", sentences)
    return Verdict(*_judgement(signs, certain), sentences)


def _f1_difference(
    ours: Evaluation, theirs: Evaluation, rule: str
) -> tuple[float, float, float] | None:
    """See `bootstrap.f1_difference`; also None if the videos differ."""
    counts = [
        {
            (row["split"], row["video_id"]): [row["rules"][rule][key] for key in ("tp", "fp", "fn")]
            for row in evaluation["per_video"]
        }
        for evaluation in (ours, theirs)
    ]
    if counts[0].keys() != counts[1].keys():
        return None
    return f1_difference(*([by_video[video] for video in counts[0]] for by_video in counts))


def _f1_sentence(rule: str, gain: float, low: float, high: float) -> str:
    name = {"iou50": "by overlap", "endovis_center": "by box centre"}.get(rule, rule)
    if low > 0 or high < 0:
        meaning = "more than the sampling of videos explains"
    else:
        meaning = "no significant difference on these videos"
    return (
        f"F1 {name}: {_signed(gain)} points (95\u00a0% interval over videos: {_signed(low)} to "
        f"{_signed(high)}), {meaning}."
    )


def _judgement(signs: Sequence[float], certain: Sequence[float]) -> tuple[str, str]:
    if not signs:
        return "open", "The metrics are undefined"
    if all(sign > 0 for sign in signs):
        if any(c > 0 for c in certain):
            return "better", "In this run, the V2I student is better than the plain student"
        return (
            "open",
            "In this run the V2I student is ahead of the plain student, but not significantly",
        )
    if all(sign <= 0 for sign in signs):
        if any(c < 0 for c in certain):
            return "worse", "In this run, the V2I student is worse than the plain student"
        return "open", "The V2I student is not better than the plain student here"
    if not any(certain):
        return "open", "In this run the two students do not differ significantly"
    return "open", "Mixed: the V2I student is ahead by one metric and behind by another"


def _teacher_sentence(evaluations: Mapping[str, Evaluation]) -> list[str]:
    if not {"teacher", "plain"} <= evaluations.keys():
        return []
    teacher, plain = (held_out(evaluations[name])["coco"] for name in ("teacher", "plain"))
    if not teacher or not plain or teacher["AP50"] is None or plain["AP50"] is None:
        return []
    gain = _points(teacher["AP50"], plain["AP50"])
    if gain <= 0:
        return [
            f"The teacher itself is not better than the plain student (AP50 {_signed(gain)} "
            "points), so the V2I student had little to gain from it."
        ]
    return [
        f"The teacher, which sees a clip, is {gain} points of AP50 above the plain student: the "
        "gain that was to be distilled."
    ]


def _percent_row(name: str, note: str, values: Mapping[str, float | None]) -> Row:
    shown = {stage: None if v is None else round(100 * v, 1) for stage, v in values.items()}
    known = [value for value in shown.values() if value is not None]
    cells = [
        Cell(_percent(value), value, len(set(known)) > 1 and shown[stage] == max(known))
        for stage, value in values.items()
    ]
    plain, student = values.get("plain"), values.get("student")
    if plain is None or student is None:
        return Row(name, note, cells)
    return Row(name, note, cells, _signed(_points(student, plain)))


def _cost_rows(costs: Mapping[str, Any]) -> list[Row]:
    known = next(cost for cost in costs.values() if cost)
    frames = _cost(costs, lambda c: float(c["frames_per_detection"]))
    size = f"{known['input_width']} × {known['input_height']} px"
    rows = [
        _cost_row("Input frames", "", frames, "{:.0f}", None),
        _cost_row(
            "Parameters", "millions", _cost(costs, lambda c: c["parameters"] / 1e6), "{:.2f}", min
        ),
        _cost_row("GFLOPs", f"at {size}", _cost(costs, lambda c: c["flops"] / 1e9), "{:.2f}", min),
        _cost_row(
            "Frames a second",
            "one at a time, decoded beforehand",
            _cost(costs, lambda c: c["frames_per_second"]),
            "{:.1f}",
            max,
            tolerance=SAME_SPEED,
        ),
    ]
    return rows


def _cost(costs: Mapping[str, Any], read: Any) -> dict[str, float | None]:
    return {name: read(cost) if cost else None for name, cost in costs.items()}


def _cost_row(
    name: str,
    note: str,
    values: Mapping[str, float | None],
    form: str,
    best: Callable[[list[float]], float] | None,
    tolerance: float = 0.0,
) -> Row:
    known = [value for value in values.values() if value is not None]
    winner = best(known) if best and len(set(known)) > 1 else None

    def cell(value: float | None) -> Cell:
        if value is None:
            return Cell("–")
        close = winner is not None and abs(value - winner) <= tolerance * winner
        return Cell(form.format(value), best=close)

    return Row(name, note, [cell(value) for value in values.values()])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _points(ours: float, theirs: float) -> float:
    """Difference of two unrounded metrics in percentage points."""
    return round(100 * (ours - theirs), 1)


def _signed(points: float) -> str:
    """Number with its sign (a true minus); 0.0 without."""
    return "0.0" if points == 0 else f"{'+' if points > 0 else '−'}{abs(points):.1f}"
