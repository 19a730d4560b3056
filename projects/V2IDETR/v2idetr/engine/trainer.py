"""One step of training, on any number of processes and micro-batches, always the same gradient.

Notation: a step sees one batch, which `world` processes share and each cuts into `accumulate`
micro-batches. Box losses are sums divided by a number of boxes, so with n boxes in the whole batch
each micro-batch is given n / (world * accumulate), and its loss is divided by `accumulate`;
DistributedDataParallel then takes the mean over processes, and sums over boxes are divided by n
exactly once.
"""

from __future__ import annotations

import contextlib
import random
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from v2idetr.modeling.criterion import mean_over_processes
from v2idetr.modeling.trainable import Sample, Trainable

Amp = Literal["off", "bf16", "fp16"]
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_LOSS_SCALE = 2.0**-10
MAX_FRAMES_NAMED = 16


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient is NaN or infinite; names the iteration and the frames."""


class TrainerHook(HookBase):
    """A Detectron2 hook that can also give the model more than the batch, and clean up."""

    trainer: Trainer

    def before_forward(self, batch: list[Sample]) -> dict[str, Any]:
        """Further keyword arguments of the model for this micro-batch."""
        return {}

    def measured(self) -> dict[str, Tensor]:
        """Numbers about the last forward pass for `step_metrics`, by name, without gradients."""
        return {}

    def without_batch(self, error: RuntimeError) -> None:
        """The next batch cannot be loaded; the error is raised unless this raises another one."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned in an earlier process."""

    def close(self) -> None:
        """Release files and terminals, also after an error."""


class Trainer(TrainerBase):
    """Detectron2 trainer with accumulation, mixed precision, clipping and repeatable steps.

    Args:
        model: `model(batch, num_boxes=...)` gives losses; possibly wrapped for several processes.
        batches: this process's share of every batch, from the first iteration of `train` on.
        optimizer: its learning rates are set by a hook.
        stage, seed: with iteration and rank, they seed all random numbers of a step, so that a
            resumed run needs no random state.
        accumulate: micro-batches of a step; divides the length of every batch.
        amp: precision of the forward pass; fp16 scales the loss.
        clip_grad_norm: greatest norm of all gradients together; 0 for none.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[list[Sample]],
        optimizer: Optimizer,
        *,
        stage: str,
        seed: int,
        accumulate: int = 1,
        amp: Amp = "off",
        clip_grad_norm: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.optimizer, self.batches = model, optimizer, batches
        network = model.module if isinstance(model, DistributedDataParallel) else model
        assert isinstance(network, Trainable), type(network)
        self.network: Trainable = network
        self.stage, self.seed = stage, seed
        self.accumulate, self.amp, self.clip_grad_norm = accumulate, amp, clip_grad_norm
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        self.step_metrics: dict[str, float] = {}
        self._iterator: Iterator[list[Sample]] = iter(())

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run steps start_iter .. max_iter - 1; hooks may lower `max_iter`.

        Unlike Detectron2's, `after_train` hooks run only when all steps were done: an error must
        not look like an end.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self.model.train()
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                self._iterator = iter(self.batches)
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
                self.after_train()
            finally:
                for hook in self._hooks:
                    if isinstance(hook, TrainerHook):
                        hook.close()

    def state_dict(self) -> dict[str, Any]:
        """Iteration, states of the hooks and of the loss scale; plain types."""
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.scaler.load_state_dict(state_dict["scaler"])

    def run_step(self) -> None:
        """One batch, one update."""
        start, processor_start = time.perf_counter(), time.process_time()
        batch = self._next_batch()
        data_time_s = time.perf_counter() - start
        seed_step(self.seed, self.stage, self.iter, comm.get_rank())
        micro_batches = split_batch(batch, self.accumulate)
        num_boxes = self._boxes_per_micro_batch(batch)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        losses: dict[str, Tensor] = {}
        for index, micro_batch in enumerate(micro_batches):
            with self._gradients_shared(index == len(micro_batches) - 1):
                losses = self._forward(micro_batch, num_boxes)
                values = self._checked(losses, micro_batch, num_boxes)
                total = torch.stack(list(losses.values())).sum()
                self.scaler.scale(total / self.accumulate).backward()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / self.accumulate
        norm = self._update(batch)
        total_loss = sum(sums[name] for name in losses)
        self.step_metrics = {"total_loss": total_loss, **sums, "grad_norm": norm}
        frames = self.network.count_frames(batch) * comm.get_world_size()
        self.step_metrics["labelled_frames"] = float(frames)
        self.step_metrics["data_time_s"] = data_time_s
        self.step_metrics["time_s"] = time_s = time.perf_counter() - start
        # Of the processor that computes: all threads of this process, or the GPU.
        processor_time_s = time.process_time() - processor_start
        if self.device.type == "cuda":
            processor_time_s = time_s - data_time_s
        self.step_metrics["processor_time_s"] = processor_time_s

    def _next_batch(self) -> list[Sample]:
        try:
            return next(self._iterator)
        except RuntimeError as error:
            for hook in self._hooks:
                if isinstance(hook, TrainerHook):
                    hook.without_batch(error)
            raise

    def _losses(
        self, model: Callable[..., Any], batch: list[Sample], num_boxes: float
    ) -> dict[str, Tensor]:
        with torch.autocast(
            self.device.type, dtype=AMP_DTYPES.get(self.amp), enabled=self.amp != "off"
        ):
            extra: dict[str, Any] = {}
            for hook in self._hooks:
                if isinstance(hook, TrainerHook):
                    extra |= hook.before_forward(batch)
            return model(batch, **extra, num_boxes=num_boxes)

    def _forward(self, batch: list[Sample], num_boxes: float) -> dict[str, Tensor]:
        """The losses; where a process cannot compute them, all of them raise together."""
        losses: dict[str, Tensor] = {}
        problem = ""
        try:
            losses = self._losses(self.model, batch, num_boxes)
        except FloatingPointError as error:  # the matcher refuses costs that are not finite
            problem = str(error)
        failed = bool(problem)
        if comm.get_world_size() > 1:
            any_failed = torch.tensor(float(failed), device=self.device)
            dist.all_reduce(any_failed)
            failed = bool(any_failed)
        if failed:
            raise NonFiniteLossError(
                self._report(problem or "the loss is not finite", self._culprits(batch, num_boxes))
            )
        return losses

    def _boxes_per_micro_batch(self, batch: list[Sample]) -> float:
        """Boxes of the whole batch, at least one, divided by its number of micro-batches."""
        return mean_over_processes(self.network.count_boxes(batch), self.device) / self.accumulate

    def _gradients_shared(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Processes exchange gradients once a step, with the last micro-batch."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _checked(
        self, losses: dict[str, Tensor], batch: list[Sample], num_boxes: float
    ) -> dict[str, float]:
        """Means over processes of the losses, then of what hooks have measured.

        All processes raise together where a loss is not finite.
        """
        everything = dict(losses)
        for hook in self._hooks:
            if isinstance(hook, TrainerHook):
                everything |= hook.measured()
        values = torch.stack([value.detach().float() for value in everything.values()])
        if (world := comm.get_world_size()) > 1:
            dist.all_reduce(values)
        if not bool(torch.isfinite(values[: len(losses)]).all()):
            found = zip(losses, values.tolist(), strict=False)  # the losses come first
            names = [name for name, value in found if not np.isfinite(value)]
            problem = f"the loss ({', '.join(names)}) is not finite"
            raise NonFiniteLossError(self._report(problem, self._culprits(batch, num_boxes)))
        return dict(zip(everything, (values / world).tolist(), strict=True))

    @torch.no_grad()
    def _culprits(self, batch: list[Sample], num_boxes: float) -> list[str]:
        """File names of the samples, of all processes, whose own loss is not finite."""
        names = []
        for sample in batch:
            try:
                losses = self._losses(self.network, [sample], num_boxes)
                finite = all(bool(torch.isfinite(loss).all()) for loss in losses.values())
            except FloatingPointError:
                finite = False
            if not finite:
                names.append(str(sample["file_name"]))
        everywhere: Any = comm.all_gather(names)
        return [name for part in everywhere for name in part]

    def _update(self, batch: list[Sample]) -> float:
        """Clip the gradients and take the step; returns their norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        frames = [str(sample["file_name"]) for sample in batch]
        # With fp16 such steps are expected: the scaler skips them and lowers its scale.
        if self.amp != "fp16" and not bool(torch.isfinite(norm)):
            problem = "the gradient is not finite, though the loss is"
            raise NonFiniteLossError(self._report(problem, frames))
        if self.clip_grad_norm > 0:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.amp == "fp16" and self.scaler.get_scale() < SMALLEST_LOSS_SCALE:
            raise NonFiniteLossError(self._report("no recent gradient was finite", frames))
        return float(norm)

    def _report(self, problem: str, frames: list[str]) -> str:
        shown = frames[:MAX_FRAMES_NAMED]
        more = f"\n  and {len(frames) - len(shown)} more" if len(frames) > len(shown) else ""
        return (
            f"stage {self.stage}, iteration {self.iter}: {problem}. Earlier checkpoints are "
            f"kept. {len(frames)} frame(s) gave this:"
            + "".join(f"\n  {name}" for name in shown)
            + f"{more}\nLook at these frames and their boxes; else lower optimizer.lr, or set "
            "train.amp=off."
        )


def seed_step(seed: int, stage: str, iteration: int, rank: int) -> None:
    """Seed all random numbers from what identifies a step: the past does not matter."""
    words = (seed, zlib.crc32(stage.encode()), iteration, rank)
    state = np.random.SeedSequence(words).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]) << 32 | int(state[3]))


def split_batch(batch: list[Sample], parts: int) -> list[list[Sample]]:
    """Equal consecutive parts of a batch."""
    size, rest = divmod(len(batch), parts)
    if rest or not size:
        raise ValueError(f"a batch of {len(batch)} clips cannot be cut into {parts} equal parts")
    return [batch[start : start + size] for start in range(0, len(batch), size)]
