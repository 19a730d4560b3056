"""Commands in the documentation name programs, options, files and config keys that exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, commands, name_of
from v2idetr.config.load import load_config

COMMANDS = [(name_of(page), words) for page in PAGES for words in commands(page)]
ELSEWHERE = re.compile(
    r"^(output|data)/|[$*]|[A-Z]{3,}"
)  # made by commands, or a placeholder: ROW, RUN


def of_program(words: list[str]) -> tuple[str, list[str]] | None:
    """(program of this repository, its arguments) of a command; None for others."""
    for place, word in enumerate(words):
        if word.endswith(".py"):
            return word, words[place + 1 :]
    return None


RUNS = [(page, *found) for page, words in COMMANDS if (found := of_program(words)) is not None]
PROGRAMS = sorted({program for _, program, _ in RUNS})


@cache
def help_of(program: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / program), "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_of_every_kind_are_found() -> None:
    assert {"train_net.py", "tools/export.py", "datasets/prepare_sunseg.py"} <= set(PROGRAMS)
    assert {"python", "pip", "make", "torchrun"} <= {words[0] for _, words in COMMANDS}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_and_their_options_exist(program: str) -> None:
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_of(program)))
    wrong = [
        f"{page}: {program} has no {option}"
        for page, used, arguments in RUNS
        if used == program
        for word in arguments
        if re.match(r"--?[a-z]", word) and (option := word.split("=")[0]) not in known
    ]
    assert not wrong


TRAININGS = [(page, arguments) for page, used, arguments in RUNS if used == "train_net.py"]


@pytest.mark.parametrize(
    ("page", "arguments"), TRAININGS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(TRAININGS)]
)
def test_configs_and_their_keys_exist(
    page: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = blocks(ROOT / "docs" / "own_detector.md", "python")  # with a module of the reader's
    (source,) = (block for block in own if "DistillationLoss" in block)
    (tmp_path / "my_losses.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(ROOT)
    options = list(pairwise(arguments))
    (config,) = (value for option, value in options if option == "--config-file")
    layers = [value for option, value in options if option == "--layer"]
    values = {value for option, value in options if option.startswith("--")}
    overrides = [
        word
        for word in arguments
        if "=" in word and not word.startswith("--") and word not in values
    ]
    if not any(ELSEWHERE.search(path) for path in (config, *layers)):
        load_config(config, overrides, layers=layers)


@pytest.mark.parametrize(
    ("page", "words"),
    [pair for pair in COMMANDS if pair[1][0] == "pip"],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_pip_installs_exists(page: str, words: list[str]) -> None:
    for option, value in pairwise(words):
        if option == "-r":
            assert (ROOT / value).is_file(), f"{page}: {value}"
    for word in words[2:]:
        if match := re.fullmatch(r"(?:\./)?(projects/\w+)(?:\[(.*)\])?", word):
            project = tomllib.loads((ROOT / match[1] / "pyproject.toml").read_text())["project"]
            extras = set((match[2] or "").split(",")) - {""}
            assert extras <= set(project["optional-dependencies"]), f"{page}: {word}"


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    wrong = [
        f"{page}: make {word}"
        for page, words in COMMANDS
        if words[0] == "make"
        for word in words[1:]
        if "=" not in word and word not in targets
    ]
    assert not wrong
