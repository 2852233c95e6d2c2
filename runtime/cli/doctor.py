"""``diinn-doctor``: what this machine has, which engines are in its cache, and which backend gives right pictures."""

from __future__ import annotations

if __name__ == "__main__":
    from diinn.runtime.util.early_interrupt import quietly

    quietly()

import argparse
import contextlib
import io
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diinn.runtime import backends
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.cli.signals import ended_by_signals
from diinn.runtime.engines.cache import Cache
from diinn.runtime.engines.profiles import text
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.util import compiling
from diinn.runtime.util.command_line import Parser, guarded
from diinn.runtime.util.memory import MIB
from diinn.runtime.util.text import shown

TIMES = 7
SIZES = "320x240 from 160x120"
GAIN = "on an Intel Xeon with AVX-512 it takes a fifth of ONNX Runtime's time, or less"
ENCODER_GAIN = "on an Intel Xeon with AMX it takes a third of ONNX Runtime's time"
TEGRA = Path("/etc/nv_tegra_release")
Fact = tuple[str, str]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-doctor", description=__doc__)
    top.add_argument("model", nargs="?", default="small", metavar="MODEL", help="a bundle or a shipped model (small)")
    what = "remove what was built here, or one engine, and end"
    top.add_argument("--clean", nargs="?", const="", metavar="ENGINE", help=what)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0 if a backend gives right pictures, 1 if none does, 2 for bad input."""
    args = parser().parse_args(argv)
    with ended_by_signals():
        return guarded("diinn-doctor", "pip install 'diinn[cpu]'", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Clean the cache, or check everything."""
    cache = Cache()
    if args.clean is not None:
        return _clean(cache, args.clean)
    _print("This machine")
    for name, value in machine():
        _print(f"  {name:<13} {value}")
    _print(f"Engines in {cache.path}")
    for line in engines(cache) or ["none"]:
        _print(f"  {line}")
    tables(cache)
    bundle = bundles.load(args.model)
    low, high = bundle.scales
    _print(f"{bundle.name}: {', '.join(bundle.graphs)} graphs; trained for scales {low:g} to {high:g}")
    verdicts = list(judge(bundle))
    for name, (good, why) in verdicts:
        _print(f"  {name:<13} {'works' if good else 'no'}: {why}")
    for name, said in (*encoders(bundle), *decoders(bundle)):
        _print(f"  {name:<13} {said}")
    works = [name for name, (good, _) in verdicts if good]
    _print(f"Verdict: {works[0]} will be used" if works else "Verdict: no backend works here, for the reasons above")
    return 0 if works else 1


def _print(line: str) -> None:
    print(shown(line))


def _clean(cache: Cache, which: str) -> int:
    chosen = cache.path / Path(which).name if which else None
    if chosen is not None and not chosen.exists():
        raise InputError(f"no engine {which!r} in {cache.path}: diinn-doctor lists them")
    _print(f"{cache.remove(chosen) / MIB:.1f} MiB removed from {cache.path}")
    if chosen is None:
        _print(f"{compiling.remove_kept() / MIB:.1f} MiB removed from {compiling.folder()}")
    return 0


def machine() -> Iterator[Fact]:
    """Versions and devices, each found or named as missing."""
    yield "diinn", _or_missing(lambda: version("diinn"))
    yield "Python", f"{platform.python_version()} on {platform.machine()} {platform.system()} {platform.release()}"
    if TEGRA.exists():
        yield "JetPack", TEGRA.read_text(encoding="utf-8", errors="replace").splitlines()[0].lstrip("# ")
    yield "numpy", _or_missing(lambda: import_module("numpy").__version__)
    yield "OpenCV", _or_missing(_opencv)
    yield "ONNX Runtime", _or_missing(_onnxruntime)
    yield "OpenVINO", _or_missing(_openvino)
    yield "C++ compiler", _or_missing(_compiler)
    yield "TensorRT", _or_missing(_tensorrt)
    yield "nvcc", _or_missing(_nvcc)
    yield "NVRTC", _or_missing(_nvrtc)
    yield "CUDA device", _or_missing(_device)


def _or_missing(fact: Callable[[], str]) -> str:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # libraries' own messages, such as NumPy's page-long one
            return fact()
    except PackageNotFoundError:
        return "not installed, run from its folder"
    except DiinnError as error:
        return str(error)
    except Exception as error:  # an installed library that is broken is what this command reports
        return f"not usable: {' '.join(str(error).split())}"


def _opencv() -> str:
    cv2: Any = import_module("diinn.runtime.util.opencv").cv2
    found = re.search(r"GStreamer:\s*(\S+)", cv2.getBuildInformation())
    gstreamer = found is not None and found[1].upper().startswith("YES")
    return f"{cv2.__version__}, {'with' if gstreamer else 'without'} GStreamer (csi:// cameras want it)"


def _onnxruntime() -> str:
    ort: Any = import_module("diinn.runtime.util.onnx_runtime").ort
    return f"{ort.__version__}: {', '.join(p.removesuffix('ExecutionProvider') for p in ort.get_available_providers())}"


def _openvino() -> str:
    from diinn.runtime.backends import openvino

    return f"{', '.join(openvino.devices())}, plugin {openvino.plugin_version()}"


def _compiler() -> str:
    from diinn.runtime.cpu import compiler

    command = compiler.find_compiler()
    return f"{' '.join(command)}, {compiler.version(command)}" if command else f"none: {compiler.REMEDY}"


def _tensorrt() -> str:
    from diinn.runtime.engines import build

    found = import_module("tensorrt").__version__
    why = build.no_builder()
    return f"{found}, {f'builds nothing here: {why}' if why else 'makes a builder'}"


def _nvcc() -> str:
    from diinn.runtime.gpu import compiler

    nvcc = compiler.find_nvcc()
    return f"{nvcc}, CUDA {compiler.version(nvcc)}" if nvcc else "none"


def _nvrtc() -> str:
    from diinn.runtime.gpu import compiler, nvrtc

    found = nvrtc.version()
    return f"CUDA {found}" if found else f"none: kernels want it or nvcc at first use; {compiler.NVRTC_REMEDY}"


def _device() -> str:
    from diinn.runtime.gpu.device import Device

    device = Device()
    try:
        free, total = device.memory()
        size = f"{free // MIB} of {total // MIB} MiB free"
        return f"{device.name}, compute capability {device.capability}, {size}, by {device.binding}"
    finally:
        device.close()


def engines(cache: Cache) -> list[str]:
    """A line for each engine in the cache."""
    lines = []
    for path, metadata in cache.entries():
        if isinstance(metadata, str):
            lines.append(f"{path.name}: not used, {metadata}")
            continue
        made_for, when = metadata.key.identity, time.strftime("%Y-%m-%d %H:%M", time.localtime(metadata.built))
        shapes = metadata.key.profile.most
        takes = next((f"{name} to {text(shapes[name])}" for name in ("frame", "query") if name in shapes), "no shapes")
        facts = (takes, f"TensorRT {made_for.tensorrt}", made_for.device, f"{metadata.size / MIB:.1f} MiB", when)
        lines.append(f"{path.name}: {', '.join(facts)}, {metadata.verify.get('summary', 'not compared yet')}")
    return lines


def tables(cache: Cache) -> None:
    """How the engines compared with the CPU; engines that were compared together share a table."""
    verdicts = {
        metadata.verify["at"]: metadata.verify
        for _, metadata in cache.entries()
        if not isinstance(metadata, str) and metadata.verify
    }
    if verdicts:
        from diinn.runtime.engines import verify
        from rich.console import Console

        for verdict in verdicts.values():
            Console().print(verify.table(verdict))


def judge(bundle: bundles.Bundle) -> Iterator[tuple[str, tuple[bool, str]]]:
    """Every backend's verdict on ``bundle``: whether it gives right pictures, and the figures or the reason."""
    from diinn.runtime.backends.base import BackendOptions
    from diinn.runtime.super_resolver import SuperResolver

    for name in backends.candidates("auto"):
        try:
            why_not = backends.load(name).not_ready(bundle, BackendOptions())  # builds nothing
            if why_not:
                yield name, (False, why_not)
                continue
            with SuperResolver.open(bundle.path, backend=name) as resolver:
                found = resolver.check()
                against = f"{max(found.values()):.1e} from the golden sample" if found else "golden sample not replayed"
                yield name, (True, f"{resolver.backend.describe()}, {against}")  # opening it checked it, as "auto" does
        except DiinnError as error:
            yield name, (False, str(error))
        except Exception as error:  # a broken installation is what this command reports
            yield name, (False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def decoders(bundle: bundles.Bundle) -> Iterator[Fact]:
    """The decoders a CPU has for ``bundle``: how long each takes, or what is missing for it."""
    for decoder in backends.DECODERS["onnxruntime"]:
        name = f"CPU, {decoder}"
        try:
            yield name, f"{_times(bundle, provider='cpu', decoder=decoder)[1]:.1f} ms to decode {SIZES}"
        except DiinnError as error:
            yield name, f"no: {error}{f' ({GAIN})' if decoder == 'fused' else ''}"


def encoders(bundle: bundles.Bundle) -> Iterator[Fact]:
    """What can encode on a CPU: how long each takes, or what is missing for it."""
    from diinn.runtime.backends import openvino

    worthwhile = openvino.worthwhile("CPU")
    for name, options in (
        ("CPU, fp32", {"provider": "cpu"}),
        *((f"OpenVINO {precision}", {"precision": precision}) for precision in worthwhile),
    ):
        try:
            yield name, f"{_times(bundle, **options)[0]:.1f} ms to encode 160x120"
        except DiinnError as error:
            yield name, f"no: {error}{f' ({ENCODER_GAIN})' if 'precision' in options else ''}"
    if not worthwhile:
        yield "OpenVINO", "no faster on this processor, which has no AMX"


def _times(bundle: bundles.Bundle, **options: Any) -> tuple[float, float]:
    """Medians of encoding and decoding on the CPU, ms."""
    from diinn.runtime.geometry.view import View
    from diinn.runtime.sources import demo
    from diinn.runtime.super_resolver import SuperResolver

    frame, view = demo.frame(0.0, (160, 120)), View.resize((320, 240))
    times = []
    with SuperResolver.open(bundle.path, backend="onnxruntime", **options) as resolver:
        for _ in range(TIMES):
            started = time.perf_counter()
            encoded = resolver.encode([frame])[0]
            middle = time.perf_counter()
            resolver.decode(encoded, [view])
            times.append((middle - started, time.perf_counter() - middle))
    encode, decode = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    return encode, decode


if __name__ == "__main__":
    sys.exit(main())
