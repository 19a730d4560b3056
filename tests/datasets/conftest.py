"""Programs of datasets/ as modules, and the generator's data."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

DATASETS = Path(__file__).parents[2] / "datasets"


@cache
def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"program_{name}", DATASETS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., dict[str, dict]]:
    """``convert("sun", source, *options)`` -> content of every JSON it wrote, audit included."""

    def run(name: str, source: Path, *options: str) -> dict[str, dict]:
        output = tmp_path / "out"
        _load(f"prepare_{name}").main(["--source", str(source), "--output", str(output), *options])
        assert (output / "audit.md").is_file()
        return {path.stem: json.loads(path.read_text()) for path in output.glob("*.json")}

    return run


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``synthetic("sun", "--defects")`` -> folder of the generator's tiny data in that layout."""

    @cache
    def make(layout: str, *options: str) -> Path:
        output = tmp_path_factory.mktemp("synthetic") / layout
        command = [sys.executable, str(DATASETS / "make_synthetic.py"), "--layout", layout]
        command += ["--output", str(output), "--size", "64x48", "--workers", "1", *options]
        subprocess.run(command, check=True, capture_output=True)
        return output

    return make
