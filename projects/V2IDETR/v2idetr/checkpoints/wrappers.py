"""Removal of training wrappers from weights: prefixes of all names, further sets of weights."""

from __future__ import annotations

from dataclasses import replace

from v2idetr.checkpoints import imagenet
from v2idetr.checkpoints.files import USUAL, Stored
from v2idetr.checkpoints.layouts import layout_of, network_of
from v2idetr.modeling.renaming import State


def unwrapped(stored: Stored) -> tuple[Stored, list[str]]:
    """A file's content without training wrappers, and remarks.

    Args:
        stored: content of the file.

    Returns:
        the content, without a common prefix of all names, such as "_orig_mod." of a compiled model
        or Lightning's "model.", if the result has a known layout; and one sentence each about the
        prefix and about further sets of weights in the file.
    """
    remarks = []
    if stored.taken not in ("", *USUAL) or stored.others:
        remarks.append(f"weights: those under {stored.taken!r}")
    if stored.others:
        names = ", ".join(map(repr, stored.others))
        remarks[-1] += f"; the file also has {names} (convert_checkpoint.py --weights-key KEY)"
    state, prefix = stored.state, ""
    while not _is_known(state):
        first = next(iter(state)).partition(".")[0] + "."
        if not all(name.startswith(first) and name != first for name in state):
            return stored, remarks
        state, prefix = {n.removeprefix(first): t for n, t in state.items()}, prefix + first
    if prefix:
        remarks.append(f"names: without their common prefix {prefix!r}")
    return replace(stored, state=state), remarks


def _is_known(state: State) -> bool:
    """Whether names match one of the layouts, including ours and that of ImageNet weights."""
    bare = {name.removeprefix("net."): tensor for name, tensor in state.items()}
    found = layout_of(state) is not None or network_of(bare) != ""
    return found or imagenet.prefix_of(state) is not None
