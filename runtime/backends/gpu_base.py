"""The base class of the backends on a GPU: frames go there and pixels come back as bytes, all else stays there.

They are copied, or with ``zero_copy`` kernels read and write them where they lie, in the host's pinned memory. What is
read again and again (levels, addresses, ``SEGMENT``s) is copied in either case: a GPU does not cache the host's memory.
"""

from __future__ import annotations

import contextlib
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from diinn.runtime.backends.base import Backend, BackendOptions
from diinn.runtime.bundles.bundle import Bundle, Levels
from diinn.runtime.engines.profiles import Profile
from diinn.runtime.engines.verify import Verdict
from diinn.runtime.errors import DiinnError, OutOfMemory
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.segments import SEGMENT, Chunk, Segment, pack
from diinn.runtime.gpu.compiler import KERNELS
from diinn.runtime.gpu.device import Device, Mark
from diinn.runtime.gpu.graphs import GraphCache
from diinn.runtime.gpu.memory import Buffers, DeviceMaps, Pinned
from diinn.runtime.gpu.segments import FLOAT, INT, Tables
from diinn.runtime.images.arrays import Image, as_dtype

log = logging.getLogger(__name__)
IN_FLIGHT = 2  # chunks


def meant_for_another(options: BackendOptions) -> str:
    """Why options are for another backend than a GPU's; empty where they are not."""
    if options.provider is not None:
        return f"--provider {options.provider} is of ONNX Runtime"
    return "--precision bf16 is OpenVINO's" if options.precision == "bf16" else ""


@dataclass(frozen=True)
class _Staged:
    """Pinned memory of one chunk: its pixels, its ``SEGMENT``s, and ids that it names one by one.

    held: device memory that its pixels are copied from
    """

    held: contextlib.ExitStack
    pixels: Pinned
    segments: Pinned
    ids: Pinned


class DeviceBackend(Backend):
    """Owns the device, the memory that is kept between frames, and the transfer of frames and pixels.

    A subclass encodes frames in device memory (``encode_planar``) and decodes segments there (``decode_segments``);
    it also implements ``require``, ``prepare_for``, ``map_bytes``, ``release`` and ``describe``.

    Attributes:
        device: The CUDA device.
        zero_copy: Whether frames and pixels stay in the host's memory.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self.device = Device()
        try:
            self.require(bundle, options)
            self._buffers = Buffers(self.device)
            self._tables = Tables(self.device, self._buffers)
            integrated = self.device.integrated
            self.zero_copy = integrated if options.zero_copy is None else options.zero_copy
            replayed = integrated if options.cuda_graphs is None else options.cuda_graphs
            self._encoding, self._decoding = (GraphCache(self.device, wanted=replayed) for _ in range(2))
            self._frames, self._levels, self._addresses = (Pinned(self.device) for _ in range(3))
            self._encoded: Mark | None = None
            self._staged = [
                _Staged(contextlib.ExitStack(), *(Pinned(self.device) for _ in range(3))) for _ in range(IN_FLIGHT)
            ]
            self._convert = self.device.kernels(KERNELS / "frames.cu", ("planar_rgb",))
            super().__init__(bundle, options)
        except BaseException:
            self.device.close()
            raise

    @abstractmethod
    def require(self, bundle: Bundle, options: BackendOptions) -> None:
        """Check that this backend can be used, before anything is compiled.

        Raises:
            InputError: It is not for this device, bundle or options.
        """

    @abstractmethod
    def release(self) -> None:
        """Free the engines and whatever else of the backend's own lies on the device, which is idle."""

    @abstractmethod
    def map_bytes(self) -> int:
        """Bytes of a value of the maps that ``encode_planar`` makes: 2 or 4."""

    def compared(self, precision: str, profile: Profile) -> Verdict:
        """Compare this backend with the CPU: engines of ``precision`` whose encoder takes ``profile``."""
        return self.options.compare(self, precision, profile)

    @abstractmethod
    def prepare_for(self, size: Size) -> None:
        """Prepare to encode frames of ``size`` (width, height).

        Raises:
            DiinnError: They cannot be encoded here.
        """

    @abstractmethod
    def encode_planar(self, frames: int, batch: int, size: Size, maps: Sequence[int]) -> None:
        """Enqueue the encoder on the device's stream.

        Args:
            frames: Address of float32 [batch, planes, H, W]: RGB in [0, 1], then the levels, as
                ``images.arrays.planar_rgb`` lays them out.
            batch: Frames.
            size: Their (width, height).
            maps: Address of each map, [batch·H·W, C], to write to.
        """

    @abstractmethod
    def decode_segments(self, maps: DeviceMaps, count: int, segments: int, at: int) -> None:
        """Enqueue the decoder on the device's stream.

        Args:
            maps: The maps of a batch.
            count: Queries.
            segments: Segments that they come from.
            at: Address of the segments, ``SEGMENT`` each, which also name where the pixels are stored.
        """

    def _visible(self, *staged: tuple[Pinned, int]) -> AbstractContextManager[list[int]]:
        """Where kernels find so many bytes of pinned memory each: there, or in device memory to copy to or from."""
        if self.zero_copy:
            return contextlib.nullcontext([pinned.address for pinned, _ in staged])
        return self._buffers.borrowed(*(size for _, size in staged))

    def encode(self, frames: Sequence[Image], levels: Sequence[Levels]) -> DeviceMaps:
        """Put the encoder on the stream; the maps are complete when it comes to what is put there next.

        Only the next call waits for this one, before it writes to the same pinned memory.
        """
        if self._encoded:
            self._encoded.wait()
        began, begin = time.perf_counter(), self.device.mark()
        try:
            maps = self._encode(frames, levels)
        except BaseException:
            with contextlib.suppress(DiinnError):
                self.device.wait()  # pinned memory is used again
            raise
        self._encoded = self.device.mark()
        maps.made_between(began, begin, self._encoded)
        return maps

    def _encode(self, frames: Sequence[Image], levels: Sequence[Levels]) -> DeviceMaps:
        height, width = frames[0].shape[:2]
        batch, pixels, planes = len(frames), len(frames) * height * width, self.bundle.planes
        self.prepare_for((width, height))
        maps = DeviceMaps(self._buffers, [pixels * spec.channels * self.map_bytes() for spec in self.bundle.maps])
        addresses = self._addresses.array((len(maps.addresses),), np.uint64)
        addresses[:] = maps.addresses
        self.device.upload(maps.table, addresses)
        kind = np.dtype(np.uint8 if all(frame.dtype == np.uint8 for frame in frames) else np.float32)
        staged = self._frames.array((batch, height, width, 3), kind)
        for place, frame in zip(staged, frames, strict=True):
            np.copyto(place, as_dtype(frame, kind))
        strengths = self._levels.array((batch, planes - 3), np.float32)
        strengths[...] = levels
        sizes = strengths.nbytes, pixels * planes * FLOAT
        with self._visible((self._frames, staged.nbytes)) as (bgr,), self._buffers.borrowed(*sizes) as (at, planar):

            def work() -> None:
                if not self.zero_copy:
                    self.device.upload(bgr, staged)
                if strengths.size:
                    self.device.upload(at, strengths)
                facts = (np.int64(pixels), np.int32(height * width), np.int32(kind == np.uint8), np.int32(planes - 3))
                self._convert["planar_rgb"](pixels, *facts, np.uint64(bgr), np.uint64(at), np.uint64(planar))
                self.encode_planar(planar, batch, (width, height), maps.addresses)

            staging = (staged.shape, kind, staged.ctypes.data, strengths.ctypes.data, bgr, at, planar)
            self._encoding.run((*staging, *maps.addresses), work)
        return maps

    def decode(self, maps: DeviceMaps, segments: Sequence[Segment]) -> None:
        try:
            self._decode(maps, pack(segments, self.chunk))
        except OutOfMemory as error:
            self.chunk = max(min(self.chunk, sum(segment.count for segment in segments)) // 8, 1)
            log.warning("%s; decoding in smaller pieces, %d queries each", error, self.chunk)
            self._decode(maps, pack(segments, self.chunk))

    def _decode(self, maps: DeviceMaps, chunks: Iterable[Chunk]) -> None:
        """Each chunk is on its way before the pixels of the one before are waited for and copied."""
        waiting: list[Callable[[], None]] = []
        try:
            for number, chunk in enumerate(chunks):
                waiting.append(self._begin(maps, chunk, self._staged[number % IN_FLIGHT]))
                if len(waiting) == IN_FLIGHT:
                    waiting.pop(0)()
            for finish in waiting:
                finish()
        except BaseException:
            with contextlib.suppress(DiinnError):
                self.device.wait()  # memory is used again
            for staged in self._staged:
                staged.held.close()
            raise

    def run_chunk(self, maps: DeviceMaps, chunk: Chunk) -> None:
        self._decode(maps, [chunk])

    def _begin(self, maps: DeviceMaps, chunk: Chunk, staged: _Staged) -> Callable[[], None]:
        """Put a chunk on the stream; what it returns waits for its pixels and writes them.

        Device memory is given back at once, since whatever takes it again comes later on the same stream; that of the
        pixels once they are copied, which is done beside it.
        """
        count = sum(segment.count for _, segment in chunk)
        sizes = [segment.count * 3 * segment.out.itemsize for _, segment in chunk]
        starts = np.concatenate([[0], np.cumsum([-(-size // 16) * 16 for size in sizes])])
        pixels = staged.pixels.array((int(starts[-1]),), np.uint8)
        table = staged.segments.array((len(chunk),), SEGMENT)
        listed = sum(0 if isinstance(segment.ids, slice) else segment.count for _, segment in chunk)
        numbers = staged.ids.array((listed,), np.int32)
        (out,) = staged.held.enter_context(self._visible((staged.pixels, pixels.nbytes)))
        with (
            self._buffers.borrowed(table.nbytes) as (at,),
            self._visible((staged.ids, numbers.nbytes)) as (ids,),
        ):
            self._fill(table, numbers, chunk, out + starts[:-1].astype(np.uint64), ids)

            def work() -> None:
                self.device.upload(at, table)
                if numbers.size and not self.zero_copy:
                    self.device.upload(ids, numbers)
                self.decode_segments(maps, count, len(chunk), at)

            pinned = (pixels.ctypes.data, pixels.size, table.ctypes.data, table.size, numbers.ctypes.data, numbers.size)
            self._decoding.run((count, *pinned, out, at, ids, maps.table, *maps.addresses), work)
        done = self.device.mark() if self.zero_copy else self.device.fetch(pixels, out)

        def finish() -> None:
            done.wait()
            staged.held.close()
            for (_, segment), start, size in zip(chunk, starts, sizes, strict=False):
                segment.out[segment.ids] = pixels[start : start + size].view(segment.out.dtype).reshape(-1, 3)

        return finish

    def _fill(self, table: Any, numbers: Any, chunk: Chunk, out: Any, ids: int) -> None:
        """``SEGMENT``s of a chunk, and in ``numbers`` the ids that some of them name one by one.

        out: addresses of their pixels; ids: where kernels find ``numbers``
        """
        table[...] = np.zeros((), SEGMENT)
        used = 0
        for row, address, (start, segment) in zip(table, out, chunk, strict=True):
            for name, value in self._tables[segment.queries].fields.items():
                row[name] = value
            row["start"], row["offset"], row["border"] = start, segment.offset, segment.border
            row["out"], row["bytes"] = address, segment.out.dtype == np.uint8
            if isinstance(segment.ids, slice):
                row["first"] = segment.ids.start
                if row["cols"]:  # counted from the row that it is in: kernels count in 32 bits
                    down, row["first"] = divmod(segment.ids.start, segment.queries.shape[1])
                    for name in ("rows", "row_at"):
                        row[name] += np.uint64(down * INT)
            else:
                row["ids"] = ids + used * INT
                numbers[used : used + len(segment.ids)] = segment.ids
                used += len(segment.ids)

    @property
    def replays(self) -> int:
        """How many times work was replayed as a CUDA graph."""
        return self._encoding.count + self._decoding.count

    def poison(self) -> None:
        """Fill idle memory with NaN, so that reads before a write show. For checks."""
        for size, address in self._buffers.idle:
            self.device.fill(address, size, 0xFF)
        for staged in self._staged:
            staged.pixels.fill(0xFF)

    def close(self) -> None:
        if self.closed:
            return
        with contextlib.suppress(DiinnError):  # of a device that is lost: closing it says so
            self.device.wait()  # an engine may be at work
        self.release()
        super().close()
        self._encoded = None  # its event goes before the device
        self._encoding.forget()
        self._decoding.forget()
        self._buffers.close()
        self.device.close()
