#!/usr/bin/env python3
"""Train and evaluate: the video teacher, the plain detector, and the detector distilled from the
teacher.

    python train_net.py --config-file configs/v2i_synthetic.yaml
    python train_net.py --config-file configs/v2i_sun.yaml --num-gpus 4 train.amp=bf16
    torchrun --nproc_per_node 4 train_net.py --config-file configs/v2i_sun.yaml
    python train_net.py --config-file configs/v2i_sun.yaml --resume
    python train_net.py --config-file configs/v2i_sun.yaml \\
        --layer configs/ablations/table4/02_fd.yaml train.output_dir=output/table4/02_fd
    python train_net.py --config-file configs/v2i_sun.yaml --eval-only
    python train_net.py --config-file configs/v2i_sun.yaml --eval-only \\
        --weights student.pth --output output/evaluation_of_student

Each stage writes output_dir/<stage>/ (metrics.jsonl, last.pth, best.pth, final.pth,
evaluation.json), the run writes output_dir/results.json. --eval-only writes the same results,
with the config, into output_dir/evaluation/ or --output, and overwrites no other evaluation there.

A config is composed of a recipe, a model and a data set; configs/v2i_sun_detr.yaml is

    _base_: [recipes/paper.py, models/detr.py, data/sun.py]

Each file adds sections and changes keys of those before it. On top come the keys of the config file
itself, then every --layer FILE, then key=value. train.output_dir is output/NAME for NAME.yaml.
A new student is configs/models/NEW.py (and NEW_small.py for small data sets), a new data set
configs/data/NEW.py with its classes, files, augmentations and steps; write a line as above, or

    python train_net.py --config-file configs/recipes/paper.py --layer configs/models/NEW.py \\
        --layer configs/data/sun.py train.output_dir=output/new
"""

from __future__ import annotations

import argparse
import sys

from v2idetr.engine.command_line import USER_ERROR, UserError, complete_processes


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line to options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help=".yaml or LazyConfig .py")
    add(
        "--layer",
        action="append",
        default=[],
        metavar="FILE",
        help=".yaml with changes to the config, such as configs/ablations/table4/02_fd.yaml, or a "
        ".py part; several are applied in order, before the overrides",
    )
    add("--resume", action="store_true", help="continue the run in train.output_dir")
    add(
        "--eval-only",
        action="store_true",
        help="evaluate what the run in train.output_dir has trained; train nothing",
    )
    add(
        "--weights",
        default="",
        metavar="FILE",
        help="with --eval-only: evaluate this file instead, with the detector of the last of "
        "train.stages",
    )
    add(
        "--output",
        default="",
        metavar="FOLDER",
        help="with --eval-only: where to write (default train.output_dir/evaluation)",
    )
    processes = parser.add_argument_group("processes", "for torchrun to say where it starts them")
    processes.add_argument("--num-gpus", type=int, metavar="N", help="on this machine (default 1)")
    processes.add_argument(
        "--num-machines",
        type=int,
        metavar="N",
        help="machines of the run; train.output_dir must be a folder that they share",
    )
    processes.add_argument("--machine-rank", type=int, metavar="R", help="this machine, from 0")
    processes.add_argument(
        "--dist-url", metavar="URL", help="tcp://HOST:PORT of machine 0, for several machines"
    )
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to the config, such as train.max_iter=500; +key=value adds a key",
    )
    options = parser.parse_intermixed_args(arguments)  # overrides anywhere
    try:
        complete_processes(options)
    except UserError as error:
        parser.error(str(error))
    if options.num_gpus < 1 or not 0 <= options.machine_rank < options.num_machines:
        parser.error("--num-gpus must be 1 or more, --machine-rank in 0 .. --num-machines - 1")
    if options.resume and options.eval_only:
        parser.error("--resume trains and --eval-only does not: give one of them")
    if (options.weights or options.output) and not options.eval_only:
        parser.error(
            "--weights and --output are for --eval-only; to train, set train.init_checkpoint and "
            "train.output_dir"
        )
    if options.num_machines > 1 and options.dist_url == "auto":
        parser.error("several machines need --dist-url tcp://HOST:PORT of machine 0")
    return options


def main(options: argparse.Namespace) -> int:
    """Check everything that can be checked, start the processes, return the exit code."""
    # Imported here, so that --help and usage errors need no torch.
    from v2idetr.process_setup import ignore_torch_jit

    ignore_torch_jit()
    from v2idetr.engine.launch import launch_run

    try:
        return launch_run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main(parse()))
