"""Programs try their output before the work, and name it in one sentence."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import train_net
from v2idetr.engine.launch import UserError, launch_run

ROOT = Path(__file__).resolve().parents[2]
ABLATION = ["--table", "III", "--dataset", "synthetic"]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module


@pytest.mark.parametrize(
    ("program", "given", "name"),
    [
        ("ablate", [*ABLATION, "--output"], "table"),
        ("compare", ["--table", "I", "--output"], "table"),
        ("demo", ["--output"], "demo"),
        ("report", ["no/run", "--output"], "report.html"),
        ("convert_checkpoint", ["no/such.pth", "--output"], "a.safetensors"),
        ("convert_checkpoint", ["no/such.pth", "--to", "transformers", "--output"], "folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_named_before_anything_is_read(
    load: Callable[[str], ModuleType],
    program: str,
    given: list[str],
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / name
    assert load(program).main([*given, str(output)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{program}: --output {output}: {tmp_path / 'file'} is no folder; ")
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("eval_only", [False, True])
def test_a_run_tries_its_folder_before_it_reads_data(tmp_path: Path, eval_only: bool) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "run"
    given = ["--config-file", str(ROOT / "configs" / "v2i_synthetic.yaml")]
    given += ["data.train.json=nowhere.json", "train.device=cpu"]
    given += ["--eval-only", "--output", str(output)] if eval_only else []
    given += [] if eval_only else [f"train.output_dir={output}"]
    options = train_net.parse(given)
    key = "--output" if eval_only else "train.output_dir"
    with pytest.raises(UserError, match=rf"^{key} {output}: .* is no folder; choose another {key}"):
        launch_run(options)


@pytest.mark.parametrize(
    ("program", "given", "function"),
    [
        ("ablate", [*ABLATION, "--output", "table"], "run_table"),
        ("demo", ["--output", "demo"], "check_settings"),
    ],
)
def test_a_file_system_that_fails_later_is_one_sentence_too(
    load: Callable[[str], ModuleType],
    program: str,
    given: list[str],
    function: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "some/file.json")

    module = load(program)
    monkeypatch.setattr(module, function, full)
    monkeypatch.chdir(tmp_path)
    assert module.main(given) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{program}: some/file.json: No space left on device")
