"""The report of a run: one self-contained HTML page.

Styles, charts and frames are in the file; there are no scripts and no external resources.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from v2idetr.atomic_file import write_text_atomically
from v2idetr.data.clip_mapper import read_frame
from v2idetr.data.coco_vid import SplitData
from v2idetr.report import curves, distillation, heldout, metrics, provenance
from v2idetr.report.frame_images import PANEL_WIDTH, Album, Box, StoredFrame
from v2idetr.report.heldout import HeldOutFrame, Outcome
from v2idetr.report.templates import page_template
from v2idetr.runs.folder import RESULTS
from v2idetr.runs.reading import TITLES, RunFiles, read_run, title_of

logger = logging.getLogger(__name__)

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class ModelPanel:
    """Boxes of one model on a held-out frame."""

    stage: str
    boxes: list[Box]
    right: bool
    words: str


@dataclass(frozen=True)
class FrameRow:
    """A held-out frame with the boxes of each model."""

    image: StoredFrame
    caption: str
    panels: list[ModelPanel]


@dataclass(frozen=True)
class GroupView:
    """Examples of a group of held-out frames."""

    title: str
    count: int
    share: float
    rows: list[FrameRow]


def write_report(
    folder: str | Path, output: str | Path, facts: Mapping[str, str] | None = None
) -> list[str]:
    """Read a run's folder and write its report.

    Args:
        folder: ``train.output_dir`` of a run, finished or not.
        output: the HTML file.
        facts: further lines of "Machine and versions".

    Returns:
        One sentence with the reason for each missing part of the page.

    Raises:
        ValueError: ``folder`` is no run folder, has damaged files, or none of its stages is of a
            detector.
    """
    run = read_run(folder)
    if run.stages and not any("model" in run.settings["stages"][name] for name in run.stages):
        raise ValueError(
            f"{folder}: the page is about detectors, and {', '.join(run.stages)} train none; their "
            f"results are in {run.folder / RESULTS}."
        )
    missing: list[str] = []
    text = render(run, facts or {}, missing)
    write_text_atomically(Path(output), text)
    return missing


def render(run: RunFiles, facts: Mapping[str, str], missing: list[str]) -> str:
    """The page as text; reasons for missing parts are added to ``missing``."""
    album = Album()
    frames = _held_out(run, missing)
    groups = _group_views(frames, album, missing)
    train = _training_split(run, missing)
    known = dict.fromkeys([*TITLES, *run.evaluations])  # the comparison first
    evaluations = {name: run.evaluations[name] for name in known if name in run.evaluations}
    return page_template(TEMPLATE).render(
        run=run,
        titles={name: title_of(name) for name in evaluations},
        stages=provenance.stage_rows(run),
        facts=facts,
        missing=missing,
        synthetic=provenance.is_synthetic(run),
        verdict=metrics.verdict(evaluations),
        columns=list(evaluations),
        table=metrics.headline_table(evaluations) if evaluations else [],
        parts=comparison_by_part(evaluations),
        thresholds={name: e["thresholds"] for name, e in evaluations.items()},
        imitated=[title for title, _ in curves.distillation_losses(run.settings).values()],
        charts=[(chart, Markup(chart.svg())) for chart in curves.charts(run)],
        num_frames=len(frames),
        rule=_rule_words(evaluations),
        groups=groups,
        masks=_attempt(lambda: train and distillation.masks(run, train, album), missing),
        clip=_attempt(lambda: distillation.clip(run, frames, album), missing),
        album=album.stored,
        panel_width=PANEL_WIDTH,
        train=train,
        provenance=provenance,
    )


def comparison_by_part(
    evaluations: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, Mapping[str, Any], list[metrics.Section]]]:
    """(title, counts, table) of each test split, and of groups of videos over all of them."""
    parts: dict[str, dict[str, Mapping[str, Any]]] = {}
    for stage, evaluation in evaluations.items():
        together = metrics.held_out(evaluation)
        several = {f"{group} videos": f for group, f in together["groups"].items()}
        if len(several) > 1:
            for title, results in several.items():
                parts.setdefault(title, {})[stage] = results
        if len(evaluation["tests"]) > 1:
            for title, results in evaluation["tests"].items():
                parts.setdefault(title, {})[stage] = results
    complete = {t: f for t, f in parts.items() if f.keys() == evaluations.keys()}
    return [
        (title, next(iter(results.values())), metrics.sections_of(results))
        for title, results in complete.items()
    ]


def _rule_words(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    for evaluation in evaluations.values():
        if evaluation["thresholds"]:
            rule, _ = heldout.chosen_rule(evaluation)
            return metrics.RULES.get(rule, rule)
    return ""


def _held_out(run: RunFiles, missing: list[str]) -> list[HeldOutFrame]:
    if not run.evaluations:
        return []
    try:
        return heldout.held_out_frames(run)
    except (ValueError, OSError) as error:
        missing.append(f"Held-out frames are not shown: {error}")
        return []


def _training_split(run: RunFiles, missing: list[str]) -> SplitData | None:
    data = run.settings["data"]
    try:
        return heldout.read(data, data["train"])
    except (ValueError, OSError) as error:
        missing.append(f"Training frames are not shown: {error}")
        return None


def _attempt(make: Any, missing: list[str]) -> Any:
    """Result of ``make``; None, with the reason in ``missing``, if frames cannot be read."""
    try:
        return make()
    except (ValueError, OSError) as error:
        missing.append(f"Some images are not shown: {error}")
        return None


def _group_views(
    frames: Sequence[HeldOutFrame], album: Album, missing: list[str]
) -> list[GroupView]:
    views = []
    for group in heldout.groups_of(frames):
        rows = [_attempt(lambda f=f: _frame_row(f, album), missing) for f in group.shown]
        views.append(
            GroupView(
                title=group.title,
                count=len(group.frames),
                share=len(group.frames) / len(frames),
                rows=[row for row in rows if row is not None],
            )
        )
    return views


def _frame_row(frame: HeldOutFrame, album: Album) -> FrameRow:
    record = frame.record
    pixels = read_frame(record["file_name"], height=record["height"], width=record["width"])
    image = album.add(pixels)
    truth = [image.box("truth", corners) for corners in frame.lesions_xyxy_px]
    panels = [
        ModelPanel(stage, truth + _detections(image, stage, outcome), outcome.right, outcome.words)
        for stage, outcome in frame.outcomes.items()
    ]
    where = [frame.video.split, frame.video.name, f"frame {record['frame_index']}"]
    where += [] if len(frame.lesions_xyxy_px) else ["lesion-free"]
    return FrameRow(image, ", ".join(where), panels)


def _detections(image: StoredFrame, stage: str, outcome: Outcome) -> list[Box]:
    return image.boxes(stage, outcome.boxes_xyxy_px, [f"{s:.2f}" for s in outcome.scores])
