"""A training run as YAML: frozen dataclasses, checked on reading."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import yaml
from diinn.runtime.errors import InputError, unknown
from diinn.train.encoders import STRICT
from diinn.train.model import ModelConfig
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

T = TypeVar("T")


@dataclass(frozen=True, config=STRICT)
class Scales:
    """What scale a training patch is reduced by: ``uniform: [low, high]`` or ``choices: [2, 3, 4]``."""

    uniform: tuple[float, float] | None = None
    choices: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.uniform is None) == (self.choices is None):
            raise ValueError("give either uniform: [low, high] or choices: [2, 3, 4]")
        values = self.uniform or self.choices or ()
        if not values or not all(np.isfinite(values)) or min(values) < 1 or list(values) != sorted(values):
            raise ValueError(f"scales must be finite, ascending and at least 1, got {list(values)}")
        return self

    @property
    def range(self) -> tuple[float, float]:
        values = self.uniform or self.choices or ()
        return min(values), max(values)

    def draw(self, rng: np.random.Generator) -> float:
        if self.uniform is not None:
            return float(rng.uniform(*self.uniform))
        return float(rng.choice(self.choices or ()))


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Patches and queries.

    patch: LR pixels along a side; queries: HR pixels drawn per patch; batch: patches per step
    holdout: images kept out of training for validation; holdout_crop: HR pixels of their central crop
    largest: photographs are halved until their short side is below this many pixels
    """

    patch: int = Field(default=32, ge=4)
    batch: int = Field(default=16, ge=1)
    queries: int = Field(default=1024, ge=1)
    scales: Scales = Field(default_factory=lambda: Scales(uniform=(1.0, 4.0)))
    holdout: int = Field(default=24, ge=1)
    holdout_crop: int = Field(default=288, ge=32)
    largest: int = Field(default=1600, ge=64)
    workers: int = Field(default=1, ge=0)


@dataclass(frozen=True, config=STRICT)
class OptimConfig:
    """Adam; linear warm-up, then a cosine to zero.

    loss: "l1", or "l2" for a last stage: L1 commits to the likeliest texture where several fit, as in what
        a reduction aliased, L2 to their mean
    ema: decay of the averaged weights that are validated and saved; 0 turns averaging off
    """

    steps: int = Field(ge=1)
    lr: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=500, ge=0)
    loss: Literal["l1", "l2"] = "l1"
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1)


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """A whole training run: what ``diinn-train fit -c`` reads."""

    optim: OptimConfig
    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    validate_every: int = Field(default=2000, ge=1)


def parse(kind: type[T], values: object, where: str) -> T:
    """``values`` (from YAML or a checkpoint) as ``kind``; InputError names the first thing wrong."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        found = error.errors()
        first = next((e for e in found if e["type"] == "unexpected_keyword_argument"), found[0])
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            message = unknown("key", path.rpartition(".")[2], _keys_at(kind, first["loc"][:-1]))
        elif first["type"] == "union_tag_invalid":
            tags = str(first["ctx"]["expected_tags"]).replace("'", "").split(", ")
            message = unknown(f"{path} name", first["ctx"]["tag"], tags)
        else:
            message = f"{path or 'top level'} = {first['input']!r}: {first['msg']}"
        raise InputError(f"{where}: {message}") from None


def _keys_at(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the dataclass at ``location`` below ``kind``; unions are passed by tag."""
    for part in location:
        fields = getattr(kind, "__dataclass_fields__", {})
        if part in fields:
            kind = fields[part].type
        elif hasattr(kind, "__metadata__"):
            kind = next(k for k in kind.__origin__.__args__ if k.name == part)
    return list(getattr(kind, "__dataclass_fields__", {}))


def read(path: Path) -> RunConfig:
    """A run's YAML file, checked."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the configuration {str(path)!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return parse(RunConfig, values, str(path))


def plain(config: Any) -> dict[str, Any]:
    """A configuration as the plain dict that YAML and checkpoints store."""
    return asdict(config)
