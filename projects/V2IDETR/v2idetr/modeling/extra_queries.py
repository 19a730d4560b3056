"""Additional decoder queries in training: cross-view, denoising."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from v2idetr.modeling.interface import Context, Decoded, DetectorNetwork, Memory, Queries

Visibility = Literal["one_way", "isolated", "none"]


@dataclass
class ExtraQueries:
    """A set of additional queries, decoded with the detector's own queries in training.

    Attributes:
        queries: n queries, not visible to other sets unless both masks are "none".
        mask: visibility in self-attention: "one_way": these queries see the detector's own, but not
            the reverse; "isolated": neither sees the other; "none": all see all. Unless "none", the
            own queries are decoded exactly as without this set.
        pairs: (query, lesion) of every image for queries with a known lesion, such as denoising
            queries, for additional detection losses; None for no such losses.
        name: name of these losses.
        groups: number of copies of every lesion among the pairs. Losses that are divided by the
            number of lesions are divided by groups as well (DN-DETR, Li et al., CVPR 2022).
    """

    queries: Queries
    mask: Visibility = "one_way"
    pairs: list[tuple[Tensor, Tensor]] | None = None
    name: str = "extra"
    groups: int = 1


def decode_beside(
    net: DetectorNetwork, memory: Memory, own: Queries, extra: Sequence[ExtraQueries]
) -> tuple[Decoded, list[Decoded]]:
    """Decode a network's own queries and sets of extra queries.

    Args:
        net: network with the decoder.
        memory: encoder output.
        own: the network's queries.
        extra: sets of extra queries.

    Returns:
        the decoded own queries, and the decoded sets in the order of ``extra``.
    """
    together = [part.queries for part in extra if part.mask == "none"]
    start = sum(queries.num_queries for queries in together)
    everything = net.decode(memory, Queries.cat([*together, own]) if together else own)
    decoded = everything.slice(start, start + own.num_queries) if together else everything
    results, first = [], 0
    for part in extra:
        if part.mask == "none":
            results.append(everything.slice(first, first + part.queries.num_queries))
            first += part.queries.num_queries
        else:
            context = Context(own, decoded) if part.mask == "one_way" else None
            results.append(net.decode(memory, part.queries, context))
    return decoded, results
