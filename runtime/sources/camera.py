"""Live cameras: a worker process each, ended when it hangs, started again when it fails. The newest frame wins."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from diinn.runtime.errors import DiinnError, SourceError
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.sources import ros_topic
from diinn.runtime.sources.base import FAILED, LIVE, OPENING, RETRYING, Frame, Header, Source
from diinn.runtime.sources.capture import LEAVE, CaptureRequest
from diinn.runtime.sources.ros_messages import Calibrations, info_topic
from diinn.runtime.util.once import Once

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)
# As ``python -m diinn.runtime.sources.worker``, but a module in the current folder hides none.
START = "import sys; sys.path[:1] == [''] and sys.path.pop(0); from diinn.runtime.sources.worker import main; main()"
STARTING_SECONDS = 60.0  # for a process to have Python and OpenCV; several start at once
LEAVE_SECONDS = 0.7  # for one that was asked to end
REAP_SECONDS = 1.0  # for a process that was killed to be gone


@dataclass(frozen=True)
class RetryPolicy:
    """When a camera counts as failed, and how it is tried again. Times are seconds.

    Attributes:
        opening: Until it must be open.
        stall: How long it may go without a frame, once open.
        retries: How often in a row one that fails is tried again before it is given up; None for no limit.
        first_pause: Before it is opened again the first time; the pause doubles with each failure, less up to half at
            random.
        longest_pause: What the pause grows to at most.
        settled: Time between a worker's first and last frame after which the pauses start small again.
    """

    opening: float = 15.0
    stall: float = 5.0
    retries: int | None = None
    first_pause: float = 0.5
    longest_pause: float = 30.0
    settled: float = 5.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after ``failures`` (from 1) in a row."""
        whole = min(self.longest_pause, self.first_pause * 2.0 ** min(failures - 1, 30))
        return whole * random.uniform(0.5, 1.0)


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, device: CaptureRequest, *, verbose: bool = False) -> None:
        ours, theirs = socket.socketpair()
        self._memory = _anonymous_memory()
        self._map: mmap.mmap | None = None
        self._received = b""
        self._connection = ours
        self._leaves = device.bus  # by itself, so that others on the bus know at once, and its memory is freed
        try:
            with theirs:
                numbers = [theirs.fileno(), self._memory]
                self._process = subprocess.Popen(
                    [sys.executable, "-c", START, *map(str, numbers), str(os.getpid())],
                    pass_fds=numbers,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=None if verbose else subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is handled by the parent
                )
            ours.sendall(device.to_json())
        except BaseException:
            ours.close()
            os.close(self._memory)
            raise

    @property
    def id(self) -> int:
        """The process's id."""
        return self._process.pid

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The worker's next message, None after ``timeout`` seconds without; SourceError when it has ended."""
        until = time.monotonic() + timeout
        while b"\n" not in self._received:
            self._connection.settimeout(max(0.001, until - time.monotonic()))
            try:
                received = self._connection.recv(65536)
            except TimeoutError:
                return None
            except OSError:
                received = b""
            if not received:
                raise SourceError(f"its process ended {self._end()}")
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "failed" in message:
            raise SourceError(message["failed"])
        return message

    def image(self, message: dict[str, Any]) -> UInt8:
        """A copy of the frame a message announces."""
        height, width, channels = message["shape"]
        size, start = height * width * channels, message["at"]
        if self._map is None or len(self._map) < start + size:
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(self._memory, 0, prot=mmap.PROT_READ)
        copy = np.frombuffer(self._map, np.uint8, size, start).reshape(height, width, channels).copy()
        with contextlib.suppress(OSError):  # it ended meanwhile, which the next message shows
            self._connection.send(b"+")
        return copy

    def kill(self) -> None:
        """End the process at once, from any thread; one on a robot's bus is asked to."""
        if self._leaves:
            self._process.send_signal(LEAVE)
        else:
            self._process.kill()

    def _end(self) -> str:
        """How the process ended: by itself, or killed now. One that a driver holds is left to the system."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return _how(self._process.wait(0.2))
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return _how(self._process.wait(REAP_SECONDS))
        return "not even when it was killed: the driver holds it"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if self._leaves:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVE_SECONDS)
        self._process.kill()
        self._end()
        self._connection.close()
        if self._map is not None:
            self._map.close()
        os.close(self._memory)


class Camera(Source):
    """A live camera by its worker processes: each that fails, stalls or dies is followed by another."""

    live = True

    def __init__(self, name: str, device: CaptureRequest, retry: RetryPolicy | None = None) -> None:
        super().__init__(name)
        self.retry = retry or RetryPolicy()
        self.device = replace(device, opening=self.retry.opening, stall=self.retry.stall)
        self.rate, self.remedy = device.rate, device.remedy
        self.topic = ros_topic.split(str(device.address))[0] if device.bus else ""
        self._calibrations = Calibrations(info_topic(self.topic))
        self._logged = Once()
        self._stop = threading.Event()
        self._worker: Worker | None = None
        self._lock = threading.Lock()
        self._first = self._last = 0.0  # arrival of the first and last frame of this worker
        self._thread = threading.Thread(target=self._supervise, name=f"diinn-{name}", daemon=True)

    def start(self, wake: Callable[[], None]) -> None:
        self._wake = self.slot.wake = wake
        self._thread.start()

    def close(self) -> None:
        self.slot.close()
        self._stop.set()
        with self._lock:
            if self._worker is not None:
                self._worker.kill()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(2)

    @property
    def processes(self) -> list[int]:
        with self._lock:
            return [self._worker.id] if self._worker is not None else []

    def _supervise(self) -> None:
        failures = 0
        while not self._stop.is_set():
            self.state = OPENING if not failures and not self.captured else self.state
            self._first = self._last = 0.0
            try:
                self._stream()
            except SourceError as error:
                reason = str(error)
            except Exception as error:  # a full process table, no memory: may pass, as a lost connection does
                reason = f"{type(error).__name__}: {error}"
            if self._stop.is_set():
                return
            failures = 1 if self._last - self._first > self.retry.settled else failures + 1
            self.trouble = reason
            if self.retry.retries is not None and failures > self.retry.retries:
                self.failure = self._given_up(reason, failures)
                self.state = FAILED
                self._wake()
                return
            pause = self.retry.pause(failures)
            # The first attempt of all is reported by the stream, if no other camera opens either.
            level = logging.WARNING if self.captured or failures > 1 else logging.INFO
            log.log(level, "camera %s: %s; next try in %.1f s", self.name, reason, pause)
            self.state = RETRYING
            self._wake()
            self._stop.wait(pause)

    def _given_up(self, reason: str, failures: int) -> DiinnError:
        tries = "" if failures == 1 else f"; given up after {failures} attempts in a row"
        kind = DiinnError if self.captured else SourceError  # not the user's input if it has worked
        return kind(f"camera {self.name} {reason}{tries}: check {self.remedy}")

    def _stream(self) -> None:
        """Run one worker process until it fails or we stop; SourceError with how it failed."""
        with Worker(self.device, verbose=log.isEnabledFor(logging.DEBUG)) as worker:
            with self._lock:
                self._worker = worker
            try:
                if self._next(worker, STARTING_SECONDS, "its process did not start") is None:
                    return
                opened = self._next(worker, self.retry.opening, "did not open")
                if opened is None:
                    return
                if self.rate is None:
                    self.rate = float(opened["rate"])
                before, undecodable_before = self.captured, self.undecodable
                counted = 0
                # At a low frame rate, two frame intervals.
                stall = max(self.retry.stall, 2 / self.device.rate if self.device.rate else 0.0)
                while (message := self._next(worker, stall, "stalled, no frame")) is not None:
                    if "info" in message:
                        self._calibrations.take(message["info"])
                        continue
                    image = worker.image(message)
                    self.captured = before + message["count"]
                    self.undecodable = undecodable_before + message["undecodable"]
                    if self.undecodable and self._logged.first("undecodable"):
                        log.warning("camera %s: a frame could not be decoded; such are left out and counted", self.name)
                    times = message["captured"], message["arrived"]
                    if self._last:  # all that were counted, also those the worker dropped
                        self.interval = (times[1] - self._last) / (message["count"] - counted)
                    if not counted:
                        self.reconnects += before > 0
                        if before:
                            log.warning("camera %s is back", self.name)
                        self.state, self.trouble = LIVE, ""
                    counted = message["count"]
                    self._first, self._last = self._first or times[1], times[1]
                    header, lag = self._header(message.get("header"))
                    self.slot.put(Frame(image, self.name, self.captured - 1, *times, header=header, lag=lag))
            finally:
                with self._lock:
                    self._worker = None

    def _header(self, said: dict[str, Any] | None) -> tuple[Header | None, float]:
        """What a message of ROS said of its frame, and how many seconds before its arrival it was captured."""
        if said is None:
            return None, 0.0
        # A mirrored or turned picture is another camera's.
        calibration = None if self.device.flip else self._calibrations.latest
        if not said["agrees"] and self._logged.first("clock"):
            why = "bear a stamp of zero" if said["lag"] is None else f"bear stamps {said['lag']:.1f} s old on arrival"
            log.warning(
                "camera %s: images %s; clocks do not agree, ages count from their arrival (chrony, PTP or "
                "?use_sim_time=true set that right)",
                *(self.name, why),
            )
        lag = max(0.0, said["lag"]) if said["agrees"] else 0.0
        return Header(said["stamp"], said["frame_id"], 0, calibration), lag

    def _next(self, worker: Worker, timeout: float, what: str) -> dict[str, Any] | None:
        """The next message; None when we stop; SourceError after ``timeout`` seconds without one."""
        if self._stop.is_set():
            return None
        try:
            message = worker.receive(timeout)
        except SourceError:
            if self._stop.is_set():
                return None
            raise
        if message is None and not self._stop.is_set():
            raise SourceError(f"{what} for {timeout:g} s")
        return message


def _anonymous_memory() -> int:
    """An anonymous file in memory: freed with the last process that has it open."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("diinn-frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    if not code:
        return "by itself, without a word"
    return f"with exit code {code}; --log-level debug shows what it says"
