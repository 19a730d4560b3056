"""Checks of earlier runs by their own records: configs, data, commits."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from v2idetr.ablation.runs import Run
from v2idetr.atomic_file import read_record
from v2idetr.config.load import differing_keys, load_config
from v2idetr.config.stage_settings import given_key, needs_of
from v2idetr.runs.folder import CONFIG, RECORD, differing_splits


def check_earlier_runs(runs: Sequence[Run]) -> None:
    """Check that earlier runs have the configs of their rows.

    Raises:
        ValueError: a run was made with another config.
    """
    for run in runs:
        if run.begun and (run.folder / CONFIG).exists():
            changed = differing_keys(load_config(run.folder / CONFIG), _wanted(run))
            if run.finished:  # the folder may have been moved since
                changed = [c for c in changed if not c.startswith(_earlier_files(run))]
            if run.budget is not None:  # not set, and thus that of all stages
                changed = [c for c in changed if not c.startswith("teacher.max_iter:")]
            if changed:
                raise ValueError(
                    f"{run.folder} was made with other settings than {run.row.key} has now:\n  "
                    + "\n  ".join(changed)
                    + "\nUse another --output, or remove that folder."
                )


def _earlier_files(run: Run) -> tuple[str, ...]:
    """Keys of the files of earlier runs."""
    keys = ["teacher.checkpoint"]
    keys += [given_key(run.config, stage) for stage in needs_of(run.config, run.stage).values()]
    return tuple(f"{key}:" for key in keys if key)


def _wanted(run: Run) -> DictConfig:
    """A run's config with the number of steps that follows from other runs."""
    if run.budget is None:
        return run.config
    config = copy.deepcopy(run.config)
    if run.budget.steps() is None:
        missing = [needed.name for needed in run.budget.runs if not needed.finished]
        raise ValueError(
            f"{run.folder} was trained as long as the cost of {', '.join(missing)} allows, which "
            "are missing: remove that folder to train it again after them."
        )
    config.train.max_iter = run.steps
    return config


def check_data(runs: Sequence[Run], data: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that earlier runs used the current data, so that no table mixes data.

    Args:
        runs: runs of the table, begun or not.
        data: `data_fingerprint` by split.

    Raises:
        ValueError: a run used other annotations; names the run and the splits.
    """
    for run in runs:
        for start in _starts(run):
            changed = differing_splits(start["data"], data)
            if changed:
                raise ValueError(
                    f"{run.folder} was made with other data: the annotations of "
                    f"{', '.join(changed)} have changed since. Use another --output."
                )


def commits_of(runs: Sequence[Run]) -> list[str]:
    """Commits of the finished runs, by time of their first start; "" for unknown."""
    starts = [start for run in runs if run.finished for start in _starts(run)]
    starts.sort(key=lambda start: start["time"])
    return list(dict.fromkeys(start["git_commit"] for start in starts))


def describe_commits(commits: Sequence[str]) -> str:
    """A sentence with the commits, and a warning if there are several."""
    names = [f"{c.rstrip('+')[:12]}{'+' * c.endswith('+')}" if c else "unknown" for c in commits]
    text = ", ".join(names or ["unknown"])
    if any(commit.endswith("+") for commit in commits):
        text += " (+: with local changes)"
    if len(commits) > 1:
        return f"Runs of several commits: {text}. Rows may also differ by the code."
    return f"Commit of the runs: {text}."


def _starts(run: Run) -> list[dict[str, Any]]:
    """Starts of a run that began to train; [] without a record."""
    path = run.folder / RECORD
    if not run.begun or not path.exists():
        return []
    return read_record(path)["starts"]
