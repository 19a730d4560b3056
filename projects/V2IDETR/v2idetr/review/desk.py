"""The reviews that are open, by the token in their address, and how new ones are opened."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from v2idetr.review.choices import Choices
from v2idetr.review.review import NotThereError, Review
from v2idetr.review.uploads import check_video
from v2idetr.review.video_review import VideoReview

MOST_RUNS = 8  # reviews of runs that are kept open


@dataclass
class Desk:
    """State of the page.

    Attributes:
        choices: what can be chosen on it.
        folder: where uploads and frames of videos are; removed at the end.
        max_upload_bytes: largest upload.
        fps: frame rate of all splits, Hz; None: that of their files.
    """

    choices: Choices
    folder: Path
    max_upload_bytes: int
    fps: float | None = None
    reviews: dict[str, Review] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def get(self, token: str) -> Review:
        """An open review; raises NotThereError."""
        review = self.reviews.get(token)
        if review is None:
            raise NotThereError("this review is not open any more; open it again")
        return review

    def open_runs(self, folders: Sequence[Path]) -> str:
        """Open a review of runs; returns its token.

        Raises:
            ValueError: see ``RunReview``.
        """
        from v2idetr.review.run_review import RunReview  # it imports torch and detectron2

        review = RunReview(folders, fps=self.fps)
        review.title = ", ".join(map(self.choices.title, folders))
        return self._add(review)

    def open_video(
        self, video: Path, title: str, models: Sequence[Path], *, uploaded: bool = False
    ) -> str:
        """Open a review of a video, and begin to process it; returns its token.

        There is one at a time: the one before is stopped and removed.

        Args:
            video: path of the video.
            title: its name for the reader.
            models: files of detectors.
            uploaded: whether the file came from the browser, and is removed with the review.

        Raises:
            ValueError: the video cannot be read, or there is no detector.
        """
        if not models:
            raise ValueError("choose at least one detector: a checkpoint or an exported file")
        if uploaded:
            check_video(video, title)
        titles = {self.choices.title(path): path for path in models}
        review = VideoReview(video, title, titles, self.folder, remove=uploaded)
        token = self._add(review)
        review.start()
        return token

    def close(self) -> None:
        """Close all reviews."""
        with self._lock:
            for review in self.reviews.values():
                review.close()
            self.reviews.clear()

    def _add(self, review: Review) -> str:
        token = secrets.token_urlsafe(16)
        with self._lock:
            alike = [t for t, r in self.reviews.items() if isinstance(r, type(review))]
            most = 1 if isinstance(review, VideoReview) else MOST_RUNS
            for old in alike[: max(0, len(alike) - most + 1)]:
                self.reviews.pop(old).close()
            self.reviews[token] = review
        return token
