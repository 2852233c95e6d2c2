"""``diinn-build BUNDLE``: TensorRT engines of a bundle, on the machine they are for, compared with the CPU.

Without TensorRT or a GPU it checks the graphs on the CPU and prints what to run where.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.bundles import golden
from diinn.runtime.cli.signals import ended_by_signals
from diinn.runtime.engines import build, profiles, verify, versions
from diinn.runtime.engines.cache import Cache, Key
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.util.command_line import Parser, guarded
from diinn.runtime.util.memory import MIB

if TYPE_CHECKING:
    from diinn.runtime.bundles.bundle import Bundle
    from diinn.runtime.engines.profiles import Profile
    from diinn.runtime.geometry.grid import Size

log = logging.getLogger(__name__)
PRECISIONS = ("fp32", "fp16", "int8")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-build", description=__doc__)
    top.add_argument("model", metavar="BUNDLE", help="a NAME.diinn folder, or a shipped model's name")
    add_options(top)
    return top


def add_options(top: argparse.ArgumentParser) -> None:
    """The options of engines; shapes as trtexec writes them."""
    top.add_argument("--precision", choices=PRECISIONS, help="of the engines (default: fp16 where the bundle has it)")
    shapes = top.add_argument_group("shapes the encoder engine is built for")
    shapes.add_argument("--frame-sizes", metavar="WxH,…", help="frames, the usual one first (default 160x120,640x480)")
    shapes.add_argument("--cameras", type=int, default=1, metavar="N", help="frames in a batch (default 1)")
    for kind in ("min", "opt", "max"):
        shapes.add_argument(
            f"--{kind}Shapes",
            metavar="frame:NxCxHxW",
            help=argparse.SUPPRESS
            if kind != "opt"
            else "as trtexec takes them, with --minShapes and --maxShapes, in place of the two above",
        )
    how = top.add_argument_group("how they are built")
    how.add_argument(
        "--workspace", type=int, metavar="MIB", help="memory for trying kernels (default: a quarter of free)"
    )
    how.add_argument(
        "--timingCacheFile", type=Path, metavar="FILE", help="measured timings (default: the engine cache's)"
    )
    how.add_argument("--tacticSources", metavar="NAMES", help="libraries to take kernels from, like JIT_CONVOLUTIONS,…")
    how.add_argument(
        "--trust-engine",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="take this engine, which you built for the same graphs, in place of building one; it is native code",
    )
    how.add_argument("--force", action="store_true", help="build though a fitting engine is in the cache")
    end = top.add_argument_group("how it ends")
    end.add_argument("--dry-run", action="store_true", help="build no engine, print the trtexec lines that would")
    end.add_argument(
        "--verify", action="store_true", help="compare again with ONNX Runtime on the CPU; exit 2 if not built"
    )
    end.add_argument("--require-engine", action="store_true", help="exit 2 if no engine was built")
    end.add_argument("--log-level", default="info", choices=("debug", "info", "warning"), help="default: info")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, 2 for bad input or a missing engine that was required, 1 for a failure."""
    args = parser().parse_args(argv)
    return run_command("diinn-build", "pip install 'diinn[cpu]'", args, lambda: run(args, bundles.find(args.model)))


def run_command(name: str, remedy: str, args: argparse.Namespace, work: Callable[[], int]) -> int:
    """The exit code of ``work``, with the log at ``--log-level``."""
    logging.basicConfig(level=args.log_level.upper(), format="%(message)s", stream=sys.stderr)
    with ended_by_signals():
        return guarded(name, remedy, work, hint="see --log-level debug")


def run(args: argparse.Namespace, path: Path, fp32_layers: Callable[[Path], list[str]] | None = None) -> int:
    """Build the engines of a bundle, and compare them.

    fp32_layers: from a graph to the names of the layers that compute in fp32, for trtexec's command line
    """
    sizes = check(args)
    bundle = bundles.load(path)
    precision = bundle.engine_precision(args.precision)
    wanted = (
        profiles.encoder(bundle, sizes, args.cameras)
        if sizes
        else profiles.parse(bundle, args.minShapes, args.optShapes, args.maxShapes)
    )
    jobs = profiles.engines(bundle, wanted)
    if args.dry_run:
        for name, (role, profile) in jobs.items():
            print(shlex.join(_trtexec(name, bundle.graph(role, precision), precision, profile, args, fp32_layers)))
        return 0
    missing = _missing()
    if missing:
        print(_on_cpu(bundle, precision))
        print(f"NO ENGINE BUILT: {missing}. On the target run: {_again(args, bundle)}")
        return 2 if args.verify or args.require_engine else 0
    workspace = None if args.workspace is None else args.workspace * MIB
    options = build.BuildOptions(workspace, args.timingCacheFile, tactics(args.tacticSources), force=args.force)
    for name in trust(bundle, precision, args.trust_engine):
        del jobs[name]
    build_engines(bundle, precision, jobs, options)
    return _verify(bundle, precision, again=args.verify)


def check(args: argparse.Namespace) -> tuple[Size, ...]:
    """Sizes of frames to build for; none where shapes are given as trtexec takes them. InputError for what is wrong."""
    if args.workspace is not None and args.workspace < 1:
        raise InputError(f"--workspace {args.workspace} is not a number of MiB from 1 up")
    for path in args.trust_engine:
        if not path.is_file():
            raise InputError(f"--trust-engine {str(path)!r}: no such file")
    if any((args.minShapes, args.optShapes, args.maxShapes)):
        if args.frame_sizes or args.cameras != 1:
            raise InputError("--optShapes and the like replace --frame-sizes and --cameras: give either")
        return ()
    if args.cameras < 1:
        raise InputError(f"--cameras {args.cameras} is not a whole number from 1 up")
    return profiles.sizes(args.frame_sizes) if args.frame_sizes else profiles.DEFAULT_SIZES


def _missing() -> str:
    """Why this machine cannot build engines; empty if it can."""
    from diinn.runtime.gpu import compiler
    from diinn.runtime.gpu.device import Device

    try:
        build.tensorrt()
        device = Device()
        try:  # the kernels around the engines: find a missing compiler before the minutes of a build
            device.kernels(compiler.KERNELS / "frames.cu", ("planar_rgb",))
        finally:
            device.close()
    except DiinnError as error:
        return str(error)
    return ""


def _on_cpu(bundle: Bundle, precision: str) -> str:
    """The bundle's graphs of ``precision``, compared on the CPU."""
    try:
        largest = verify.on_golden(bundle, precision)
    except ImportError as error:
        return f"{bundle.path}: not checked on the CPU ({error})"
    if not largest <= (golden.SATURATED if precision == "int8" else verify.TOLERANCES[precision]):
        raise DiinnError(f"{bundle.path}: the {precision} graphs differ from the golden sample by {largest:.2g}")
    return f"{bundle.path}: {precision} graphs checked on the CPU, {largest:.1e} from the golden sample"


def _again(args: argparse.Namespace, bundle: Bundle) -> str:
    """The command for the machine that engines are for."""
    shipped = bundle.path.parent == bundles.MODELS
    given = ["diinn-build", bundle.name if shipped else bundle.path.name]
    for option in ("precision", "frame_sizes", "minShapes", "optShapes", "maxShapes", "workspace", "tacticSources"):
        value = getattr(args, option)
        given += [f"--{option.replace('_', '-')}", str(value)] if value else []
    return shlex.join([*given, *(["--cameras", str(args.cameras)] if args.cameras != 1 else [])])


def _trtexec(
    name: str,
    graph: Path,
    precision: str,
    profile: Profile,
    args: argparse.Namespace,
    fp32_layers: Callable[[Path], list[str]] | None,
) -> list[str]:
    """The command line of TensorRT's own tool that builds the same engine."""
    try:
        version: str = build.tensorrt().__version__
    except InputError:
        version = versions.NEWEST
    rules = versions.rules(version)
    line = ["trtexec", f"--onnx={graph}", f"--saveEngine={name}.{precision}.engine", *profile.trtexec()]
    line += ["--noTF32", *rules.trtexec(precision)]
    line += [f"--memPoolSize=workspace:{args.workspace}"] if args.workspace else []
    line += [f"--timingCacheFile={args.timingCacheFile}"] if args.timingCacheFile else []
    wanted = tactics(args.tacticSources)
    if wanted:  # trtexec adds to its defaults and takes from them
        others = [f"-{name}" for name in versions.tactics(version) if name not in wanted]
        line.append(f"--tacticSources={','.join([*(f'+{name}' for name in wanted), *others])}")
    if rules.constrained and precision != "fp32":
        if fp32_layers is None:
            raise InputError(
                f"for TensorRT {version} these lines name every layer that stays in fp32, which takes the exporter: "
                "pip install 'diinn[cpu,export]', then python -m diinn.export.to_trt BUNDLE --dry-run"
            )
        full = ",".join(f"{name}:fp32" for name in fp32_layers(graph))
        line += [f"--layerPrecisions={full}", f"--layerOutputTypes={full}"]
    return line


def tactics(names: str | None) -> tuple[str, ...] | None:
    """``--tacticSources`` as names in TensorRT's ``TacticSource``."""
    return tuple(name.strip() for name in names.split(",")) if names else None


def trust(bundle: Bundle, precision: str, files: Sequence[Path]) -> set[str]:
    """Engines of the user's into the cache, where they are compared like any other; their names (``profiles.name``)."""
    from diinn.runtime.engines.engine import EngineLoader
    from diinn.runtime.gpu.device import Device

    cache, names = Cache(), set()
    if files:
        device = Device()
        try:
            loader = EngineLoader(build.tensorrt(), device, bundle)
            identities = [build.identities(bundle, role, precision, device)[0] for role in build.ROLES]
            for path in files:
                key, data = loader.adopt(path, identities)
                name = profiles.name(bundle, key.identity.role, key.profile)
                if name in names:
                    raise InputError(f"--trust-engine {str(path)!r}: a second {name} engine")
                names.add(name)
                cache.write(key, data, 0)
                print(f"{name}: {cache.engine(key)}, taken from {path}")
        finally:
            device.close()
    return names


def build_engines(
    bundle: Bundle, precision: str, jobs: dict[str, tuple[str, Profile]], options: build.BuildOptions
) -> None:
    """Engines into the user's cache; prints where, how large, how long.

    jobs: role and profile by name, as of ``profiles.engines``
    """
    from diinn.runtime.gpu.device import Device

    cache, device = Cache(), Device()
    try:
        for name, (role, profile) in jobs.items():
            key = Key(build.identities(bundle, role, precision, device)[0], profile)
            try:
                _, metadata = build.build(bundle, key, device, options, cache)
            except DiinnError as error:
                if name != profiles.SMALL_DECODER:
                    raise
                log.warning("%s: %s: small chunks will be decoded as full ones", name, error)
                continue
            print(
                f"{name}: {cache.engine(metadata.key)}, {metadata.size / 1e6:.1f} MB, built in {metadata.seconds:.0f} s"
            )
    finally:
        device.close()


def _verify(bundle: Bundle, precision: str, *, again: bool) -> int:
    """Open the engines as the robot will; prints the table."""
    from diinn.runtime.backends.tensorrt import TensorRtBackend
    from diinn.runtime.super_resolver import SuperResolver
    from rich.console import Console

    with SuperResolver.open(bundle.path, backend="tensorrt", precision=precision) as resolver:
        backend = resolver.backend
        assert isinstance(backend, TensorRtBackend)
        if again:
            backend.verify(again=True)
        verdict = backend.metadata[0].verify
        if verdict:
            Console().print(verify.table(verdict))
        print(
            f"{bundle.name}: {verdict['summary'] if verdict else 'golden sample replayed, not compared with the CPU'}"
        )
        small = backend.decoder.small
        if small is not None and small.metadata.verify:
            print(f"{bundle.name}, small chunks: {small.metadata.verify['summary']}")
        print(f"Try: diinn-run --model {bundle.path} --backend tensorrt --camera demo --out-size 640x480")
    return 0


if __name__ == "__main__":
    sys.exit(main())
