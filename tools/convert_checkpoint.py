#!/usr/bin/env python3
"""Convert weights of other code bases to our detectors, and ours for others.

    # show the content of a file
    python tools/convert_checkpoint.py r50_deformable_detr-checkpoint.pth

    # COCO weights as initial weights, checked against a config, with a new class head for it
    python tools/convert_checkpoint.py r50_deformable_detr-checkpoint.pth \\
        --config-file configs/v2i_sun.yaml --new-class-head --output weights/coco.safetensors \\
        model.net.num_queries=300

    # publish a trained detector: one safetensors file with a description of the detector
    python tools/convert_checkpoint.py output/v2i_sun/student/best.pth --output polyps.safetensors

    # the same as a folder for transformers
    python tools/convert_checkpoint.py polyps.safetensors --to transformers --output polyps

    # ImageNet weights of torchvision, timm or MoCo, for model.net.weights
    python tools/convert_checkpoint.py moco_v2_800ep_pretrain.pth.tar \\
        --output weights/resnet50_moco.safetensors

SOURCE is a file of DETR, Deformable DETR or SAM-DETR (official code), of detrex, of transformers
(file or folder), a checkpoint of train_net.py, or an output of this program; the kind is detected
from the tensor names. No code in it is run; a tensor that is missing, unknown, of another shape or
not finite is an error. A common prefix of all names ("_orig_mod.", Lightning's "model.") is
removed; of several sets of weights one is taken and named, --weights-key selects another. The
number of heads and two-stage queries cannot be seen from tensors: if the file does not have them,
the published settings are assumed, with a message.

The output is valid for train.init_checkpoint, teacher.init_checkpoint and teacher.checkpoint, which
refuse it for another architecture, other classes or other pixel statistics. Its header also has the
resize and padding of images. A folder for transformers has them in preprocessor_config.json;
remaining differences (padding) are printed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

FILES_OF_A_FOLDER = ("model.safetensors", "pytorch_model.bin")  # transformers


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line to options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="file of weights, or folder of transformers")
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="output file or folder; without it, SOURCE is only described",
    )
    add("--to", choices=("ours", "transformers"), default="ours", help="format (default ours)")
    add(
        "--config-file",
        metavar="CONFIG",
        help="config of the detector that the weights must fit, and of its classes; for a "
        "checkpoint of train_net.py its own (default: config.yaml beside it)",
    )
    add(
        "--weights-key",
        default="",
        metavar="KEY",
        help="set of weights to take if SOURCE has several, such as ema_state "
        "(default: model, else state_dict)",
    )
    add("--num-heads", type=int, help="attention heads, if SOURCE does not have them (default: 8)")
    add("--classes", nargs="+", metavar="NAME", help="keep only these classes, in this order")
    add(
        "--new-class-head",
        action="store_true",
        help="a new class head for the classes of --config-file or --classes",
    )
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")
    options = parser.parse_intermixed_args(arguments)
    if options.new_class_head and not (options.config_file or options.classes):
        parser.error("--new-class-head needs the classes: give --config-file or --classes")
    if options.config_file and options.classes:
        parser.error("--config-file has the classes (data.class_names): leave out --classes")
    if options.classes and len(set(options.classes)) < len(options.classes):
        parser.error(f"--classes must be distinct names, but is {' '.join(options.classes)}")
    if options.overrides and not options.config_file:
        parser.error(f"{options.overrides[0]} changes a config: give --config-file")
    if options.output and options.to == "ours" and options.output.suffix != ".safetensors":
        parser.error(f"--output {options.output} must end in .safetensors")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Convert and print a summary; returns 2 after a user's error."""
    options = parse(arguments)
    from v2idetr.output_folder import check_writable, explain_os_error
    from v2idetr.process_setup import ignore_torch_jit

    ignore_torch_jit()
    try:
        if options.output:
            check_writable(options.output, is_file=options.to != "transformers")
        for line in convert(options):
            print(line)
    except ValueError as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"convert_checkpoint: {explain_os_error(error)}", file=sys.stderr)
        return 2
    return 0


def convert(options: argparse.Namespace) -> list[str]:
    """Read, convert and write; returns the lines of the summary.

    Raises:
        ValueError: the file or the config is not usable.
    """
    # Imported here, so that --help and usage errors need no torch.
    from v2idetr.checkpoints import imagenet
    from v2idetr.checkpoints.files import check_finite, read_weights
    from v2idetr.checkpoints.published import write_backbone, write_published
    from v2idetr.checkpoints.transformers_export import export
    from v2idetr.checkpoints.wrappers import unwrapped

    source = find_file(options.source)
    stored, remarks = unwrapped(read_weights(source, options.weights_key))
    check_finite(stored.state, source)
    if imagenet.prefix_of(stored.state) is not None:
        tensors, kind = imagenet.to_torchvision(stored.state, source)
        lines = [f"{source}: ImageNet weights of a {kind}", *remarks]
        if options.output is None:
            return lines
        write_backbone(options.output, tensors, kind, source)
        return [*lines, *written(options.output)]
    weights, lines = read_detector(source, stored, options)
    heads = weights.header.architecture.get("num_heads")
    if options.num_heads not in (None, heads):
        raise ValueError(
            f"{source}: has {heads} heads by its own description: leave out --num-heads."
        )
    lines = [describe(source, weights.header), *remarks, *weights.assumed, *lines]
    if options.output is None:
        return lines
    if options.to == "ours":
        write_published(options.output, weights.published_state(), weights.header)
    else:
        lines += export(weights, options.output)
    return [*lines, *written(options.output)]


def find_file(source: Path) -> Path:
    """The file of weights at a path, which may be a folder; ValueError if there is none."""
    if not source.is_dir():
        return source
    for name in FILES_OF_A_FOLDER:
        if (source / name).is_file():
            return source / name
    raise ValueError(f"{source}: a folder without {' or '.join(FILES_OF_A_FOLDER)}")


def read_detector(source: Path, stored: Any, options: argparse.Namespace) -> tuple[Any, list[str]]:
    """Weights of a detector converted by the options, and lines of the summary."""
    from v2idetr.checkpoints.conversion import check_fits, read_foreign, read_published
    from v2idetr.checkpoints.layouts import network_of
    from v2idetr.checkpoints.published import read_header
    from v2idetr.config.yaml_text import dump_yaml
    from v2idetr.deploy.student import detector_of_config
    from v2idetr.runs.checkpoint import FORMAT, load_into

    header = read_header(stored.metadata, source)
    bare = {name.removeprefix("net."): tensor for name, tensor in stored.state.items()}
    if header is None and (stored.beside.get("format") == FORMAT or network_of(bare)):
        weights = read_trained(source, stored, options)
        of_config = weights.header.class_names if options.new_class_head else None
        return with_classes(weights, options.classes or of_config, options.new_class_head)
    detector, config = None, {}
    if options.config_file:
        fused = any(name.startswith("fusion.") for name in bare)
        _, config, detector = detector_of_config(
            options.config_file, options.overrides, fused=fused
        )
    if header is None:
        weights = read_foreign(source, stored, num_heads=options.num_heads)
    else:
        own = None if detector is None else type(detector.net)
        weights = read_published(source, bare, header, own)
    if detector is None:
        return with_classes(weights, options.classes, options.new_class_head)
    weights, lines = with_classes(weights, list(detector.class_names), options.new_class_head)
    weights = check_fits(weights, detector, dump_yaml(config))
    load_into(detector, weights.published_state(), source)  # every name and shape
    return weights, lines


def read_trained(source: Path, stored: Any, options: argparse.Namespace) -> Any:
    """Weights of a checkpoint of train_net.py, described by its config."""
    from v2idetr.checkpoints.conversion import of_detector
    from v2idetr.config.preprocess import preprocess_of, preprocess_without_resize
    from v2idetr.config.yaml_text import dump_yaml
    from v2idetr.deploy.student import detector_of_config
    from v2idetr.runs.checkpoint import load_detector

    file = options.config_file or source.parent / "config.yaml"
    if not options.config_file and not file.is_file():
        raise ValueError(
            f"{source}: is a checkpoint of this project without its config.yaml; give that of "
            "the run with --config-file."
        )
    stage, config, detector = detector_of_config(
        file, options.overrides, stored.beside.get("stage")
    )
    load_detector(detector, source, class_names=list(detector.class_names), stored=stored)
    try:
        preprocess, unknown = preprocess_of(config, stage.model), ()
    except ValueError as error:
        preprocess = preprocess_without_resize(config, stage.model)
        unknown = (f"resize: not recorded; {error}",)
    weights = of_detector(source, detector, dump_yaml(config), preprocess)
    return replace(weights, assumed=unknown)


def with_classes(weights: Any, names: list[str] | None, new_head: bool) -> tuple[Any, list[str]]:
    """The weights for these classes, and a line about the class head."""
    from v2idetr.checkpoints.conversion import for_classes

    if names is None:
        return weights, []
    had = len(weights.header.class_names)
    changed = for_classes(weights, names, new_head=new_head)
    if new_head:
        return changed, [f"class head: new, for {', '.join(names)}; its {had} rows are dropped"]
    if changed is weights:
        return weights, []
    return changed, [f"class head: {len(names)} of {had} classes kept: {', '.join(names)}"]


def describe(source: Path, header: Any) -> str:
    """Description of a file in a few lines."""
    architecture = ", ".join(f"{key} {value}" for key, value in header.architecture.items())
    names, preprocess = header.class_names, header.preprocess
    shown = ", ".join(names[:5]) + (f" ... ({len(names)})" if len(names) > 5 else "")
    return (
        f"{source}: in the layout of {header.source_layout}\n"
        f"  {architecture}\n"
        f"  classes: {shown}\n"
        f"  pixels: mean {list(preprocess.pixel_mean)}, std {list(preprocess.pixel_std)}\n"
        f"  resize: {preprocess.resize or 'unknown'}; multiples of {preprocess.size_divisor} px"
    )


def written(output: Path) -> list[str]:
    """Written files with their sizes."""
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return [f"wrote {file} ({file.stat().st_size / 2**20:.1f} MiB)" for file in files]


if __name__ == "__main__":
    sys.exit(main())
