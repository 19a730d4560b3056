"""Which tables there are, and which rows: read from the folders of layers.

Tables I and II compare detectors, so their rows are config files. A row of any other table is a
layer of configs/ablations, or in a grid one layer of each of its folders.
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
# Detectors that have no V2I student.
BASELINES = {"faster_rcnn": "Faster R-CNN", "retinanet": "RetinaNet", "fcos": "FCOS"}

# Folder of layers -> what the paper calls it, and what it is about. A folder that is not named
# here is a table as well: its name is its title.
KNOWN = {
    "table1": ("I", "detectors and their V2I students (the paper's SUN table)"),
    "table2": ("II", "detectors and their V2I students (the paper's BUV table)"),
    "table3": ("III", "components: TFD, MSI, CQD"),
    "table4": ("IV", "what is distilled, and how"),
    "fig5a": ("5a", "weights of the losses, lambda_bk and lambda_qe"),
    "fig5b": ("5b", "T, frames of a training clip"),
    "choices": ("choices", "our defaults against other readings of the paper"),
    "controls": ("controls", "what distillation brings beyond labels, frames and time"),
}
OTHER_NAMES = {"1": "table1", "2": "table2", "3": "table3", "4": "table4"}
PLAIN = "table3/1_baseline"  # what figures without a baseline of their own are compared with
CONTROL = "table3/1b_control"  # what Tables III and IV are compared with besides
WITH_CONTROL = ("table3", "table4")
CONTROLS = "controls"  # the table that says what training has cost
RECIPE, EQUAL = "_recipe.yaml", "_equal.yaml"  # files of a folder that are no rows

What = Literal["labels", "frames", "processor_time"]


@dataclass(frozen=True)
class Equal:
    """Resource in which a plain detector equals others.

    A step of it always has as many labelled frames as one of the teacher.

    Attributes:
        what: "labels": these alone; "frames": labelled frames of the whole training;
            "processor_time": of the whole training.
        to: key of the row that it equals, teacher included; "" for "labels".
        pace: key of the row whose steps cost as much as its own; "" for "labels".
    """

    what: What
    to: str = ""
    pace: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a table: a config and what it changes.

    Attributes:
        table: key of its table, such as "table3".
        name: unique in the table.
        title: what it is called in the table.
        layers: files that are merged into the config, in this order.
        student: its detector where the row says it; "" for the one that was asked for.
        is_plain: of a row with a detector of its own: whether it is the plain one.
        reference: key of the row that it is compared with; its own for a baseline.
        equal: see `Equal`; None for a row that trains as its layers say.
    """

    table: str
    name: str
    title: str
    layers: tuple[Path, ...] = ()
    student: str = ""
    is_plain: bool = False
    reference: str = ""
    equal: Equal | None = None

    @property
    def key(self) -> str:
        """Its name among the rows of all tables."""
        return f"{self.table}/{self.name}"

    @property
    def number(self) -> str:
        """Its name in few letters, see `number`."""
        return number(self.name)


@dataclass(frozen=True)
class Table:
    """A table, or a figure.

    Attributes:
        key: such as "table3".
        label: the paper's name: "III", "5a".
        title: what it is about.
        rows: in order.
        axes: of a grid, the names of what varies.
    """

    key: str
    label: str
    title: str
    rows: tuple[Row, ...]
    axes: tuple[str, ...] = field(default=())

    @property
    def heading(self) -> str:
        """As a caption begins."""
        kind = {"table": "Table ", "fig": "Fig. "}
        known = next((word for start, word in kind.items() if self.key.startswith(start)), "")
        return f"{known}{self.label}: {self.title}"

    @property
    def numbers(self) -> dict[str, str]:
        """The rows' numbers by their names; "" for all where any has none."""
        numbers = {row.name: row.number for row in self.rows}
        if any(number == name for name, number in numbers.items()):
            return dict.fromkeys(numbers, "")
        return numbers


def number(name: str) -> str:
    """A row's number, without zeros before it: "2" of "02_fd"; the name of one without."""
    first = name.partition("_")[0]
    return first.lstrip("0") or "0" if first[:1].isdigit() and "." not in first else name


def find_tables(configs: Path) -> list[Table]:
    """All tables: the ablations in the paper's order, further ones by name, then Tables I and II.

    Runs are named after the first row that needs them.

    Args:
        configs: folder with the configs, whose subfolder ablations/ has the layers.
    """
    ablations = configs / "ablations"
    folders = [path.name for path in _folders(ablations)]
    known = [name for name in KNOWN if name in folders]
    others = [name for name in folders if name not in KNOWN]
    tables = [_layers(ablations, name) for name in (*known, *others)]
    return tables + [_detectors(key) for key in ("table1", "table2")]


def choose_table(tables: Sequence[Table], name: str) -> Table:
    """The table that a user means: "III", "3", "table3", "fig5a", "5A".

    Raises:
        ValueError: there is none; says which there are.
    """
    wanted = name.lower().replace(".", "").replace(" ", "")
    wanted = OTHER_NAMES.get(wanted, wanted)
    for table in tables:
        if wanted in (table.key.lower(), table.label.lower(), f"table{table.label}".lower()):
            return table
    raise ValueError(
        f"--table {name}: there is no such table. There are "
        + ", ".join(table.label for table in tables)
        + "; --list shows their rows."
    )


def choose_rows(table: Table, names: Sequence[str]) -> list[Row]:
    """The rows that a user names in full or by number; all of them without names.

    Raises:
        ValueError: one of them does not exist; says which do.
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


def _detectors(key: str) -> Table:
    rows = []
    for name, title in (BASELINES | STUDENTS).items():
        plain = Row(key, name, title, student=name, is_plain=True, reference=f"{key}/{name}")
        rows.append(plain)
        if name in STUDENTS:
            v2i = f"{title} + V2I-DETR"
            rows.append(Row(key, f"{name}_v2i", v2i, student=name, reference=plain.key))
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
    """Rows with what the folder's file says that they are given.

    Raises:
        ValueError: the file names rows or words that there are not.
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
    """Subfolders with layers, by name; without hidden ones such as an editor's."""
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if any(path.rglob("*.yaml")))


def _in_order(folder: Path) -> list[Path]:
    """Layers by name, numbers by their value."""

    def place(path: Path) -> tuple[float, str]:
        try:
            return float(path.stem), path.stem
        except ValueError:
            return 0.0, path.stem

    layers = (path for path in folder.glob("*.yaml") if not path.name.startswith("_"))
    return sorted(layers, key=place)


def _first_line(layer: Path) -> str:
    """The row's name in words, which a layer begins with."""
    return layer.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
