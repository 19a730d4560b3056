"""The options of train_net.py, as far as they need no torch: processes, and errors of its user."""

from __future__ import annotations

import argparse
import os

USER_ERROR = 2  # exit code

# What is given of the processes on the command line, unless torchrun starts them.
PROCESSES = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
# What torchrun tells each process that it starts.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class UserError(Exception):
    """Something that the user can fix; the message is all there is to show."""


def under_torchrun() -> bool:
    """Whether this is one of the processes that torchrun has started."""
    return all(name in os.environ for name in TORCHRUN)


def complete_processes(options: argparse.Namespace) -> None:
    """Fill in the options about processes that were not given: defaults, or what torchrun says.

    Raises:
        UserError: they are given, and torchrun says something as well.
    """
    values = PROCESSES
    if under_torchrun():
        given = [f"--{n.replace('_', '-')}" for n in PROCESSES if getattr(options, n) is not None]
        if given:
            raise UserError(
                f"torchrun says how many processes there are (RANK, WORLD_SIZE, ... are set): drop "
                f"{', '.join(given)}; to start without torchrun, unset RANK"
            )
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        machine = int(os.environ["RANK"]) // local
        machines = {"num_machines": world // local, "machine_rank": machine}
        values = {"num_gpus": local, **machines, "dist_url": "env://"}
    for name, value in values.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def start_of_command(options: argparse.Namespace) -> list[str]:
    """First words of the command that started the run: whatever comes before train_net.py."""
    if not under_torchrun():
        return ["python"]
    more = ["..."] if options.num_machines > 1 else []
    return ["torchrun", "--nproc_per_node", str(options.num_gpus), *more]
