"""The content of a table as Markdown, in the layout of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tabulate import tabulate

from v2idetr.ablation.aggregation import COCO
from v2idetr.ablation.run_records import describe_commits
from v2idetr.ablation.table_data import SWITCHES
from v2idetr.ablation.tables import COMPARISONS, CONTROLS, WITH_CONTROL
from v2idetr.evaluation.table import MISSING
from v2idetr.wording import counted

SMOKE = "**Smoke test: a few steps on tiny images. These numbers mean nothing.**"
SHORT = {"precision": "P", "recall": "R", "f1": "F1"}


def to_markdown(content: Mapping[str, Any]) -> str:
    """Text of the Markdown file."""
    parts = [f"# {content['heading']}", _introduction(content)]
    if content["smoke"]:
        parts.insert(1, SMOKE)
    if not content["blocks"]:
        parts.append("No run has finished yet.")
    pooled = content["blocks"][0]["title"] if content["blocks"] else ""
    for block in content["blocks"]:
        if _has_table(block):
            grids = _grids(content, block["title"])
            parts += [_block_heading(block), *grids]
            if not grids or block["title"] == pooled:
                parts.append(_block_table(content, block["title"], pooled))
    parts += [_notes(content), _runs(content)]
    return "\n\n".join(filter(None, parts)) + "\n"


def form(spread: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """ "83.8 ± 1.2" for `Spread.as_json`, with a sign if `signed`; "-" if missing."""
    if spread is None or spread["mean"] is None:
        return MISSING
    mean = round(spread["mean"], 1) + 0.0  # no "-0.0"
    text = f"{mean:{'+' if signed else ''}.1f}"
    return text if spread["sd"] is None else f"{text} ± {spread['sd']:.1f}"


def metric_title(metric: str) -> str:
    """ "F1 iou50" for "iou50/f1"."""
    rule, _, name = metric.rpartition("/")
    return f"{SHORT.get(name, name)} {rule}".strip()


def paper_parts(content: Mapping[str, Any], title: str, pooled: str) -> list[Mapping[str, Any]]:
    """Columns of the paper for a block: of the same test set; on other data, all."""
    paper = content["paper"]
    if paper is None:
        return []
    if content["dataset"] == paper["dataset"] and not content["smoke"]:
        return [part for part in paper["parts"] if part["block"] == title]
    return list(paper["parts"]) if title == pooled else []


def _introduction(content: Mapping[str, Any]) -> str:
    rows = content["rows"]
    done = sum(len(row["seeds"]) for row in rows)
    wanted = len(rows) * len(content["seeds"])
    plural = "s" if len(content["seeds"]) > 1 else ""
    seeds = f"seed{plural} {', '.join(str(seed) for seed in content['seeds'])}"
    missing = f" **{done} of {wanted} results are available.**" if done < wanted else ""
    student = "" if content["key"] in COMPARISONS else f", student {content['student']}"
    spread = (
        ": mean ± sample standard deviation over the seeds, of which n have a result; Δ is the "
        f"difference to {_reference(content)}, paired by seed"
    )
    if not plural:
        spread = f"; Δ is the difference to {_reference(content)}"
    rule = _main_rule(content)
    lesions = f" P, R and F1 without a rule are by {rule}." if rule else ""
    return f"Data set {content['dataset']}{student}, {seeds}.{missing} In percent{spread}.{lesions}"


def _reference(content: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(row["reference"] for row in content["rows"]))
    if len(names) > 1:
        return "the plain detector of the same kind"
    (row,) = (row for row in content["rows"] if row["name"] == names[0])
    return f"row {row['number']} ({row['title']})" if row["number"] else f"the row {row['title']}"


def _has_table(block: Mapping[str, Any]) -> bool:
    """Whether a block has a table: a test split, or all pooled, with lesions."""
    return bool(block["lesions"]) and " / " not in block["title"]


def _block_heading(block: Mapping[str, Any]) -> str:
    videos, frames = counted(block["videos"], "video"), counted(block["frames"], "frame")
    lesions = counted(block["lesions"], "lesion")
    return (
        f"## {block['title'].capitalize()}\n\n{videos}, {frames}, "
        f"{block['lesion_free_frames']} of them lesion-free; {lesions}."
    )


def _block_table(content: Mapping[str, Any], title: str, pooled: str) -> str:
    paper = paper_parts(content, title, pooled)
    lines = []
    for row in content["rows"]:
        lines.append({**_names(content, row), **_cells(content, row, title, paper)})
    reference = content["rows"][0]["reference"]
    for teacher in content["teachers"]:
        named = {**teacher, "name": "teacher", "reference": reference}
        lines.append({**_teacher_names(content, teacher), **_cells(content, named, title, paper)})
    sides = {"#": "left", "row": "left"} | dict.fromkeys(SWITCHES, "center")
    align = [sides.get(key, "right") for key in lines[0]]
    text = tabulate(lines, headers="keys", tablefmt="pipe", disable_numparse=True, colalign=align)
    return text.replace(" ± ", "\u00a0±\u00a0")  # no line break in narrow columns


def _names(content: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, str]:
    """The columns that identify a row."""
    cells = {"#": row["number"]} if row["number"] else {}
    cells["row"] = row["title"]
    if content["key"] == "table3":  # as in the paper
        cells |= {s: "✓" if row["switches"][s] else "" for s in SWITCHES}
    return {**cells, "n": str(len(row["seeds"]))}


def _teacher_names(content: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, str]:
    """The same columns for a teacher."""
    cells = dict.fromkeys(_names(content, content["rows"][0]), "")
    return {**cells, "row": teacher["title"], "n": str(len(teacher["seeds"]))}


def _cells(
    content: Mapping[str, Any],
    row: Mapping[str, Any],
    title: str,
    paper: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """Our metrics and the paper's: COCO, main rule, and F1 of other rules."""
    rule = _main_rule(content)
    coco = [m for m in content["metrics"] if "/" not in m]
    main = [m for m in content["metrics"] if m.startswith(f"{rule}/")]
    others = [m for m in content["metrics"] if m not in (*coco, *main)]
    if content["key"] not in COMPARISONS:
        others = [m for m in others if m.endswith("/f1")]
    papers_coco = [part for part in paper if part["main"] in COCO]
    papers_main = [part for part in paper if part["main"] not in COCO]
    cells = {}
    for metrics, parts in ((coco, papers_coco), (main, papers_main), (others, [])):
        for metric in metrics:
            label = metric_title(metric.removeprefix(f"{rule}/"))
            cells[label] = form(row["metrics"][title][metric])
            if metric in content["headline"]:
                difference = row["difference"].get(title, {}).get(metric)
                is_reference = row["name"] == row["reference"]
                cells[f"Δ {label}"] = "" if is_reference else form(difference, signed=True)
                if any("to_control" in one for one in content["rows"]):
                    against = row.get("to_control", {}).get(title, {}).get(metric)
                    cells[f"Δ {label} to control"] = form(against, signed=True)
        cells |= _paper_cells(parts, row)
    if content["key"] in COMPARISONS and title == content["blocks"][0]["title"]:
        return cells | _detection_cells(row, content["paper"])
    if content["key"] != CONTROLS:
        return cells
    pooled = title == content["blocks"][0]["title"]
    return cells | (_paired_cells(content, row) if pooled else {}) | _cost_cells(row["cost"])


def _paired_cells(content: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, str]:
    """Differences of F1 with their intervals, by rule; "" for the baseline."""
    cells = {}
    for rule in dict.fromkeys(m.partition("/")[0] for m in content["metrics"] if "/" in m):
        found = row["paired"].get(rule)
        text = "" if row["name"] == row["reference"] else MISSING
        if found is not None:
            text = f"{found['difference']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"
        cells[f"Δ F1 {rule}, over videos"] = text
    return cells


def _cost_cells(costs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Means over the seeds."""

    def mean(key: str) -> float:
        return fmean(cost[key] for cost in costs.values())

    return {
        "steps": f"{mean('steps'):.0f}" if costs else MISSING,
        "labelled frames, k": f"{mean('labelled_frames') / 1000:.1f}" if costs else MISSING,
        "processor time, min": f"{mean('processor_time_s') / 60:.1f}" if costs else MISSING,
    }


def _detection_cells(row: Mapping[str, Any], paper: Mapping[str, Any] | None) -> dict[str, str]:
    """What a detection costs, with the paper's numbers if it has some."""
    found, ahead = row["detection"], MISSING
    if found:
        ahead = "whole video" if found["look_ahead"] is None else str(found["look_ahead"])
    cells = {
        "params, M": f"{found['parameters'] / 1e6:.1f}" if found else MISSING,
        "GFLOPs": f"{found['flops'] / 1e9:.1f}" if found else MISSING,
        "frames/s": f"{found['frames_per_second']:.1f}" if found else MISSING,
        "frames seen": str(found["frames_per_detection"]) if found else MISSING,
        "look-ahead, frames": ahead,
    }
    known = (paper or {}).get("costs")
    if known:
        speed, size = known.get(row["name"], (None, None))
        cells["paper params, M"] = MISSING if size is None else str(size)
        cells["paper frames/s"] = MISSING if speed is None else str(speed)
    return cells


def _main_rule(content: Mapping[str, Any]) -> str:
    """The rule of metrics without the name of a rule."""
    return next((m.partition("/")[0] for m in content["headline"] if "/" in m), "")


def _paper_cells(parts: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> dict[str, str]:
    cells = {}
    for part in parts:
        numbers = part["rows"].get(row["name"])
        base = part["rows"].get(row["reference"])
        for k, column in enumerate(part["columns"]):
            label = f"paper {part['title']} {SHORT.get(column, column)}"
            cells[label] = MISSING if numbers is None else f"{numbers[k]:.1f}"
        main = part["columns"].index(part["main"])
        label = f"paper {part['title']} Δ {SHORT.get(part['main'], part['main'])}"
        if row["name"] == row["reference"]:
            cells[label] = ""
        elif numbers is None or base is None:
            cells[label] = MISSING
        else:
            cells[label] = f"{numbers[main] - base[main]:+.1f}"
    return cells


def _grids(content: Mapping[str, Any], title: str) -> list[str]:
    """For a table of two axes: one grid per headline metric."""
    if len(content["axes"]) != 2:
        return []
    down, across = content["axes"]
    places: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in content["rows"]:
        pairs = dict(part.split(" = ") for part in row["title"].split(", ") if " = " in part)
        if pairs:
            places[pairs[down], pairs[across]] = row
    columns = sorted({place[1] for place in places}, key=float)
    squares = []
    for metric in content["headline"]:
        lines = [
            {
                f"{down} \\ {across}": one,
                **{
                    other: form(places[one, other]["metrics"][title][metric])
                    if (one, other) in places
                    else MISSING
                    for other in columns
                },
            }
            for one in sorted({place[0] for place in places}, key=float)
        ]
        table = tabulate(lines, headers="keys", tablefmt="pipe", disable_numparse=True)
        squares.append(f"{metric_title(metric)}:\n\n{table}")
    return squares


def _notes(content: Mapping[str, Any]) -> str:
    lines = []
    titles = [block["title"] for block in content["blocks"] if not block["lesions"]]
    empty = [title for title in titles if " / " not in title]
    if empty:
        lines.append(
            f"- {', '.join(empty)}: without lesions, hence no table; false positives count in "
            "the pooled splits."
        )
    if content["key"] == CONTROLS:
        lines.append(
            "- Δ over videos: from the summed counts of all seeds, with the 95 % interval of a "
            "paired bootstrap over videos.\n"
            "- Steps, labelled frames and processor time are those of training, including the "
            "teacher's. A labelled frame counts each time it is trained on. Processor time is of "
            "all threads of a run, which prepares its own samples; on a GPU, of the steps without "
            "waiting for data. Learning curves: "
            f"[{content['file']}_curves.svg]({content['file']}_curves.svg)."
        )
    if content["key"] in COMPARISONS:
        machines = {row["detection"].get("machine") for row in content["rows"]} - {None}
        lines.append(
            "- Params, GFLOPs and frames/s are of one detection at the pace of live video: a video "
            "detector keeps what it knows of earlier frames. Frames/s were measured at the end of "
            f"each run, beside others ({'; '.join(sorted(machines)) or 'no run yet'}): median of "
            "the seeds. Look-ahead is the number of later frames that a detection waits for; at 25 "
            "Hz a frame takes 40 ms."
        )
    if content["key"] in WITH_CONTROL and not any("to_control" in r for r in content["rows"]):
        lines.append(
            "- The control, a plain detector with as many labelled frames per step as the "
            "teacher, is missing: add it with `--table III --rows 1b` in this folder."
        )
    if any("to_control" in row for row in content["rows"]):
        lines.append(
            "- Control: the plain detector with as many labelled frames per step as the teacher "
            "(row 1b of Table III)."
        )
    paper = content["paper"]
    if paper is not None:
        same = content["dataset"] == paper["dataset"] and not content["smoke"]
        where = "" if same else " Its data differ from ours: compare orders and differences."
        lines.append(f"- Paper: {paper['where']}, {paper['source']}. {paper['data']}{where}")
    if content["overrides"]:
        lines.append(f"- Overrides: `{' '.join(content['overrides'])}`.")
    lines.append(
        "- Score thresholds are chosen on validation data. All values, also by group of videos "
        f"and seed: [{content['file']}.json]({content['file']}.json); plot: "
        f"[{content['file']}.svg]({content['file']}.svg)."
    )
    lines.append(f"- Made by `{content['command']}`.")
    commits = describe_commits(content["commits"])
    lines.append(f"- {f'**{commits}**' if len(content['commits']) > 1 else commits}")
    return "## Notes\n\n" + "\n".join(lines)


def _runs(content: Mapping[str, Any]) -> str:
    lines = [
        {
            "row": row["name"],
            "run": f"seed*/{row['run']}",
            "teacher": f"seed*/teachers/{row['teacher']}" if row["teacher"] else "",
        }
        for row in content["rows"]
    ]
    return "## Runs\n\n" + tabulate(lines, headers="keys", tablefmt="pipe")
