"""The Triton kernels without a GPU: what they compute, in Triton's interpreter, and that they
compile for GPUs. On a GPU: tests/gpu/test_gpu_attention.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton comes with PyTorch's CUDA builds")

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "modeling" / "interpreted_triton.py"


def test_the_kernels_read_as_grid_sample_in_tritons_interpreter() -> None:
    # A process of its own: the interpreter is chosen before Triton is imported.
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-qp", "no:cacheprovider", str(CASES)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "skipped" not in process.stdout


@pytest.mark.parametrize(
    ("kernel", "value_grad"),
    [("_forward_kernel", None), ("_backward_kernel", 1), ("_backward_kernel", 2)],
)
def test_the_kernels_compile_for_a_gpu(
    kernel: str, value_grad: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The interpreter takes more than the compiler does. What comes out cannot be run here.
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from v2idetr.modeling import deformable_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(deformable_triton, kernel)
    constants = {"HEADS": 8, "C": 24, "LEVELS": 4, "POINTS": 4, "BLOCK_ROWS": 32, "BLOCK_C": 32}
    if value_grad is not None:
        constants["VALUE_GRAD"] = value_grad

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name == "levels_ptr" or (name == "cells_ptr" and value_grad == 2):
            return "*i32"
        return "*fp32" if name.endswith("_ptr") else "i32"

    source = ASTSource(
        function,
        {name: kind(name) for name in function.arg_names},
        {(function.arg_names.index(name),): value for name, value in constants.items()},
    )
    compiled = compile(source, target=GPUTarget("cuda", 80, 32))
    assert compiled.asm["cubin"]
