"""Progress and summary of an ablation, and updates of its table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from progress import Part, Progress, clock, stage_parts
from tabulate import tabulate

from v2idetr.ablation.schedule import Failure, Job
from v2idetr.ablation.tables import Table
from v2idetr.wording import counted

if TYPE_CHECKING:  # they import torch
    from v2idetr.ablation.runs import Plan, Run

LOOK_PERIOD_S = 2.0  # between reads of the files of the runs
SECONDS_TO_START = 15.0  # imports, data and models, before the first step


class Report:
    """Terminal output and files of one table.

    Args:
        table, plan, facts: see `build_content`.
        seeds: seeds in the table.
        runs: runs of this call, finished or not.
    """

    def __init__(
        self,
        table: Table,
        plan: Plan,
        seeds: Sequence[int],
        facts: Mapping[str, Any],
        runs: Sequence[Run],
    ) -> None:
        self.table, self.plan, self.seeds, self.facts = table, plan, seeds, facts
        self.runs = {run.name: run for run in runs}
        self.missing = [run.name for run in runs if not run.finished]
        self.content: dict[str, Any] = {}
        self._progress = Progress()
        self._parts: dict[str, list[Part]] = {}
        self._looked_s = 0.0
        self._ended = 0

    def introduction(self, jobs: int) -> str:
        """Heading with the number of runs; call `write` before."""
        from v2idetr.ablation.run_records import describe_commits
        from v2idetr.runs.folder import git_commit

        found = len(self.runs) - len(self.missing)
        there = f", {found} of them finished" if found else ""
        text = f"{self.table.heading}\n{counted(len(self.runs), 'run')}{there}; {jobs} in parallel."
        commits = list(dict.fromkeys([*self.content["commits"], git_commit()]))
        if self.missing and len(commits) > 1:
            text += f"\nWARNING: {describe_commits(commits)}"
        return text

    def tick(self, running: Sequence[Job]) -> None:
        """Show the progress; may be called often."""
        now = time.monotonic()
        if now - self._looked_s < LOOK_PERIOD_S or not running:
            return
        self._looked_s = now
        names = [job.name for job in running]
        for name in self.missing:
            if name in names or name not in self._parts:
                self._parts[name] = _parts_of(self.runs[name])
        parts = [part for name in self.missing for part in self._parts[name]]
        title = f"{self._ended} of {len(self.missing)} runs done, {len(names)} running"
        self._progress.show(names[0], title, parts)

    def ended(self, job: Job, failure: Failure | None, seconds: float) -> None:
        """Print the result of a run and update the table."""
        self._ended += 1
        run = self.runs[job.name]
        self._parts[job.name] = _parts_of(run)
        if failure is not None:
            self._progress.write(f"FAILED  {job.name}: {failure.reason}")
            return
        self._progress.write(f"done    {job.name}: {_headline(run)} ({clock(seconds)})")
        self.write()

    def close(self) -> None:
        """Remove the progress line."""
        self._progress.close()

    def write(self) -> None:
        """Write the table with all finished runs."""
        from v2idetr.ablation.folder import write_table
        from v2idetr.ablation.table_data import build_content

        self.content = build_content(self.table, self.plan, self.seeds, self.facts)
        self.file = write_table(self.plan.folder, self.content)

    def summary(self, failures: Sequence[Failure]) -> str:
        """Short table, failures and files."""
        from v2idetr.ablation.run_records import describe_commits

        lines = [_short_table(self.content)]
        if self.facts["smoke"]:
            lines.append("Smoke test: these numbers mean nothing.")
        if len(self.content["commits"]) > 1:
            lines.append(f"WARNING: {describe_commits(self.content['commits'])}")
        for failure in failures:
            log = "" if failure.log is None else f"\n  {failure.log}"
            lines.append(f"FAILED {failure.job.name}: {failure.reason}{log}")
        if failures:
            lines.append("Run the same command to retry.")
        name = self.file.with_suffix("")
        lines.append(f"{name}.md, .json, .svg")
        return "\n" + "\n".join(lines)


def _parts_of(run: Run) -> list[Part]:
    folder = run.folder / run.stage
    begun = (run.folder / "config.yaml").exists()
    return [
        Part(run.name, SECONDS_TO_START, float(begun), run.name, "starting"),
        *stage_parts(run.name, folder, run.stage, run.steps, run.name),
    ]


def _headline(run: Run) -> str:
    """The main metrics of a run on all test splits."""
    from v2idetr.ablation.aggregation import metrics_of, read_result
    from v2idetr.ablation.markdown import metric_title

    metrics, _ = metrics_of(read_result(run.evaluation))
    pooled = metrics.get("all tests") or next(iter(metrics.values()))
    shown = [m for m in pooled if m in ("AP50", "AP") or m.endswith("/f1")]
    return ", ".join(f"{metric_title(m)} {_one(pooled[m])}" for m in shown)


def _one(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _short_table(content: Mapping[str, Any]) -> str:
    """Headline metrics of the first block."""
    from v2idetr.ablation.markdown import form, metric_title

    if not content["blocks"]:
        return "No run has finished."
    title = content["blocks"][0]["title"]
    lines = []
    for row in [*content["rows"], *content["teachers"]]:
        line = {"": row["title"], "n": str(len(row["seeds"]))}
        for metric in content["headline"]:
            line[metric_title(metric)] = form(row["metrics"][title][metric])
            difference = row["difference"].get(title, {}).get(metric)
            line["Δ " + metric_title(metric)] = form(difference, signed=True)
        lines.append(line)
    return f"{title}, %\n" + tabulate(lines, headers="keys", disable_numparse=True)
