"""What differs between the versions of TensorRT that engines are built with: 8.5, 8.6, 10 and 11."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from diinn.runtime.errors import InputError


@dataclass(frozen=True)
class Rules:
    """How one version, and all later ones up to the next entry of ``TABLE``, takes a typed network.

    since: (major, minor)
    network_flags: names in ``NetworkDefinitionCreationFlag``
    builder_flags: names in ``BuilderFlag`` by precision of the graphs
    constrained: types are wishes there: every fp32 layer has to be told to stay fp32
    """

    since: tuple[int, int]
    network_flags: tuple[str, ...]
    builder_flags: dict[str, tuple[str, ...]]
    constrained: bool

    def trtexec(self, precision: str) -> list[str]:
        """The same as options of trtexec."""
        if not self.constrained:
            return ["--stronglyTyped"]
        names = {"FP16": "--fp16", "INT8": "--int8", "OBEY_PRECISION_CONSTRAINTS": "--precisionConstraints=obey"}
        return [names[flag] for flag in self.builder_flags.get(precision, ())]


TABLE = (
    Rules(
        (8, 5),
        ("EXPLICIT_BATCH",),
        {"fp16": ("FP16", "OBEY_PRECISION_CONSTRAINTS"), "int8": ("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS")},
        constrained=True,
    ),
    Rules((10, 0), ("STRONGLY_TYPED",), {}, constrained=False),
)
NAMES = "8.5, 8.6, 10.x and 11.x"


def rules(version: str) -> Rules:
    """The entry for ``tensorrt.__version__``; InputError for one that is too old or cannot be read."""
    found = re.match(r"(\d+)\.(\d+)", version)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    fitting = [entry for entry in TABLE if entry.since <= number]
    if not fitting:
        raise InputError(f"TensorRT {version} is not supported: install one of {NAMES}")
    return fitting[-1]


def bits(enum: Any, names: tuple[str, ...]) -> int:
    """A mask of ``names`` in a TensorRT enumeration: their integers moved between versions."""
    mask = 0
    for name in names:
        mask |= 1 << int(getattr(enum, name))
    return mask
