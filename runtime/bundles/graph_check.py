"""Checks an ONNX graph before anything opens it: it must be complete in its own bytes.

A graph may name other files that hold its weights ("external data"), which no hash of ours covers; older versions of
ONNX Runtime follow such names anywhere on the disk, and take one of them for an address in memory. Nodes of other
domains than ONNX's own may do the same (``EPContext``). No bundle needs either, so that both are refused here, whatever
the library would do. This walks the protobuf of ``onnx.proto``, of which the runtime needs no more, as strictly as a
parser of the format: what cannot be read is refused, too. Bytes of weights are skipped, so that size costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

MOST_FIELDS, MOST_DEPTH = 500_000, 100
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
OWN_DOMAINS = (b"", b"ai.onnx")
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of a tensor
NODE_DOMAIN = 7

# The messages that can hold a tensor, and in which fields: field number to message.
MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR = "model", "graph", "node", "attribute", "tensor"
SPARSE, FUNCTION, TRAINING = "sparse tensor", "function", "training"
INSIDE: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        MODEL: {7: GRAPH, 20: TRAINING, 25: FUNCTION},
        TRAINING: {1: GRAPH, 2: GRAPH},
        FUNCTION: {7: NODE, 11: ATTRIBUTE},
        GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
        NODE: {5: ATTRIBUTE},
        ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
        SPARSE: {1: TENSOR, 2: TENSOR},
        TENSOR: {},
    }
)


class GraphError(Exception):
    """What is wrong with a graph, in words that follow its name."""


def check(data: bytes) -> None:
    """Raise GraphError unless ``data`` is an ONNX model that needs no other file and has only ONNX's own operators."""
    if data[4:8] == b"ORTM":  # of ONNX Runtime's own format, which it would take as well
        raise GraphError("is in ONNX Runtime's own format, not ONNX's")
    view, graphs, fields = memoryview(data), 0, 0
    waiting = [(MODEL, 0, len(data), 0)]
    while waiting:
        message, start, stop, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise GraphError(f"is nested more than {MOST_DEPTH} deep")
        for number, wire, value, end in _fields(view, start, stop):
            fields += 1
            if fields > MOST_FIELDS:
                raise GraphError(f"has more than {MOST_FIELDS} parts")
            inner = INSIDE[message].get(number)
            if inner is not None:
                if wire != BYTES:
                    raise GraphError("is damaged")
                waiting.append((inner, value, end, depth + 1))
                graphs += message == MODEL and inner == GRAPH
            elif message == TENSOR and (number == EXTERNAL_DATA or (number == DATA_LOCATION and (wire or value))):
                raise GraphError("keeps weights in other files, which nothing vouches for")
            elif message == NODE and number == NODE_DOMAIN:
                _check_domain(wire, view[value:end])
    if not graphs:
        raise GraphError("holds no graph")


def _check_domain(wire: int, domain: memoryview) -> None:
    if wire != BYTES:
        raise GraphError("is damaged")
    if domain not in OWN_DOMAINS:
        raise GraphError(f"has operators of another domain, {bytes(domain[:40])!r}")


def _fields(view: memoryview, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """A message's fields: number, wire type, value (of a varint) or position, end."""
    at = start
    while at < stop:
        tag, at = _varint(view, at, stop)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise GraphError("is damaged")
        if wire == VARINT:
            value, at = _varint(view, at, stop)
            yield number, wire, value, at
            continue
        if wire == BYTES:
            length, at = _varint(view, at, stop)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:  # groups, which ONNX has none of
            raise GraphError("is damaged")
        if length > stop - at:
            raise GraphError("is damaged or cut short")
        yield number, wire, at, at + length
        at += length


def _varint(view: memoryview, at: int, stop: int) -> tuple[int, int]:
    """A number of up to ten bytes, seven bits each, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise GraphError("is damaged or cut short")
