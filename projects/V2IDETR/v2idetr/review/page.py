"""The pages, with NiceGUI: choose what to look at; look at it.

All texts of files go through elements that show text as text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from nicegui import events, run, ui

from v2idetr.review.desk import Desk
from v2idetr.review.frame_store import check_space
from v2idetr.review.gate import MIB
from v2idetr.review.review import NotThereError, Review
from v2idetr.review.routes import STATIC
from v2idetr.review.uploads import new_place
from v2idetr.review.video_review import VideoReview

NO_DEVICE = "Research software, not a medical device: not for diagnosis or treatment."
STYLE = "/static/review/review.css"


class Player(ui.element, component=str(STATIC / "player.js")):
    """The player of one review; all it needs it asks the server for (``routes.py``).

    Args:
        token: token of the review.
    """

    def __init__(self, token: str) -> None:
        super().__init__()
        self._props["token"] = token


def add_pages(app: FastAPI, desk: Desk) -> None:
    """Add the pages to an application; once in a process, since NiceGUI has one set of pages."""

    @ui.page("/")
    def start() -> None:
        _frame("Review detections")
        with ui.element("main").classes("start"):
            ui.label(
                "Watch what detectors find and what they miss, move their thresholds, and compare "
                "them on the same frames."
            ).classes("lead")
            with ui.element("div").classes("cards"):
                _RunCard(desk)
                _VideoCard(desk)
            if desk.choices.cut:
                ui.label(desk.choices.cut).classes("remark")
            _open_reviews(desk)

    @ui.page("/review/{token}")
    def review(token: str) -> None:
        try:
            shown = desk.get(token)
        except NotThereError as error:
            _frame("Review detections")
            ui.label(str(error)).classes("lead")
            return
        _frame(shown.title, _stop_button(shown))
        Player(token)

    ui.run_with(app, title="V2I-DETR review", dark=True, tailwind=False, show_welcome_message=False)


def _frame(title: str, more: Callable[[], Any] = lambda: None) -> None:
    """What every page has: style, heading, and what this is not."""
    ui.add_head_html(f'<link rel="stylesheet" href="{STYLE}">')
    ui.query(".nicegui-content").classes("whole")
    with ui.element("header").classes("top"):
        ui.link("V2I-DETR", "/").classes("brand").props('aria-label="Choose something else"')
        ui.label(title).classes("title").props('role="heading" aria-level="1"')
        more()
        ui.label(NO_DEVICE).classes("device")


def _stop_button(review: Review) -> Callable[[], Any]:
    if not isinstance(review, VideoReview):
        return lambda: None
    return lambda: (
        ui.button("Stop processing", on_click=review.stop)
        .props("outline dense no-caps color=grey-5")
        .bind_visibility_from(review, "state", lambda state: state in ("loading", "running"))
    )


def _open_reviews(desk: Desk) -> None:
    if not desk.reviews:
        return
    ui.label("Open now").classes("heading")
    for token, review in desk.reviews.items():
        ui.link(review.title, f"/review/{token}").classes("open")


class _Card:
    """A way to begin: its elements, and a button that opens a review or says why not."""

    def __init__(self, desk: Desk, heading: str, words: str) -> None:
        self.desk = desk
        with ui.element("section").classes("card") as self.element:
            ui.label(heading).classes("heading")
            ui.label(words).classes("remark")
            self.fill()
            with ui.row().classes("act"):
                self.button = ui.button("Open", on_click=self.go).props("no-caps unelevated")
                self.busy = ui.spinner(size="1.5em")
                self.busy.visible = False
            self.problem = ui.label().classes("problem").props('role="alert"')

    def fill(self) -> None:
        raise NotImplementedError

    def work(self) -> str:
        """Open the review, in a thread; returns its token."""
        raise NotImplementedError

    async def go(self) -> None:
        self.problem.text, self.busy.visible = "", True
        self.button.disable()
        try:
            token = await run.io_bound(self.work)
        except Exception as error:  # of a library that reads the files; the page has to say it
            known = isinstance(error, ValueError | OSError)
            self.problem.text = str(error) if known else f"{type(error).__name__}: {error}"
        else:
            ui.navigate.to(f"/review/{token}")
        finally:
            self.busy.visible = False
            self.button.enable()


class _RunCard(_Card):
    def __init__(self, desk: Desk) -> None:
        super().__init__(
            desk,
            "A run of train_net.py",
            "Its detectors on its validation and test videos, with ground truth.",
        )

    def fill(self) -> None:
        runs = dict(enumerate(map(self.desk.choices.title, self.desk.choices.runs)))
        if not runs:
            ui.label(f"There is no run below {self.desk.choices.root}.").classes("remark")
        self.run = ui.select(runs, label="Run", with_input=True).classes("wide")
        self.others = ui.select(
            runs, label="Compare with runs on the same data (optional)", multiple=True
        ).classes("wide")

    def work(self) -> str:
        if self.run.value is None:
            raise ValueError("choose a run")
        chosen = dict.fromkeys([self.run.value, *self.others.value])
        return self.desk.open_runs([self.desk.choices.runs[index] for index in chosen])


class _VideoCard(_Card):
    def __init__(self, desk: Desk) -> None:
        self.uploaded: tuple[Path, str] | None = None
        self.was_left = False
        super().__init__(
            desk,
            "A video",
            "It plays while detectors go through it. There is no ground truth, so nothing is "
            "counted as missed or false.",
        )
        ui.context.client.on_delete(self.leave)

    def fill(self) -> None:
        choices, most = self.desk.choices, self.desk.max_upload_bytes
        videos = dict(enumerate(map(choices.title, choices.videos)))
        self.upload = (
            ui.upload(
                label=f"Drop a video here, or choose one (at most {most / MIB:.0f} MiB)",
                auto_upload=True,
                max_files=1,
                max_file_size=most,
                on_upload=self.receive,
                on_rejected=self.refuse,
            )
            .props('flat bordered color=grey-9 accept="video/*,.mkv,.ts,.avi,.mpg"')
            .classes("wide")
        )
        self.upload.on("failed", self.failed, args=[])
        self.video = ui.select(videos, label="or one below " + str(choices.root), clearable=True)
        self.video.classes("wide").set_visibility(bool(videos))
        models = dict(enumerate(map(choices.title, choices.models)))
        self.models = ui.select(models, label="Detectors", multiple=True).classes("wide")
        if not models:
            ui.label(
                f"There is no checkpoint (best.pth, .safetensors) or exported detector (.xml, "
                f".onnx) below {choices.root}."
            ).classes("remark")

    async def receive(self, event: events.UploadEventArguments) -> None:
        self.discard()
        self.problem.text, place = "", new_place(self.desk.folder)
        try:
            check_space(self.desk.folder, event.file.size())
            await event.file.save(place)
        except (OSError, ValueError) as error:
            place.unlink(missing_ok=True)
            self.problem.text = f"{event.file.name} was not taken: {error}"
            return
        self.uploaded = place, event.file.name
        if self.was_left:
            self.discard()

    def leave(self) -> None:
        """The page is closed, perhaps while an upload is stored."""
        self.was_left = True
        self.discard()

    def discard(self) -> None:
        """Remove an upload that was not opened."""
        if self.uploaded is not None:
            self.uploaded[0].unlink(missing_ok=True)
        self.uploaded = None

    def refuse(self) -> None:
        self.problem.text = (
            f"This file was not taken: it must be one video of at most "
            f"{self.desk.max_upload_bytes / MIB:.0f} MiB. Start the page with a larger "
            "--max-upload-mib, or give it the path of the video."
        )
        self.upload.reset()

    def failed(self) -> None:
        self.problem.text = "The upload failed; try again."
        self.upload.reset()

    def work(self) -> str:
        choices = self.desk.choices
        models = [choices.models[index] for index in self.models.value]
        if self.uploaded is not None:
            (place, name), self.uploaded = self.uploaded, None
            try:
                return self.desk.open_video(place, name, models, uploaded=True)
            except BaseException:
                place.unlink(missing_ok=True)
                raise
        if self.video.value is None:
            raise ValueError("drop a video, or choose one")
        path = choices.videos[self.video.value]
        return self.desk.open_video(path, choices.title(path), models)
