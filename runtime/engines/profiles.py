"""Which shapes an engine is built for: least, most, and those it is tuned to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diinn.runtime.bundles.bundle import Bundle
from diinn.runtime.errors import InputError
from diinn.runtime.geometry.grid import Size

Shape = tuple[int, ...]
SMALLEST = (16, 16)  # (width, height): small frames cost an engine nothing, and the golden sample is small
DEFAULT_SIZES: tuple[Size, ...] = ((160, 120), (640, 480))
SMALL_DECODER = "small-decoder"
_CHUNK_VALUES = 2**24  # of gathered rows: 32 MiB in fp16
_SMALL = 16  # of small chunks are a full one
_ALIGNED = 256  # bytes: TensorRT's for tensors, and so queries, of any number of bytes, between two small chunks


@dataclass(frozen=True)
class Profile:
    """Shapes of one engine's inputs by tensor name: ``least`` ≤ ``opt`` ≤ ``most`` in every axis."""

    least: Mapping[str, Shape]
    opt: Mapping[str, Shape]
    most: Mapping[str, Shape]

    def __post_init__(self) -> None:
        for name, most in self.most.items():
            least, opt = self.least.get(name, ()), self.opt.get(name, ())
            if not len(least) == len(opt) == len(most):
                raise InputError(f"{name}: shapes {text(least)}, {text(opt)} and {text(most)} differ in rank")
            if not all(0 < a <= b <= c for a, b, c in zip(least, opt, most, strict=True)):
                raise InputError(
                    f"{name}: min {text(least)}, opt {text(opt)}, max {text(most)} is not 0 < min <= opt <= max"
                )

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {kind: {name: list(shape) for name, shape in shapes.items()} for kind, shapes in asdict(self).items()}

    def holds(self, name: str, shape: Shape) -> bool:
        least, most = self.least[name], self.most[name]
        return len(shape) == len(most) and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def trtexec(self) -> list[str]:
        """The profile as options of trtexec."""
        kinds = (("--minShapes", self.least), ("--optShapes", self.opt), ("--maxShapes", self.most))
        return [f"{option}={','.join(f'{n}:{text(s)}' for n, s in shapes.items())}" for option, shapes in kinds]


def text(shape: Shape) -> str:
    """A shape as trtexec writes it: 1x3x120x160."""
    return "x".join(map(str, shape)) or "(none)"


def encoder(bundle: Bundle, sizes: Sequence[Size] = DEFAULT_SIZES, cameras: int = 1) -> Profile:
    """For frames of ``sizes`` (width, height), tuned to the first; ``cameras`` of them in a batch."""
    widths, heights = [w for w, _ in sizes], [h for _, h in sizes]
    low = (min(SMALLEST[1], *heights), min(SMALLEST[0], *widths))
    high = (max(heights), max(widths))
    return Profile(
        {"frame": (1, bundle.planes, *low)},
        {"frame": (cameras, bundle.planes, heights[0], widths[0])},
        {"frame": (cameras, bundle.planes, *high)},
    )


def chunk(bundle: Bundle) -> int:
    """Queries a decoder engine takes at once: enough to fill a GPU, few enough for a small GPU's memory."""
    return max(4096, min(65536, _CHUNK_VALUES // (sum(m.channels for m in bundle.maps) * bundle.layout.samples)))


def decoder(bundle: Bundle, *, small: bool = False) -> Profile:
    """For chunks of one size alone, ``chunk`` or with ``small`` some sixteenth of it."""
    queries = chunk(bundle)
    if small:
        queries = queries // _SMALL // _ALIGNED * _ALIGNED
    channels = {"query": len(bundle.layout.columns), **{m.name: m.channels for m in bundle.maps}}
    rows = {name: (queries * bundle.layout.samples, c) for name, c in channels.items()}
    return Profile(rows, rows, rows)


def queries(bundle: Bundle, profile: Profile) -> int:
    """How many a decoder's engine takes at most. Raises InputError for shapes that do not belong together."""
    rows = {name: shape[0] for name, shape in profile.most.items()}
    if len({*rows.values()}) != 1 or rows["query"] % bundle.layout.samples:
        found = ", ".join(f"{name} {text(shape)}" for name, shape in profile.most.items())
        raise InputError(f"a decoder engine for {found}: all need the same rows, {bundle.layout.samples} a query")
    return rows["query"] // bundle.layout.samples


def engines(bundle: Bundle, encoder: Profile) -> dict[str, tuple[str, Profile]]:
    """Role and profile of all engines of a bundle, by a name for each."""
    return {
        "encoder": ("encoder", encoder),
        "decoder": ("decoder", decoder(bundle)),
        SMALL_DECODER: ("decoder", decoder(bundle, small=True)),
    }


def name(bundle: Bundle, role: str, profile: Profile) -> str:
    """Which of ``engines`` an engine is used as."""
    return SMALL_DECODER if role == "decoder" and profile == decoder(bundle, small=True) else role


def parse(bundle: Bundle, least: str | None, opt: str | None, most: str | None) -> Profile:
    """From trtexec's ``--minShapes``, ``--optShapes`` and ``--maxShapes``; defaults for those left out as there."""
    planes = bundle.planes
    given = [shapes(value, option, planes) for value, option in ((least, "min"), (opt, "opt"), (most, "max")) if value]
    if not given:
        raise InputError(f"no shapes: give --optShapes=frame:1x{planes}x120x160, or --frame-sizes")
    centre = shapes(opt, "opt", planes) if opt else given[0]
    lowest = shapes(least, "min", planes) if least else centre
    # One frame must do: the golden sample and the end of a batch are no more.
    return Profile({n: (1, *s[1:]) for n, s in lowest.items()}, centre, shapes(most, "max", planes) if most else centre)


def shapes(value: str, option: str, planes: int) -> dict[str, Shape]:
    """``frame:1x3x120x160`` to shapes by name; ``planes`` is what the bundle's frames have."""
    found = {}
    for part in value.split(","):
        match = re.fullmatch(r"([\w.]+):(\d{1,9}(?:x\d{1,9})*)", part.strip())
        if not match or match[1] != "frame" or match[2].count("x") != 3 or int(match[2].split("x")[1]) != planes:
            raise InputError(
                f"--{option}Shapes={value!r}: write it as frame:BATCHx{planes}xHEIGHTxWIDTH, frame:1x{planes}x120x160"
            )
        found[match[1]] = tuple(int(n) for n in match[2].split("x"))
    return found


def sizes(value: str) -> tuple[Size, ...]:
    """``160x120,320x240`` to (width, height) sizes."""
    found = []
    for part in value.split(","):
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", part.strip())
        if not match or "0" in (match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"):
            raise InputError(f"--frame-sizes {value!r}: write it as WIDTHxHEIGHT, several with commas: 160x120,640x480")
        found.append((int(match[1]), int(match[2])))
    return tuple(found)


def from_plain(values: Any) -> Profile:
    """From JSON; ValueError, KeyError, TypeError or InputError for anything else."""
    kinds = (values["least"], values["opt"], values["most"])
    return Profile(*({str(n): tuple(int(v) for v in shape) for n, shape in kind.items()} for kind in kinds))
