"""Model card of an exported file: front matter as on the Hugging Face hub, then Markdown.

Facts come from the file's description and from the evaluation of its weights. What neither of them
knows is said to be unknown. Text from configs and file names is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from v2i_runtime.model_info import ModelInfo
from v2idetr.checkpoints.files import sha256

TEMPLATE = "model_card.md.j2"
UNKNOWN = "unknown"
# Characters that mean something inside a line of Markdown, or make a link or a mention.
SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~&$^:@])")


class Markdown(str):
    """Text that is Markdown already."""


def card_path(path: Path) -> Path:
    """Where the card of an exported file lies: its full name, since there may be two formats."""
    return path.with_name(f"{path.name}.md")


def model_card(info: ModelInfo, files: Sequence[Path], evaluation: Mapping[str, Any] | None) -> str:
    """Text of the card.

    Args:
        info: description of the file.
        files: the file, and the one with its weights, as they are on disk.
        evaluation: ``evaluation.json`` of the weights; None if there is none.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        finalize=as_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"number": _number, "percent": _percent, "count": _count, "code": _code}
    splits = _splits(evaluation)
    return environment.get_template(TEMPLATE).render(
        info=info,
        files=[
            {"name": file.name, "mib": file.stat().st_size / 2**20, "sha256": sha256(file)}
            for file in files
        ],
        splits=splits,
        quantized=_quantized(info.card),
        cost=(evaluation or {}).get("cost"),
        front_matter=_front_matter(info, files[0], splits),
        usage=_usage(files[0].name),
    )


def as_markdown(value: object) -> str:
    """A value as text of one line that means nothing to Markdown; None is unknown."""
    if isinstance(value, Markdown):
        return value
    if value is None:
        return UNKNOWN
    return SPECIAL.sub(r"\\\1", _line(str(value))).replace("www.", "www\\.")


def _line(text: str) -> str:
    """Text on one line, without control characters."""
    return "".join(c if c.isprintable() else " " for c in text)


def _splits(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Splits with what the card shows of them; None where the evaluation does not say it."""
    if evaluation is None:
        return []
    given = {"validation": evaluation["val"], **evaluation.get("tests", {})}
    thresholds = evaluation["thresholds"]
    keys = ("threshold", "precision", "recall", "f1", "f1_interval")
    return [
        {
            "name": name,
            "frames": split.get("frames"),
            "lesions": split.get("lesions"),
            "coco": {key: (split.get("coco") or {}).get(key) for key in ("AP", "AP50")},
            "rules": {
                rule: {key: values.get(key) for key in keys} | {"threshold": thresholds.get(rule)}
                for rule, values in split["rules"].items()
            },
        }
        for name, split in given.items()
    ]


def _quantized(card: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Metric, value of float32 and of INT8; nothing of other precisions."""
    before, after = card.get("validation_fp32", {}), card.get("validation_int8", {})
    return [(name, before[name], value) for name, value in after.items()]


def _front_matter(info: ModelInfo, path: Path, splits: Sequence[Mapping[str, Any]]) -> Markdown:
    """YAML that model hubs read; only test splits count as results."""
    content: dict[str, Any] = {
        "license": UNKNOWN,  # of the weights: whoever owns the data decides
        "library_name": "v2idetr",
        "pipeline_tag": "object-detection",
        "tags": ["v2i-detr", "medical", "video", "onnx" if path.suffix == ".onnx" else "openvino"],
    }
    results = [
        {
            "task": {"type": "object-detection"},
            "dataset": {"name": _line(split["name"]), "type": UNKNOWN},
            "metrics": [{"type": key, "value": value} for key, value in known.items()],
        }
        for split in splits[1:]
        if (known := _known(split))
    ]
    if results:
        content["model-index"] = [{"name": info.network, "results": results}]
    return Markdown(f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n")


def _known(split: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a split by name; none without lesions, where F1 is 0 after one false alarm."""
    if split["lesions"] == 0:
        return {}
    values = dict(split["coco"])
    values |= {f"F1 {rule}": found["f1"] for rule, found in split["rules"].items()}
    return {key: round(value, 4) for key, value in values.items() if value is not None}


def _usage(name: str) -> Markdown:
    # Indented rather than fenced, because a name may hold backticks; repr leaves it on its line.
    lines = ["from v2i_runtime import load", f"student = load({name!r})", 'student("frame.png")']
    return Markdown("\n".join(f"    {line}" for line in lines))


def _number(value: float | None, decimals: int) -> Markdown:
    if value is None or not math.isfinite(value):
        return Markdown(UNKNOWN)
    return Markdown(f"{value:.{decimals}f}")


def _percent(value: float | None) -> Markdown:
    return _number(None if value is None else 100 * value, 1)


def _count(value: int | None) -> Markdown:
    return Markdown(UNKNOWN if value is None else f"{value:,}")


def _code(value: str) -> Markdown:
    return Markdown(f"`{value}`") if value.isalnum() else Markdown(as_markdown(value))
