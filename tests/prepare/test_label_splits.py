"""Splits by video or patient: nobody on two sides, everybody somewhere, the same every time."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v2idetr.data.audit import Findings
from v2idetr.prepare.labels.splits import FAR, SPLITS, patients_of, split_videos

SHARES = {"val": 0.15, "test": 0.15}
# Lesion frames of each video of each patient; at least three patients have some.
PATIENTS = st.lists(
    st.lists(st.integers(0, 40), min_size=1, max_size=4), min_size=3, max_size=14
).filter(lambda patients: sum(any(counts) for counts in patients) >= 3)


def videos_of(patients: list[list[int]]) -> tuple[dict[str, str], dict[str, int]]:
    of, counts = {}, {}
    for p, frames in enumerate(patients):
        for v, count in enumerate(frames):
            of[f"v{v}_{p}"], counts[f"v{v}_{p}"] = f"P{p}", count
    return of, counts


@given(PATIENTS, st.integers(0, 5))
def test_no_patient_is_in_two_splits_and_all_videos_are_used(patients, seed) -> None:
    of, counts = videos_of(patients)
    split_of = split_videos(of, counts, shares=SHARES, seed=seed)
    assert split_of.keys() == of.keys() and set(split_of.values()) <= set(SPLITS)
    sides = defaultdict(set)
    for video, split in split_of.items():
        sides[of[video]].add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    for split in SPLITS:
        assert sum(counts[video] for video, s in split_of.items() if s == split) > 0


@settings(max_examples=25)
@given(PATIENTS, st.integers(0, 5), st.randoms())
def test_the_seed_decides_alone_not_the_order_of_the_videos(patients, seed, random) -> None:
    of, counts = videos_of(patients)
    mixed = list(of.items())
    random.shuffle(mixed)
    first = split_videos(of, counts, shares=SHARES, seed=seed)
    assert split_videos(dict(mixed), counts, shares=SHARES, seed=seed) == first


def test_seeds_differ_and_shares_are_those_of_the_frames() -> None:
    of = {f"v{k:03d}": f"v{k:03d}" for k in range(100)}
    counts = {video: 1 + k % 7 for k, video in enumerate(of)}
    drawn = [split_videos(of, counts, shares=SHARES, seed=seed) for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    for split_of in drawn:
        for split, share in {"train": 0.7, **SHARES}.items():
            frames = sum(counts[video] for video in of if split_of[video] == split)
            assert frames / sum(counts.values()) == pytest.approx(share, abs=0.03)


def shares_of(split_of: dict[str, str], counts: dict[str, int]) -> dict[str, float]:
    sums = dict.fromkeys(SPLITS, 0)
    for video, split in split_of.items():
        sums[split] += counts[video]
    return {split: number / sum(sums.values()) for split, number in sums.items()}


@given(st.integers(0, 30))
def test_few_patients_of_unequal_size_are_divided_as_well_as_they_can_be(seed) -> None:
    counts = {"a": 100, "b": 1000, "c": 80, "d": 60, "e": 40, "f": 120}
    of = {video: video for video in counts}
    notes = Findings()
    split_of = split_videos(of, counts, shares=SHARES, seed=seed, notes=notes)
    assert split_of["b"] == "train"  # elsewhere it would be most of what is tested on
    shares = shares_of(split_of, counts)
    assert all(1 / FAR < share / 0.15 < FAR for split, share in shares.items() if split != "train")
    assert not notes.counts


@given(PATIENTS, st.integers(0, 5))
def test_shares_that_are_far_off_are_noted_and_no_others(patients, seed) -> None:
    of, counts = videos_of(patients)
    notes = Findings()
    shares = shares_of(split_videos(of, counts, shares=SHARES, seed=seed, notes=notes), counts)
    wanted = {"train": 0.7, **SHARES}
    far = [split for split in SPLITS if not 1 / FAR <= shares[split] / wanted[split] <= FAR]
    assert sum(notes.counts.values()) == len(far)
    assert [said for examples in notes.examples.values() for said in examples] == [
        f"{split} has {shares[split]:.0%} of the frames with lesions, not {wanted[split]:.0%}"
        for split in far
    ]


def test_videos_without_lesions_are_spread_over_the_splits_too() -> None:
    of = {f"v{k}": f"v{k}" for k in range(20)}
    counts = {f"v{k}": 10 * (k < 10) for k in range(20)}
    split_of = split_videos(of, counts, shares={"val": 0.2, "test": 0.2}, seed=0)
    free = [split for video, split in split_of.items() if not counts[video]]
    assert {split: free.count(split) for split in SPLITS} == {"train": 6, "val": 2, "test": 2}


def test_too_few_videos_or_patients_are_refused() -> None:
    of = {"a": "a", "b": "b", "c": "c"}
    with pytest.raises(ValueError, match=r"2 videos with lesions left, .* need 3"):
        split_videos(of, {"a": 1, "b": 1}, shares=SHARES, seed=0)
    with pytest.raises(ValueError, match=r"1 patient with lesions left, .* need 3"):
        split_videos({"a": "P", "b": "P"}, {"a": 1, "b": 1}, shares=SHARES, seed=0)


def test_named_videos_bring_their_patient_along_and_the_rest_is_drawn() -> None:
    of, counts = videos_of([[5, 5], [5], [5], [5]])
    named = {"test": ["v1_*"]}
    split_of = split_videos(of, counts, shares=SHARES, seed=0, named=named)
    assert split_of["v0_0"] == split_of["v1_0"] == "test"
    assert sorted(split_of.values()) == ["test", "test", "train", "train", "val"]
    both = {"val": ["v0_1"], "test": ["v0_2"]}
    split_of = split_videos(of, counts, shares=SHARES, seed=0, named=both)
    assert sorted(split_of.values()) == ["test", "train", "train", "train", "val"]


def test_names_that_cannot_be_used_are_refused() -> None:
    of, counts = videos_of([[5, 5], [5], [0]])
    cases = {
        "no labelled video has this name; there are v0_2, v0_1": {"test": ["v0_9"]},
        "v1_0 is of the patient of v0_0, which is in val": {"val": ["v0_0"], "test": ["v1_0"]},
        "--test-videos v0_2: none of them has a lesion": {"val": ["v0_1"], "test": ["v0_2"]},
        "0 patients with lesions left": {"val": ["v0_1"], "test": ["v0_0"]},
    }
    for said, named in cases.items():
        with pytest.raises(ValueError, match=said.replace("(", r"\(")):
            split_videos(of, counts, shares=SHARES, seed=0, named=named)


def test_one_patient_in_two_spellings_is_refused_by_a_pattern_too() -> None:
    with pytest.raises(ValueError, match=r"^--patient-pattern .*'P1' and 'p1' differ"):
        patients_of(["P1_a", "p1_b"], pattern="^([a-zA-Z]+[0-9]+)")


def test_patients_of_a_table_with_or_without_suffixes(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text(
        "\ufeffpatient,video,age\nP1,a.mp4,50\nP1, b ,50\nP2,c.mp4,\n", encoding="utf-8"
    )
    assert patients_of(["a", "b", "c"], table=table) == {"a": "P1", "b": "P1", "c": "P2"}
    with pytest.raises(ValueError, match="no patient for 1 video: d"):
        patients_of(["a", "d"], table=table)
    table.write_text("video,patient\na,P1\na,P2\n")
    with pytest.raises(ValueError, match="a is of two patients, P1 and P2"):
        patients_of(["a"], table=table)
    table.write_text("video,patient\ncase.1,P1\ncase.2,P2\n")
    assert patients_of(["case.1", "case.2"], table=table) == {"case.1": "P1", "case.2": "P2"}
    with pytest.raises(ValueError, match="no patient for 1 video: case"):
        patients_of(["case"], table=table)
    table.write_text("video,patient\na,P1\nb,p1\n")
    with pytest.raises(ValueError, match=r"csv: the patients 'P1' and 'p1' differ by letter case"):
        patients_of(["a", "b"], table=table)
    table.write_text("file,patient\na,P1\n")
    with pytest.raises(ValueError, match="has no column video; it has file, patient"):
        patients_of(["a"], table=table)
    table.write_text("")
    with pytest.raises(ValueError, match="has no column video, patient; it has none"):
        patients_of(["a"], table=table)


def test_patients_of_a_pattern() -> None:
    assert patients_of(["P01_a", "P01_b"], pattern="(P[0-9]+)") == {"P01_a": "P01", "P01_b": "P01"}
    named = r"\w+_(?P<patient>\w)"
    assert patients_of(["x_a"], pattern=named) == {"x_a": "a"}
    for pattern, said in {
        "(": "no regular",
        "P": "needs a group",
        "(Q)": "'x' does not fit",
    }.items():
        with pytest.raises(ValueError, match=f"--patient-pattern .*{said}"):
            patients_of(["x"], pattern=pattern)
