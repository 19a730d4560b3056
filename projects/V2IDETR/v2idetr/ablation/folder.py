"""The folder of an ablation: a record of its settings and data, and the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from v2idetr.ablation.markdown import to_markdown
from v2idetr.ablation.plot import curves_to_svg, to_svg
from v2idetr.ablation.row_configs import in_any_order
from v2idetr.ablation.tables import CONTROLS
from v2idetr.atomic_file import read_record, write_text_atomically
from v2idetr.config.load import differing_keys, fingerprint, load_config, save_config
from v2idetr.runs.folder import differing_splits

RECORD, BASE = "ablation.json", "base.yaml"


def claim(folder: Path, settings: Mapping[str, Any], base: DictConfig) -> None:
    """Record the settings of a new folder; check those of an existing one.

    Args:
        folder: folder of the ablation, created if missing.
        settings: settings common to all its runs, such as the data set. The order of overrides
            counts only if one changes what another sets.
        base: resolved config of the method, without any row.

    Raises:
        ValueError: the folder has other settings; names them.
    """
    record = folder / RECORD
    settings = _settled(settings)
    if not record.exists():
        save_config(base, folder / BASE)
        content = {**settings, "config_fingerprint": fingerprint(base)}
        write_text_atomically(record, json.dumps(content, indent=1) + "\n")
        return
    before = _settled(read_record(record))
    changed = [f"{k}: {before.get(k)} -> {v}" for k, v in settings.items() if before.get(k) != v]
    if not changed and before["config_fingerprint"] != fingerprint(base):
        changed = differing_keys(load_config(folder / BASE), base)
    if changed:
        raise ValueError(
            f"{folder} holds an ablation with other settings:\n  "
            + "\n  ".join(changed)
            + "\nUse another --output."
        )


def claim_data(folder: Path, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Record the data of a claimed folder, or check that it is the same.

    Args:
        folder: folder of the ablation.
        data: `data_fingerprint` by split.

    Raises:
        ValueError: the folder has other data; names the splits.
    """
    record = folder / RECORD
    content = read_record(record)
    if "data" not in content:
        write_text_atomically(record, json.dumps({**content, "data": data}, indent=1) + "\n")
        return
    changed = differing_splits(content["data"], data)
    if changed:
        raise ValueError(
            f"{folder} holds an ablation of other data: the annotations of {', '.join(changed)} "
            "have changed since. Use another --output."
        )


def write_table(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write a table as Markdown, JSON and SVG, atomically; returns the Markdown file."""
    name = content["file"]
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    write_text_atomically(folder / f"{name}.json", text + "\n")
    write_text_atomically(folder / f"{name}.svg", to_svg(content))
    if content["key"] == CONTROLS:
        write_text_atomically(folder / f"{name}_curves.svg", curves_to_svg(content))
    markdown = folder / f"{name}.md"
    write_text_atomically(markdown, to_markdown(content))
    return markdown


def file_name(label: str) -> str:
    """Name of a table's files without suffix: "table_III", "fig_5a", "choices"."""
    if label[0].isdigit():
        return f"fig_{label}"
    return f"table_{label}" if label.isupper() else label


def _settled(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "overrides": in_any_order(settings["overrides"])}
