"""What differs between the versions of TensorRT that engines are built with: 8.5, 8.6, 10 and 11."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diinn.runtime.errors import InputError

TYPED, FLAGS = "typed", "flags"
OLD_TACTICS = ("CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
HALF = ("FP16", "OBEY_PRECISION_CONSTRAINTS")


@dataclass(frozen=True)
class Rules:
    """One way to have a version of TensorRT take a typed graph.

    route: TYPED, where the network's types are binding, or FLAGS, where they are hints that flags enable
    network_flags: names in ``NetworkDefinitionCreationFlag``
    builder_flags: names in ``BuilderFlag`` by precision of the graphs
    """

    route: str
    network_flags: tuple[str, ...]
    builder_flags: Mapping[str, tuple[str, ...]]

    @property
    def constrained(self) -> bool:
        """Whether every fp32 layer has to be marked to stay fp32."""
        return self.route == FLAGS

    def trtexec(self, precision: str) -> list[str]:
        """The same as options of trtexec."""
        if not self.constrained:
            return ["--stronglyTyped"]
        names = {"FP16": "--fp16", "INT8": "--int8", "OBEY_PRECISION_CONSTRAINTS": "--precisionConstraints=obey"}
        return [names[flag] for flag in self.builder_flags.get(precision, ())]


STRONG = Rules(TYPED, ("STRONGLY_TYPED",), {})
WISHES = {"fp16": HALF, "int8": ("INT8", *HALF)}
# From which version on, and the ways there, best first. NVIDIA calls strong typing fully available from 10.12 on.
TABLE: tuple[tuple[tuple[int, int], tuple[Rules, ...]], ...] = (
    ((8, 5), (Rules(FLAGS, ("EXPLICIT_BATCH",), WISHES),)),
    ((10, 0), (STRONG, Rules(FLAGS, (), WISHES))),
    ((10, 12), (STRONG,)),
)
NEWEST = "11"  # what is assumed where none is installed
NAMES = "8.5, 8.6, 10.x and 11.x"


def routes(version: str) -> tuple[Rules, ...]:
    """The ways for ``tensorrt.__version__``, best first; InputError for one that is too old or cannot be read."""
    fitting = [ways for since, ways in TABLE if since <= _number(version)]
    if not fitting:
        raise InputError(f"TensorRT {version} is not supported: install one of {NAMES}")
    return fitting[-1]


def rules(version: str, route: str | None = None) -> Rules:
    """The best way for a version, or the one called ``route``."""
    return next(way for way in routes(version) if route in (None, way.route))


def tactics(version: str) -> tuple[str, ...]:
    """Names in ``TacticSource``."""
    return OLD_TACTICS if _number(version) < (11, 0) else OLD_TACTICS[-2:]


def _number(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def bits(enum: Any, names: tuple[str, ...]) -> int:
    """A mask of ``names`` in a TensorRT enumeration: their integers moved between versions."""
    mask = 0
    for name in names:
        mask |= 1 << int(getattr(enum, name))
    return mask
