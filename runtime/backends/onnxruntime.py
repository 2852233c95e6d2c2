"""ONNX Runtime on the CPU, with a decoder of our own and the encoder by a GPU or OpenVINO; or any of its providers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from diinn.runtime.backends import openvino
from diinn.runtime.backends.base import Backend
from diinn.runtime.bundles import golden
from diinn.runtime.bundles.bundle import Levels
from diinn.runtime.cpu import compiler
from diinn.runtime.cpu.decoder import FusedDecoder, Launch, check_width
from diinn.runtime.errors import BundleError, DiinnError, InputError, OutOfMemory, unknown
from diinn.runtime.geometry.grid import Float32
from diinn.runtime.geometry.segments import Chunk, Segment, write
from diinn.runtime.geometry.view import View
from diinn.runtime.images.arrays import Image, planar_rgb
from diinn.runtime.noise.strength import NONE
from diinn.runtime.util import cuda_driver
from diinn.runtime.util.onnx_runtime import (
    SUFFIX,
    Tensor,
    check_tensors,
    failed,
    full_name,
    open_session,
    ort,
    session_options,
)

log = logging.getLogger(__name__)
CHOICE = "DIINN_CPU_DECODER"  # of the environment: where no decoder is asked for
CHOICES = {"fused": "fused", "onnxruntime": "onnx"}
CPU_PIXELS = 4 * 160 * 120  # of all frames encoded together
ON_CPU = "the encoder runs on the CPU"


@dataclass(frozen=True)
class Sessions:
    """What encodes and decodes, and the backend's attributes that go with it.

    Attributes:
        encoder: The encoder's session.
        decoder: The decoder's; None where the CPU's own kernel decodes.
        device: The encoder's.
        encoder_name: The encoder's, for users.
        decoder_name: The decoder's, for users.
        tolerance: As ``Backend.tolerance``.
        chunk: As ``Backend.chunk``.
        workers: As ``Backend.workers``.
    """

    encoder: ort.InferenceSession
    decoder: ort.InferenceSession | None
    device: str
    encoder_name: str
    decoder_name: str
    tolerance: float | None
    chunk: int
    workers: int


class OnnxRuntimeBackend(Backend):
    """Encoder with all threads on one frame; decoder by the CPU's own kernel, or a graph with the gather inside.

    Small matrix products gain little from threads inside an operator, so on the CPU each thread decodes its own piece:
    by the graph 44 ms instead of 71 for 307,200 queries of a 4 x 32 decoder on two cores. The gather inside the graph
    saves another tenth over one in NumPy. int8 graphs are gathered for in NumPy.
    """

    name = "onnxruntime"

    def load(self) -> None:
        wanted, provider = self.options.precision, self.options.provider
        self._openvino = openvino.asked_for(self.options)
        if wanted not in (None, "fp32", "int8") and self._openvino is None:
            others = "" if wanted == "bf16" else " or --backend tensorrt"
            raise InputError(
                f"provider {provider or 'cpu'} computes in fp32, not {wanted}: use --provider openvino{others}"
            )
        self._gathers = wanted != "int8"
        self.provider = "CPU" + SUFFIX if self._openvino else full_name(provider or "cpu")
        self._is_faster = False  # than the plain sessions, and less exact
        self._chunk = self.chunk
        encoder = self._open_encoder()
        self._fused = self._own_decoder()
        self._take(self._plain(encoder))

    def _open_encoder(self) -> ort.InferenceSession:
        precision, kind = ("fp32", np.float32) if self._gathers else ("int8", np.float16)
        encoder = self._session("encoder", precision, self.options.thread_count, self.provider)
        check_tensors(
            encoder,
            self.bundle.graph("encoder", precision),
            {"frame": (np.float32, [None, self.bundle.planes, None, None])},
            {m.name: (kind, [None, None, None, m.channels]) for m in self.bundle.maps},
        )
        return encoder

    def _plain(self, encoder: ort.InferenceSession) -> Sessions:
        """All by the provider, in the graphs' own precision; ``encoder`` is its session."""
        name = self.provider.removesuffix(SUFFIX)
        workers = self.options.thread_count if name == "CPU" else 1
        tolerance = None if self._gathers else golden.SATURATED
        return Sessions(encoder, self._open_decoder(), name, name, name, tolerance, self._chunk, workers)

    def _take(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.tolerance, self.chunk, self.workers = sessions.tolerance, sessions.chunk, sessions.workers

    def _wanted_decoder(self) -> str | None:
        """Which decoder is asked for, by the options or the environment."""
        chosen = os.environ.get(CHOICE)
        if self.options.decoder is not None or chosen is None:
            return self.options.decoder
        if chosen not in CHOICES:
            raise InputError(unknown(CHOICE, chosen, CHOICES))
        return CHOICES[chosen]

    def _own_decoder(self) -> FusedDecoder | None:
        """The CPU's own kernel, unless another decoder is asked for or it cannot be had."""
        wanted = self._wanted_decoder()
        if wanted == "onnx":
            return None
        try:
            if not self._gathers or self.provider != "CPU" + SUFFIX:
                what = f"on {self.provider.removesuffix(SUFFIX)}" if self._gathers else "in int8"
                raise InputError(f"the fused decoder of a CPU does not compute {what}: leave out --decoder")
            layers = self.bundle.layers()
            check_width(layers["first"].shape[0])  # before anything is compiled
            return FusedDecoder(layers, compiler.library())
        except BundleError:
            raise
        except DiinnError as error:
            if wanted == "fused":
                raise
            missing = isinstance(error, InputError)  # else it is there and broken
            log.log(logging.INFO if missing else logging.WARNING, "ONNX Runtime decodes: %s", error)
            return None

    def _open_decoder(self) -> ort.InferenceSession | None:
        """Where the CPU's own kernel does not decode."""
        if self._fused is not None:
            return None
        role, precision = ("gather_decoder", "fp32") if self._gathers else ("decoder", "int8")
        decoder = self._session(role, precision, 1, self.provider)
        kind = np.float32 if self._gathers else np.float16
        inputs: dict[str, Tensor] = {m.name: (kind, [None, m.channels]) for m in self.bundle.maps}
        if self._gathers:
            inputs["index"] = (np.int32, [None])
        inputs["query"] = (np.float32, [None, len(self.bundle.layout.columns)])
        check_tensors(decoder, self.bundle.graph(role, precision), inputs, {"rgb": (np.float32, [None, 3])})
        return decoder

    def retreat(self, why: DiinnError) -> bool:
        if self._is_faster:
            if self._openvino is not None:
                return False  # it was asked for
            on_gpu = self._sessions.device != "CPU"
            log.warning("%s: %s", ON_CPU if on_gpu else "ONNX Runtime encodes, not OpenVINO", why)
            self._is_faster = False
        elif self._fused is not None and self.options.decoder != "fused":
            log.warning("ONNX Runtime decodes, not the compiled decoder: %s", why)
            self._fused = None
        else:
            return False
        self._take(self._plain(self._open_encoder()))
        return True

    def accelerate(self) -> bool:
        wanted, plain = self.options.precision, self._sessions
        if self._openvino is not None:
            precisions = [wanted] if wanted else [*openvino.worthwhile(self._openvino), "fp32"]
            self._take_to_openvino(self._openvino, precisions)
        elif self.options.provider is None and wanted in (None, "fp32"):
            self._take_encoder_to_gpu()
            if wanted is None and self._sessions is plain and os.environ.get(openvino.CHOICE) != "onnxruntime":
                self._take_to_openvino_if_faster()
        self._is_faster = self._sessions is not plain
        return self._is_faster

    def _take_to_openvino_if_faster(self) -> None:
        """Have OpenVINO compute, on a processor where it is much faster, if it is there."""
        precisions = openvino.worthwhile("CPU")
        if not precisions:
            return
        try:
            self._take_to_openvino("CPU", precisions)
        except DiinnError as error:
            missing = isinstance(error, InputError) and not isinstance(
                error, BundleError
            )  # else it is there and broken
            log.log(logging.INFO if missing else logging.WARNING, "ONNX Runtime encodes: %s", error)

    def _take_to_openvino(self, device: str, precisions: Sequence[str]) -> None:
        """Have OpenVINO encode, and decode where it is faster than ONNX Runtime.

        In the first precision whose pictures are near enough to ONNX Runtime's, or the one that is asked for.
        """
        openvino.require(device)
        may_decode = self._fused is None and self._wanted_decoder() is None
        why: DiinnError | None = None
        for precision, decodes in openvino.plans(self.bundle, device, precisions, may_decode=may_decode):
            asked = precision == self.options.precision
            most = float("inf") if asked else openvino.largest_gap(precision)
            try:
                gap = self._try(self._by_openvino(device, precision, decodes=decodes), golden.soft_frame(), _rms, most)
                if gap <= most:
                    return
                why = InputError(
                    f"OpenVINO in {precision} differs by {gap:.2g} rms, {most:.2g} is allowed: "
                    f"--precision {precision} lifts it"
                )
            except OutOfMemory:
                raise
            except DiinnError as error:
                why = error
            log.debug("not OpenVINO's %s, decoder %s: %s", precision, decodes, why)
        assert why is not None
        raise why

    def _by_openvino(self, device: str, precision: str, *, decodes: bool) -> Sessions:
        plain, name = self._sessions, openvino.named(device, precision)
        encoder = self._openvino_session("encoder", precision, device)
        faster = replace(
            plain, encoder=encoder, device=device, encoder_name=name, tolerance=openvino.TOLERANCES.get(precision)
        )
        if not decodes:
            return faster
        decoder = self._openvino_session("gather_decoder", precision, device)
        return replace(
            faster, decoder=decoder, decoder_name=name, chunk=self.options.chunk or openvino.CHUNK, workers=1
        )

    def _take_encoder_to_gpu(self) -> None:
        """Move the encoder, which is most of the work, to a GPU if one works and gives what the CPU gives.

        A provider that opens may still lack cuDNN, or code for the device.
        """
        cuda = "CUDA" + SUFFIX
        if cuda not in ort.get_available_providers():
            return
        missing = cuda_driver.missing()
        if missing:  # an ONNX Runtime for GPUs is installed, so one was meant to be used
            log.warning("%s: %s", ON_CPU, missing)
            return
        try:
            encoder = self._session("encoder", "fp32", 1, cuda)
            faster = replace(self._sessions, encoder=encoder, device="CUDA", encoder_name="CUDA")
            tolerance = min(float(self.bundle.golden()["tolerance"]), golden.LARGEST_TOLERANCE)
            gap = self._try(faster, golden.frame(), _largest, tolerance)
            if not gap <= tolerance:
                log.warning("%s: provider CUDA differs by %.3g from it (tolerance %.3g)", ON_CPU, gap, tolerance)
        except (
            DiinnError,
            KeyError,
            ValueError,
            TypeError,
        ) as error:  # a damaged sample is reported where it is replayed
            log.warning("%s: %s", ON_CPU, error)

    def _try(self, faster: Sessions, frame: Image, size: Callable[[Float32], float], most: float) -> float:
        """Take other sessions where a frame's picture is that of the present ones.

        Args:
            faster: The other sessions.
            frame: What to compare, at twice its size.
            size: Of a difference.
            most: Largest size that is right.

        Returns:
            The size of the difference, in units of [0, 1]; the present sessions stay where it is not right.
        """
        present, dsize = self._sessions, (2 * frame.shape[1], 2 * frame.shape[0])
        right = self._sample(frame, dsize)
        self._take(faster)
        gap = float("nan")
        try:
            gap = size(self._sample(frame, dsize) - right)
        finally:
            if not gap <= most:
                self._take(present)
        return gap

    def _sample(self, frame: Image, dsize: tuple[int, int]) -> Float32:
        """A frame without noise at another size (width, height): [h, w, 3] BGR, in [0, 1]."""
        height, width = frame.shape[:2]
        queries = View.resize(dsize).queries((width, height), self.bundle.scales, self.bundle.layout)
        out = np.empty((*queries.shape, 3), np.float32)
        maps = self.encode([frame], [self.bundle.levels(NONE)])
        segment = Segment(queries, slice(0, queries.count), 0, out.reshape(-1, 3), 0.0)
        self.decode(maps, [segment])
        return out.clip(0, 1)

    def _session(self, role: str, precision: str, threads: int, provider: str) -> ort.InferenceSession:
        path: Path = self.bundle.graph(role, precision)
        content = self.bundle.graph_content(role, precision)
        return open_session(content, path, provider.removesuffix(SUFFIX), session_options(threads))

    def _openvino_session(self, role: str, precision: str, device: str) -> ort.InferenceSession:
        path, content = self.bundle.graph(role), self.bundle.graph_content(role)
        return openvino.open_session(content, path, device, precision, self.options.thread_count, session_options(1))

    def close(self) -> None:
        if not self.closed:
            super().close()
            del self._sessions, self._fused

    def describe(self) -> str:
        threads = self.options.thread_count if self.provider == "CPU" + SUFFIX else 1
        said = f", {threads} threads" if threads > 1 else ""
        decoder = f"fused {self._fused.instructions}" if self._fused is not None else self._sessions.decoder_name
        return f"onnxruntime {ort.__version__} (encoder {self._sessions.encoder_name}, decoder {decoder}{said})"

    def max_batch(self, size: tuple[int, int]) -> int | None:
        """On the CPU as many as keep a layer's activations small.

        Four frames of 320x240 together take a fifth longer than one after the other, with either shipped model; four of
        160x120 do not.
        """
        return max(1, CPU_PIXELS // (size[0] * size[1])) if self._sessions.device == "CPU" else None

    def encode(self, frames: Sequence[Image], levels: Sequence[Levels]) -> list[Float32]:
        batch = np.concatenate([planar_rgb(frame, inputs) for frame, inputs in zip(frames, levels, strict=True)])
        maps = self._call(self._sessions.encoder, [m.name for m in self.bundle.maps], {"frame": batch})
        return [m.reshape(-1, m.shape[-1]) for m in maps]

    def decode(self, maps: list[Float32], segments: Sequence[Segment]) -> None:
        fused = self._fused
        if fused is None:
            super().decode(maps, segments)
            return
        launch = Launch(maps, segments)
        self.in_workers(launch.pieces(self.chunk), lambda piece: fused.decode(launch, *piece))

    def run_chunk(self, maps: list[Float32], chunk: Chunk) -> None:
        index, query = self.fill_inputs(chunk)
        feed: dict[str, Any] = {spec.name: rows for spec, rows in zip(self.bundle.maps, maps, strict=True)}
        if self._gathers:
            feed["index"] = index
        else:
            feed = {name: rows[index] for name, rows in feed.items()}
        decoder = self._sessions.decoder
        assert decoder is not None
        write(chunk, self._call(decoder, ["rgb"], {**feed, "query": query})[0])

    @staticmethod
    def _call(session: ort.InferenceSession, outputs: list[str], feed: dict[str, Any]) -> list[Float32]:
        try:
            return session.run(outputs, feed)  # type: ignore[no-any-return]
        except Exception as error:
            raise failed(error) from error


def _rms(gap: Float32) -> float:
    return float(np.sqrt(np.mean(gap**2)))


def _largest(gap: Float32) -> float:
    return float(np.abs(gap).max())
