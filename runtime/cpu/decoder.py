"""DIINN's decoder by the CPU's own kernel (``decoder.cpp``)."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.cpu.compiler import Library
from diinn.runtime.errors import InputError
from diinn.runtime.geometry.grid import Float32
from diinn.runtime.geometry.segments import SEGMENT, Segment, tables

WIDEST, STEP = 64, 8  # of the kernel's K


class _Weights(ctypes.Structure):
    """``Decoder`` of decoder.cpp."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("width", "depth")),
        *((name, ctypes.c_void_p) for name in ("first", "hidden", "bias", "last", "last_bias")),
    )


class Launch:
    """Segments to decode together, as the kernel takes them, and the maps that they are decoded from.

    Attributes:
        count: Queries of all segments, which stand one after another.
        records: A ``SEGMENT`` each; their addresses are of arrays that this object keeps.
    """

    def __init__(self, maps: Sequence[Float32], segments: Sequence[Segment]) -> None:
        self._kept = [np.ascontiguousarray(rows, np.float32) for rows in maps]
        self.maps = np.array([rows.ctypes.data for rows in self._kept], np.uint64)
        self.records = np.zeros(len(segments), SEGMENT)
        self._starts = [*accumulate((segment.count for segment in segments), initial=0)]
        self._firsts = [s.ids.start if isinstance(s.ids, slice) else None for s in segments]
        self._widths = [segment.queries.shape[1] for segment in segments]
        self.count = self._starts[-1]
        for record, start, segment in zip(self.records, self._starts, segments, strict=False):
            self._fill(record, start, segment)

    def _fill(self, record: Any, start: int, segment: Segment) -> None:
        queries, out = segment.queries, segment.out
        assert out.flags.c_contiguous
        assert out.shape == (queries.count, 3)
        arrays: dict[str, npt.NDArray[Any]] = {**tables(queries), "out": out}
        if isinstance(segment.ids, slice):
            record["first"] = segment.ids.start
        else:
            arrays["ids"] = np.ascontiguousarray(segment.ids, np.int32)
        for name, array in arrays.items():
            record[name] = array.ctypes.data
        self._kept += arrays.values()
        record["height"], record["width"] = queries.shape
        record["start"], record["source_width"], record["offset"] = start, queries.src_width, segment.offset
        record["border"], record["bytes"] = segment.border, out.dtype == np.uint8

    def pieces(self, size: int) -> Iterator[tuple[int, int]]:
        """Ranges of at most ``size`` queries; they end at ends of rows where they can, since rows share LR pixels."""
        begin = 0
        while begin < self.count:
            end = min(begin + size, self.count)
            if end < self.count:
                at = bisect_right(self._starts, end) - 1
                first, start = self._firsts[at], self._starts[at]
                beyond = 0 if first is None else (first + end - start) % self._widths[at]
                if end - beyond > max(begin, start):
                    end -= beyond
            yield begin, end
            begin = end


class FusedDecoder:
    """A decoder's weights in the kernel's order, and the kernel."""

    def __init__(self, layers: Mapping[str, Float32], library: Library) -> None:
        """Raises InputError for a decoder that has no kernel. layers: as ``Bundle.layers`` gives them."""
        width, depth = layers["first"].shape[0], len(layers["bias"]) + 1
        check_width(width)
        # [N - 1, (A, S), K / 2, 2, K] to [N - 1, K / 2, K, 2, (A, S)]
        hidden = layers["hidden"].reshape(depth - 1, 2, width // 2, 2, width).transpose(0, 2, 4, 3, 1)
        values = {**layers, "hidden": hidden}
        self._arrays = {
            name: np.ascontiguousarray(values[name], np.float32)
            for name in ("first", "hidden", "bias", "last", "last_bias")
        }
        self._weights = _Weights(width, depth, *(array.ctypes.data for array in self._arrays.values()))
        self._library = library
        self.instructions = library.instructions

    def decode(self, launch: Launch, begin: int, end: int) -> None:
        """Queries [begin, end) of a launch, without the interpreter's lock."""
        records = launch.records
        self._library.decode(
            ctypes.addressof(self._weights), launch.maps.ctypes.data, records.ctypes.data, len(records), begin, end
        )


def check_width(width: int) -> None:
    """InputError for a K that has no kernel."""
    if width % STEP or not 0 < width <= WIDEST:
        raise InputError(
            f"no fused kernel on a CPU for a decoder {width} wide, only for multiples of {STEP} up to {WIDEST}"
        )
