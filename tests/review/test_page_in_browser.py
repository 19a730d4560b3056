"""The page in a browser: what a person sees, and what a hostile one cannot do."""

from __future__ import annotations

import http.client
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.review.pages import MAX_UPLOAD_BYTES, NARROW, Served
from tests.review.tiny_review import HOSTILE, write_video

PLAIN = 1  # position of the plain student


def open_review(page: Any, served: Served, detector: int = PLAIN) -> None:
    page.goto(f"{served.address}/review/run")
    page.wait_for_selector("[data-ready=true]")
    page.locator(f"[data-test=panel{detector}] h2").click()


def text(page: Any, name: str) -> str:
    return page.locator(f"[data-test={name}]").inner_text()


def wait_for_text(page: Any, name: str, wanted: str) -> None:
    page.wait_for_function(
        "([name, wanted]) => document.querySelector(`[data-test=${name}]`)"
        ".innerText.includes(wanted)",
        arg=[name, wanted],
    )


def metrics(page: Any, part: str, rule: str = "iou50", detector: int = PLAIN) -> list[str]:
    row = page.locator(f"[data-test=metrics{detector}] [data-test={part}-{rule}] td")
    return row.all_inner_texts()


def move_threshold(page: Any, value: float, detector: int = PLAIN) -> None:
    page.locator(f"[data-test=threshold{detector}]").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


def is_pink(page: Any, detector: int) -> bool:
    """Whether a panel has a line in the colour of false alarms where the false box begins."""
    red, green, blue = page.locator(f"[data-test=panel{detector}] canvas").evaluate(
        """canvas => {
            const [x, y] = [56 / 64, 40 / 48].map((part, i) =>
                Math.round(part * (i ? canvas.height : canvas.width)));
            const context = canvas.getContext("2d");
            const strip = context.getImageData(x, y, Math.round(canvas.width / 20), 1).data;
            const mean = [0, 0, 0, 0];
            strip.forEach((value, i) => { mean[i % 4] += 4 * value / strip.length; });
            return mean.slice(0, 3);
        }"""
    )
    return red - green > 50 and blue - green > 35


def test_a_run_is_shown_with_its_detectors_side_by_side_and_followed_by_keys(
    page: Any, served: Served
) -> None:
    open_review(page, served)
    names = page.locator(".panel h2").all_inner_texts()
    assert names == ["Teacher", "Plain student", "V2I student"]
    assert "not a medical device" in page.inner_text("body")
    assert metrics(page, "video") == ["60.0", "60.0", "60.0", "1", "250"]
    page.keyboard.press("m")
    wait_for_text(page, "place", "frame 3 of 6")
    assert text(page, "verdict1") == "missed"
    assert text(page, "verdict0") == "found"
    page.keyboard.press("f")
    wait_for_text(page, "place", "frame 5 of 6")
    assert text(page, "verdict1") == "found, 1 false alarm"


def test_the_threshold_changes_boxes_and_metrics_at_once(page: Any, served: Served) -> None:
    open_review(page, served)
    page.keyboard.press("f")
    wait_for_text(page, "place", "frame 5 of 6")
    assert is_pink(page, PLAIN)
    move_threshold(page, 0.75)
    wait_for_text(page, "metrics1", "75.0")
    assert text(page, "verdict1") == "found"
    assert not is_pink(page, PLAIN)
    assert metrics(page, "video") == ["100.0", "60.0", "75.0", "0", "0.00"]
    assert metrics(page, "split")[3] == "1"
    page.locator("[data-test=panel1] .reset").click()
    wait_for_text(page, "verdict1", "1 false alarm")
    assert metrics(page, "video", detector=0) == ["100.0", "100.0", "100.0", "0", "0.00"]


def test_each_detector_has_its_own_threshold(page: Any, served: Served) -> None:
    open_review(page, served)
    page.select_option("[data-test=video]", index=1)
    wait_for_text(page, "verdict2", "missed")
    move_threshold(page, 0.3, detector=2)
    wait_for_text(page, "verdict2", "found")
    assert text(page, "verdict1") == "found"
    assert page.locator("[data-test=panel1] output").inner_text() == "0.500"


def test_jumps_cross_videos_and_go_back_with_shift(page: Any, served: Served) -> None:
    open_review(page, served)
    for key, video, place in [
        ("m", 0, "frame 3 of 6"),
        ("m", 2, "frame 1 of 6"),
        ("Shift+m", 0, "frame 3 of 6"),
        ("f", 0, "frame 5 of 6"),
        ("f", 2, "frame 4 of 6"),
        ("Shift+f", 0, "frame 5 of 6"),
    ]:
        page.keyboard.press(key)
        page.wait_for_function(
            "([video, place]) => document.querySelector('[data-test=video]').value == video && "
            "document.querySelector('[data-test=place]').innerText.includes(place)",
            arg=[video, place],
        )


def test_where_there_is_nowhere_to_jump_it_is_said(page: Any, served: Served) -> None:
    open_review(page, served, detector=0)
    page.keyboard.press("f")
    wait_for_text(page, "note", "no false alarm of Teacher in this split")


def test_arrows_step_and_space_plays_to_the_end(page: Any, served: Served) -> None:
    open_review(page, served)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    wait_for_text(page, "place", "frame 2 of 6")
    page.keyboard.press(" ")
    wait_for_text(page, "place", "frame 6 of 6")
    assert page.get_attribute("[data-test=play]", "aria-label") == "Play"
    page.select_option(".speed select", "0.1")
    page.locator("[data-test=place]").click()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press(" ")
    wait_for_text(page, "place", "frame 2 of 6")
    page.keyboard.press(" ")
    assert page.get_attribute("[data-test=play]", "aria-label") == "Play"


def test_a_click_on_the_timeline_jumps_there(page: Any, served: Served) -> None:
    open_review(page, served)
    box = page.locator("[data-test=timeline]").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 3.5 / 6, box["y"] + 5)
    wait_for_text(page, "place", "frame 4 of 6")


def count_judged(page: Any) -> None:
    """Let the page note the frames whose detections it compares with the threshold."""

    def noting(route: Any) -> None:
        script, head = route.fetch().text(), "frame, threshold, rule) {"
        assert script.count(head) == 1
        noted = f"{head} (globalThis.judged ??= []).push(frame);"
        route.fulfill(body=script.replace(head, noted), content_type="text/javascript")

    page.route("**/static/review/drawing.js", noting)


def test_the_timeline_judges_frames_anew_only_when_something_changes(
    page: Any, served: Served
) -> None:
    count_judged(page)
    open_review(page, served)
    page.evaluate("judged = []")
    page.keyboard.press("ArrowRight")
    wait_for_text(page, "place", "frame 2 of 6")
    assert set(page.evaluate("judged")) == {1}
    before = page.locator("[data-test=timeline]").evaluate("canvas => canvas.toDataURL()")
    move_threshold(page, 0.75)
    assert set(page.evaluate("judged")) == set(range(6))
    after = page.locator("[data-test=timeline]").evaluate("canvas => canvas.toDataURL()")
    assert before != after


def test_a_video_that_comes_after_another_choice_is_not_shown(page: Any, served: Served) -> None:
    open_review(page, served)
    late: list[Any] = []
    page.route("**/clip?*video=2*", lambda route: late.append(route))
    page.select_option("[data-test=video]", index=2)
    page.select_option("[data-test=split]", index=1)
    page.wait_for_function(
        "() => document.querySelectorAll('[data-test=video] option').length == 1"
    )
    shown = text(page, "place")
    with page.expect_response("**/clip?*video=2*"):
        late[0].continue_()
    page.wait_for_timeout(200)
    assert page.locator("[data-test=video]").input_value() == "0"
    assert page.locator("[data-test=split]").input_value() == "1"
    assert text(page, "place") == shown


def test_a_name_that_is_html_is_shown_as_text(page: Any, served: Served) -> None:
    open_review(page, served)
    options = page.locator("[data-test=video] option").all_inner_texts()
    assert options[1].startswith(HOSTILE)
    assert page.locator("img[src=x]").count() == 0
    assert page.title() != "owned"


@pytest.mark.parametrize("what", ["mask", "points"])
def test_masks_and_sampling_points_come_on_demand(page: Any, served: Served, what: str) -> None:
    open_review(page, served)
    before = page.locator("[data-test=panel1] canvas").evaluate("canvas => canvas.toDataURL()")
    page.click(f"[data-test={what}]")
    said = {"mask": "TFD's mask at stride 32", "points": "Sampling points"}[what]
    page.wait_for_selector("[data-test=words2]")
    wait_for_text(page, "words1", said)
    after = page.locator("[data-test=panel1] canvas").evaluate("canvas => canvas.toDataURL()")
    assert before != after


def test_a_narrow_window_has_everything_below_each_other(page: Any, served: Served) -> None:
    page.set_viewport_size(NARROW)
    open_review(page, served)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    boxes = [page.locator(f"[data-test=panel{d}]").bounding_box() for d in range(3)]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    assert len({box["x"] for box in boxes}) == 1


# ---------------------------------------------------------------------- uploads


def choose_detector(page: Any) -> None:
    page.get_by_label("Detectors").click()
    page.get_by_role("option", name="run/plain/best.pth").click()
    page.keyboard.press("Escape")


def upload(page: Any, served: Served, path: Path) -> None:
    page.goto(served.address)
    page.locator("input[type=file]").set_input_files(str(path))


@pytest.mark.slow
def test_a_video_that_is_dropped_is_played_while_it_is_processed(
    page: Any, served: Served, tmp_path: Path
) -> None:
    video = write_video(tmp_path / "<img src=x onerror=alert(1)>.mp4", frames=20)
    upload(page, served, video)
    page.get_by_text("<img src=x onerror=alert(1)>.mp4").wait_for()
    choose_detector(page)
    page.get_by_role("button", name="Open").nth(1).click()
    page.wait_for_selector("[data-ready=true]")
    assert page.get_by_role("heading", level=1).inner_text() == video.name
    wait_for_text(page, "status", "20 of 20 frames · complete")
    wait_for_text(page, "place", "of 20")
    assert page.locator("img[src=x]").count() == 0
    stored = list(served.desk.folder.glob("upload_*"))
    assert len(stored) == 1 and stored[0].read_bytes() == video.read_bytes()


def test_a_file_that_is_no_video_is_refused_by_its_name(
    page: Any, served: Served, tmp_path: Path
) -> None:
    (tmp_path / "<b>notes.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    before = set(served.desk.folder.iterdir())
    upload(page, served, tmp_path / "<b>notes.mp4")
    page.get_by_text("<b>notes.mp4").wait_for()
    choose_detector(page)
    page.get_by_role("button", name="Open").nth(1).click()
    page.get_by_text("<b>notes.mp4: is no video file that can be read").wait_for()
    assert set(served.desk.folder.iterdir()) == before


def test_an_upload_that_is_not_opened_goes_with_the_page(
    page: Any, served: Served, tmp_path: Path
) -> None:
    before = set(served.desk.folder.iterdir())
    upload(page, served, write_video(tmp_path / "a.mp4", frames=3))
    page.get_by_text("a.mp4").wait_for()
    until = time.monotonic() + 20
    while set(served.desk.folder.iterdir()) == before and time.monotonic() < until:
        page.wait_for_timeout(50)
    assert len(set(served.desk.folder.iterdir()) - before) == 1
    page.goto("about:blank")
    while set(served.desk.folder.iterdir()) != before and time.monotonic() < until:
        page.wait_for_timeout(50)
    assert set(served.desk.folder.iterdir()) == before


def test_a_file_that_is_too_large_is_refused_with_the_limit(
    page: Any, served: Served, tmp_path: Path
) -> None:
    (tmp_path / "long.mp4").write_bytes(bytes(MAX_UPLOAD_BYTES + 1))
    upload(page, served, tmp_path / "long.mp4")
    page.get_by_text("it must be one video of at most 3 MiB").wait_for()


# ---------------------------------------------------------------------- over the wire


def raw(served: Served, request: str) -> str:
    """First line of the answer to a request, written by hand."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        return connection.recv(4096).decode(errors="replace").splitlines()[0]


def test_a_foreign_host_header_is_refused(served: Served) -> None:
    for path in ("/", "/api/run", "/review/run", "/_nicegui_ws/socket.io/?EIO=4&transport=polling"):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.request("GET", path, headers={"Host": "evil.example"})
        assert connection.getresponse().status == 421
        connection.close()


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("evil.example", "http://evil.example", "403"),
        ("HOST", "http://evil.example", "403"),
        ("HOST", "http://HOST", "101"),
    ],
)
def test_a_websocket_of_another_site_is_refused(
    served: Served, host: str, origin: str, status: str
) -> None:
    own = f"127.0.0.1:{served.port}"
    line = raw(
        served,
        "GET /_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1\n"
        f"Host: {host.replace('HOST', own)}\nOrigin: {origin.replace('HOST', own)}\n"
        "Upgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\n",
    )
    assert line.split()[1] == status


def test_an_upload_above_the_limit_is_refused_before_it_is_read(served: Served) -> None:
    line = raw(
        served,
        f"POST /_nicegui/client/a/upload/1 HTTP/1.1\nHost: 127.0.0.1:{served.port}\n"
        f"Content-Length: {50 * MAX_UPLOAD_BYTES}\n\n",
    )
    assert line.split()[1] == "413"


@pytest.mark.parametrize(
    "path", ["/api/run/frame/../../../etc/passwd", "/static/review/../../../../etc/passwd"]
)
def test_a_path_does_not_lead_out_over_the_wire(served: Served, path: str) -> None:
    line = raw(served, f"GET {path} HTTP/1.1\nHost: localhost:{served.port}\n\n")
    assert line.split()[1] == "404"


def test_the_page_listens_on_loopback_alone() -> None:
    server = pytest.importorskip("v2idetr.review.server", exc_type=ImportError)
    with server.listen(0) as own:
        assert own.getsockname()[0] == "127.0.0.1"
