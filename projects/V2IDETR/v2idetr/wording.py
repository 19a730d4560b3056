"""Nouns with their number, for messages."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """``counted(1, "error")`` -> "1 error", ``counted(2, "box", "boxes")`` -> "2 boxes"."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
