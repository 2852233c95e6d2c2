"""Bundles: the folder ``NAME.diinn/`` that export hands to the robot, read and checked.

``bundle.json`` describes the graphs beside it; every file's sha256 is checked before it is used, and a graph that takes
weights from other files is refused.
Format version 3; bundles of version 2 are read too and have no dial. Fields are those of ``Bundle``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diinn.runtime.bundles import files as bundle_files
from diinn.runtime.errors import BundleError, InputError, unknown
from diinn.runtime.geometry import grid
from diinn.runtime.noise.strength import Dial, Strength
from diinn.runtime.util.text import redacted

FORMAT, VERSION = "diinn-bundle", 3
READABLE = (2, VERSION)
SUFFIX = ".diinn"
MODELS = Path(__file__).parent / "shipped"
GOLDEN = "golden.npz"
LAYERS = "layers.npz"  # in the bundles of decoders that the fused kernel takes
ESTIMATOR = "estimator.onnx"  # in bundles with a dial: estimates a frame's strength
Levels = tuple[float, ...]  # inputs of the encoder graph beside one frame, a plane each behind RGB
# Graphs of each precision; fp32 is in every bundle. ``gather_decoder`` is the decoder with the gather inside, for CPUs.
ROLES = {
    "fp32": ("encoder", "decoder", "gather_decoder"),
    "fp16": ("encoder", "decoder"),
    "int8": ("encoder", "decoder"),
}


@dataclass(frozen=True)
class MapSpec:
    """One map the encoder hands over: its tensor name and channels; float32 in fp32 graphs, else float16."""

    name: str
    channels: int


@dataclass(frozen=True)
class Bundle:
    """A checked bundle; ``bundles.bundle.load`` reads one.

    Attributes:
        path: The folder.
        architecture: Encoder and decoder configuration, to be shown.
        scales: (lowest, highest) scale trained.
        radius: LR pixels around a pixel that its maps depend on; the exact halo of a band.
        workspace: Bytes per LR pixel that the encoder graph needs at its peak, maps included.
        maps: The encoder's maps; a row of each is part of a sample of a query.
        layout: The numbers of a sample of a query.
        graphs: File names by precision and role ("encoder", "decoder", …).
        files: sha256 by file name, checked when it was loaded.
        dial: The highest noise and compression its encoder was trained for; None without a dial.
        measured: What each precision but fp32 loses, to be shown.
        quality: Scores and the protocol they were measured under; empty if never measured.
        licence: Terms of the weights.
        source: sha256 and step of the checkpoint.
    """

    path: Path
    architecture: Mapping[str, Any]
    scales: tuple[float, float]
    radius: int
    workspace: int
    maps: tuple[MapSpec, ...]
    layout: grid.Layout
    graphs: Mapping[str, Mapping[str, str]]
    files: Mapping[str, str]
    dial: Dial | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "unspecified"
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(SUFFIX)

    @property
    def planes(self) -> int:
        """Planes of ``frame``, the encoder graph's input: 3 for RGB, with a dial 5, noise and compression too."""
        return 3 if self.dial is None else 5

    def levels(self, strength: Strength) -> Levels:
        """The inputs of the encoder graph for a frame of ``strength``, in the order of its planes behind RGB."""
        return () if self.dial is None else (strength.noise, strength.compression)

    @property
    def estimator(self) -> Path | None:
        """The graph that estimates a frame's strength (``estimator.Estimator``), None where the bundle holds none."""
        return self.path / ESTIMATOR if ESTIMATOR in self.files else None

    def graph(self, role: str, precision: str = "fp32") -> Path:
        """Path of a graph, for messages.

        Raises:
            InputError: The bundle lacks the precision.
        """
        if precision not in self.graphs:
            made = "make them with diinn-export BUNDLE --calib PHOTOS --out NAME.diinn"
            other = made if precision == "int8" else "export it again, or choose another precision"
            why = self.measured.get(precision, {}).get("left_out", other)
            raise InputError(f"{self.path} has no {precision} graphs, only {', '.join(self.graphs)}: {why}")
        return self.path / self.graphs[precision][role]

    def graph_content(self, role: str, precision: str = "fp32") -> bytes:
        """A graph's bytes, hashed and checked as they are read: open these, not the file.

        Raises:
            InputError: The bundle lacks the precision.
            BundleError: The file has changed.
        """
        return self.content(self.graph(role, precision).name)

    def content(self, name: str) -> bytes:
        """A file of the bundle, hashed and checked as it is read.

        Raises:
            BundleError: It has changed.
        """
        return bundle_files.read(self.path, name, self.files.get(name))

    def engine_precision(self, wanted: str | None = None) -> str:
        """The precision that engines are built from: ``wanted``, or fp16 where the bundle has it."""
        return wanted or ("fp16" if "fp16" in self.graphs else "fp32")

    def golden(self) -> dict[str, np.ndarray]:
        """The golden sample: frame, three views, reference outputs, tolerance (see ``golden.py``).

        Raises:
            BundleError: It is damaged.
        """
        return bundle_files.arrays(self.content(GOLDEN), self.path / GOLDEN)

    def layers(self) -> dict[str, np.ndarray]:
        """The decoder's own weights, float32, for kernels that take them.

        Returns:
            ``first`` [K, 4] (what multiplies local y, local x and the ratio, then the bias), ``hidden``
            [N - 1, 2, K, K] (modulation's and synthesis' matrix, output by input), ``bias`` [N - 1, K] of the
            synthesis, ``last`` [3, K] and ``last_bias`` [3] (RGB in [0, 1]); ``largest_argument`` [], the largest
            magnitude of a sine's argument that the exporter saw, radians, where the bundle says it.

        Raises:
            InputError: The decoder is not DIINN's folded one: its bundle holds no such weights.
            BundleError: The file is damaged.
        """
        if LAYERS not in self.files:
            raise InputError(f"{self.name} holds no {LAYERS}: only bundles of DIINN's own decoder do, export it again")
        found = bundle_files.arrays(self.content(LAYERS), self.path / LAYERS)
        depth, width = len(self.maps), self.maps[0].channels
        shapes = {
            "first": (width, 4),
            "hidden": (depth - 1, 2, width, width),
            "bias": (depth - 1, width),
            "last": (3, width),
            "last_bias": (3,),
            **{name: () for name in ("largest_argument",) if name in found},
        }
        for name, shape in shapes.items():
            if name not in found or found[name].shape != shape or found[name].dtype != np.float32:
                raise BundleError(f"{self.path / LAYERS}: {name} is not float32 {list(shape)}: export it again")
        return found


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shipped() -> list[str]:
    """Names of the bundles that come with the package."""
    return sorted(p.name.removesuffix(SUFFIX) for p in MODELS.glob(f"*{SUFFIX}"))


def find(model: str | Path) -> Path:
    """Folder of a bundle given by path, or by the name of a shipped one."""
    path = Path(model)
    if str(model) in shipped():  # a folder of that name in the working directory is given as ./NAME
        return MODELS / f"{model}{SUFFIX}"
    try:
        if (path / "bundle.json").is_file():
            return path
        exists = path.exists()
    except OSError as error:
        raise BundleError(f"no bundle {redacted(str(model))[:60]!r}: {error.strerror}") from None
    if exists and path.is_file() and (path.parent / "bundle.json").is_file():
        raise BundleError(f"{str(model)!r} is a part of a bundle: give its folder, {str(path.parent)!r}")
    if exists:
        remedy = "export the checkpoint first: diinn-export CKPT" if path.is_file() else "export it again"
        raise BundleError(f"{str(model)!r} is not a bundle (no bundle.json in it): {remedy}")
    if path.suffix in (".pth", ".ckpt"):
        raise BundleError(f"no checkpoint {str(model)!r}: give the path of a .pth or .ckpt file")
    if path.name != str(model) or path.suffix:
        raise BundleError(
            f"no bundle {str(model)!r}: give the path of a NAME{SUFFIX} folder or one of {', '.join(shipped())}"
        )
    raise BundleError(unknown("model", str(model), shipped()) + " (or the path of a bundle)")


def load(model: str | Path) -> Bundle:
    """A bundle by name or path, with format, version and every file's hash checked.

    Raises:
        BundleError: Names the file or field that is wrong.
    """
    path = find(model)
    values = bundle_files.description(path / "bundle.json")
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise BundleError(f"{path / 'bundle.json'} does not describe a bundle: export it again")
    if values.get("version") not in READABLE:
        raise BundleError(
            f"{path} has bundle version {values.get('version')!r}, this runtime reads "
            f"{' and '.join(map(str, READABLE))}: update diinn or export it again"
        )
    bundle = _Reader(path, values).bundle()
    extra = {GOLDEN} | ({LAYERS, ESTIMATOR} & bundle.files.keys())
    for name in sorted(extra.union(*(roles.values() for roles in bundle.graphs.values()))):
        bundle.content(name)
    return bundle


class _Reader:
    """Takes fields out of bundle.json; a BundleError names the one that is wrong."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values

    def field(self, name: str, valid: Callable[[Any], bool], wanted: str) -> Any:
        value = self.values.get(name)
        if not valid(value):
            raise BundleError(f"{self.path / 'bundle.json'}: {name} = {value!r} is not {wanted}: export it again")
        return value

    def bundle(self) -> Bundle:
        scales = self.field("scales", _is_range, "a pair of scales, the lower first")
        maps = self.field("maps", _is_maps, "a list of maps with name and channels")
        return Bundle(
            path=self.path,
            architecture=self.field("architecture", _is_object, "an object"),
            scales=(float(scales[0]), float(scales[1])),
            radius=self.field("receptive_radius", _is_count, "a whole number from 0 up"),
            workspace=self.field("workspace_bytes_per_pixel", lambda v: _is_count(v) and v, "a whole number from 1 up"),
            maps=tuple(MapSpec(m["name"], m["channels"]) for m in maps),
            layout=grid.LAYOUTS[tuple(self.field("query", _is_layout, f"one of {[*map(list, grid.LAYOUTS)]}"))],
            files=self.field("files", _is_hashes, "an object of sha256 by file name"),
            graphs=self.field("graphs", _is_graphs, f"file names by precision and role, {json.dumps(ROLES)}"),
            dial=self.dial(),
            measured=self.field("measured", _is_card, "an object of objects"),
            quality=self.field("quality", _is_object, "an object"),
            licence=self.field("licence", lambda v: isinstance(v, str), "text"),
            source=self.field("source", _is_object, "an object"),
        )

    def dial(self) -> Dial | None:
        if self.values["version"] == 2 or self.values.get("dial") is None:
            return None
        found = self.field(
            "dial", _is_dial, "null, or the highest noise and compression, numbers above 0 and up to 100"
        )
        return Dial(float(found["noise"]), float(found["compression"]))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_hashes(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _is_card(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, dict) for v in value.values())


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_dial(value: Any) -> bool:
    def level(v: Any) -> bool:
        return type(v) in (int, float) and 0 < v <= 100

    return isinstance(value, dict) and value.keys() == {"noise", "compression"} and all(map(level, value.values()))


def _is_layout(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value) and tuple(value) in grid.LAYOUTS


def _is_range(value: Any) -> bool:
    def number(v: Any) -> bool:
        return type(v) in (int, float) and 0.01 <= v <= 1000

    return isinstance(value, list) and len(value) == 2 and all(map(number, value)) and value[0] <= value[1]


def _is_maps(value: Any) -> bool:
    def one(v: Any) -> bool:
        return isinstance(v, dict) and isinstance(v.get("name"), str) and _is_count(v.get("channels"))

    return isinstance(value, list) and bool(value) and all(one(v) and v["channels"] for v in value)


def _is_graphs(value: Any) -> bool:
    def plain(v: Any) -> bool:
        return isinstance(v, str) and v == Path(v).name and v.endswith(".onnx") and len(v) < 200 and v.isprintable()

    def one(precision: str, files: Any) -> bool:
        return isinstance(files, dict) and {*files} == {*ROLES.get(precision, ())} and all(map(plain, files.values()))

    return isinstance(value, dict) and "fp32" in value and all(one(*item) for item in value.items())
