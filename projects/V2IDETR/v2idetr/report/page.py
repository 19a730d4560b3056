"""A run's folder -> one self-contained HTML page.

Nothing is loaded from elsewhere: styles, charts and frames are in the file, and there is no script.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from v2idetr.atomic_file import write_text_atomically
from v2idetr.data.clip_mapper import read_frame
from v2idetr.data.coco_vid import SplitData
from v2idetr.report import curves, distillation, heldout, metrics, provenance
from v2idetr.report.frame_images import PANEL_WIDTH, Album, Box, Picture
from v2idetr.report.heldout import HeldOutFrame, Outcome
from v2idetr.runs.reading import TITLES, RunFiles, read_run

logger = logging.getLogger(__name__)

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class ModelPanel:
    """A held-out frame with one model's boxes."""

    stage: str
    boxes: list[Box]
    right: bool
    words: str


@dataclass(frozen=True)
class FrameRow:
    """A held-out frame as every model sees it."""

    picture: Picture
    caption: str
    panels: list[ModelPanel]


@dataclass(frozen=True)
class GroupView:
    """Frames on which the models compare in one way."""

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
        facts: further lines of "What was run".

    Returns:
        what is missing from the page and why, one sentence each.

    Raises:
        ValueError: ``folder`` is not the folder of a run, or holds damaged files.
    """
    run = read_run(folder)
    missing: list[str] = []
    text = render(run, facts or {}, missing)
    write_text_atomically(Path(output), text)
    return missing


def render(run: RunFiles, facts: Mapping[str, str], missing: list[str]) -> str:
    """The page as text; adds to ``missing`` what it has to leave out."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    album = Album()
    frames = _held_out(run, missing)
    groups = _with_pictures(frames, album, missing)
    train = _training_split(run, missing)
    evaluations = {name: run.evaluations[name] for name in TITLES if name in run.evaluations}
    return environment.get_template(TEMPLATE).render(
        run=run,
        titles=TITLES,
        stages=provenance.stage_rows(run),
        facts=facts,
        missing=missing,
        synthetic=provenance.is_synthetic(run),
        verdict=metrics.verdict(evaluations),
        columns=list(evaluations),
        table=metrics.headline_table(evaluations) if evaluations else [],
        parts=comparison_by_part(evaluations),
        thresholds={name: e["thresholds"] for name, e in evaluations.items()},
        taught=curves.taught(run.settings),
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
    """(title, counts, table) of every test split, and of groups of videos over all of them."""
    parts: dict[str, dict[str, Mapping[str, Any]]] = {}
    for stage, evaluation in evaluations.items():
        together = metrics.held_out(evaluation)
        several = {f"{group} videos": f for group, f in together["groups"].items()}
        if len(several) > 1:
            for title, figures in several.items():
                parts.setdefault(title, {})[stage] = figures
        if len(evaluation["tests"]) > 1:
            for title, figures in evaluation["tests"].items():
                parts.setdefault(title, {})[stage] = figures
    complete = {t: f for t, f in parts.items() if f.keys() == evaluations.keys()}
    return [
        (title, next(iter(figures.values())), metrics.sections_of(figures))
        for title, figures in complete.items()
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
    """What ``make`` returns; None, with the reason noted, where frames cannot be read."""
    try:
        return make()
    except (ValueError, OSError) as error:
        missing.append(f"Some pictures are left out: {error}")
        return None


def _with_pictures(
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
    picture = album.add(pixels)
    truth = [picture.box("truth", corners) for corners in frame.lesions_xyxy_px]
    panels = [
        ModelPanel(
            stage, truth + _detections(picture, stage, outcome), outcome.right, outcome.words
        )
        for stage, outcome in frame.outcomes.items()
    ]
    where = [frame.video.split, frame.video.name, f"frame {record['frame_index']}"]
    where += [] if len(frame.lesions_xyxy_px) else ["lesion-free"]
    return FrameRow(picture, ", ".join(where), panels)


def _detections(picture: Picture, stage: str, outcome: Outcome) -> list[Box]:
    return picture.boxes(stage, outcome.boxes_xyxy_px, [f"{s:.2f}" for s in outcome.scores])
