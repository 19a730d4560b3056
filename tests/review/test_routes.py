"""The player's questions: positions in, JSON and JPEG out, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nicegui", reason="requirements-app.txt is not installed")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.review.tiny_review import HOSTILE
from v2idetr.review.choices import Choices
from v2idetr.review.desk import Desk
from v2idetr.review.routes import add_routes
from v2idetr.review.run_review import RunReview

TOKEN = "t"


@pytest.fixture(scope="module")
def client(run_review: RunReview, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    folder = tmp_path_factory.mktemp("desk")
    app = FastAPI()
    add_routes(app, Desk(Choices(folder), folder, 1000, reviews={TOKEN: run_review}))
    return TestClient(app)


def test_the_player_learns_what_there_is(client: TestClient) -> None:
    meta = client.get(f"/api/{TOKEN}").json()
    assert meta["splits"] == ["held_out", "val"]
    assert meta["detectors"][1]["thresholds"] == {"endovis_center": 0.5, "iou50": 0.5}
    videos = client.get(f"/api/{TOKEN}/videos", params={"split": 0}).json()
    assert videos[1]["name"] == HOSTILE


def test_metrics_take_a_threshold_for_each_detector(client: TestClient) -> None:
    where = {"split": 0, "video": 0}
    answer = client.get(f"/api/{TOKEN}/metrics", params={**where, "thresholds": "0.5,0.25,0.5"})
    assert answer.json()["detectors"][1]["iou50"]["video"]["fn"] == 1
    assert answer.json()["events"][1]["iou50"][0]["miss"] == 1
    for wrong in ("0.5", "0.5,nan,0.5", "0.5,1.5,0.5", "0.5,x,0.5", "0.5,inf,0.5"):
        answer = client.get(f"/api/{TOKEN}/metrics", params={**where, "thresholds": wrong})
        assert answer.status_code == 422, wrong


def test_a_jump_says_where_to(client: TestClient) -> None:
    asked: dict[str, Any] = {"what": "miss", "detector": 1, "rule": "iou50", "threshold": 0.5}
    asked |= {"split": 0, "video": 0, "frame": 2, "step": 1}
    assert client.get(f"/api/{TOKEN}/jump", params=asked).json() == {"place": [2, 0]}
    answer = client.get(f"/api/{TOKEN}/jump", params={**asked, "frame": 99})
    assert answer.status_code == 404
    assert "no frame 99" in answer.json()["error"]


def test_a_frame_is_an_image(client: TestClient) -> None:
    answer = client.get(f"/api/{TOKEN}/frame/0/0/0.jpg")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content[:2] == b"\xff\xd8"


def test_a_review_that_is_not_open_is_not_found(client: TestClient) -> None:
    answer = client.get("/api/other")
    assert answer.status_code == 404
    assert "open it again" in answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        f"/api/{TOKEN}/frame/0/0/..%2f..%2f..%2fetc%2fpasswd.jpg",
        f"/api/{TOKEN}/frame/../../../etc/passwd",
        f"/api/{TOKEN}/frame/0/0/%2e%2e%2f0.jpg",
        "/static/review/../routes.py",
        "/static/review/..%2froutes.py",
        "/static/review/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static/review//etc/passwd",
        "/static/review/",
    ],
)
def test_no_path_leads_out(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (404, 422), answer.text
    assert b"root:" not in answer.content
    assert b"import" not in answer.content


def test_a_frame_that_cannot_be_read_says_why(
    client: TestClient, run_review: RunReview, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = run_review.judged(0).records[0]
    monkeypatch.setitem(record, "file_name", str(tmp_path / "elsewhere.png"))
    answer = client.get(f"/api/{TOKEN}/frame/0/0/0.jpg")
    assert answer.status_code == 422
    assert "is not below the image root" in answer.json()["error"]
