"""``diinn-run`` watched from outside: its cameras, its statistics, its use of processor and memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from diinn.runtime.util.memory import MIB


@contextlib.contextmanager
def cameras(count: int, size: tuple[int, int], rate: float, *, apart: bool = False) -> Iterator[list[Camera]]:
    """``count`` MJPEG cameras on the loopback; one process serves them all unless they are to be ``apart``."""
    opened = [Camera(size, rate) for _ in range(count if apart else 1)]
    try:
        yield opened if apart else opened * count
    finally:
        for camera in opened:
            camera.stop()


class Camera:
    """One served camera; ``stop`` and ``start`` disconnect and reconnect it."""

    def __init__(self, size: tuple[int, int], rate: float) -> None:
        self._words = ["--size", f"{size[0]}x{size[1]}", "--rate", f"{rate:g}"]
        self._port = "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "diinn.benchmarks", "mjpeg_server", "--port", self._port, *self._words]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self._port = self.url.rstrip("/").rpartition(":")[2]

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


class Running:
    """A ``diinn-run`` in a process of its own, with ``--stats`` to ``stats``.

    Its output goes to files beside that, which do not fill up as pipes do. environment: variables added to this
    process's; out, log: files of its standard output and error
    """

    def __init__(self, words: Sequence[str], stats: Path, environment: Mapping[str, str] | None = None) -> None:
        self.stats, self.out, self.log = stats, stats.with_suffix(".out"), stats.with_suffix(".err")
        command = [sys.executable, "-m", "diinn.runtime.cli.run", *words, "--stats", str(stats), "--no-progress"]
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=out, stderr=log, env=os.environ | dict(environment or {}))
        self.watched = psutil.Process(self.process.pid)

    def tree(self) -> list[psutil.Process]:
        """The process and its workers."""
        with contextlib.suppress(psutil.Error):
            return [self.watched, *self.watched.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """Processor time of the tree so far; that of workers that have ended counts too."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def memory(self) -> float:
        """MiB of the tree, what is shared counted once."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / MIB

    def own_memory(self) -> float:
        """MiB that ``diinn-run`` itself holds alone, without its workers and libraries that others map, too."""
        return float(self.watched.memory_full_info().uss) / MIB

    def end(self) -> tuple[int, str, dict[str, Any]]:
        """Stop it as Ctrl-C does: exit code, its standard error, and its summary."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        lines = self.stats.read_text(encoding="utf-8").splitlines() if self.stats.exists() else []
        return code, self.log.read_text(encoding="utf-8"), json.loads(lines[-1]) if lines else {}

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of statistics so far."""
        text = self.stats.read_text(encoding="utf-8") if self.stats.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
