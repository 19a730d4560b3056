"""What the player asks the server for, as JSON and JPEG: positions in, no paths.

/api/TOKEN                  title, detectors, splits
/api/TOKEN/videos           of a split
/api/TOKEN/clip             frames of a video: times, lesions, detections
/api/TOKEN/metrics          at a threshold for each detector
/api/TOKEN/jump             next missed lesion or false alarm
/api/TOKEN/explain          TFD's mask, sampling points
/api/TOKEN/frame/S/V/F.jpg  a frame
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from v2idetr.evaluation.rule_names import RULE_LABELS
from v2idetr.review.desk import Desk
from v2idetr.review.judged_split import What
from v2idetr.review.review import NotThereError

STATIC = Path(__file__).parent / "static"


def add_routes(app: FastAPI, desk: Desk) -> None:
    """Add the routes to an application. They run in threads: some read files or compute."""
    app.mount("/static/review", StaticFiles(directory=STATIC), name="review")
    _add_contents(app, desk)
    _add_judgements(app, desk)
    app.add_exception_handler(NotThereError, lambda _, error: _error(404, error))
    app.add_exception_handler(ValueError, lambda _, error: _error(422, error))


def _add_contents(app: FastAPI, desk: Desk) -> None:
    @app.get("/api/{token}")
    def meta(token: str) -> dict[str, Any]:
        review = desk.get(token)
        return {
            "title": review.title,
            "detectors": [shown.as_dict() for shown in review.detectors],
            "splits": list(review.splits),
            "has_truth": review.has_truth,
            "rules": RULE_LABELS,
        }

    @app.get("/api/{token}/videos")
    def videos(token: str, split: int) -> list[dict[str, Any]]:
        return desk.get(token).videos(split)

    @app.get("/api/{token}/clip")
    def clip(token: str, split: int, video: int, start: int = 0) -> Response:
        # Plain numbers and texts: nothing that FastAPI would have to encode.
        return JSONResponse(desk.get(token).clip(split, video, start))

    @app.get("/api/{token}/frame/{split}/{video}/{frame}.jpg")
    def frame(token: str, split: int, video: int, frame: int) -> Response:
        jpeg = desk.get(token).jpeg(split, video, frame)
        headers = {"cache-control": "private, max-age=3600"}
        return Response(jpeg, media_type="image/jpeg", headers=headers)


def _add_judgements(app: FastAPI, desk: Desk) -> None:
    @app.get("/api/{token}/metrics")
    def metrics(token: str, split: int, video: int, thresholds: str) -> dict[str, Any]:
        review = desk.get(token)
        values = [_threshold(text) for text in thresholds.split(",")]
        if len(values) != len(review.detectors):
            raise ValueError(f"thresholds={thresholds!r:.80}: one for each detector is needed")
        return review.metrics(split, video, values)

    @app.get("/api/{token}/jump")
    def jump(
        token: str,
        what: What,
        detector: int,
        rule: str,
        threshold: str,
        split: int,
        video: int,
        frame: int,
        step: Literal["1", "-1"],
    ) -> dict[str, Any]:
        at = split, video, frame
        place = desk.get(token).jump(what, detector, rule, _threshold(threshold), at, int(step))
        return {"place": place}

    @app.get("/api/{token}/explain")
    def explain(
        token: str,
        what: Literal["mask", "points"],
        detector: int,
        split: int,
        video: int,
        frame: int,
    ) -> dict[str, Any]:
        return desk.get(token).explain(what, detector, (split, video, frame))


def _threshold(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(f"threshold {text!r:.40} is not in [0, 1]")
    return value


def _error(status: int, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=status)
