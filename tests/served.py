"""Cameras for the tests: MJPEG by ``diinn-bench mjpeg_server``, RTSP by GStreamer, sockets that misbehave."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from diinn.runtime import SuperResolver
from diinn.runtime.sources import demo

HERE = Path(__file__).parent
SYSTEM_PYTHON = "/usr/bin/python3"
RTSP_PACKAGES = (
    "python3-gi gir1.2-gst-rtsp-server-1.0 gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base "
    "gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
)


class Served:
    """A camera in a process of its own, which can be killed, frozen and started again at the same address."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self.url = self.start()

    def start(self) -> str:
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the camera did not start"
        return line

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def mjpeg() -> Iterator[Callable[..., Served]]:
    """Starts MJPEG cameras: size and rate to the served camera."""
    cameras: list[Served] = []

    def make(size: str = "160x120", rate: int = 30) -> Served:
        words = ["--port", str(free_port()), "--size", size, "--rate", str(rate)]
        cameras.append(Served([sys.executable, "-m", "diinn.benchmarks", "mjpeg_server", *words]))
        return cameras[-1]

    yield make
    for camera in cameras:
        camera.kill()


@pytest.fixture
def lossy() -> Iterator[Callable[[Callable[[int], bytes]], str]]:
    """Starts MJPEG cameras, 30 parts a second, whose parts a function makes of their numbers; gives their addresses."""
    stop = threading.Event()
    opened: list[socket.socket] = []

    def serve(listening: socket.socket, part: Callable[[int], bytes]) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), listening.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(
                    b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
                )
                number = 0
                while not stop.wait(1 / 30):
                    image = part(number)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
                    connection.sendall(head.encode() + image + b"\r\n")
                    number += 1

    def make(part: Callable[[int], bytes]) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        opened.append(listening)
        threading.Thread(target=serve, args=(listening, part), daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    yield make
    stop.set()
    for listening in opened:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


@pytest.fixture
def rtsp() -> Iterator[Callable[..., Served]]:
    """Starts RTSP servers; the stream is at ``/live``."""
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer, Gst; "
    probe += "Gst.init(None); assert all(map(Gst.ElementFactory.find, ('appsrc', 'jpegenc', 'rtpjpegpay', 'x264enc')))"
    there = Path(SYSTEM_PYTHON).exists()
    if not there or subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip(f"no GStreamer RTSP server here: apt-get install {RTSP_PACKAGES}")
    servers: list[Served] = []

    def make(codec: str = "jpeg", rate: int = 30) -> Served:
        port = str(free_port())
        served = Served([SYSTEM_PYTHON, str(HERE / "rtsp_server.py"), port, str(rate), codec])
        served.url = f"rtsp://user:secret@127.0.0.1:{port}/live"
        servers.append(served)
        return served

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that lets everyone in and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


@pytest.fixture(scope="session")
def nano() -> Iterator[SuperResolver]:
    with SuperResolver.open("nano") as resolver:
        resolver.resize(demo.frame(0.0, (160, 120)), (640, 480))  # its threads are there from now on
        yield resolver


@pytest.fixture
def tiny(bundle_path: Path) -> Iterator[SuperResolver]:
    with SuperResolver.open(bundle_path) as resolver:
        yield resolver


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for it; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def children() -> list[int]:
    """Camera workers of this process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if any(b"diinn.runtime.sources.worker" in word for word in words) and parent == os.getpid():
            found.append(int(path.parent.name))
    return found


def open_files() -> list[str]:
    """What this process has open, by what it is; but for the compiled decoder, which a process loads once and keeps."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the folder itself
            found.append(f"{path.name} {path.readlink()}")
    return [line for line in found if "diinn-decoder" not in line]


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    """No thread, file or process of ours is left behind."""
    threads, files = set(threading.enumerate()), open_files()
    yield
    deadline = time.monotonic() + 60
    while True:
        left = [t.name for t in set(threading.enumerate()) - threads if t.name.startswith("diinn")]
        more = set(open_files()) - set(files) if len(open_files()) > len(files) else set()
        if not (left or more or children()):
            return
        assert time.monotonic() < deadline, (left, more, children())
        time.sleep(0.05)


def chromium() -> str:
    path = shutil.which("chromium")
    if path is None or shutil.which("chromedriver") is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    return path
