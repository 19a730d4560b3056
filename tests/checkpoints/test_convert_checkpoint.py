"""tools/convert_checkpoint.py: from files of others to our training, and published files."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints import file_names
from tests.checkpoints.file_names import TINY, Size, tensors
from tools.convert_checkpoint import main
from v2i_runtime.preprocess import FixedSize, Preprocess
from v2idetr.checkpoints.files import CheckpointError, read_weights
from v2idetr.checkpoints.published import read_header
from v2idetr.config.load import load_config
from v2idetr.engine.stage_graph import build_stage, resolve_stages
from v2idetr.engine.stage_training import load_initial_weights
from v2idetr.runs.checkpoint import Checkpoint, load_detector, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SIZE = replace(TINY, encoder=1, decoder=1, heads=2, ffn=16, queries=6, classes=91)
State = dict[str, Tensor]
RESNET = "tests.checkpoints.tiny_detectors.tiny_resnet"


@pytest.fixture(name="config")
def _config(tiny_config: Path) -> Path:
    """The tiny config with a ResNet of a few channels."""
    content = yaml.safe_load(tiny_config.read_text())
    content["model"]["net"]["backbone"] = {"_target_": RESNET}
    content["model"]["net"]["isolate_padding"] = False
    tiny_config.write_text(yaml.safe_dump(content))
    return tiny_config


def coco_file(folder: Path, size: Size = SIZE, **variant: bool) -> Path:
    """A file of noise as the official Deformable DETR would have saved it."""
    path = folder / "r50_deformable_detr-checkpoint.pth"
    state = tensors(*file_names.official_deformable(size, **variant))
    torch.save({"model": state, "args": argparse.Namespace(nheads=size.heads)}, path)
    return path


def detector_of(config: Path, *overrides: str, stage: str = "plain") -> Any:
    return build_stage(load_config(config, list(overrides)), stage, pretrained=False).model


def header_of(path: Path) -> Any:
    return read_header(read_weights(path).metadata, path)


def test_training_starts_from_coco_weights(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = coco_file(tmp_path), tmp_path / "coco.safetensors"
    arguments = [str(source), "--config-file", str(config), "--new-class-head"]
    assert main([*arguments, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "the official code of Deformable DETR" in printed
    assert "class head: new, for polyp; its 91 rows are dropped" in printed

    run = load_config(config, [f"train.init_checkpoint={output}"])
    detector = detector_of(config)
    load_initial_weights(run, resolve_stages(run)["plain"], detector)
    theirs = read_weights(source).state
    have = detector.state_dict()
    assert torch.equal(have["net.query_embed.weight"], theirs["query_embed.weight"])
    assert torch.equal(
        have["net.backbone.stem.conv1.weight"], theirs["backbone.0.body.conv1.weight"]
    )
    assert header_of(output).class_names == ["polyp"]
    assert "DeformableDETR" in header_of(output).config


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("model", "_orig_mod."),
        ("model", "module._orig_mod."),
        ("state_dict", "model."),
        ("state_dict", "detector.net_."),
        ("model", "module."),
    ],
)
def test_what_stands_before_all_names_is_removed(
    key: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = coco_file(tmp_path)
    content = torch.load(source, weights_only=False)
    plain = content["model"]
    wrapped = {f"{prefix}{name}": tensor for name, tensor in plain.items()}
    torch.save({key: wrapped, "args": content["args"]}, source)
    assert main([str(source), "--output", str(tmp_path / "a.safetensors")]) == 0
    assert "the official code of Deformable DETR" in capsys.readouterr().out
    have = read_weights(tmp_path / "a.safetensors").state
    assert torch.equal(have["net.query_embed.weight"], plain["query_embed.weight"])


def test_names_that_stay_unknown_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": {"a.b.c": torch.ones(1), "a.b.d": torch.ones(1)}}, tmp_path / "a.pth")
    assert main([str(tmp_path / "a.pth")]) == 2
    assert "It has names such as a.b.c, a.b.d." in capsys.readouterr().err


@pytest.mark.parametrize("wrapped", [False, True])
def test_of_several_sets_of_weights_one_is_named_and_another_can_be_taken(
    wrapped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = coco_file(tmp_path), tmp_path / "a.safetensors"
    content = torch.load(source, weights_only=False)
    averaged = {name: tensor + 1 for name, tensor in content["model"].items()}
    more = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}}
    more["ema"] = {"module": averaged, "updates": 7} if wrapped else averaged
    key = "ema.module" if wrapped else "ema"
    torch.save(content | more, source)

    def taken(*options: str) -> tuple[Tensor, str]:
        assert main([str(source), "--output", str(output), *options]) == 0
        return read_weights(output).state["net.query_embed.weight"], capsys.readouterr().out

    name = "query_embed.weight"
    usual, said = taken()
    assert torch.equal(usual, content["model"][name])
    assert f"those under 'model'; the file also has '{key}'" in said and "--weights-key" in said
    other, said = taken("--weights-key", key)
    assert torch.equal(other, averaged[name]) and f"those under '{key}'" in said
    assert main([str(source), "--weights-key", "emma"]) == 2
    assert f"has no weights under 'emma', but under model, {key}." in capsys.readouterr().err


def test_a_set_of_weights_that_stands_alone_is_taken_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = coco_file(tmp_path)
    content = torch.load(source, weights_only=False)
    alone = {"ema": {"module": content["model"], "updates": 7}, "args": content["args"]}
    torch.save(alone, source)
    assert main([str(source)]) == 0
    assert "weights: those under 'ema.module'" in capsys.readouterr().out


def test_training_starts_from_wrapped_weights_of_ours_and_says_so(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = detector_of(config).state_dict()
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": wrapped, "ema_state": wrapped}, tmp_path / "a.pth")
    detector = detector_of(config, "train.seed=1")
    with caplog.at_level("INFO", logger="v2idetr"):
        assert load_detector(detector, tmp_path / "a.pth") == []
    assert all(torch.equal(t, state[name]) for name, t in detector.state_dict().items())
    assert "also has 'ema_state'" in caplog.text and "prefix '_orig_mod.'" in caplog.text


def test_a_teacher_starts_from_coco_weights_but_for_its_temporal_module(
    config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "coco.safetensors"
    arguments = [str(coco_file(tmp_path)), "--config-file", str(config), "--new-class-head"]
    assert main([*arguments, "--output", str(output)]) == 0
    teacher = detector_of(config, stage="teacher")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    start = [f"train.init_checkpoint={output}"]
    run = load_config(config, start)
    with pytest.raises(CheckpointError) as caught:
        load_initial_weights(run, resolve_stages(run)["teacher"], teacher)
    assert str(caught.value).startswith(f"teacher.init_checkpoint: {output}: ")
    assert "(teacher.model.net.fusion=null disables it)" in str(caught.value)
    assert "or set teacher.init_partial=true to leave out" in str(caught.value)
    run = load_config(config, [*start, "teacher.init_partial=true"])
    load_initial_weights(run, resolve_stages(run)["teacher"], teacher)
    coco = read_weights(output).state
    for name, tensor in teacher.state_dict().items():
        given = before if name.startswith("net.fusion.") else coco
        assert torch.equal(tensor, given[name]), name


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.net.num_queries=7", r"net.num_queries is 7, in the file 6\nSet these keys"),
        ("model.net.d=64", "net.d is 64, in the file 32"),
        ("model.net.box_refine=true", None),  # with one layer there is nothing to refine
        ("model.pixel_std=[1.0,1.0,1.0]", "pixel_std is [1.0, 1.0, 1.0], in the file [58.395"),
        ("model.net.strides=[8,16,32]", "net.strides is [8, 16, 32]"),
    ],
)
def test_a_config_of_another_detector_is_refused_with_what_differs(
    override: str,
    sentence: str | None,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "coco.safetensors"
    arguments = [str(coco_file(tmp_path)), "--config-file", str(config), "--new-class-head"]
    code = main([*arguments, "--output", str(output), override])
    error = capsys.readouterr().err
    if sentence is None:
        assert (code, error) == (0, "")
        return
    assert code == 2
    assert sentence.replace(r"\n", "\n") in error
    assert not output.exists()


def test_classes_of_a_config_that_the_file_does_not_have_need_a_fresh_head(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(coco_file(tmp_path)), "--config-file", str(config)]) == 2
    assert "not polyp. Add --new-class-head" in capsys.readouterr().err


def test_a_wrong_family_is_refused(
    tiny_detr_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config-file", str(tiny_detr_config), "--new-class-head"]
    assert main([str(coco_file(tmp_path)), *arguments]) == 2
    error = capsys.readouterr().err
    assert "net.network is 'DETR', in the file 'DeformableDETR'" in error
    assert "Use a config of DeformableDETR, or other weights." in error


def test_chosen_classes_are_kept_without_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = coco_file(tmp_path), tmp_path / "pets.safetensors"
    assert main([str(source), "--classes", "dog", "cat", "--output", str(output)]) == 0
    assert "class head: 2 of 91 classes kept: dog, cat" in capsys.readouterr().out
    rows = read_weights(source).state["class_embed.0.weight"][[18, 17]]  # COCO's ids
    assert torch.equal(read_weights(output).state["net.class_heads.0.weight"], rows)
    assert header_of(output).class_names == ["dog", "cat"]


@pytest.fixture(name="trained")
def _trained(config: Path, tmp_path: Path) -> Path:
    """best.pth of a stage, with its config beside it."""
    detector = detector_of(config)
    path = tmp_path / "run" / "plain" / "best.pth"
    path.parent.mkdir(parents=True)
    save_checkpoint(
        Checkpoint("plain", 6, dict(detector.state_dict()), class_names=["polyp"]), path
    )
    (path.parent / "config.yaml").write_text(config.read_text())
    return path


def test_a_trained_detector_is_published_with_its_config(
    trained: Path, config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "polyps.safetensors"
    assert main([str(trained), "--output", str(output)]) == 0
    other = detector_of(config, "train.seed=5")
    assert load_detector(other, output, class_names=["polyp"]) == []
    want = torch.load(trained, weights_only=True)["model"]
    assert all(torch.equal(tensor, want[name]) for name, tensor in other.state_dict().items())
    header = header_of(output)
    assert header.preprocess == Preprocess(FixedSize(height_px=48, width_px=64))
    assert "max_iter: 6" in header.config
    assert header.source == "best.pth"


def without(part: str) -> Callable[[State], State]:
    return lambda state: {name: t for name, t in state.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "header", "sentence"),
    [
        (without("box_heads"), {}, r"missing \(\d\):\s+box_heads\.0\.layers\.0\.weight"),
        (without("class_heads"), {}, r"missing \(1\):\s+class_heads\.0\.weight"),
        (without("res3.0.conv1.norm"), {}, r"missing \(4\):\s+backbone\.res3\.0\.conv1\.norm"),
        (lambda state: state | {"net.extra": torch.zeros(2)}, {}, r"unexpected \(1\):\s+extra"),
        (
            lambda state: state | {"net.backbone.fc.weight": torch.zeros(2)},
            {},
            r"unexpected \(1\):\s+backbone\.fc\.weight",
        ),
        (
            lambda state: state | {"net.level_embed": torch.zeros(4, 31)},
            {},
            r"level_embed \(4, 31\), expected \(4, 32\)",
        ),
        (dict, {"num_queries": 7}, "num_queries is 7, the tensors show 6"),
        (dict, {"num_heads": "2"}, "that do not occur in"),
        (dict, {"network": "YOLO"}, "the network 'YOLO', which is none of DETR"),
    ],
)
@pytest.mark.parametrize("with_config", [False, True])
def test_a_published_file_that_lost_or_gained_something_is_refused(
    change: Callable[[State], State],
    header: dict[str, Any],
    sentence: str,
    with_config: bool,
    trained: Path,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = tmp_path / "ours.safetensors", tmp_path / "again.safetensors"
    assert main([str(trained), "--output", str(path)]) == 0
    stored = read_weights(path)
    architecture = json.loads(stored.metadata["architecture"]) | header
    metadata = stored.metadata | {"architecture": json.dumps(architecture)}
    save_file(change(stored.state), path, metadata)
    given = ["--config-file", str(config)] if with_config else []
    assert main([str(path), *given, "--output", str(output)]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert not output.exists()


def published_teacher(config: Path, folder: Path) -> Path:
    source, output = folder / "best.pth", folder / "teacher.safetensors"
    state = dict(detector_of(config, stage="teacher").state_dict())
    save_checkpoint(Checkpoint("teacher", 6, state, class_names=["polyp"]), source)
    assert main([str(source), "--config-file", str(config), "--output", str(output)]) == 0
    return output


def test_what_a_header_does_not_describe_is_compared_with_the_config(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, given = published_teacher(config, tmp_path), ["--config-file", str(config)]
    stored = read_weights(path)
    lost = next(name for name in stored.state if ".fusion." in name)
    save_file(without(lost)(stored.state), path, stored.metadata)
    assert main([str(path), *given]) == 2
    assert re.search(rf"missing in the file \(1\):\s+{lost}", capsys.readouterr().err)


def test_a_teacher_is_published_but_has_no_place_in_transformers(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, given = published_teacher(config, tmp_path), ["--config-file", str(config)]
    assert main([str(output), *given]) == 0, "it fits the teacher of its config"
    assert main([str(output), *given, "teacher.model.net.fusion=null"]) == 2
    assert "no stage that trains a detector with fusion of frames" in capsys.readouterr().err
    assert load_detector(detector_of(config, "train.seed=5", stage="teacher"), output) == []
    assert main([str(output), "--to", "transformers", "--output", str(tmp_path / "out")]) == 2
    assert "It is a teacher" in capsys.readouterr().err


def test_a_trained_detector_gets_a_new_class_head_for_the_classes_that_it_has(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, given = tmp_path / "new.safetensors", ["--config-file", f"{trained.parent}/config.yaml"]
    assert main([str(trained), *given, "--new-class-head", "--output", str(output)]) == 0
    assert "class head: new" in capsys.readouterr().out
    assert main([str(trained), *given, "--output", str(tmp_path / "old.safetensors")]) == 0
    new, old = (read_weights(path).state for path in (output, tmp_path / "old.safetensors"))
    changed = {name for name in old if not torch.equal(new[name], old[name])}
    assert changed and all("class_head" in name for name in changed)


def test_a_trained_detector_without_its_config_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = trained.rename(tmp_path / "best.pth")
    assert main([str(alone)]) == 2
    assert (
        "without its config.yaml; give that of the run with --config-file"
        in capsys.readouterr().err
    )


def test_a_config_beside_a_checkpoint_that_is_wrong_is_named(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = trained.parent / "config.yaml"
    beside.write_text(beside.read_text() + "\nnothing: 3\n")
    assert main([str(trained)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"convert_checkpoint: {beside}: the configuration has 1 error")
    assert "give another config with --config-file" in error


def test_without_an_output_a_file_is_only_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(coco_file(tmp_path))]) == 0
    printed = capsys.readouterr().out
    assert "network DeformableDETR" in printed
    assert "num_queries 6" in printed
    assert "person, bicycle, car" in printed
    assert "assumed" not in printed, "the command line in the file says all"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_with_its_name(
    number: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = coco_file(tmp_path), tmp_path / "a.safetensors"
    content = torch.load(source, weights_only=False)
    content["model"]["class_embed.0.weight"][3, 4] = number
    torch.save(content, source)
    assert main([str(source), "--output", str(output)]) == 2
    assert re.search(r"NaN or infinite[\s\S]*in \(1\):\s+class_embed", capsys.readouterr().err)
    assert not output.exists()


def bare_file(folder: Path, **variant: bool) -> Path:
    """As :func:`coco_file`, without the command line of its training."""
    path = coco_file(folder, **variant)
    torch.save({"model": read_weights(path).state}, path)
    return path


def test_what_a_file_does_not_say_is_assumed_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = bare_file(tmp_path, refine=True, two_stage=True)
    assert main([str(source)]) == 0
    printed = capsys.readouterr().out
    assert "number of heads is not in the file; 8 assumed (--num-heads)" in printed
    assert "number of queries is not in the file; 300 assumed" in printed


def test_the_number_of_heads_can_be_given(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, given = bare_file(tmp_path), ["--config-file", str(config), "--new-class-head"]
    assert main([str(source), *given]) == 2
    error = capsys.readouterr().err
    assert "net.num_heads is 2, in the file 8" in error
    assert error.endswith("number of heads is not in the file; 8 assumed (--num-heads)\n")
    assert main([str(source), *given, "--num-heads", "2"]) == 0
    assert "assumed" not in capsys.readouterr().out


def test_a_number_of_heads_against_what_the_file_says_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(coco_file(tmp_path)), "--num-heads", "4"]) == 2
    assert "has 2 heads by its own description: leave out --num-heads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a.pth", "--new-class-head"], "give --config-file or --classes"),
        (["a.pth", "--output", "b.pth"], "must end in .safetensors"),
        (["a.pth", "model.net.d=3"], "give --config-file"),
        (["a.pth", "--classes", "a", "--config-file", "c"], "leave out --classes"),
        (["a.pth", "--classes", "a", "b", "a"], "must be distinct names, but is a b a"),
        (["a.pth", "--to", "official"], "invalid choice"),
    ],
)
def test_options_that_make_no_sense_are_explained(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nothing.pth", "nothing.safetensors", "folder"])
def test_a_missing_file_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    assert main([str(tmp_path / name)]) == 2
    assert name in capsys.readouterr().err


def test_help_shows_examples_without_torch() -> None:
    program = (
        "import sys, runpy; sys.argv = ['convert_checkpoint.py', '--help']\n"
        "try: runpy.run_path('tools/convert_checkpoint.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert "--new-class-head --output weights/coco.safetensors" in process.stdout
