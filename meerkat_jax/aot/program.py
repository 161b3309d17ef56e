"""Analysis of a compiled program: its collectives with their bytes, its memory.

XLA's own counts take the body of a loop once. Here a computation counts as often as it is called:
a loop's count is written beside it or, by the TPU's compiler, in its condition alone, as the number
that its counter, from 0, is compared with. That is so for all loops of a training step (layers,
microbatches, Sinkhorn); one of unknown end counts once.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import Any

import jax

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALL = re.compile(r"(?:body|to_apply|calls|called_computations|branch_computations)=\{?([^,})]+)")
_TRIPS = re.compile(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_COUNT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_OP = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_BITS = {"pred": 8, "s4": 4, "u4": 4}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Calls of one kind in a step, and the bytes that one device receives or combines in them."""

    kind: str
    calls: int
    bytes: int


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, from its text (`compiled.as_text()`), by kind."""
    bodies, entry = _computations(text)
    calls, size = collections.Counter(), collections.Counter()

    def visit(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            found = _OP.search(line)
            if found:
                calls[found[2]] += times
                size[found[2]] += times * _received(found[1], found[2], bool(found[3]))
            inner = times * _trips(line, bodies)
            for other in _CALL.findall(line):
                visit(other.strip().lstrip("%"), inner)

    visit(entry, 1)
    return [Collective(kind, calls[kind], size[kind]) for kind in KINDS if calls[kind]]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """{name: its lines}, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name = head[1]
            bodies[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """How often the computations that a line calls run."""
    if said := _TRIPS.search(line):
        return int(said[1])
    loop = _CONDITION.search(line)
    counts = [n for inner in bodies.get(loop[1], ()) for n in _COUNT.findall(inner)] if loop else []
    return int(counts[0]) if len(counts) == 1 else 1


def _received(shape: str, kind: str, started: bool) -> int:
    """Bytes of a collective's result; what is started also names what it was given, first."""
    sizes = [_bytes(kind_, dims) for kind_, dims in _SHAPE.findall(shape)]
    if started and kind == "all-gather":
        sizes = sizes[len(sizes) // 2 :]
    elif started and kind == "collective-permute":
        sizes = sizes[1:2]
    return sum(sizes)


def _bytes(dtype: str, dims: str) -> int:
    bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])  # f8e4m3 has 8
    return math.prod(int(n) for n in dims.split(",") if n) * bits // 8


def memory(compiled: jax.stages.Compiled, planned: bool) -> dict[str, int]:
    """Bytes a device needs: arguments, temporaries, and the peak of all.

    planned: the compiler plans what lies in memory when, as the TPU's does, and tells the peak;
    otherwise all temporaries are taken together.
    """
    found = compiled.memory_analysis()
    arguments = found.argument_size_in_bytes
    temporaries = found.temp_size_in_bytes
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    peak = found.peak_memory_in_bytes if planned else arguments + temporaries + new
    return {"arguments": arguments, "temporaries": max(peak - arguments, 0), "peak": peak}


def bytes_of(tree: Any) -> int:
    """Bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
