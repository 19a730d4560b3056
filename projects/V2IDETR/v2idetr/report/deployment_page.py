"""The deployment report: one self-contained HTML page, without scripts and external resources.

`render` shows the dict of ``evaluation.deployment.assess``; the rows of its tables come from
``deployment_rows``, sentences from ``deployment_words``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from v2idetr.evaluation.deployment import Detector
from v2idetr.evaluation.pool import Pool
from v2idetr.report import deployment_rows as rows
from v2idetr.report import deployment_words as words
from v2idetr.report.deployment_charts import DETECTOR_COLOURS, charts
from v2idetr.report.frame_images import PANEL_WIDTH, Album
from v2idetr.report.templates import page_template
from v2idetr.report.worst_frames import worst_frames

TEMPLATE = "deployment.html.j2"
MOST_DETECTORS = len(DETECTOR_COLOURS)
MOST_ROWS = 300  # of a table by video or lesion; the JSON has all
WORST_FRAMES = 6  # of each kind


def render(
    content: Mapping[str, Any], pool: Pool, detectors: Sequence[Detector], json_name: str
) -> str:
    """The page as text.

    Args:
        content: result of ``deployment.assess``.
        pool, detectors: what it was given.
        json_name: name of the file with ``content``.
    """
    results, rule = content["detectors"], content["rule"]
    album = Album()
    groups = worst_frames(
        pool,
        {detector.name: detector.frames for detector in detectors},
        rule,
        {name: rows.threshold_of(result, rule) for name, result in results.items()},
        album,
        WORST_FRAMES,
    )
    faults = [row.fault for group in groups for row in group.rows if row.fault]
    alert_rate = next(iter(results.values()))["matched"]["target"]
    return page_template(TEMPLATE).render(
        content=content,
        names=list(results),
        json_name=json_name,
        rules=rows.RULE_HEADINGS,
        alarm_words=words.warnings(content),
        summary=words.summary(content),
        table=rows.overview(content),
        undefined=words.undefined(content),
        comparisons=[(c, rows.comparison_rows(c)) for c in content["comparison"]],
        charts=[(chart, Markup(chart.svg())) for chart in charts(results, rule, alert_rate)],
        groups=groups,
        faults=faults,
        sizes=rows.size_rows(content),
        videos=rows.video_rows(content),
        lesions=rows.lesion_rows(content),
        most_rows=MOST_ROWS,
        album=album.stored,
        panel_width=PANEL_WIDTH,
        choice=words.choice_words(content),
        truths=rows.truth_rows(content),
    )
