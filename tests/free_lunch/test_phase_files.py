"""Label files of Cholec80, M2CAI16 and CholecT50 -> phases, and every way in which they are bad."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from free_lunch.prepare.phase_files import (
    CHOLEC80_PHASES,
    M2CAI16_PHASES,
    PhaseLabels,
    check_length,
    read_cholect50,
    read_phase_text,
)
from tests.free_lunch.tiny_surgery import write_phases, write_triplets

NAMES = ["preparation", "carlot-triangle-dissection", "clipping-and-cutting"]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_phase_file_gives_the_phase_of_every_frame(tmp_path: Path) -> None:
    phases = [CHOLEC80_PHASES[0]] * 30 + [CHOLEC80_PHASES[1]] * 20
    labels = read_phase_text(write_phases(tmp_path / "video01-phase.txt", phases), CHOLEC80_PHASES)
    assert (labels.phases, labels.rate, labels.duration_s) == (phases, 25, 2.0)
    assert [labels.at(time_s) for time_s in (0.0, 1.16, 1.2, 1.96, 2.0)] == [
        "Preparation",
        "Preparation",
        "CalotTriangleDissection",
        "CalotTriangleDissection",
        None,
    ]


def test_numbers_may_stand_for_names_and_the_header_may_be_missing(tmp_path: Path) -> None:
    path = write_phases(tmp_path / "a.txt", [0, 0, 6], header=False)
    assert read_phase_text(path, CHOLEC80_PHASES).phases[-1] == "GallbladderRetraction"
    assert read_phase_text(path, M2CAI16_PHASES).phases[0] == "TrocarPlacement"


def test_windows_lines_spaces_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfFrame\tPhase\r\n0 Preparation \r\n1\tPreparation\r\n\r\n")
    assert read_phase_text(path, CHOLEC80_PHASES).phases == ["Preparation"] * 2


def test_exports_of_one_label_a_second_have_that_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "0\t0", "25\t0", "50\t1")
    labels = read_phase_text(path, CHOLEC80_PHASES)
    assert (labels.rate, labels.at(2.0)) == (Fraction(1), "CalotTriangleDissection")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"a\.txt: holds no labels"),
        (["Frame\tPhase"], r"a\.txt: holds no labels"),
        (["0\tPreperation"], r"line 1: 'Preperation' is none of .*did you mean Preparation\?"),
        (["0\t7"], r"line 1: '7' is none of the phases Preparation"),
        (["0\tTrocarPlacement"], r"'TrocarPlacement' is none of the phases"),
        (["0\t0", "1\t0", "3\t0"], r"line 3: frame 3 follows 1, but should be 2"),
        (["0\t0", "1\t0", "1\t0"], r"line 3: frame 1 follows 1, but should be 2"),
        (["0\t0", "0\t0"], r"line 2: frame 0 follows 0, but should be 1"),
        (["5\t0", "6\t0"], r"line 1: labels start at frame 5, but should at 0"),
        (["0\t0", "x\t0"], r"line 2: 'x\\t0' is not a frame number and a phase"),
        (["0\t0", "1"], r"line 2: '1' is not a frame number and a phase"),
        (["00:00:00.00\tPreparation"], r"line 1: .* is not a frame number and a phase"),
    ],
)
def test_bad_phase_files_are_refused_with_file_and_line(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_phase_text(
            write(tmp_path / "a.txt", *lines) if lines else empty(tmp_path), CHOLEC80_PHASES
        )


def empty(folder: Path) -> Path:
    (folder / "a.txt").write_text("")
    return folder / "a.txt"


def test_triplet_files_give_names_and_phases(tmp_path: Path) -> None:
    path = write_triplets(tmp_path / "VID01.json", [0, 0, -1, 1, None], NAMES)
    labels, names = read_cholect50(path)
    assert names == NAMES
    assert labels.phases == [NAMES[0], NAMES[0], None, NAMES[1], None]
    assert labels.rate == 1


def test_triplet_categories_may_be_a_list_as_documented(tmp_path: Path) -> None:
    categories = [{"triplet": {"0": "x"}}, {"phase": {"1": "b", "0": "a"}}]
    path = write_triplets(tmp_path / "VID01.json", [1], NAMES, categories=categories)
    labels, names = read_cholect50(path)
    assert (labels.phases, names) == (["b"], ["a", "b"])


VECTOR = [-1] * 14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": {}}, "holds no labels"),
        ({"annotations": {"0": [[*VECTOR, -1]]}}, "no frame has a phase"),
        ({"annotations": {"0": [[*VECTOR, 0]], "2": [[*VECTOR, 0]]}}, "lack frame 1, but have 2"),
        ({"annotations": {"7": [[*VECTOR, 0]]}}, "lack frame 0, but have 7"),
        ({"annotations": {"0": [[*VECTOR, 9]]}}, "frame 0: phase 9 is none of 0 preparation"),
        ({"annotations": {"0": [[*VECTOR, 0], [*VECTOR, 1]]}}, r"frame 0: has the phases \[0, 1\]"),
        ({"annotations": {"0": [[1, 2]]}}, "frame 0: expected lists of 15 numbers"),
        ({"annotations": [1]}, "not the expected labels"),
        ({"categories": {"triplet": {}}}, r"not the expected labels \(KeyError"),
        ({"fps": 0}, "not the expected labels"),
        ({"fps": float("inf")}, r"not the expected labels \(OverflowError"),
        ({"fps": "1/0"}, r"not the expected labels \(ZeroDivisionError"),
        ({"annotations": {"0": [[*VECTOR, [0]]]}}, r"frame 0: phase \[0\] is no number"),
    ],
)
def test_bad_triplet_files_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = write_triplets(tmp_path / "VID01.json", [0], NAMES, **changes)
    with pytest.raises(ValueError, match=rf"VID01\.json.*{message}"):
        read_cholect50(path)


def test_a_triplet_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the expected labels"):
        read_cholect50(write(tmp_path / "VID01.json", "{"))


@pytest.mark.parametrize("duration_s", [39.0, 39.96, 40.04, 41.0])
def test_labels_may_differ_from_their_video_by_a_second(duration_s: float) -> None:
    check_length(PhaseLabels(Path("a"), [None] * 1000, Fraction(25)), duration_s, 0.04, Path("v"))


@pytest.mark.parametrize("duration_s", [38.5, 41.5, 1000.0])
def test_labels_of_another_length_are_refused(duration_s: float) -> None:
    labels = PhaseLabels(Path("video01-phase.txt"), [None] * 1000, Fraction(25))
    message = r"video01-phase\.txt: labels 40\.0 s \(1000 frames at 25 Hz\), but v\.mp4 lasts"
    with pytest.raises(ValueError, match=message):
        check_length(labels, duration_s, 0.04, Path("v.mp4"))
