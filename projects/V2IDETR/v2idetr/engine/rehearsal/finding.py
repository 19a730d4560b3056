"""One line of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Result of one check; `remedy` is "" if none is needed."""

    topic: str
    level: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""
