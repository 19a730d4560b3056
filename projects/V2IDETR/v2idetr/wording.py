"""Numbers in messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """``counted(1, "error")`` -> "1 error", ``counted(2, "error")`` -> "2 errors"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
