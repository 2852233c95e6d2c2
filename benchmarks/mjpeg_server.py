"""A network camera to test with: MJPEG over HTTP on the loopback, a number burnt into each frame.

``diinn-bench mjpeg_server --port 0`` prints the address it serves and runs until it is ended.
"""

from __future__ import annotations

import argparse
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np
from diinn.runtime.cli.run_options import rate, size
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.sources import demo
from diinn.runtime.util.command_line import Parser

BITS = 16


def burn(image: UInt8, number: int) -> None:
    """Write ``number`` (below 2¹⁶) over the top of uint8 [H, W, 3]: a row of black and white blocks."""
    edges = np.linspace(0, image.shape[1], BITS + 1).round().astype(int)
    for bit in range(BITS):
        image[: image.shape[0] // 8, edges[bit] : edges[bit + 1]] = 255 * (number >> bit & 1)


def burnt(image: UInt8) -> int:
    """The number burnt into a frame, or into a whole view of one at any size."""
    centres = ((np.arange(BITS) + 0.5) * image.shape[1] / BITS).astype(int)
    row = image[image.shape[0] // 16, centres].mean(-1) > 127
    return int(sum(1 << bit for bit in range(BITS) if row[bit]))


class Server(ThreadingHTTPServer):
    """Every request gets the frames from now on, as ``multipart/x-mixed-replace``."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, frame_size: tuple[int, int], frames_per_second: float) -> None:
        super().__init__(("127.0.0.1", port), Stream)
        self.changed = threading.Condition()
        self.jpeg = b""
        self.number = -1
        self._size, self._rate = frame_size, frames_per_second
        threading.Thread(target=self._film, daemon=True).start()

    def after(self, sent: int) -> tuple[int, bytes]:
        """The newest frame's number and JPEG, once it is not number ``sent``."""
        with self.changed:
            self.changed.wait_for(lambda: self.number != sent)
            return self.number, self.jpeg

    def _film(self) -> None:
        start = time.monotonic()
        while True:
            image = demo.frame((self.number + 1) / self._rate, self._size)
            burn(image, (self.number + 1) % 2**BITS)
            jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
            with self.changed:
                self.number, self.jpeg = self.number + 1, jpeg
                self.changed.notify_all()
            time.sleep(max(0.0, start + (self.number + 1) / self._rate - time.monotonic()))


class Stream(BaseHTTPRequestHandler):
    """One client."""

    server: Server

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sent = -1
        try:
            while True:
                sent, jpeg = self.server.after(sent)
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
        except OSError:  # the client is gone
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench mjpeg_server", description=__doc__)
    top.add_argument("--port", type=int, default=0, help="default: any that is free")
    top.add_argument("--size", type=size, default=(160, 120), metavar="WxH", help="default: 160x120")
    top.add_argument("--rate", type=rate, default=30.0, metavar="FPS", help="default: 30")
    return top


def run(args: argparse.Namespace) -> int:
    """Serve until ended."""
    server = Server(args.port, args.size, args.rate)
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
    return 0
