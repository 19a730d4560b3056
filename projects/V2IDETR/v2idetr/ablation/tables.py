"""The tables and their rows, read from the folders of layers.

Rows of Tables I and II are detectors, listed in ``configs/ablations/detectors.yaml``. A row of any
other table is a layer of configs/ablations, or in a grid one layer of each of its folders.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from v2idetr.config.yaml_text import parse_yaml

DATASETS = ("sun", "buv", "clinicdb", "synthetic")
STUDENTS = {"deformable_detr": "Deformable DETR", "detr": "DETR", "sam_detr": "SAM-DETR"}

# Folder of layers -> its name in the paper, and its title. Other folders are tables, too, with the
# folder's name as title.
KNOWN = {
    "table1": ("I", "detectors of images and of video, and V2I students (the paper's SUN table)"),
    "table2": ("II", "detectors of images and of video, and V2I students (the paper's BUV table)"),
    "table3": ("III", "components: TFD, MSI, CQD"),
    "table4": ("IV", "what is distilled, and how"),
    "fig5a": ("5a", "weights of the losses, lambda_bk and lambda_qe"),
    "fig5b": ("5b", "T, frames of a training clip"),
    "choices": ("choices", "our defaults against other readings of the paper"),
    "controls": ("controls", "distillation against more labels, frames and time"),
}
OTHER_NAMES = {"1": "table1", "2": "table2", "3": "table3", "4": "table4"}
PLAIN = "table3/1_baseline"  # baseline of Fig. 5a and 5b
CONTROL = "table3/1b_control"  # second reference of Tables III and IV
WITH_CONTROL = ("table3", "table4")
CONTROLS = "controls"  # the table with training costs
COMPARISONS = ("table1", "table2")  # the tables with costs of detection
DETECTORS = "detectors.yaml"  # their rows
PLAIN_STAGE = "plain"
RECIPE, EQUAL = "_recipe.yaml", "_equal.yaml"  # files that are no rows

What = Literal["labels", "frames", "processor_time"]


@dataclass(frozen=True)
class Equal:
    """Resource that a plain detector gets as much of as another row.

    It always has as many labelled frames per step as the teacher.

    Attributes:
        what: "labels": nothing else; "frames" or "processor_time": as many labelled frames, or as
            much processor time, in the whole training.
        to: key of the matched row, whose teacher counts as well; "" for "labels".
        pace: key of a row with the same cost per step; "" for "labels".
    """

    what: What
    to: str = ""
    pace: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a table: a config and what it changes.

    Attributes:
        table: key of its table, such as "table3".
        name: name, unique in the table.
        title: title in the table.
        layers: files that are merged into the config, in this order.
        student: its detector; "" for that of `Settings.student`.
        config: file below configs/ with a place for the data set; "" for that of the student.
        stage: the trained stage; "" for the one that its layers leave, "student" or "plain".
        reference: key of the row that it is compared with; its own for a baseline.
        equal: see `Equal`; None for a row that trains as its layers say.
    """

    table: str
    name: str
    title: str
    layers: tuple[Path, ...] = ()
    student: str = ""
    config: str = ""
    stage: str = ""
    reference: str = ""
    equal: Equal | None = None

    @property
    def key(self) -> str:
        """Key of the row, unique over all tables."""
        return f"{self.table}/{self.name}"

    @property
    def number(self) -> str:
        """Number of the row, see `number`."""
        return number(self.name)


@dataclass(frozen=True)
class Table:
    """A table, or a figure of the paper.

    Attributes:
        key: key, such as "table3".
        label: name in the paper: "III", "5a".
        title: title.
        rows: rows in order.
        axes: names of the varied settings of a grid.
    """

    key: str
    label: str
    title: str
    rows: tuple[Row, ...]
    axes: tuple[str, ...] = field(default=())

    @property
    def heading(self) -> str:
        """Heading, such as "Table III: components"."""
        kind = {"table": "Table ", "fig": "Fig. "}
        known = next((word for start, word in kind.items() if self.key.startswith(start)), "")
        return f"{known}{self.label}: {self.title}"

    @property
    def numbers(self) -> dict[str, str]:
        """Numbers of the rows by name; "" for all if any has none."""
        numbers = {row.name: row.number for row in self.rows}
        if any(number == name for name, number in numbers.items()):
            return dict.fromkeys(numbers, "")
        return numbers


def number(name: str) -> str:
    """Number of a row without leading zeros ("2" of "02_fd"); its name if it has none."""
    first = name.partition("_")[0]
    return first.lstrip("0") or "0" if first[:1].isdigit() and "." not in first else name


def find_tables(configs: Path) -> list[Table]:
    """All tables: the paper's ablations in order, others by name, then Tables I and II.

    Runs are named after the first row that needs them.

    Args:
        configs: folder with the configs, and the layers in ablations/.
    """
    ablations = configs / "ablations"
    folders = [path.name for path in _folders(ablations)]
    known = [name for name in KNOWN if name in folders]
    others = [name for name in folders if name not in KNOWN]
    tables = [_layers(ablations, name) for name in (*known, *others)]
    return tables + [_detectors(ablations / DETECTORS, key) for key in COMPARISONS]


def choose_table(tables: Sequence[Table], name: str) -> Table:
    """The table with a name such as "III", "3", "table3", "fig5a" or "5A".

    Raises:
        ValueError: there is none; lists the tables.
    """
    wanted = name.lower().replace(".", "").replace(" ", "")
    wanted = OTHER_NAMES.get(wanted, wanted)
    for table in tables:
        if wanted in (table.key.lower(), table.label.lower(), f"table{table.label}".lower()):
            return table
    raise ValueError(
        f"--table {name}: no such table. The tables are "
        + ", ".join(table.label for table in tables)
        + "; --list shows their rows."
    )


def choose_rows(table: Table, names: Sequence[str]) -> list[Row]:
    """The rows with the given names or numbers; all rows for [].

    Raises:
        ValueError: one of them does not exist; lists the rows.
    """
    if not names:
        return list(table.rows)
    chosen, problems = [], []
    for name in names:
        found = [row for row in table.rows if row.name == name]
        if "_" not in name:
            found = found or [row for row in table.rows if row.number == number(name)]
        chosen += found
        if not found:
            near = difflib.get_close_matches(name, [row.name for row in table.rows], n=1)
            problems.append(f"{name}{f' (did you mean {near[0]}?)' if near else ''}")
    if problems:
        raise ValueError(
            f"--rows: {table.heading.partition(':')[0]} has no row {', '.join(problems)}. It has "
            + ", ".join(row.name for row in table.rows)
            + "."
        )
    return [row for row in table.rows if row in chosen]


def _detectors(path: Path, key: str) -> Table:
    """A table of detectors.

    Raises:
        ValueError: the file has unknown keys, students or rows.
    """
    listed = parse_yaml(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = []
    for name, entry in listed.items():
        rest = dict(entry) if isinstance(entry, dict) else {}
        title, config, student = (rest.pop(k, "") for k in ("title", "config", "student"))
        stage, against = rest.pop("stage", PLAIN_STAGE), rest.pop("against", name)
        known = student in STUDENTS if student else "{dataset}" in config
        if rest or not title or not known or against not in listed:
            raise ValueError(
                f"{path}: {name}: {entry} must have a title, either a student ("
                f"{', '.join(STUDENTS)}) or a config with {{dataset}} in its name, and perhaps a "
                "stage, and against, a row of the file."
            )
        reference = f"{key}/{against}"
        rows.append(Row(key, name, title, (), student, config, stage, reference))
    return Table(key, *KNOWN[key], rows=tuple(rows))


def _layers(ablations: Path, key: str) -> Table:
    label, title = KNOWN.get(key, (key, key))
    folder = ablations / key
    axes = _folders(folder)
    if axes:
        combinations = itertools.product(*(_in_order(axis) for axis in axes))
        rows = [
            Row(
                key,
                "_".join(f"{path.parent.name}_{path.stem}" for path in layers),
                ", ".join(f"{path.parent.name} = {path.stem}" for path in layers),
                layers,
            )
            for layers in combinations
        ]
    else:
        recipe = [path for path in (folder / RECIPE,) if path.exists()]
        rows = [Row(key, p.stem, _first_line(p), (*recipe, p)) for p in _in_order(folder)]
        rows = _with_equals(folder, rows)
    if key.startswith("fig"):
        plain = ablations / f"{PLAIN}.yaml"
        rows.insert(0, Row(key, "baseline", _first_line(plain), (plain,)))
    rows = [replace(row, reference=rows[0].key) for row in rows]
    return Table(key, label, title, tuple(rows), tuple(axis.name for axis in axes))


def _with_equals(folder: Path, rows: Sequence[Row]) -> list[Row]:
    """Rows with the resources of the folder's `_equal.yaml`.

    Raises:
        ValueError: the file has unknown rows or keys.
    """
    path = folder / EQUAL
    given = parse_yaml(path.read_text(encoding="utf-8")) if path.exists() else {}
    names = [row.name for row in rows]
    if not isinstance(given, dict):
        raise ValueError(f"{path}: must be entries by row ({', '.join(names)}).")
    matched = [n for n, entry in given.items() if isinstance(entry, dict) and "to" in entry]
    labels = [name for name, entry in given.items() if entry == {"what": "labels"}]
    equals: dict[str, Equal] = {}
    for name, entry in given.items():
        rest = dict(entry) if isinstance(entry, dict) else {}
        what, to, pace = rest.pop("what", None), rest.pop("to", ""), rest.pop("pace", "")
        alone = what == "labels" and not to and not pace
        both = what in ("frames", "processor_time") and to in names and pace in labels
        if name not in names or rest or not (alone or (both and to not in matched)):
            raise ValueError(
                f"{path}: {name}: {entry} must be {{what: labels}}, or {{what: frames, or "
                "processor_time, to: ROW, pace: ROW}, of the rows of this folder "
                f"({', '.join(names)}); pace is one of labels, to is none of frames or of "
                "processor_time."
            )
        equals[name] = Equal(what, *(f"{folder.name}/{row}" for row in (to, pace) if row))
    return [replace(row, equal=equals.get(row.name)) for row in rows]


def _folders(folder: Path) -> list[Path]:
    """Subfolders with layers, by name, without hidden ones."""
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if any(path.rglob("*.yaml")))


def _in_order(folder: Path) -> list[Path]:
    """Layers sorted by name, numbers by value."""

    def place(path: Path) -> tuple[float, str]:
        try:
            return float(path.stem), path.stem
        except ValueError:
            return 0.0, path.stem

    layers = (path for path in folder.glob("*.yaml") if not path.name.startswith("_"))
    return sorted(layers, key=place)


def _first_line(layer: Path) -> str:
    """Title of a row: the first line of its layer."""
    return layer.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
