"""An RTSP server for the tests, by GStreamer: ``/usr/bin/python3 rtsp_server.py PORT RATE CODEC`` serves /live.

Runs in the system's Python, which has GStreamer's bindings and no NumPy. Every frame bears its number as blocks at the
top, as ``diinn-bench mjpeg_server`` burns it.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

WIDTH, HEIGHT, BITS = 160, 120, 16
CODECS = {
    "jpeg": "jpegenc quality=95 ! rtpjpegpay name=pay0 pt=26",
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=15 bitrate=2000 ! rtph264pay name=pay0 pt=96",
}


def picture(number: int) -> bytes:
    blocks = b"".join(bytes([255 * (number >> bit & 1)]) * (3 * WIDTH // BITS) for bit in range(BITS))
    ground = b"".join(bytes([x, 128, (x + number) % 256]) for x in range(WIDTH))
    return blocks * (HEIGHT // 8) + ground * (HEIGHT - HEIGHT // 8)


class Film:
    def __init__(self, rate: int) -> None:
        self.rate, self.number = rate, 0

    def start(self, _factory: object, media: GstRtspServer.RTSPMedia) -> None:
        source = media.get_element().get_child_by_name("film")
        interval = Gst.SECOND // self.rate
        shown = [0]

        def push() -> bool:
            buffer = Gst.Buffer.new_wrapped(picture(self.number % 2**BITS))
            buffer.pts, buffer.duration = shown[0] * interval, interval
            shown[0] += 1
            self.number += 1
            return source.emit("push-buffer", buffer) == Gst.FlowReturn.OK

        GLib.timeout_add(1000 // self.rate, push)


def main() -> None:
    port, rate, codec = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    caps = f"video/x-raw,format=BGR,width={WIDTH},height={HEIGHT},framerate={rate}/1"
    factory.set_launch(
        f"( appsrc name=film is-live=true format=time caps={caps} ! videoconvert ! video/x-raw,format=I420 ! "
        f"{CODECS[codec]} )"
    )
    factory.set_shared(True)
    film = Film(rate)
    factory.connect("media-configure", film.start)
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        sys.exit("cannot listen")
    print("ready", flush=True)
    GLib.MainLoop().run()


main()
