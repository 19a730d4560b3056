from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.review.pages import browser, page, served  # noqa: F401
from tests.review.tiny_review import tiny_splits, write_run
from tests.tiny_fixtures import cost_is_not_measured, fresh_log  # noqa: F401
from v2idetr.review.run_review import RunReview


@pytest.fixture(scope="session")
def tiny_data_with_rate(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return tiny_splits(tmp_path_factory.mktemp("review_data"))


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_data_with_rate: dict
) -> Iterator[Path]:
    yield write_run(tmp_path_factory.mktemp("review_run"), tiny_data_with_rate)


@pytest.fixture(scope="session")
def run_review(finished_run: Path) -> RunReview:
    return RunReview([finished_run])
