"""Signatures from source are those that importing would have found."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from detectron2.utils.registry import locate

from v2idetr.config.load import load_config, to_plain
from v2idetr.config.signatures import COMPUTED, read_signature, signature_of

ROOT = Path(__file__).resolve().parents[2]


def targets(value: Any) -> set[str]:
    """All targets in a config."""
    if isinstance(value, list):
        return {name for item in value for name in targets(item)}
    if not isinstance(value, dict):
        return set()
    own = {value["_target_"]} if "_target_" in value else set()
    return own | targets(list(value.values()))


def all_targets() -> list[str]:
    files = [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "baselines").glob("*.yaml")]
    return sorted({name for file in files for name in targets(to_plain(load_config(file)))})


def as_told(signature: inspect.Signature) -> list[tuple[Any, ...]]:
    """What a config is checked against."""
    plain = (bool, int, float, str, type(None))
    return [
        (p.name, p.kind, p.default if type(p.default) in plain else p.default is p.empty)
        for p in signature.parameters.values()
    ]


@pytest.mark.parametrize("target", all_targets())
def test_what_the_configs_name_is_read_as_it_is_imported(target: str) -> None:
    read = read_signature(target)
    assert read is not None, "the source settles it"
    computed = {p.name for p in read.parameters.values() if p.default is COMPUTED}
    both = (as_told(read), as_told(inspect.signature(locate(target))))
    ours, real = ([p for p in told if p[0] not in computed] for told in both)
    assert ours == real


MODULE = """
import functools
from dataclasses import dataclass
from .inner import Base, helper as renamed
try:
    from nowhere import maybe
except ImportError:
    maybe = None

SIDE = 3

@dataclass(frozen=True, kw_only=True)
class Fields:
    first: int
    second: str = "x"

class Child(Base):
    pass

class Own(Base):
    def __init__(self, a, /, b: int | None = None, *rest, c=SIDE, **more): ...

    @staticmethod
    def make(depth: int): ...

    def method(self): ...

class WithMeta(metaclass=type):
    pass

@functools.cache
def decorated(a): ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "sample_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .outer import Own as Public\n")
    (folder / "outer.py").write_text(MODULE)
    (folder / "stars.py").write_text("from .star import *\n")
    (folder / "star.py").write_text("def starred(a): ...\n")
    (folder / "inner.py").write_text(
        "class Base:\n    def __init__(self, size: int): ...\n\ndef helper(x, y=2): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "sample_package"
    for name in [name for name in sys.modules if name.startswith("sample_package")]:
        del sys.modules[name]
    for function in (read_signature, signature_of):
        function.cache_clear()


@pytest.mark.parametrize(
    "name", ["outer.Fields", "outer.Child", "Public", "outer.Own.make", "outer.renamed"]
)
def test_classes_functions_and_what_they_inherit_are_read(package: str, name: str) -> None:
    read = read_signature(f"{package}.{name}")
    assert package not in sys.modules
    real = inspect.signature(locate(f"{package}.{name}"))
    both = ([(p.name, p.kind) for p in s.parameters.values()] for s in (read, real))
    assert next(both) == next(both)


@pytest.mark.parametrize(
    "name",
    [
        "outer.WithMeta",
        "outer.decorated",
        "outer.Own.method",
        "outer.maybe",
        "stars.starred",
        "nothing",
    ],
)
def test_what_the_source_does_not_settle_is_left_to_importing(package: str, name: str) -> None:
    assert read_signature(f"{package}.{name}") is None
    found = signature_of(f"{package}.{name}")
    if name in ("outer.decorated", "stars.starred"):
        assert list(found.parameters) == ["a"]


def test_a_config_is_refused_without_importing_what_it_names() -> None:
    program = (
        "import sys\n"
        "from v2idetr.config.load import ConfigError, load_run_config\n"
        "try:\n"
        "    load_run_config('configs/v2i_synthetic.yaml', ['train.max_itr=3', 'data.window=0'],\n"
        "                    world_size=1, has_gpu=False)\n"
        "except ConfigError as error:\n"
        "    print(len(error.problems), *{'torchvision', 'timm', 'scipy'} & {*sys.modules})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["1"]
