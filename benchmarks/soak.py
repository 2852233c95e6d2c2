"""Hours of ``diinn-run``: four cameras, one of which disconnects, and viewers that come and go; does anything grow?

``diinn-bench soak --duration 10m`` watches the command from outside. One camera disconnects every ten
seconds for three. Of three viewers one draws what it gets, one zooms, one never answers; each stays for a while and
comes back. It fails if threads, open files or memory grow after the start, if another camera stops, or if anything is
logged that should not be. A minute of it finds a thread leaked at each disconnection and memory lost by MiB a second;
hours find smaller leaks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import struct
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from diinn.benchmarks.watched_run import Running, cameras
from diinn.runtime.cli.run_options import seconds
from diinn.runtime.errors import DiinnError
from diinn.runtime.util.command_line import Parser

NUMBER, FLAPPING = 4, 3  # cameras, and which of them disconnects
SIZE, RATE = (160, 120), 10.0
UP, DOWN = 10.0, 3.0  # seconds
SAMPLE_SECONDS = 1.0
WARM_SHARE = 0.25  # of the samples, which are not compared
MORE_THREADS, MORE_FILES = 1, 3  # a viewer may be about to disconnect
MORE_MEMORY = 48.0  # MiB of the quantile below: more than comes and goes with batches and zooms
LOW = 0.2  # of the samples have less: between batches
# glibc keeps what was freed, tens of MiB a thread, and returns it at no set time, which hides leaks. With this, blocks
# of a MiB and more go back to the kernel at once; it is slower, which does not matter here.
STEADY_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}


@dataclass
class Findings:
    """What was observed.

    samples: (seconds, threads, files, MiB of its own); pictures: that viewers were sent; errors: of viewers and cameras
    """

    samples: list[tuple[float, int, int, float]] = field(default_factory=list)
    pictures: int = 0
    visits: int = 0
    flaps: int = 0
    errors: list[str] = field(default_factory=list)


async def visit(url: str, kind: str, found: Findings, stay: float) -> None:
    """One viewer of ``kind`` "draws", "zooms" or "hangs" for ``stay`` seconds."""
    end = time.monotonic() + stay
    async with aiohttp.ClientSession() as session, session.ws_connect(url + "live", max_msg_size=2**24) as socket:
        found.visits += 1
        panes: set[str] = set()
        while time.monotonic() < end:
            try:
                message = await socket.receive(timeout=1.0)
            except asyncio.TimeoutError:
                continue
            if message.type is aiohttp.WSMsgType.TEXT:
                content = json.loads(message.data)
                if "error" in content:
                    found.errors.append(f"the page says: {content['error']}")
                for stream in content.get("streams", []):
                    name = f"{stream['camera']}/{stream['view']}"
                    if name not in panes:
                        panes.add(name)
                        await socket.send_json({"do": "watch", "pane": name, "compare": kind == "draws", **stream})
            elif message.type is aiohttp.WSMsgType.BINARY:
                found.pictures += 1
                length = struct.unpack_from("<I", message.data)[0]
                pane = json.loads(message.data[4 : 4 + length])["pane"]
                if kind == "zooms" and random.random() < 0.2:
                    x, y = random.uniform(0, 0.5), random.uniform(0, 0.5)
                    await socket.send_json({"do": "whole", "pane": pane})
                    zoom = {"do": "zoom", "pane": pane, "rect": [x, y, 0.4, 0.4], "size": [320, 240]}
                    await socket.send_json(zoom)
                if kind != "hangs":
                    await socket.send_json({"do": "drawn", "pane": pane})
            else:
                return


async def come_and_go(url: str, kind: str, found: Findings, end: float) -> None:
    """Visits of one viewer until ``end``."""
    while time.monotonic() < end:
        try:
            await visit(url, kind, found, min(random.uniform(4, 15), max(0.1, end - time.monotonic())))
        except Exception as error:  # any error is a finding, and the next visit begins
            found.errors.append(f"viewer that {kind}: {type(error).__name__} {error}")
        await asyncio.sleep(random.uniform(0.5, 3))


def soak(length: float) -> tuple[Findings, dict[str, Any], str]:
    """Run for ``length`` seconds: findings, the summary of ``diinn-run`` and its standard error."""
    found = Findings()
    with tempfile.TemporaryDirectory() as folder, cameras(NUMBER, SIZE, RATE, apart=True) as served:
        words = [word for camera in served for word in ("--camera", camera.url)]
        options = ["--model", "nano", "--out-size", "320x240", "--viewers", "4", "--stall-timeout", "5"]
        words += [*options, "--output", "http://127.0.0.1:0"]
        running = Running(words, Path(folder) / "stats.jsonl", STEADY_MEMORY)
        url = _url(running)
        end = time.monotonic() + length
        stop = threading.Event()
        threads = [
            threading.Thread(target=_flap, args=(served[FLAPPING], found, stop), daemon=True),
            threading.Thread(target=asyncio.run, args=(_viewers(url, found, end),), daemon=True),
        ]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        while time.monotonic() < end and running.process.poll() is None:
            time.sleep(SAMPLE_SECONDS)
            try:
                main = running.watched
                sample = (time.monotonic() - began, main.num_threads(), main.num_fds(), running.own_memory())
            except psutil.Error:
                break
            found.samples.append(sample)
        stop.set()
        for thread in threads:
            thread.join(30)
        code, output, summary = running.end()
        if code != 130 or not summary:
            found.errors.append(f"exit code {code}, {'a' if summary else 'no'} summary")
    return found, summary, output


async def _viewers(url: str, found: Findings, end: float) -> None:
    await asyncio.gather(*(come_and_go(url, kind, found, end) for kind in ("draws", "zooms", "hangs")))


def _url(running: Running) -> str:
    while running.process.poll() is None:
        match = re.search(r"open (http://\S+) in a browser\n", running.out.read_text(encoding="utf-8"))
        if match is not None:
            return match.group(1)
        time.sleep(0.1)
    raise DiinnError(f"diinn-run did not start: {running.end()[1]}")


def _flap(camera: Any, found: Findings, stop: threading.Event) -> None:
    while not stop.wait(UP):
        try:
            camera.stop()
            found.flaps += 1
            stop.wait(DOWN)
            camera.start()
        except Exception as error:
            found.errors.append(f"the served camera: {type(error).__name__} {error}")


def verdict(found: Findings, summary: dict[str, Any], output: str) -> list[str]:
    """What is wrong, a line each."""
    wrong = list(dict.fromkeys(found.errors))
    compared = found.samples[int(len(found.samples) * WARM_SHARE) :]
    half = len(compared) // 2
    if half:
        (threads, files, memory), (more_threads, more_files, more_memory) = (
            (np.median([p[1] for p in part]), np.median([p[2] for p in part]), np.quantile([p[3] for p in part], LOW))
            for part in (compared[:half], compared[half:])
        )
        if more_threads > threads + MORE_THREADS:
            wrong.append(f"threads grew from {threads:g} to {more_threads:g}")
        if more_files > files + MORE_FILES:
            wrong.append(f"open files grew from {files:g} to {more_files:g}")
        if more_memory > memory + MORE_MEMORY:
            wrong.append(f"memory grew from {memory:.0f} to {more_memory:.0f} MiB")
    else:
        wrong.append("it ended before it could be watched")
    cameras = summary.get("cameras", {})
    names = [*cameras, *[""] * NUMBER]
    for name, camera in cameras.items():
        if name == names[FLAPPING]:
            if camera["reconnects"] < found.flaps - 1:
                wrong.append(f"{name} fell out {found.flaps} times and came back {camera['reconnects']} times")
        elif camera["reconnects"] or not camera["processed"]:
            wrong.append(f"{name}: {camera['reconnects']} reconnects, {camera['processed']} frames, for no reason")
    if not found.pictures:
        wrong.append("no viewer got a picture")
    flapping = re.escape(names[FLAPPING])
    lines = [
        line
        for line in output.splitlines()
        if not re.search(rf"camera {flapping}(: .*next try in| is back)|was trained for", line)
    ]
    return wrong + [f"it logged: {line}" for line in lines]


def duration(text: str) -> float:
    """Seconds of ``60s``, ``10m`` or ``8h``."""
    units = {"s": 1, "m": 60, "h": 3600}
    if text[-1:] not in units:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 60s, 10m or 8h")
    return seconds(text[:-1]) * units[text[-1]]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench soak", description=__doc__)
    top.add_argument("--duration", type=duration, default="10m", metavar="60s|10m|8h", help="default: 10m")
    return top


def run(args: argparse.Namespace) -> int:
    """Soak, print, judge."""
    found, summary, output = soak(args.duration)
    for at, threads, files, memory in found.samples[:: max(1, len(found.samples) // 10)]:
        print(f"{at:8.0f} s   {threads:4} threads   {files:4} files   {memory:7.1f} MiB")
    for name, camera in summary.get("cameras", {}).items():
        age = camera["age_ms"]
        print(
            f"{name}: {camera['processed']} frames, {camera['fps']:.1f} fps, age p50 {age['p50']:.0f} ms, "
            f"p99 {age['p99']:.0f} ms, {camera['dropped']} dropped, {camera['reconnects']} reconnects"
        )
    print(f"{found.flaps} disconnections, {found.visits} visits, {found.pictures} pictures to viewers")
    wrong = verdict(found, summary, output)
    for line in wrong:
        print(f"WRONG: {line}")
    print("level" if not wrong else f"{len(wrong)} things wrong")
    return 1 if wrong else 0
