"""ONNX Runtime on the CPU, with a decoder of our own and the encoder on a GPU that works; or any of its providers."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diinn.runtime.backends.base import Backend
from diinn.runtime.bundles import golden
from diinn.runtime.bundles.bundle import Levels
from diinn.runtime.cpu import compiler
from diinn.runtime.cpu.decoder import FusedDecoder, Launch, check_width
from diinn.runtime.errors import BundleError, DiinnError, InputError, unknown
from diinn.runtime.geometry.grid import Float32
from diinn.runtime.geometry.segments import Chunk, Segment, write
from diinn.runtime.geometry.view import View
from diinn.runtime.images.arrays import Image, planar_rgb
from diinn.runtime.noise.strength import NONE
from diinn.runtime.util import cuda_driver
from diinn.runtime.util.onnx_runtime import SUFFIX, failed, open_session, ort

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}
log = logging.getLogger(__name__)
CHOICE = "DIINN_CPU_DECODER"  # of the environment: where no decoder is asked for
CHOICES = {"fused": "fused", "onnxruntime": "onnx"}
CPU_PIXELS = 4 * 160 * 120  # of all frames encoded together


class OnnxRuntimeBackend(Backend):
    """Encoder with all threads on one frame; decoder by the CPU's own kernel, or a graph with the gather inside.

    Small matrix products gain little from threads inside an operator, so on the CPU each thread decodes its own piece:
    by the graph 44 ms instead of 71 for 307,200 queries of a 4 x 32 decoder on two cores. The gather inside the graph
    saves another tenth over one in NumPy. int8 graphs are gathered for in NumPy.
    """

    name = "onnxruntime"

    def load(self) -> None:
        precision = self.options.precision or "fp32"
        if precision not in ("fp32", "int8"):
            raise InputError(f"the onnxruntime backend computes in fp32, not {precision}: use --backend tensorrt")
        self._gathers = precision == "fp32"
        if not self._gathers:
            self.tolerance = golden.SATURATED
        self.provider = self.encoder_provider = _provider(self.options.provider)
        cpu = self.provider == "CPU" + SUFFIX
        threads = self.options.thread_count
        self.workers = threads if cpu else 1
        self._encoder = self._session("encoder", precision, threads, self.provider)
        self._check(
            "encoder",
            self._encoder,
            {"frame": [None, self.bundle.planes, None, None]},
            {m.name: [None, None, None, m.channels] for m in self.bundle.maps},
        )
        self._decoder: ort.InferenceSession | None = None
        self._fused = self._own_decoder()
        if self._fused is None:
            self._open_decoder()
        if self.options.provider is None and precision == "fp32":
            self._take_encoder_to_gpu()

    def _own_decoder(self) -> FusedDecoder | None:
        """The CPU's own kernel, unless another decoder is asked for or it cannot be had."""
        wanted = self.options.decoder
        if wanted is None and CHOICE in os.environ:
            chosen = os.environ[CHOICE]
            if chosen not in CHOICES:
                raise InputError(unknown(CHOICE, chosen, CHOICES))
            wanted = CHOICES[chosen]
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

    def _open_decoder(self) -> None:
        role = "gather_decoder" if self._gathers else "decoder"
        self._decoder = self._session(role, self.options.precision or "fp32", 1, self.provider)
        inputs: dict[str, list[Any]] = {m.name: [None, m.channels] for m in self.bundle.maps}
        if self._gathers:
            inputs["index"] = [None]
        inputs["query"] = [None, len(self.bundle.layout.columns)]
        self._check(role, self._decoder, inputs, {"rgb": [None, 3]})

    def retreat(self, why: DiinnError) -> bool:
        if self._fused is None or self.options.decoder == "fused":
            return False
        log.warning("ONNX Runtime decodes, not the compiled decoder: %s", why)
        self._fused = None
        self._open_decoder()
        return True

    def _take_encoder_to_gpu(self) -> None:
        """Move the encoder, which is most of the work, to a GPU if one works and gives what the CPU gives.

        A provider that opens may still lack cuDNN, or code for the device.
        """
        cuda = "CUDA" + SUFFIX
        if cuda not in ort.get_available_providers():
            return
        missing = cuda_driver.missing()
        if missing:  # an ONNX Runtime for GPUs is installed, so one was meant to be used
            log.warning("the encoder runs on the CPU: %s", missing)
            return
        on_cpu = self._encoder
        right = self._sample()
        try:
            self._encoder = self._session("encoder", "fp32", 1, cuda)
            gap = float(np.abs(self._sample() - right).max())
            tolerance = min(float(self.bundle.golden()["tolerance"]), golden.LARGEST_TOLERANCE)
            if not gap <= tolerance:
                raise DiinnError(f"provider CUDA differs by {gap:.3g} from it (tolerance {tolerance:.3g})")
        except (
            DiinnError,
            KeyError,
            ValueError,
            TypeError,
        ) as error:  # a damaged sample is reported where it is replayed
            self._encoder = on_cpu
            log.warning("the encoder runs on the CPU: %s", error)
        else:
            self.encoder_provider = cuda

    def _sample(self) -> Float32:
        """The golden frame, decoded at a size of its own: [h, w, 3] BGR, units of [0, 1]."""
        frame = golden.frame()
        height, width = frame.shape[:2]
        view = View.resize((width + 7, height + 5))
        queries = view.queries((width, height), self.bundle.scales, self.bundle.layout)
        out = np.empty((*queries.shape, 3), np.float32)
        maps = self.encode([frame], [self.bundle.levels(NONE)])
        segment = Segment(queries, slice(0, queries.count), 0, out.reshape(-1, 3), 0.0)
        self.decode(maps, [segment])
        return out

    def _session(self, role: str, precision: str, threads: int, provider: str) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is reported once, by us
        # Without its arena and its planned pattern ONNX Runtime gives memory back as soon as it can: half the
        # peak on large frames, at the same speed.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        # A thread that spins after the encoder would take the cores the decoder's threads need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path: Path = self.bundle.graph(role, precision)
        content = self.bundle.graph_content(role, precision)
        return open_session(content, path, provider.removesuffix(SUFFIX), options)

    def _check(
        self, role: str, session: ort.InferenceSession, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]
    ) -> None:
        for kind, wanted, found in (
            ("input", inputs, session.get_inputs()),
            ("output", outputs, session.get_outputs()),
        ):
            have = {t.name: (t.shape, t.type) for t in found}
            if have.keys() != wanted.keys():
                raise BundleError(
                    f"{self.bundle.graph(role)} has {kind}s {sorted(have)}, bundle.json says {sorted(wanted)}: "
                    "export it again"
                )
            for name, shape in wanted.items():
                plain = np.float32 if self._gathers or name in ("frame", "query", "rgb") else np.float16
                dtype = np.int32 if name == "index" else plain
                got, got_type = have[name]
                fits = len(got) == len(shape) and all(w is None or g == w for g, w in zip(got, shape, strict=True))
                if not fits or _DTYPES.get(got_type) is not dtype:
                    raise BundleError(
                        f"{self.bundle.graph(role)}: {kind} {name} is {got_type}{got}, "
                        f"expected {np.dtype(dtype).name}{shape}: export it again"
                    )

    def close(self) -> None:
        if not self.closed:
            super().close()
            del self._encoder, self._decoder, self._fused

    def describe(self) -> str:
        threads = f", {self.workers} threads" if self.workers > 1 else ""
        encoder, decoder = (name.removesuffix(SUFFIX) for name in (self.encoder_provider, self.provider))
        if self._fused is not None:
            decoder = f"fused {self._fused.instructions}"
        return f"onnxruntime {ort.__version__} (encoder {encoder}, decoder {decoder}{threads})"

    def max_batch(self, size: tuple[int, int]) -> int | None:
        """On the CPU as many as keep a layer's activations small.

        Four frames of 320x240 together take a fifth longer than one after the other, with either shipped model; four of
        160x120 do not.
        """
        return max(1, CPU_PIXELS // (size[0] * size[1])) if self.encoder_provider == "CPU" + SUFFIX else None

    def encode(self, frames: Sequence[Image], levels: Sequence[Levels]) -> list[Float32]:
        batch = np.concatenate([planar_rgb(frame, inputs) for frame, inputs in zip(frames, levels, strict=True)])
        maps = self._call(self._encoder, [m.name for m in self.bundle.maps], {"frame": batch})
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
        assert self._decoder is not None
        write(chunk, self._call(self._decoder, ["rgb"], {**feed, "query": query})[0])

    @staticmethod
    def _call(session: ort.InferenceSession, outputs: list[str], feed: dict[str, Any]) -> list[Float32]:
        try:
            return session.run(outputs, feed)  # type: ignore[no-any-return]
        except Exception as error:
            raise failed(error) from error


def _provider(name: str | None) -> str:
    """Full name of an execution provider given as "cpu", "CUDA" or "CUDAExecutionProvider"."""
    available: dict[str, str] = {p.removesuffix(SUFFIX).lower(): p for p in ort.get_available_providers()}
    key = (name or "cpu").removesuffix(SUFFIX).lower()
    if "tensorrt" in key:
        raise InputError(f"--provider {name}: its engines would not be compared with the CPU: use --backend tensorrt")
    if key not in available:
        raise InputError(unknown("provider", name, available) + "; another build of onnxruntime may offer it")
    return available[key]
