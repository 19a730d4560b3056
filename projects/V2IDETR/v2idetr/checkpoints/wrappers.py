"""What training programs wrap around weights: prefixes of all names, further sets beside them."""

from __future__ import annotations

from dataclasses import replace

from v2idetr.checkpoints import imagenet
from v2idetr.checkpoints.files import USUAL, Stored
from v2idetr.checkpoints.layouts import layout_of, network_of
from v2idetr.modeling.renaming import State


def unwrapped(stored: Stored) -> tuple[Stored, list[str]]:
    """A file's content without what training programs wrap around it, and what was taken off.

    Args:
        stored: of the file.

    Returns:
        The content: what is common to the front of all names, such as "_orig_mod." of a compiled
        model or Lightning's "model.", is taken off where names of a known layout result. And one
        sentence each about that, and about further sets of weights in the file.
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
        remarks.append(f"names: without the {prefix!r} that stands before all of them")
    return replace(stored, state=state), remarks


def _is_known(state: State) -> bool:
    """Whether names are of one of the layouts, ours and that of ImageNet weights among them."""
    bare = {name.removeprefix("net."): tensor for name, tensor in state.items()}
    found = layout_of(state) is not None or network_of(bare) != ""
    return found or imagenet.prefix_of(state) is not None
