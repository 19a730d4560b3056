"""Queries that are decoded beside a detector's own in training: cross-view, denoising."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from v2idetr.modeling.interface import Context, Decoded, DetectorNetwork, Memory, Queries

Visibility = Literal["one_way", "isolated", "none"]


@dataclass
class ExtraQueries:
    """A set of queries that are decoded beside the detector's own in training.

    Attributes:
        queries: n of them; no set sees another one, unless the mask of both is "none".
        mask: in self-attention: "one_way": the detector's own queries do not see these, but these
            see them; "isolated": nor these them; "none": all see all. Unless "none", the own
            queries are decoded exactly as if these did not exist.
        pairs: (query, lesion) of every image, for queries whose lesion is known beforehand, such as
            denoising ones; their detection losses are then part of the training. None: no such
            losses.
        name: of these losses.
    """

    queries: Queries
    mask: Visibility = "one_way"
    pairs: list[tuple[Tensor, Tensor]] | None = None
    name: str = "extra"


def decode_beside(
    net: DetectorNetwork, memory: Memory, own: Queries, extra: Sequence[ExtraQueries]
) -> tuple[Decoded, list[Decoded]]:
    """Decode a network's own queries, and sets of extra ones beside them.

    Args:
        net: decodes.
        memory: of the images.
        own: the network's queries.
        extra: see :class:`ExtraQueries`.

    Returns:
        the decoded own queries, and the decoded sets in their order.
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
