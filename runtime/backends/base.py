"""What every backend does: encode frames to maps, decode queries in chunks of one fixed size."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any, TypeVar

import numpy as np
from diinn.runtime.bundles.bundle import Bundle, Levels
from diinn.runtime.engines.profiles import Profile
from diinn.runtime.engines.verify import Verdict, not_compared
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry.grid import Float32, Int32
from diinn.runtime.geometry.segments import Chunk, Segment, pack
from diinn.runtime.images.arrays import Image


def _no_reference(backend: Backend, precision: str, profile: Profile) -> Verdict:
    return not_compared(precision, "nothing to compare with")


@dataclass(frozen=True)
class BackendOptions:
    """What a backend is opened with.

    Attributes:
        provider: Which of the backend's devices; None for its default.
        threads: CPU threads; None for all this process may use.
        chunk: Queries decoded at once; None for what suits the model's width.
        precision: Which of the bundle's graphs; None for the backend's choice.
        may_build: Whether to build missing engines, which takes minutes.
        cuda_graphs: Whether to replay repeated work on a GPU as CUDA graphs; None for GPUs that share the host's
            memory, as a Jetson's.
        zero_copy: Whether kernels read frames and write pixels in the host's memory, without copies; None for the same.
        decoder: Which of the backend's decoders, "fused", "engine" or "onnx"; None for the backend's choice.
        compare: Compares engines of (backend, precision, profile of the encoder) with the CPU.
    """

    provider: str | None = None
    threads: int | None = None
    chunk: int | None = None
    precision: str | None = None
    may_build: bool = True
    cuda_graphs: bool | None = None
    zero_copy: bool | None = None
    decoder: str | None = None
    compare: Callable[[Backend, str, Profile], Verdict] = _no_reference

    @property
    def thread_count(self) -> int:
        if self.threads is not None:
            return self.threads
        affinity = getattr(os, "sched_getaffinity", None)  # Linux only
        return len(affinity(0)) if affinity else os.cpu_count() or 1


Maps = Any  # what ``encode`` made and ``run_chunk`` takes: the backend's own
Piece = TypeVar("Piece")


class Backend(ABC):
    """Base of the backends: life cycle, chunks, worker threads.

    A subclass implements ``load``, ``describe``, ``encode`` and ``run_chunk``; the other hooks have defaults.

    Attributes:
        name: What selects it as ``backend=``.
        workers: Chunks decoded at the same time.
        tolerance: Allowed difference to the golden sample, units of [0, 1]; None for the sample's own.
        bundle: The model.
        options: What it was opened with.
        chunk: Queries decoded at once.
        closed: Whether it cannot be used any more.
    """

    name: str
    workers: int = 1
    tolerance: float | None = None

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self.bundle, self.options = bundle, options
        widest = max(m.channels for m in bundle.maps) * bundle.layout.samples
        # About 1 MB of activations a chunk stay in a core's own cache, and calls are few.
        self.chunk = options.chunk or min(8192, max(1024, 2**18 // widest))
        self._pool: ThreadPoolExecutor | None = None
        self.closed = False
        self.load()

    @classmethod
    def not_ready(cls, bundle: Bundle, options: BackendOptions) -> str:
        """Why "auto" should not take this backend now; empty if it may. Builds nothing.

        Args:
            bundle: The model.
            options: What the backend would be opened with.
        """
        return ""

    @abstractmethod
    def load(self) -> None:
        """Open the graphs of ``self.bundle`` and check their names, shapes and dtypes; called by the constructor.

        Raises:
            BundleError: A graph is damaged or has other tensors.
            InputError: The bundle or the options are not for this backend.
        """

    @abstractmethod
    def describe(self) -> str:
        """The backend and its device, in a few words for users."""

    @abstractmethod
    def encode(self, frames: Sequence[Image], levels: Sequence[Levels]) -> Maps:
        """Encode frames of one size.

        Args:
            frames: uint8 or float32 in [0, 1], [H, W, 3] BGR each; at most ``max_batch`` of them.
            levels: The encoder's inputs beside each frame, ``Bundle.levels`` of its strength.

        Returns:
            The maps: rows of all frames together, [B·H·W, C] each, in the backend's own form.

        Raises:
            OutOfMemory: The device has too little memory left.
        """

    @abstractmethod
    def run_chunk(self, maps: Maps, chunk: Chunk) -> None:
        """Decode one chunk and write its pixels (``write``); called from worker threads.

        Args:
            maps: What ``encode`` returned.
            chunk: At most ``self.chunk`` queries.
        """

    def decode(self, maps: Maps, segments: Sequence[Segment]) -> None:
        """Decode all queries and write their pixels, chunk by chunk in ``workers`` threads.

        Args:
            maps: What ``encode`` returned.
            segments: Queries, and the arrays their pixels go to.
        """
        self.in_workers(pack(segments, self.chunk), lambda chunk: self.run_chunk(maps, chunk))

    def in_workers(self, pieces: Iterator[Piece], run: Callable[[Piece], None]) -> None:
        """``run`` of every piece, in ``workers`` threads; pieces are made as they are needed."""
        if self.workers == 1:
            for piece in pieces:
                run(piece)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="diinn-decode")

        lock, stop = Lock(), Event()

        def drain() -> None:
            while not stop.is_set():
                with lock:  # their number grows with the output
                    piece = next(pieces, None)
                if piece is None:
                    return
                run(piece)

        tasks: list[Future[None]] = [self._pool.submit(drain) for _ in range(self.workers)]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:  # one worker's failure, or Ctrl-C, ends the others at their next piece
            stop.set()
            wait(tasks)
        for task in tasks:
            task.result()

    def fill_inputs(self, chunk: Chunk) -> tuple[Int32, Float32]:
        """The inputs of a chunk, always of the same shapes: index [chunk·samples], query [chunk·samples, columns]."""
        layout = self.bundle.layout
        each = layout.samples
        index = np.zeros(self.chunk * each, np.int32)  # the unused end of a short chunk refers to row 0
        query = np.zeros((self.chunk * each, len(layout.columns)), np.float32)
        for at, segment in chunk:
            here = slice(at * each, (at + segment.count) * each)
            segment.fill_inputs(index[here], query[here])
        return index, query

    def max_batch(self, size: tuple[int, int]) -> int | None:
        """Frames of ``size`` (width, height) that ``encode`` takes at once; None for any number."""
        return None

    def holds(self, size: tuple[int, int]) -> bool:
        """Whether the memory to encode a frame of ``size`` (width, height) whole is taken already: no bands then."""
        return False

    def accepts(self, size: tuple[int, int]) -> bool:
        """Whether frames of ``size`` (width, height) are encoded as things stand, without building anything."""
        return True

    def verify(self, *, again: bool = False) -> None:  # noqa: B027
        """Check what a backend checks beyond the golden sample, once per machine.

        Args:
            again: Check even if it was checked before.

        Raises:
            DiinnError: A check fails.
        """

    def accelerate(self) -> bool:
        """Put something faster and less exact in place, where it gives nearly the same; after the golden sample.

        Returns:
            Whether anything changed: the sample is then replayed once more, within the tolerance that now holds.

        Raises:
            DiinnError: What was asked for cannot be had.
        """
        return False

    def retreat(self, why: DiinnError) -> bool:
        """Put something slower in place of what differs from the golden sample.

        Args:
            why: What was found.

        Returns:
            Whether there is something: the sample is then replayed once more.
        """
        return False

    def close(self) -> None:
        """Release threads, graphs and device memory; the backend cannot be used afterwards."""
        self.closed = True
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
