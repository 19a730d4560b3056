"""The package needs neither torch nor detectron2, and imports a runtime when a file needs it."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import subprocess
import sys

import pytest

import v2i_runtime

# Blocked where they are installed, as in the environment of the tests of training.
PROGRAM = """
import importlib, sys
for name in ("torch", "torchvision", "detectron2", "v2idetr", "onnxruntime", "openvino"):
    sys.modules[name] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported_without_torch_and_without_a_runtime() -> None:
    modules = [module.name for module in pkgutil.iter_modules(v2i_runtime.__path__)]
    assert "detector" in modules
    run(PROGRAM, *(f"v2i_runtime.{name}" for name in modules))


def test_the_package_itself_imports_no_libraries() -> None:
    loaded = run("import sys, v2i_runtime; print(*sys.modules)").split()
    assert not {"numpy", "cv2", "av", "PIL"} & set(loaded)


def test_names_of_the_package_are_those_of_its_modules() -> None:
    for name in v2i_runtime.__all__:
        assert getattr(v2i_runtime, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Tracker'"):
        _ = v2i_runtime.Tracker


@pytest.mark.skipif("V2I_WITHOUT_TORCH" not in os.environ, reason="for `make test-runtime`")
@pytest.mark.parametrize("name", ["torch", "torchvision", "detectron2", "v2idetr"])
def test_this_environment_has_no_torch(name: str) -> None:
    assert importlib.util.find_spec(name) is None
