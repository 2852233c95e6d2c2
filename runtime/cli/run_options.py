"""The command line of ``diinn-run``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diinn.runtime.errors import InputError
from diinn.runtime.geometry.view_spec import EXAMPLES, ViewSpec, parse_rect, parse_size
from diinn.runtime.noise.strength import Denoise, parse_denoise
from diinn.runtime.sources.pixel_formats import CODECS, FLIPS
from diinn.runtime.sources.uri import MOST_NOISE
from diinn.runtime.stream.settings import DEFAULT_SCALE
from diinn.runtime.util.command_line import Parser

BENCHMARK_FRAMES = 100
DESCRIPTION = "Super-resolve cameras, videos and images with an exported model."
EPILOG = """\
examples:
  diinn-run --camera demo --out-size 640x480 --output demo.mp4 --duration 10
  diinn-run --camera 0 --camera 1 --out-size 640x480 --output http://127.0.0.1:8080
  diinn-run --input photos/ --scale 2.5 --output bigger/
"""


def parser() -> argparse.ArgumentParser:
    """The command line; sizes are WIDTHxHEIGHT."""
    top = Parser(
        prog="diinn-run", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.hint = "files are given as --input PATH, a glob in quotes"
    source = top.add_argument_group("input")
    source.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="N|URI",
        help="0, /dev/video0, v4l2://, csi://0, gst://PIPELINE, rtsp://, http://, ros2:///TOPIC, demo; repeatable",
    )
    source.add_argument(
        "--cameras", type=Path, metavar="FILE.yaml", help="cameras with settings of their own, a block each"
    )
    source.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="PATH",
        help="image, video, folder, quoted glob, or a bag of ROS (BAG?topic=/NAME); repeatable",
    )
    source.add_argument("--input-size", type=size, metavar="WxH", help="frame size asked of the cameras")
    source.add_argument("--input-rate", type=rate, metavar="FPS", help="frames a second asked of the cameras")
    source.add_argument("--input-codec", metavar="NAME", help=f"format asked of the cameras: {', '.join(CODECS)}")
    source.add_argument("--flip", metavar="HOW", help=f"turn frames: {', '.join(FLIPS)}")
    source.add_argument(
        "--noise",
        type=noise,
        default=0.0,
        metavar="LEVEL",
        help="of the demo camera: its sensor's noise, root mean square in grey levels (default: 0)",
    )
    source.add_argument("--loop", action="store_true", help="start videos again when they end")
    source.add_argument(
        "--calibration", type=Path, metavar="FILE", help="of the cameras, for rectified and virtual views"
    )
    source.add_argument(
        "--retries",
        type=retries,
        metavar="N|forever",
        help="how often in a row a camera that fails is tried again before it is given up (default: forever, once "
        "any has been open)",
    )
    source.add_argument(
        "--stall-timeout",
        type=seconds,
        default=5.0,
        metavar="S",
        help="a camera without a frame for so long is opened again; opening may take three times as long (default: 5)",
    )
    source.add_argument("--list-devices", action="store_true", help="list the cameras of this machine and exit")
    view = top.add_argument_group("what is made of it")
    goal = view.add_mutually_exclusive_group()
    goal.add_argument("--out-size", type=size, metavar="WxH", help="output size")
    goal.add_argument(
        "--scale",
        type=scale,
        metavar="S",
        help=f"output size as a multiple of the input's (default: {DEFAULT_SCALE:g})",
    )
    view.add_argument("--roi", type=rect, metavar="x,y,w,h", help="a rectangle of the frame, real-valued pixels")
    view.add_argument(
        "--view",
        action="append",
        default=[],
        metavar="NAME=VIEW",
        help=f"instead: {', '.join(EXAMPLES.values())}; repeatable",
    )
    model = top.add_argument_group("model")
    model.add_argument(
        "--model", default="small", metavar="NAME|PATH", help="shipped model or a .diinn folder (default: small)"
    )
    model.add_argument(
        "--denoise",
        type=denoise,
        metavar="auto|LEVEL",
        help="noise to take away, in grey levels, 0 for none, or NOISE,COMPRESSION (compression: 100 - JPEG quality); "
        "auto estimates it from the frames (default: auto for cameras and videos, 0 for images)",
    )
    model.add_argument("--list-models", action="store_true", help="list the shipped models and exit")
    model.add_argument("--backend", default="auto", help="cuda, tensorrt, onnxruntime or auto (default)")
    model.add_argument(
        "--decoder",
        choices=("auto", "fused", "engine", "onnx"),
        help="the backend's own kernel, TensorRT's engine or ONNX Runtime's graph (default: the fastest that is there)",
    )
    model.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "int8"),
        help="of TensorRT's engines (default: fp16) or OpenVINO (default: bf16 or fp16 with AMX, where pictures keep)",
    )
    model.add_argument(
        "--cuda-graphs",
        action=argparse.BooleanOptionalAction,
        help="replay the work on a GPU as CUDA graphs: fewer launches (default: on GPUs that share the host's memory)",
    )
    model.add_argument(
        "--zero-copy",
        action=argparse.BooleanOptionalAction,
        help="a GPU reads frames and writes pixels in the host's memory, without copies (default: where it shares it)",
    )
    model.add_argument(
        "--provider",
        help="device of ONNX Runtime: cpu, cuda, openvino, openvino:gpu, … as installed (default: the CPU, the encoder "
        "on a GPU that works, or by OpenVINO on a CPU with AMX)",
    )
    model.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: all)")
    model.add_argument(
        "--memory-budget",
        type=count,
        default=512,
        metavar="MiB",
        help="most the encoder may need for one frame; larger frames go in bands (default: 512)",
    )
    out = top.add_argument_group("output")
    out.add_argument(
        "--output",
        action="append",
        default=[],
        metavar="URI",
        help="FILE (a video, an image, or a bag: .mcap), FOLDER, 'FOLDER/*.png' (an image a frame), display://0, "
        "http://127.0.0.1:8080 (a page with all cameras), shm://NAME, 'gst://PIPELINE', ros2:///TOPIC, "
        "- (raw frames) or none; repeatable; default: a window, or none without a display",
    )
    out.add_argument("--viewers", type=count, default=8, metavar="N", help="most viewers of the page (default: 8)")
    out.add_argument("--headless", action="store_true", help="never open a window")
    out.add_argument(
        "--stats", metavar="FILE|-", help="write the statistics there, a line of JSON a second and a summary at the end"
    )
    run = top.add_argument_group("run")
    run.add_argument("--max-frames", type=count, metavar="N", help="end after N frames")
    run.add_argument("--start", type=start, default=0.0, metavar="S", help="leave out the first S seconds of a bag")
    run.add_argument("--duration", type=seconds, metavar="S", help="end after S seconds, of a bag after S of its own")
    run.add_argument("--max-fps", type=rate, metavar="FPS", help="frames a second processed of each camera, at most")
    run.add_argument(
        "--deadline-ms",
        type=milliseconds,
        metavar="MS",
        help="from a frame's arrival to its views: smaller views, then bicubic ones, rather than late ones",
    )
    run.add_argument(
        "--benchmark",
        action="store_true",
        help=f"as fast as it goes, {BENCHMARK_FRAMES} frames unless given otherwise, and print stage times",
    )
    run.add_argument("--no-progress", action="store_true", help="no progress line")
    run.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    run.add_argument("--version", action="version", version=f"diinn {_version()}")
    return top


def named_views(texts: Sequence[str]) -> dict[str, ViewSpec]:
    """Views by name, of ``NAME=VIEW`` or ``VIEW`` each; InputError where two have one name."""
    views: dict[str, ViewSpec] = {}
    for text in texts:
        name, separator, view = text.partition("=")
        if not separator:
            name, view = text.partition(":")[0], text
        if name in views:
            raise InputError(f"two views are called {name!r}: give them names, --view NAME=…")
        views[name] = ViewSpec.parse(view)
    return views


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT."""
    try:
        return parse_size(text, "size", "640x480")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def scale(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a scale: give a number above 0 and up to 1000, such as 2.5")
    return value


def rect(text: str) -> tuple[float, float, float, float]:
    """x,y,width,height."""
    try:
        return parse_rect(text, "x,y,w,h", "40,30,80,60")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def denoise(text: str) -> Denoise:
    """auto, a noise level, or NOISE,COMPRESSION."""
    try:
        return parse_denoise(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def noise(text: str) -> float:
    """A noise level, grey levels."""
    value = _number(text)
    if not 0 <= value <= MOST_NOISE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of grey levels from 0 to {MOST_NOISE}")
    return value


def count(text: str) -> int:
    """A whole number from 1 up."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def threads(text: str) -> int:
    """A number of threads, from 1 to 1024."""
    if count(text) > 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is more threads than 1024")
    return count(text)


def seconds(text: str) -> float:
    """A time above 0, at most some years."""
    return _above_zero(text, 1e8, "a number of seconds above 0 and up to 100000000")


def start(text: str) -> float:
    """A time from 0 up."""
    return 0.0 if _number(text) == 0 else seconds(text)


def milliseconds(text: str) -> float:
    """A deadline above 0."""
    return _above_zero(text, 60_000, "a number of milliseconds above 0 and up to a minute")


def rate(text: str) -> float:
    """Frames per second."""
    return _above_zero(text, 1000, "a number of frames a second above 0 and up to 1000")


def retries(text: str) -> float:
    """A whole number from 0 up, or infinity for ever."""
    if not (text == "forever" or (text.isascii() and text.isdigit() and len(text) < 10)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number from 0 up nor 'forever'")
    return math.inf if text == "forever" else int(text)


def _above_zero(text: str, most: float, what: str) -> float:
    value = _number(text)
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _version() -> str:
    try:
        return version("diinn")
    except PackageNotFoundError:
        return "(not installed)"
