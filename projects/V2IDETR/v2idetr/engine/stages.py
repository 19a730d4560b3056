"""The stages of a run: trained, evaluated, compared; resumable at any point."""

from __future__ import annotations

import copy
import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from v2idetr.atomic_file import write_text_atomically
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.config.load import save_config
from v2idetr.config.stage_settings import given_file, stages_to_train
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import Stage, StageModels
from v2idetr.engine.stage_training import (
    dry_run,
    load_initial_weights,
    started,
    starts_from_imagenet,
)
from v2idetr.evaluation.evaluator import write_evaluation
from v2idetr.modeling.backbone_handover import Giver, check_handover, check_pixels, giver
from v2idetr.runs.folder import CONFIG, RESULTS, check_evaluation
from v2idetr.runs.stage_folder import StageFolder

logger = logging.getLogger(__name__)

Result = dict[str, Any]


def run_stages(run: RunContext) -> dict[str, Result]:
    """Train and evaluate every stage that is not finished; returns the evaluations by stage."""
    names = stages_to_train(run.config)
    check_models(run, names)
    results: dict[str, Result] = {}
    for number, name in enumerate(names, start=1):
        logger.info("stage %d of %d: %s", number, len(names), name)
        stage, files = run.stages[name], StageFolder(run.stage_folder(name))
        known: Result | None = None
        if not files.final.exists():
            stage.train(run)
            gc.collect()  # the trainer and its hooks know each other; evaluation wants the memory
        else:
            known = _known_evaluation(run, files) if stage.reported else None
            if known is not None or not stage.reported:
                logger.info("%s: finished already", name)
        if stage.reported:
            weights = stage.artefact(run.config)
            results[name] = known or _evaluate(run, stage, weights, files.path)
    return _finish(run, results, run.folder)


def _known_evaluation(run: RunContext, files: StageFolder) -> Result | None:
    """The evaluation of a trained stage; None if there is none, or one on other test splits."""
    if not files.evaluation.exists():
        return None
    result: Result = json.loads(files.evaluation.read_text(encoding="utf-8"))
    tests = result.get("tests", run.tests)  # not in every stage's
    return result if set(tests) == set(run.tests) else None


def check_models(run: RunContext, names: list[str]) -> None:
    """Before hours of training: build what will be trained, load what it starts from, try it.

    Raises:
        ValueError, CheckpointError: models, losses or given weights do not fit.
    """
    givers: dict[str, Giver] = {}
    for name in names:
        stage = run.stages[name]
        models = build_to_train(run, name)
        backbone = stage.needs.get("backbone")
        if backbone in givers:
            key, source = f"stages.{name}.needs.backbone", f"the stage {backbone}"
            check_handover(givers[backbone], models.model, source=source, key=key)
        initial = stage.needs.get("initial")
        if initial in givers:
            key, source = f"stages.{name}.needs.initial", f"the stage {initial}"
            check_pixels(givers[initial].pixels, models.model, source=source, key=key)
        givers[name] = giver(models.model)
        of_given = copy.copy(stage)
        of_given.earlier = {
            r: s for r, s in stage.earlier.items() if given_file(run.config, s.name)
        }
        of_given.load_needs(run, models)
        if not started(run, stage):
            dry_run(run, stage, models)


def build_to_train(run: RunContext, name: str) -> StageModels:
    """The models of a stage with the weights that it starts from, unless it has begun.

    Raises:
        ValueError, CheckpointError: see `Stage.build` and `load_initial_weights`.
    """
    stage = run.stages[name]
    models = stage.build(run.config, pretrained=starts_from_imagenet(run, stage))
    if not started(run, stage):
        load_initial_weights(run.config, stage, models.model)
    return models


def evaluate_only(run: RunContext, folder: Path, weights: str = "") -> dict[str, Result]:
    """Evaluate what the run has trained, or else a given file; train nothing.

    Args:
        run: whose stages or detector. What it found out itself stays as it is.
        folder: where the evaluation is written.
        weights: a file for the detector of the last of `train.stages`; "" for the run's own.

    Raises:
        CheckpointError: there is none, or it does not fit.
        ValueError: the folder holds something else, see `check_evaluation`.
    """
    stages = [stage for n in run.config.train.stages if (stage := run.stages[n]).reported]
    if not stages:
        raise ValueError(f"none of train.stages={list(run.config.train.stages)} can be evaluated.")
    # Row of the table: stage that says which detector it is, and the file.
    rows = {stage.name: (stage, stage.artefact(run.config)) for stage in stages}
    if weights:
        logger.info("evaluating %s with the detector of the %s", weights, stages[-1].name)
        rows = {Path(weights).stem: (stages[-1], Path(weights))}
    missing = [str(file) for _, file in rows.values() if not file.exists()]
    if missing:
        raise CheckpointError(
            f"--eval-only needs trained weights, but there is no {', no '.join(missing)}. Name a "
            "file with --weights FILE, the folder of a finished run with train.output_dir=..., or "
            "fewer train.stages."
        )
    check_evaluation(folder, run.config, {name: file for name, (_, file) in rows.items()})
    results = {
        name: _evaluate(run, stage, file, folder / name) for name, (stage, file) in rows.items()
    }
    if comm.is_main_process():
        save_config(run.config, folder / CONFIG)
    return _finish(run, results, folder)


def _evaluate(run: RunContext, stage: Stage, weights: Path, folder: Path) -> Result:
    """Evaluate a trained stage on the test splits, thresholds from the validation split.

    Writes evaluation.json and the predictions into the folder.
    """
    result = stage.evaluate(run, weights, folder)
    result = {"stage": stage.name, "checkpoint": str(weights), **result}
    if comm.is_main_process():
        write_evaluation(StageFolder(folder).evaluation, result)
    return result


def _finish(run: RunContext, results: dict[str, Result], folder: Path) -> dict[str, Result]:
    """Write results.json into the folder and show the tables."""
    rows: dict[Callable[..., str], dict[str, Result]] = {}
    for row, result in results.items():
        rows.setdefault(run.stages[result["stage"]].table, {})[row] = result
    table = "\n\n".join(show(shown) for show, shown in rows.items())
    table = table or "no stage is evaluated on test splits"
    if comm.is_main_process():
        text = json.dumps({"stages": results, "table": table}, indent=1, allow_nan=False)
        write_text_atomically(folder / RESULTS, text + "\n")
    logger.info("results (%s):\n%s", folder / RESULTS, table)
    return results
