"""Boxes by policy: properties that hold for any box, and findings that are counted and capped."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from v2idetr.data.audit import (
    ROUNDING_PX,
    AuditReport,
    Findings,
    audit_boxes,
    box_fault,
    clip_box,
)

WIDTH, HEIGHT = 64, 48
SIZE = {"width": WIDTH, "height": HEIGHT}

numbers = st.one_of(
    st.integers(-200, 200), st.floats(-200, 200), st.floats(allow_nan=True, allow_infinity=True)
)
any_box = st.lists(numbers, min_size=4, max_size=4)
sound_box = st.tuples(
    st.floats(0, WIDTH - 1), st.floats(0, HEIGHT - 1), st.floats(0.01, 1), st.floats(0.01, 1)
).map(lambda b: [b[0], b[1], b[2] * (WIDTH - b[0]), b[3] * (HEIGHT - b[1])])


def audit(boxes: list, policy: str) -> tuple[list[list[float]], AuditReport]:
    frames = {1: {"file_name": "a/1.jpg", **SIZE}}
    report = AuditReport(source="toy")
    annotations = [{"id": k, "image_id": 1, "bbox": box} for k, box in enumerate(boxes)]
    return [a["bbox"] for a in audit_boxes(annotations, frames, report, policy)], report


@given(any_box)
@example([1, 0, -1.0, 0])
def test_clipped_box_is_sound(box):
    mended = clip_box(box, **SIZE)
    if mended is not None:
        x, y, w, h = mended
        assert x >= 0 and y >= 0 and w > 0 and h > 0
        assert x + w <= WIDTH + 1e-9 and y + h <= HEIGHT + 1e-9
        assert box_fault(mended, **SIZE) is None


@given(any_box)
def test_clipping_twice_is_clipping_once(box):
    once = clip_box(box, **SIZE)
    if once is not None:
        assert clip_box(once, **SIZE) == pytest.approx(once)


@given(sound_box)
def test_sound_box_is_left_as_it_is(box):
    assert box_fault(box, **SIZE) is None
    assert clip_box(box, **SIZE) == pytest.approx(tuple(box))


@given(st.lists(any_box, max_size=6))
def test_every_box_is_kept_clipped_or_dropped_and_counted(boxes):
    for policy in ("raise", "clip", "drop"):
        kept, report = audit(boxes, policy)
        bad = sum(report.bad_boxes.values())
        assert len(kept) + report.dropped == len(boxes)
        assert all(box_fault(box, **SIZE) is None for box in kept)
        if policy == "clip":
            assert report.clipped + report.dropped == bad
        if policy == "drop":
            assert (report.clipped, report.dropped) == (0, bad)
        assert len(report.problems) == (bad if policy == "raise" else 0)
        assert report.frames_left_without_box == bool(boxes and not kept)


@given(sound_box)
def test_swapped_corners_give_the_same_box(box):
    x, y, w, h = box
    assert clip_box([x + w, y, -w, h], **SIZE) == pytest.approx((x, y, w, h))
    assert box_fault([x + w, y, -w, h], **SIZE) == "negative"


@pytest.mark.parametrize(
    ("box", "fault", "mended"),
    [
        ([1, 2, 3], "malformed", None),
        ("1234", "malformed", None),
        (None, "malformed", None),
        ([1, 2, "3", 4], "malformed", None),
        ([1, 2, True, 4], "malformed", None),
        ([1, math.nan, 3, 4], "not_finite", None),
        ([1, 2, math.inf, 4], "not_finite", None),
        ([1, 2, 0, 4], "empty", None),
        ([1, 2, -3, 0], "negative", None),
        ([-5, 10, 20, 10], "outside", (0, 10, 15, 10)),
        ([60, 40, 20, 20], "outside", (60, 40, 4, 8)),
        ([70, 10, 20, 10], "outside", None),
        ([-9.5, 10, 10, 10], "outside", None),  # half a pixel of it is left
        ([0, 0, WIDTH + ROUNDING_PX / 2, HEIGHT], None, (0, 0, WIDTH, HEIGHT)),
        # the boxes that were published with BUV, in the size of its frames
        ([114 / 8, 127 / 8, -100 / 8, 62 / 8], "negative", (1.75, 15.875, 12.5, 7.75)),
    ],
)
def test_fault_and_what_clip_makes_of_it(box, fault, mended):
    assert box_fault(box, **SIZE) == fault
    if fault != "malformed":
        assert clip_box(box, **SIZE) == (pytest.approx(mended) if mended else None)
    kept, report = audit([box], "clip")
    assert kept == ([pytest.approx(list(mended))] if mended else [])
    assert dict(report.bad_boxes) == ({fault: 1} if fault else {})


def test_findings_name_the_first_few_and_count_the_rest():
    findings = Findings(examples_per_kind=2)
    for k in range(5):
        findings.add("frame is missing", f"{k}.jpg")
    findings.add("odd", "x")
    assert findings.lines() == ["frame is missing: 5 (0.jpg; 1.jpg; ... and 3 more)", "odd: 1 (x)"]
    assert len(findings) == 6


def test_no_findings_do_not_raise():
    Findings().raise_if_any("train.json")


def test_report_has_a_line_for_each_kind_of_finding():
    _, report = audit([[-5, 10, 20, 10], [1, 2, 3, 4]], "clip")
    report.boxes_per_class = {"polyp": 2}
    summary, note = report.lines()
    assert summary == (
        "toy: 0 videos, 0 frames (0 lesion-free), 2 boxes (polyp 2); bad boxes 1 (outside 1): "
        "policy clip, 1 clipped, 0 dropped"
    )
    assert note.startswith("note: box reaches outside its frame: 1 (annotation 0 of a/1.jpg")
    assert report.as_dict()["bad_boxes"] == {"outside": 1}
