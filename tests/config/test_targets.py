"""Signatures by dotted names, and what other families of detectors take."""

from __future__ import annotations

import pytest

from v2idetr.config.targets import arguments_of, parameter_of, signature_of


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("detectron2.modeling.ResNet.make_default_stages", ["depth", "block_class", "kwargs"]),
        ("v2idetr.data.augmentation.horizontal_flip", ["probability"]),
        (
            "v2idetr.data.reference_sampler.WindowSampler",
            ["num_frames", "window", "sampling", "side"],
        ),
    ],
)
def test_classes_functions_and_methods_have_signatures(target: str, names: list[str]) -> None:
    assert [*signature_of(target).parameters] == names


def test_only_arguments_that_a_key_can_name_count() -> None:
    node = {"_target_": "detectron2.modeling.ResNet.make_default_stages"}
    assert parameter_of(node, "depth") is not None
    assert parameter_of(node, "kwargs") is None
    assert arguments_of({"_target_": "nothing.at.all"}) == arguments_of({"a": 1}) == {}
