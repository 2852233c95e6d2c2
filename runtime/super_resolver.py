"""``SuperResolver``: frames in, views out. Encode once, decode as many views as wanted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from diinn.runtime import backends
from diinn.runtime.backends import bands
from diinn.runtime.backends.base import Backend, BackendOptions, Maps
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.bundles import golden
from diinn.runtime.bundles.model_dial import ModelDial
from diinn.runtime.engines import verify
from diinn.runtime.engines.profiles import Profile
from diinn.runtime.engines.verify import Verdict
from diinn.runtime.errors import BundleError, DiinnError, InputError
from diinn.runtime.geometry import grid
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.segments import Segment
from diinn.runtime.geometry.view import Rect, View
from diinn.runtime.images.arrays import Image, as_bgr, as_dtype
from diinn.runtime.noise.strength import NONE, Denoise, Strength
from diinn.runtime.util import memory
from diinn.runtime.util.context import Closing
from diinn.runtime.util.memory import MIB
from diinn.runtime.util.once import Once
from diinn.runtime.util.opencv import cv2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """A frame made ready for decoding, by ``SuperResolver.encode``; valid while its resolver is open.

    Attributes:
        frame: The frame, uint8 or float32 in [0, 1], [H, W, 3] BGR.
        maps: Rows of all frames encoded with it, the backend's own. None for a frame whose maps would exceed the
            memory budget: it is encoded band by band, anew at each decode.
        offset: This frame's first row in the maps.
        strength: What the network was given beside the frame.
    """

    frame: Image
    maps: Maps | None
    offset: int = 0
    strength: Strength = NONE

    @property
    def size(self) -> Size:
        """(width, height) of the frame."""
        return self.frame.shape[1], self.frame.shape[0]


def encoded_at(returned: float, encoded: Sequence[Encoded]) -> float:
    """When frames that are decoded by now had been encoded, as ``time.perf_counter`` counts.

    A device may go on encoding after ``encode`` has returned, which was at ``returned``; decoding then waits for it.
    """
    return max([returned, *(getattr(frame.maps, "ready_at", 0.0) for frame in encoded)])


class SuperResolver(Closing):
    """Arbitrary-scale super-resolution of BGR frames; open one with ``SuperResolver.open``.

    Example:
        >>> with SuperResolver.open("small") as resolver:
        ...     large = resolver.resize(frame, (1280, 960))

    Attributes:
        bundle: The model.
        backend: What runs it.
        dial: What it is given beside its frames.
        memory_budget: Bytes the encoder may need for one frame.
    """

    def __init__(self, bundle: bundles.Bundle, backend: Backend, memory_budget: int) -> None:
        self.bundle, self.backend, self.memory_budget = bundle, backend, memory_budget
        self._logged = Once()
        self.dial = ModelDial(bundle)

    @classmethod
    def open(
        cls,
        model: str | Path = "small",
        *,
        backend: str = "auto",
        provider: str | None = None,
        threads: int | None = None,
        memory_budget: int = 512 * MIB,
        chunk: int | None = None,
        precision: str | None = None,
        decoder: str | None = None,
        cuda_graphs: bool | None = None,
        zero_copy: bool | None = None,
        check: bool = True,
    ) -> SuperResolver:
        """Load a shipped bundle by name, or any by path.

        Args:
            model: Name of a shipped bundle, or path of a ``NAME.diinn`` folder.
            backend: "cuda", "tensorrt", "onnxruntime", or "auto" for the first of them that works here.
            provider: ONNX Runtime's device ("cpu", "cuda", "openvino", …); default the CPU, with the encoder on a GPU
                that works, or by OpenVINO on a CPU with AMX.
            threads: CPU threads, default all this process may use.
            memory_budget: Bytes the encoder may need for one frame. Larger frames are encoded in bands, except where
                an engine for them is open.
            chunk: Queries decoded at once, default by the model's width.
            precision: "fp32", or with TensorRT "fp16" (its default) or "int8", or with OpenVINO "bf16" or "fp16";
                default the fastest that changes pictures too little to matter.
            decoder: "fused" for a kernel of the backend's own, "engine" for TensorRT's, "onnx" for ONNX Runtime's;
                default the fastest that is there and right. It narrows what "auto" tries.
            cuda_graphs: Replay the work on a GPU as CUDA graphs, where the backend can; default on GPUs that share the
                host's memory, as a Jetson's.
            zero_copy: Have kernels read frames and write pixels in the host's memory in place of copies both ways;
                default on the same GPUs.
            check: Replay the bundle's golden sample first; engines are compared with the CPU once, too.

        Raises:
            BundleError: The bundle is missing or damaged, or differs from its golden sample.
            InputError: An argument is wrong, or the backend is not available here.
            DiinnError: An engine fails or differs from the CPU.
        """
        for what, value in (("threads", threads), ("memory_budget", memory_budget), ("chunk", chunk)):
            if value is not None and value < 1:
                raise InputError(f"{what} = {value} is not a whole number from 1 up")
        found = bundles.load(model)
        options = BackendOptions(
            provider,
            threads,
            chunk,
            precision,
            cuda_graphs=cuda_graphs,
            zero_copy=zero_copy,
            decoder=None if decoder == "auto" else decoder,
            compare=_compared_with_cpu,
        )
        *better, last = backends.candidates(backend, options.decoder)
        for name in better:
            try:
                kind = backends.load(name)
                why_not = kind.not_ready(found, options)
                if not why_not:
                    return cls._open(kind(found, replace(options, may_build=decoder == "fused")), memory_budget, check)
                log.info("not %s: %s", name, why_not)
            except DiinnError as error:
                log.warning("not %s: %s", name, error)
        return cls._open(backends.load(last)(found, options), memory_budget, check)

    @classmethod
    def _open(cls, backend: Backend, memory_budget: int, check: bool) -> SuperResolver:
        resolver = cls(backend.bundle, backend, memory_budget)
        try:
            if check:  # first what is exact, so that a tight tolerance judges it
                backend.verify()
                resolver._check_or_retreat()
            if backend.accelerate() and check:
                resolver._check_or_retreat()
        except BaseException:
            resolver.close()
            raise
        return resolver

    def _check_or_retreat(self) -> None:
        while True:
            try:
                self.check()
                return
            except BundleError as error:
                if not self.backend.retreat(error):
                    raise

    def check(self) -> dict[str, float]:
        """Replay the bundle's golden sample.

        Returns:
            The largest absolute difference of each output, by its name, in units of [0, 1]; empty where the open
            engines do not take frames of its size.

        Raises:
            BundleError: A difference exceeds the tolerance, or the sample is damaged.
        """
        sample = self.bundle.golden()
        try:
            height, width = sample["frame"].shape[:2]
            if not self.backend.accepts((width, height)):
                log.warning("the golden sample was not replayed: engines are not for frames of %dx%d", width, height)
                return {}
            views = golden.views(sample, self.bundle.layout)
            outputs: dict[str, Image] = {}
            for number, strength in enumerate(golden.strengths(sample, dial=self.bundle.dial is not None)):
                encoded = self.encode([sample["frame"]], strength)[0]
                images = self.decode(encoded, list(views.values()), dtype=np.float32)
                outputs |= {golden.output(name, number): image for name, image in zip(views, images, strict=True)}
            found = golden.differences(sample, outputs)
            golden.verdict(sample, found, f"{self.bundle.path} on {self.backend.describe()}", self.backend.tolerance)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise BundleError(f"{self.bundle.path}/golden.npz is damaged ({error}): export it again") from None
        return found

    def resize(self, frame: Image, dsize: Size, *, denoise: Denoise = 0.0, dtype: npt.DTypeLike = np.uint8) -> Image:
        """The whole frame at another size, as ``cv2.resize``.

        Args:
            frame: uint8 or float32 in [0, 1], [H, W, 3] BGR or [H, W] grey.
            dsize: (width, height) of the result.
            denoise: As ``encode`` takes it.
            dtype: uint8, rounded and clamped, or float32 in units of [0, 1], neither.

        Returns:
            The image, [h, w, 3] BGR of ``dtype``, of a grey frame too.

        Raises:
            InputError: An argument is wrong, or there is no memory for the result.
        """
        return self._one(frame, View.resize(dsize), denoise, dtype)

    def roi(
        self, frame: Image, rect: Rect, dsize: Size, *, denoise: Denoise = 0.0, dtype: npt.DTypeLike = np.uint8
    ) -> Image:
        """A rectangle of the frame, enlarged.

        Args:
            frame: uint8 or float32 in [0, 1], [H, W, 3] BGR or [H, W] grey.
            rect: (x, y, width, height) in LR pixels, real values inside the frame; pixel j covers [j, j + 1).
            dsize: (width, height) of the result.
            denoise: As ``encode`` takes it.
            dtype: As for ``resize``.

        Returns:
            The image, [h, w, 3] BGR of ``dtype``.

        Raises:
            InputError: The rectangle is not inside the frame, or another argument is wrong.
        """
        return self._one(frame, View.roi(rect, dsize), denoise, dtype)

    def remap(
        self,
        frame: Image,
        map_x: npt.NDArray[Any],
        map_y: npt.NDArray[Any] | None = None,
        *,
        border: Literal["constant", "replicate"] = "constant",
        border_value: float = 0.0,
        denoise: Denoise = 0.0,
        dtype: npt.DTypeLike = np.uint8,
    ) -> Image:
        """The frame at the positions of a map, as ``cv2.remap`` but super-resolved.

        For video make ``View.remap(...)`` once and ``decode`` it: its geometry is then computed once.

        Args:
            frame: uint8 or float32 in [0, 1], [H, W, 3] BGR or [H, W] grey.
            map_x: LR positions along x in pixels, float [h, w], or another form that ``View.remap`` takes.
            map_y: The same along y.
            border: What positions outside the frame become: "constant" for ``border_value``, "replicate" for the
                nearest edge.
            border_value: In units of [0, 1], all channels.
            denoise: As ``encode`` takes it.
            dtype: As for ``resize``.

        Returns:
            The image, [h, w, 3] BGR of ``dtype``, of the maps' size.

        Raises:
            InputError: The maps have another form, the model is not DIINN's, or another argument is wrong.
        """
        return self._one(frame, View.remap(map_x, map_y, border=border, border_value=border_value), denoise, dtype)

    def _one(self, frame: Image, view: View, denoise: Denoise, dtype: npt.DTypeLike) -> Image:
        return self.decode(self.encode([frame], denoise)[0], [view], dtype=dtype)[0]

    def encode(self, frames: Sequence[Image], denoise: Denoise | Sequence[Denoise] = 0.0) -> list[Encoded]:
        """Encode frames, those of equal size in one batch as far as the memory budget reaches.

        Args:
            frames: uint8 or float32 in [0, 1], [H, W, 3] BGR or [H, W] grey, of any sizes.
            denoise: How strongly the frames were degraded, so how much is cleaned: 0 (nothing, the default), the root
                mean square of their noise in grey levels, a ``Strength``, or "auto", which estimates it for each
                frame; a list gives each frame its own. What is beyond the model's range is clamped and logged once.

        Returns:
            The encoded frames, in order.

        Raises:
            InputError: A frame is no image, ``denoise`` is not what the model takes, or the resolver is closed.
            OutOfMemory: The device has too little memory left.
        """
        self._check_open()
        ready = [as_bgr(frame) for frame in frames]
        strengths = self.dial.strengths(ready, denoise)
        levels = [self.bundle.levels(strength) for strength in strengths]
        out: list[Encoded | None] = [None] * len(ready)
        groups: dict[Size, list[int]] = {}
        for i, frame in enumerate(ready):
            groups.setdefault(frame.shape[:2], []).append(i)
        for (height, width), members in groups.items():
            fit = self.memory_budget // (height * width * self.bundle.workspace)
            if fit < 1 and not self.backend.holds((width, height)) and self._in_bands((width, height)):
                for i in members:
                    out[i] = Encoded(ready[i], None, strength=strengths[i])
                continue
            fit = min(max(fit, 1), self.backend.max_batch((width, height)) or len(members))
            for start in range(0, len(members), fit):
                batch = members[start : start + fit]
                maps = self.backend.encode([ready[i] for i in batch], [levels[i] for i in batch])
                for place, i in enumerate(batch):
                    out[i] = Encoded(ready[i], maps, place * height * width, strengths[i])
        return [encoded for encoded in out if encoded is not None]

    def estimate(self, frame: Image) -> Strength:
        """The strength that "auto" estimates for one frame.

        Args:
            frame: uint8 or float32 in [0, 1], [H, W, 3] BGR or [H, W] grey.

        Raises:
            InputError: The bundle has no estimator, or ONNX Runtime is missing.
        """
        self._check_open()
        return self.dial.estimator()(as_bgr(frame))

    def _in_bands(self, size: Size) -> bool:
        """Whether a frame over the memory budget gains from bands; logs once what it needs."""
        cut = bands.bands(size, self.bundle, self.memory_budget)
        most = bands.largest(cut, size[0], self.bundle)
        self._once(
            f"bands {size}",
            f"{size[0]}x{size[1]} frames need {size[0] * size[1] * self.bundle.workspace / MIB:.0f} MiB to encode, the "
            f"memory budget is {self.memory_budget / MIB:.0f} MiB: {len(cut)} band{'s' * (len(cut) > 1)} of up to "
            f"{most / MIB:.0f} MiB",
        )
        return len(cut) > 1

    def _check_open(self) -> None:
        if self.backend.closed:
            raise InputError(f"the resolver of {self.bundle.name} is closed: open another")

    def decode(self, encoded: Encoded, views: Sequence[View], *, dtype: npt.DTypeLike = np.uint8) -> list[Image]:
        """Decode any number of views of one encoded frame.

        Args:
            encoded: What ``encode`` returned for the frame.
            views: The views.
            dtype: uint8, rounded and clamped, or float32 in units of [0, 1], neither.

        Returns:
            An image [h, w, 3] BGR of ``dtype`` for each view.

        Raises:
            InputError: A view does not fit the frame, or there is no memory for it.
            OutOfMemory: The device has too little memory left.
        """
        return self.decode_all([(encoded, views)], dtype=dtype)[0]

    def decode_all(
        self, asked: Sequence[tuple[Encoded, Sequence[View]]], *, dtype: npt.DTypeLike = np.uint8
    ) -> list[list[Image]]:
        """``decode`` of several frames, each with views of its own.

        Frames that were encoded together share chunks, and launches on a GPU.

        Args:
            asked: Encoded frames, each with its views.
            dtype: As for ``decode``.

        Returns:
            For each frame the images of its views.

        Raises:
            InputError: A view does not fit its frame, or there is no memory for it.
            OutOfMemory: The device has too little memory left.
        """
        self._check_open()
        kind = np.dtype(dtype)
        if kind not in (np.uint8, np.float32):
            raise InputError(f"dtype {kind.name} is neither uint8 nor float32")
        plans = [[self._planned(encoded, view, kind) for view in views] for encoded, views in asked]
        together: dict[int, tuple[Maps, list[Segment]]] = {}  # by their maps' identity
        for (encoded, views), row in zip(asked, plans, strict=True):
            segments = [
                Segment(q, slice(0, q.count), encoded.offset, out.reshape(-1, 3), v.border_value)
                for v, (q, out) in zip(views, row, strict=True)
                if q is not None
            ]
            if segments and encoded.maps is None:
                levels = self.bundle.levels(encoded.strength)
                bands.decode(self.backend, encoded.frame, levels, segments, self.memory_budget)
            else:
                together.setdefault(id(encoded.maps), (encoded.maps, []))[1].extend(segments)
        for maps, segments in together.values():
            if segments:
                self.backend.decode(maps, segments)
        return [
            [self._reduced(view, out) for view, (_, out) in zip(views, row, strict=True)]
            for (_, views), row in zip(asked, plans, strict=True)
        ]

    def decode_in_steps(self, encoded: Encoded, view: View) -> Iterator[Image | None]:
        """Decode one view a little at a time, in steps that keep the device's workers busy once each.

        A frame without maps is decoded in one step.

        Yields:
            None after each step, at last the image, uint8 [h, w, 3] BGR.
        """
        self._check_open()
        queries, out = self._planned(encoded, view, np.dtype(np.uint8))
        if queries is None or encoded.maps is None:
            yield self.decode(encoded, [view])[0]
            return
        flat, most = out.reshape(-1, 3), self.backend.chunk * self.backend.workers
        for start in range(0, queries.count, most):
            ids = slice(start, min(start + most, queries.count))
            self.backend.decode(encoded.maps, [Segment(queries, ids, encoded.offset, flat, view.border_value)])
            if ids.stop < queries.count:
                yield None
        yield self._reduced(view, out)

    def _planned(self, encoded: Encoded, view: View, kind: np.dtype[Any]) -> tuple[grid.Queries | None, Image]:
        """The queries of a view and the image they go to; no queries where the image is complete already."""
        size = view.decoded_size(encoded.size)
        memory.require(size[0] * size[1] * 3 * kind.itemsize, f"a {size[0]}x{size[1]} output")
        whole = view.rect is None and view.maps is None
        shrinks = whole and size == encoded.size != view.dsize
        if shrinks and encoded.strength == NONE:  # nothing to add to the frame, and nothing to take away
            return None, as_dtype(encoded.frame, kind)
        queries = view.queries(encoded.size, self.bundle.scales, self.bundle.layout)
        self._warn_of_scale(queries)
        return queries, np.empty((size[1], size[0], 3), kind)

    def _reduced(self, view: View, out: Image) -> Image:
        if view.dsize == out.shape[1::-1]:
            return out
        self._once(
            "area",  # a preview has many
            f"a {view.dsize[0]}x{view.dsize[1]} view is smaller than its source along an axis: "
            "that is not super-resolution, cv2.INTER_AREA reduces it",
        )
        return cv2.resize(out, view.dsize, interpolation=cv2.INTER_AREA)

    def _warn_of_scale(self, queries: grid.Queries) -> None:
        lowest, highest = self.bundle.scales
        slack = 1.02  # whole pixels do not hit a scale exactly
        beyond = [scale for scale in queries.scales if not lowest / slack <= scale <= highest * slack]
        if beyond:
            most = max(beyond)
            where, what = ("beyond", "a softer picture") if most > highest else ("below", "jagged lines")
            self._once(
                "scale",  # a preview has many
                f"scale {most:.2f} is {where} what {self.bundle.name} was trained for ({lowest:g} to {highest:g}): "
                f"expect {what}",
            )

    def _once(self, about: str, message: str) -> None:
        if self._logged.first(about):
            log.warning(message)

    def close(self) -> None:
        """Release threads and device memory; the resolver cannot be used afterwards."""
        self.dial.close()
        self.backend.close()


def _compared_with_cpu(backend: Backend, precision: str, profile: Profile) -> Verdict:
    """The engines of an open backend against ONNX Runtime on the CPU; no rows where that is not installed."""
    try:
        backends.load("onnxruntime")
    except InputError as error:
        return verify.not_compared(precision, str(error))
    ours = SuperResolver(backend.bundle, backend, 2**40)  # never in bands
    same = "int8" if precision == "int8" else None
    with SuperResolver.open(
        backend.bundle.path, backend="onnxruntime", provider="cpu", precision=same, decoder="onnx"
    ) as theirs:
        return verify.compare(ours, theirs, precision, profile)
