"""Files of surgical phases -> the phase of every labelled frame.

    read_phase_text   Cholec80 and M2CAI16: a line per frame, "Frame<tab>Phase", at 25 Hz
    read_cholect50    CholecT50: JSON with the phase in each triplet vector, at 1 Hz
    check_length      labels against the length of their video

Cholec80 (Twinanda et al., EndoNet, 2017) has 7 phases; M2CAI16 has 8, of which the first is placing
the trocars. The names of CholecT50's, also 7, are in its files.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from v2idetr.data.text_files import read_text

CHOLEC80_PHASES = (
    "Preparation",
    "CalotTriangleDissection",
    "ClippingCutting",
    "GallbladderDissection",
    "GallbladderPackaging",
    "CleaningCoagulation",
    "GallbladderRetraction",
)
M2CAI16_PHASES = ("TrocarPlacement", *CHOLEC80_PHASES)
TEXT_RATE = Fraction(25)  # labels per second of the two
# Labels and video may differ by this, s: extraction of frames at 1 Hz rounds to whole seconds.
LENGTH_TOLERANCE_S = 1.0
# Position of the phase in a triplet vector: triplet, instrument (6), verb, target (6), phase.
CHOLECT50_PHASE, CHOLECT50_VECTOR = 14, 15


@dataclass(frozen=True)
class PhaseLabels:
    """Phases of one video.

    Attributes:
        path: file of the labels.
        phases: phase by labelled frame, in temporal order; None where a frame has no label.
        rate: labelled frames per second.
    """

    path: Path
    phases: list[str | None]
    rate: Fraction

    @property
    def duration_s(self) -> float:
        return float(len(self.phases) / self.rate)

    def at(self, time_s: float) -> str | None:
        """Phase at a time after the first frame; None without a label or after the last one."""
        # Times are rounded to microseconds, so that a frame could seem to precede its own label.
        place = int(time_s * float(self.rate) + 1e-3)
        return self.phases[place] if place < len(self.phases) else None


def read_phase_text(path: Path, names: Sequence[str]) -> PhaseLabels:
    """Labels of a text file with a frame number and a phase in each line.

    The header may be missing, and numbers may stand for names. Frame numbers count frames at 25 Hz
    from 0 or 1; they may rise by another step than 1, as in exports at 1 Hz.

    Args:
        path: text file.
        names: names of the phases in temporal order.

    Raises:
        ValueError: no labels, a line that is no label, an unknown phase, or missing frame numbers;
            names file and line.
    """
    rows: list[tuple[int, str]] = []
    for place, line in enumerate(read_text(path).splitlines(), start=1):
        parts = line.split()
        if not parts or (not rows and [part.lower() for part in parts] == ["frame", "phase"]):
            continue
        where = f"{path}, line {place}"
        if len(parts) != 2 or not parts[0].isdecimal():
            raise ValueError(
                f"{where}: {line.strip()!r} is not a frame number and a phase, such as "
                f"'25 {names[0]}'"
            )
        rows.append((int(parts[0]), _phase_named(parts[1], names, where)))
        _check_step(rows, where)
    if not rows:
        raise ValueError(f"{path}: holds no labels; copy it again")
    step = rows[1][0] - rows[0][0] if len(rows) > 1 else 1
    return PhaseLabels(path, [phase for _, phase in rows], TEXT_RATE / step)


def _phase_named(text: str, names: Sequence[str], where: str) -> str:
    if text in names:
        return text
    if text.isdecimal() and int(text) < len(names):
        return names[int(text)]
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(text.lower(), lowered, n=2)
    guess = f"; did you mean {' or '.join(lowered[name] for name in near)}?" if near else ""
    raise ValueError(f"{where}: {text!r} is none of the phases {', '.join(names)}{guess}")


def _check_step(rows: Sequence[tuple[int, str]], where: str) -> None:
    """Check the last frame number against those before it."""
    number = rows[-1][0]
    if len(rows) == 1:
        if number > 1:
            raise ValueError(f"{where}: labels start at frame {number}, but should at 0")
        return
    step, before = rows[1][0] - rows[0][0], rows[-2][0]
    if step < 1 or number != before + step:
        raise ValueError(
            f"{where}: frame {number} follows {before}, but should be "
            f"{before + max(step, 1)}; labels in between are missing or doubled"
        )


def read_cholect50(path: Path) -> tuple[PhaseLabels, list[str]]:
    """Labels of ``labels/VID01.json``, and the names of the phases in temporal order.

    Raises:
        ValueError: not such a file, no labels, missing frames, an unknown phase, or several phases
            in one frame; names file and frame.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
        names = _category_names(content["categories"])
        annotations = {int(key): vectors for key, vectors in content["annotations"].items()}
        rate = Fraction(content.get("fps", 1))
        if rate <= 0:
            raise ValueError(f"fps is {rate}")
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{path}: not the expected labels ({type(error).__name__}: {error}); it needs "
            "categories with phase, and annotations by frame number"
        ) from None
    if not annotations:
        raise ValueError(f"{path}: holds no labels; copy it again")
    first = min(annotations)
    for number in range(first, first + len(annotations)):
        if first > 1 or number not in annotations:
            raise ValueError(
                f"{path}: annotations lack frame {0 if first > 1 else number}, but have "
                f"{max(annotations)}; copy it again"
            )
    phases = [
        _frame_phase(path, number, annotations[number], names) for number in sorted(annotations)
    ]
    if not any(phases):
        raise ValueError(f"{path}: no frame has a phase; copy it again")
    return PhaseLabels(path, phases, rate), list(names.values())


def _category_names(categories: Any) -> dict[int, str]:
    """Names of the phases by id; the categories are one object, or a list of one a task."""
    tasks = categories if isinstance(categories, list) else [categories]
    phases = next(task["phase"] for task in [*tasks, {}] if "phase" in task or not task)
    return {int(key): str(phases[key]) for key in sorted(phases, key=int)}


def _frame_phase(path: Path, number: int, vectors: Any, names: dict[int, str]) -> str | None:
    """Phase of one frame, which all its triplets share; None without a triplet vector or for -1."""
    where = f"{path}, frame {number}"
    if not isinstance(vectors, list) or any(
        not isinstance(vector, list) or len(vector) != CHOLECT50_VECTOR for vector in vectors
    ):
        raise ValueError(f"{where}: expected lists of {CHOLECT50_VECTOR} numbers; copy it again")
    given = [vector[CHOLECT50_PHASE] for vector in vectors]
    for phase in given:
        if not isinstance(phase, int | float):
            raise ValueError(f"{where}: phase {phase!r} is no number; copy it again")
    found = set(given) - {-1, -1.0}
    if len(found) > 1:
        raise ValueError(f"{where}: has the phases {sorted(found)}, but a frame has one")
    if not found:
        return None
    phase = found.pop()
    if phase not in names:
        known = ", ".join(f"{key} {name}" for key, name in names.items())
        raise ValueError(f"{where}: phase {phase} is none of {known}")
    return names[int(phase)]


def check_length(
    labels: PhaseLabels, duration_s: float, frame_period_s: float, video: Path
) -> None:
    """Compare the lengths of labels and video.

    Args:
        labels: labels of the video.
        duration_s: length of the video, s.
        frame_period_s: time from one of its frames to the next, s.
        video: path of the video, for the message.

    Raises:
        ValueError: they differ by more than LENGTH_TOLERANCE_S and a frame.
    """
    if abs(labels.duration_s - duration_s) > max(LENGTH_TOLERANCE_S, frame_period_s) + 1e-3:
        raise ValueError(
            f"{labels.path}: labels {labels.duration_s:.1f} s ({len(labels.phases)} frames at "
            f"{float(labels.rate):g} Hz), but {video} lasts {duration_s:.1f} s: are they of one "
            "video, and is --frame-rate right if it is a folder of frames?"
        )
