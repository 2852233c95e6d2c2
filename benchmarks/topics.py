"""What a topic of ROS 2 costs: from a publisher to the stream, and from a view to a subscriber, on this machine alone.

Beside it the plain camera path, the drawn demo camera in a worker process, which has no bus between. Latency is from
an image's stamp, milliseconds; CPU is milliseconds of one core a frame, of the processes that are ours (without the
publisher and subscriber, which play the robot; the demo camera's contain the drawing).

::

    ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST diinn-bench topics
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import threading
import time
from array import array
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import psutil
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.view import View
from diinn.runtime.sources import CaptureOptions, Source, demo, open_camera
from diinn.runtime.sources.base import Frame
from diinn.runtime.stream.result import WHOLE, Result
from diinn.runtime.util.command_line import Parser
from diinn.runtime.util.ros import Bus, check, message_type

IN, OUT = "/diinn_benchmark/in/image", "/diinn_benchmark/out"
SIZES = ((640, 480), (1920, 1080))
RATE = 30.0
WARM_SECONDS = 3.0


def profile(reliability: str) -> Any:
    """Quality of service as cameras have it, best effort or reliable."""
    from rclpy.qos import QoSProfile, ReliabilityPolicy

    return QoSProfile(depth=5, reliability=ReliabilityPolicy[reliability.upper()])


def publish(size: Size, reliability: str, ready: Event, end: Event) -> None:
    """Play a camera's driver: one picture, again and again."""
    with Bus("benchmark_publisher") as bus:
        publisher = bus.node.create_publisher(message_type("sensor_msgs/msg/Image"), IN, profile(reliability))
        message = message_type("sensor_msgs/msg/Image")(
            height=size[1], width=size[0], step=3 * size[0], encoding="bgr8"
        )
        message.data = array("B", demo.frame(0.0, size).tobytes())
        ready.set()
        due = time.monotonic()
        while not end.is_set():
            now = time.time_ns()
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(now, 10**9)
            publisher.publish(message)
            due += 1 / RATE
            time.sleep(max(0.0, due - time.monotonic()))


def subscribe(seconds: float, reliability: str, ready: Event, found: multiprocessing.queues.Queue[list[float]]) -> None:
    """Play a node downstream: milliseconds from each image's stamp to its callback."""
    ages: list[float] = []

    def take(message: object) -> None:
        stamp = message.header.stamp  # type: ignore[attr-defined]
        ages.append((time.time_ns() - stamp.sec * 10**9 - stamp.nanosec) / 1e6)

    with Bus("benchmark_subscriber") as bus:
        bus.node.create_subscription(message_type("sensor_msgs/msg/Image"), f"{OUT}/image", take, profile(reliability))
        ready.set()
        bus.spin_for(seconds)
    found.put(ages)


def busy(processes: Sequence[int]) -> float:
    """CPU seconds that processes have used."""
    return sum(sum(psutil.Process(process).cpu_times()[:2]) for process in processes)


def taken(source: Source, woken: threading.Event, seconds: float) -> tuple[list[float], float]:
    """Ages of the frames of a source as the stream would take them, and CPU a frame, ms."""
    deadline = time.monotonic() + 30
    while not source.captured and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(WARM_SECONDS)
    source.slot.take()
    began, used = time.monotonic(), busy([os.getpid(), *source.processes])
    ages = []
    while time.monotonic() < began + seconds:
        woken.wait(0.1)
        woken.clear()
        if (frame := source.slot.take()) is not None:
            ages.append((time.time() - frame.captured) * 1e3)
    return ages, 1e3 * (busy([os.getpid(), *source.processes]) - used) / max(1, len(ages))


def from_camera(uri: str, size: Size, seconds: float) -> tuple[list[float], float]:
    """Of a camera by its URI."""
    options = CaptureOptions(size=size, rate=RATE) if uri == "demo" else CaptureOptions()
    source = open_camera(uri, options)
    woken = threading.Event()
    source.start(woken.set)
    try:
        return taken(source, woken, seconds)
    finally:
        source.close()


def drawing(size: Size) -> float:
    """Milliseconds of CPU that drawing a frame of the demo camera takes."""
    demo.frame(0.0, size)
    used = time.process_time()
    for number in range(5):
        demo.frame(number / RATE, size)
    return 1e3 * (time.process_time() - used) / 5


def to_topic(size: Size, reliability: str, seconds: float) -> tuple[list[float], float, float]:
    """Views of a size to a subscriber, milliseconds: ages there, CPU a frame, and time of a ``write``."""
    from diinn.runtime.sinks.ros_topic import RosTopics

    context = multiprocessing.get_context("spawn")
    found, ready = context.Queue(), context.Event()
    reader = context.Process(target=subscribe, args=(seconds + 6, reliability, ready, found), daemon=True)
    reader.start()
    source = open_camera("demo", CaptureOptions())
    sink = RosTopics(f"{OUT}?reliability={reliability}", [(source, ["full"])])
    ready.wait(30)
    while not sink.wanted("demo", "full"):
        time.sleep(0.05)
    image, view = demo.frame(0.0, size), View.resize(size)
    due, used, times = time.monotonic(), busy([os.getpid()]), []
    for number in range(int(seconds * RATE)):
        frame = Frame(image, "demo", number, time.time(), time.monotonic())
        start = time.perf_counter()
        sink.write(Result(image, "demo", "full", frame, WHOLE, view, 0.0))
        times.append((time.perf_counter() - start) * 1e3)
        due += 1 / RATE
        time.sleep(max(0.0, due - time.monotonic()))
    cpu = 1e3 * (busy([os.getpid()]) - used) / len(times)
    ages = found.get(timeout=60)
    reader.join()
    sink.close()
    return ages, cpu, float(np.median(times))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench topics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: 10)")
    return top


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    seconds: float = args.seconds
    check()
    print(f"{'path':<34} {'size':>10} {'frames/s':>9} {'median ms':>10} {'p95 ms':>8} {'CPU ms':>7}")
    context = multiprocessing.get_context("spawn")
    for size in SIZES:
        label = "x".join(map(str, size))

        def row(path: str, ages: Sequence[float], cpu: float, more: str = "", label: str = label) -> None:
            p50, p95 = np.percentile(ages, (50, 95)) if ages else (float("nan"),) * 2
            print(f"{path:<34} {label:>10} {len(ages) / seconds:>9.1f} {p50:>10.2f} {p95:>8.2f} {cpu:>7.2f}{more}")

        ages, cpu = from_camera("demo", size, seconds)
        row("demo camera -> stream", ages, cpu, f"   (drawing: {drawing(size):.2f} of it)")
        for reliability in ("best_effort", "reliable"):
            ready, end = context.Event(), context.Event()
            writer = context.Process(target=publish, args=(size, reliability, ready, end), daemon=True)
            writer.start()
            ready.wait(30)
            row(f"topic -> stream, {reliability}", *from_camera(f"ros2://{IN}", size, seconds))
            end.set()
            writer.join()
            ages, cpu, write = to_topic(size, reliability, seconds)
            row(f"view -> subscriber, {reliability}", ages, cpu, f"   ({write:.2f} ms a write)")
    return 0
