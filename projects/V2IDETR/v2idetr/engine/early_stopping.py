"""Training until the validation metric has stopped rising."""

from __future__ import annotations

import logging
import math
from typing import Any

from v2idetr.config.checks import latest_fall
from v2idetr.engine.trainer import TrainerHook
from v2idetr.wording import counted

logger = logging.getLogger(__name__)


class EarlyStopping(TrainerHook):
    """Lets the learning rate fall to zero once validation has stopped rising, and ends training.

    Stopped means that none of the last `patience` evaluations is above the best before them. From
    there the rate falls along a cosine, over `cooldown` times the steps so far. Where validation
    goes on rising, the fall begins in time to end with the last step.

    Args:
        patience: evaluations.
        cooldown: length of the fall, as a share of the steps before it.
        most_steps: of the training, the fall included.
    """

    def __init__(self, *, patience: int, cooldown: float, most_steps: int) -> None:
        self.patience, self.cooldown, self.most_steps = patience, cooldown, most_steps
        self.latest = latest_fall(most_steps, cooldown)
        self.begins: int | None = None
        self._best = -math.inf
        self._since = 0  # evaluations after the best one

    @property
    def ends(self) -> int:
        """Steps of the whole training, as far as is known."""
        if self.begins is None:
            return self.most_steps
        return min(self.most_steps, self.begins + max(1, round(self.cooldown * self.begins)))

    def factor(self, iteration: int) -> float:
        """Multiplier of the learning rate of a step."""
        if self.begins is None or iteration < self.begins:
            return 1.0
        share = (iteration - self.begins) / (self.ends - self.begins)
        return 0.5 * (1 + math.cos(math.pi * share))

    def observe(self, value: float) -> None:
        """Take note of an evaluation; higher is better, NaN is worst."""
        if value > self._best:
            self._best, self._since = value, 0
        else:
            self._since += 1

    def before_train(self) -> None:
        self._look(self.trainer.start_iter)

    def after_step(self) -> None:
        self._look(self.trainer.iter + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"begins": self.begins, "best": self._best, "since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begins, self._best, self._since = state["begins"], state["best"], state["since"]

    def _look(self, done: int) -> None:
        if self.begins is None and (self._since >= self.patience or done >= self.latest):
            self.begins = done
            why = f"validation did not rise for {counted(self._since, 'evaluation')}"
            if self._since < self.patience:
                why = f"the last of {self.most_steps} steps must end the fall"
            logger.info(
                "%s: step %d: the learning rate falls to zero until step %d, because %s",
                self.trainer.stage,
                done,
                self.ends,
                why,
            )
        self.trainer.max_iter = self.ends
