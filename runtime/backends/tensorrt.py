"""TensorRT: engines of encoder and decoder, with coordinates, gather and pixels in CUDA between and after them.

Engines come from the user's cache; missing ones are built into it (``engines``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from diinn.runtime.backends.base import BackendOptions
from diinn.runtime.backends.gpu_base import DeviceBackend, meant_for_another
from diinn.runtime.bundles import golden
from diinn.runtime.bundles.bundle import Bundle
from diinn.runtime.engines import build, verify
from diinn.runtime.engines.cache import Cache, EngineMetadata
from diinn.runtime.engines.loader import EngineDecoder, EngineEncoder, Engines, LoadedEngine
from diinn.runtime.engines.profiles import Profile
from diinn.runtime.engines.verify import Verdict
from diinn.runtime.errors import DiinnError, InputError, OutOfMemory
from diinn.runtime.geometry.grid import Size
from diinn.runtime.gpu.compiler import KERNELS
from diinn.runtime.gpu.device import Device
from diinn.runtime.gpu.graphs import GraphCache
from diinn.runtime.gpu.memory import DeviceMaps
from diinn.runtime.gpu.segments import FLOAT, INT

# ``Rows`` of coordinates_gather.cu.
ROWS = np.dtype([("rows", np.uint64), ("pieces", np.int32), ("unused", np.int32)])
PIECES = (16, 4, 2)  # bytes that a thread gathers


class TensorRtBackend(DeviceBackend):
    """Engines on one stream; what does not depend on the frame is allocated once."""

    name = "tensorrt"

    @classmethod
    def not_ready(cls, bundle: Bundle, options: BackendOptions) -> str:
        if another := meant_for_another(options):
            return another
        try:
            build.tensorrt()
            device = Device()
        except InputError as error:
            return str(error)
        precision = bundle.engine_precision(options.precision)
        try:
            wanted = [build.identities(bundle, role, precision, device) for role in build.ROLES]
        finally:
            device.close()
        if all(any(Cache().find(way) for way in ways) for ways in wanted):
            return ""
        return f"no {precision} engines of {bundle.name} for this machine yet: diinn-build {bundle.path}"

    def require(self, bundle: Bundle, options: BackendOptions) -> None:
        if options.provider is not None:
            raise InputError(f"--provider {options.provider} is of ONNX Runtime: leave it out with TensorRT")
        build.tensorrt()

    def load(self) -> None:
        self._engines = Engines(self.bundle, self.device, self.options.precision, may_build=self.options.may_build)
        self.precision = self._engines.precision
        self.tolerance = golden.SATURATED if self.precision == "int8" else verify.TOLERANCES[self.precision]
        self.encoder = EngineEncoder(self._engines)
        self.decoder = EngineDecoder(self._engines)
        self._prepare()
        self._check_maps()

    def _prepare(self) -> None:
        """Load kernels, and allocate all memory whose size does not depend on the frame."""
        samples, columns = self.bundle.layout.samples, len(self.bundle.layout.columns)
        self.chunk = min(self.options.chunk or self.decoder.chunk, self.decoder.chunk)
        room = self.decoder.room
        names = ("make_queries", *(f"gather_rows_{size}" for size in PIECES), "store_pixels")
        self._kernels = self.device.kernels(KERNELS / "coordinates_gather.cu", names)
        types = self.decoder.full.engine.dtypes
        row_bytes = [spec.channels * types[spec.name].itemsize for spec in self.bundle.maps]
        sizes = {"query": samples * columns * FLOAT, "rgb": 3 * FLOAT}  # bytes of a query
        sizes |= {spec.name: samples * row for spec, row in zip(self.bundle.maps, row_bytes, strict=True)}
        memory = {name: (self.device.allocate(room * size), size) for name, size in sizes.items()}
        self.decoder.use(memory)
        self._query, self._rgb = memory["query"][0], memory["rgb"][0]
        self._index = self.device.allocate(room * samples * INT)
        self._piece = next(size for size in PIECES if not any(row % size for row in row_bytes))
        self._pieces = sum(row_bytes) // self._piece  # of a sample
        table = np.zeros(len(row_bytes), ROWS)
        table["rows"] = [memory[spec.name][0] for spec in self.bundle.maps]
        table["pieces"] = [row // self._piece for row in row_bytes]
        self._rows = self.device.allocate(table.nbytes)
        self.device.upload(self._rows, table)
        self.device.wait()  # the table is freed when this returns

    def _check_maps(self) -> None:
        for spec in self.bundle.maps:
            one, *others = (opened.engine.dtypes[spec.name] for opened in self._opened)
            for other in others:
                if one != other:
                    raise DiinnError(
                        f"{spec.name} leaves the encoder engine as {one} and enters the decoder's as {other}: "
                        f"build all again, diinn-build {self.bundle.path} --force"
                    )

    def describe(self) -> str:
        return f"tensorrt {self._engines.version} ({self.device.name}, {self.precision})"

    def _accept(self) -> None:
        """Check another encoder engine."""
        self._check_maps()
        self.verify()

    def map_bytes(self) -> int:
        return self.encoder.map_bytes

    def prepare_for(self, size: Size) -> None:
        if not self.encoder.accepts(size):
            self.device.wait()  # the engine may be at work, and is replaced
            self._encoding.forget()
            try:
                self.encoder.prepare_for(size, self._accept)
            finally:
                self._encoding.forget()  # graphs hold for one engine; a refused one leaves none

    def encode_planar(self, frames: int, batch: int, size: Size, maps: Sequence[int]) -> None:
        if self.encoder.encode(frames, batch, size, maps):
            self._encoding.forget()

    def max_batch(self, size: Size) -> int:
        self.prepare_for(size)
        return self.encoder.max_batch

    def holds(self, size: Size) -> bool:
        return self.accepts(size)

    def accepts(self, size: Size) -> bool:
        return self.encoder.accepts(size)

    def decode_segments(self, maps: DeviceMaps, count: int, segments: int, at: int) -> None:
        layout, kernels = self.bundle.layout, self._kernels
        facts = (np.int32(count), np.int32(segments), np.uint64(at))
        shape = (np.int32(len(layout.shifts)), np.int32(len(layout.columns)), np.int32(layout.weighted))
        kernels["make_queries"](count, *facts, *shape, np.uint64(self._index), np.uint64(self._query))
        total = count * layout.samples * self._pieces
        pointers = [np.uint64(p) for p in (self._rows, maps.table, self._index)]
        kernels[f"gather_rows_{self._piece}"](total, np.uint32(total), np.uint32(self._pieces), *pointers)
        self.decoder.decode(count)
        kernels["store_pixels"](count, *facts, np.uint64(self._rgb))

    @property
    def metadata(self) -> list[EngineMetadata]:
        """Of the encoder's and the decoder's engines."""
        return [opened.metadata for opened in self._opened]

    @property
    def _opened(self) -> list[LoadedEngine]:
        return [self.encoder.opened, *self.decoder.opened]

    def compared(self, precision: str, profile: Profile) -> Verdict:
        return self._compared_by(self.decoder.full, precision, profile)

    def _compared_by(self, decoder: LoadedEngine, precision: str, profile: Profile) -> Verdict:
        graphs, self._decoding = self._decoding, GraphCache(self.device, wanted=False)  # those are of either decoder
        try:
            with self.decoder.only(decoder):
                return super().compared(precision, profile)
        finally:
            self._decoding = graphs

    def verify(self, *, again: bool = False) -> None:
        first = [self.encoder.opened, self.decoder.full]
        self._engines.verify(first, self.compared, self._changed, again=again)
        small = self.decoder.small
        if small is None:
            return
        profile = self.encoder.opened.profile
        try:
            self._engines.verify(
                [small], lambda precision, _: self._compared_by(small, precision, profile), self._changed, again=again
            )
        except OutOfMemory:
            raise
        except DiinnError as error:  # known to be right are the others
            self._leave_small_out(error)

    def _leave_small_out(self, why: DiinnError) -> None:
        self.device.wait()  # it may be at work
        self._decoding.forget()
        self.decoder.drop_small(why)

    def _changed(self) -> None:
        """The engines were replaced: forget the captured graphs, which refer to the old ones."""
        self._encoding.forget()
        self._decoding.forget()
        self._check_maps()

    def retreat(self, why: DiinnError) -> bool:
        if self.decoder.small is None:
            return False
        self._leave_small_out(why)
        return True

    def release(self) -> None:
        del self.encoder, self.decoder, self._engines
