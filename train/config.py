"""A training run as YAML: frozen dataclasses, checked on reading."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

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
    """The scales by which an image's training patches are reduced.

    One drawn from ``uniform: [low, high]``, one of ``choices: [2, 3, 4]``, or a patch at each of ``every: [2, 3, 4]``
    (the paper's).
    """

    uniform: tuple[float, float] | None = None
    choices: tuple[float, ...] | None = None
    every: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if sum(given is not None for given in (self.uniform, self.choices, self.every)) != 1:
            raise ValueError("give one of uniform: [low, high], choices: [2, 3, 4] and every: [2, 3, 4]")
        values = self._values
        if not values or not all(np.isfinite(values)) or min(values) < 1 or list(values) != sorted(values):
            raise ValueError(f"scales must be finite, ascending and at least 1, got {list(values)}")
        return self

    @property
    def range(self) -> tuple[float, float]:
        return min(self._values), max(self._values)

    @property
    def _values(self) -> tuple[float, ...]:
        return self.uniform or self.choices or self.every or ()

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        """The scales of one image's patches: one, or all of ``every``."""
        if self.uniform is not None:
            return (float(rng.uniform(*self.uniform)),)
        return self.every or (float(rng.choice(self._values)),)


@dataclass(frozen=True, config=STRICT)
class DegradeConfig:
    """What sensors, lenses and codecs do to LR patches; each pair is the range that a patch's own is drawn from.

    clean: share of patches that stay as the protocol makes them
    noise: root mean square over the frame, grey levels; white: share of noisy patches whose noise is white, as of test
        sets; that of the others is a sensor's
    compressed: share of degraded patches that are JPEG, of ``jpeg`` quality; noisy: share of these that are noisy too
    optics: share of degraded patches with a lens' ``blur`` (gaussian, LR pixels), reduced by area, bilinear or bicubic,
        and sharpened by up to ``sharpen`` times what a gaussian of one pixel takes away
    grey: share of degraded patches without colour
    jitter: how wrong the level is that the network is given, standard deviation of its logarithm
    """

    clean: float = Field(default=0.3, ge=0, le=1)
    noise: tuple[float, float] = (0.0, 20.0)
    white: float = Field(default=0.4, ge=0, le=1)
    compressed: float = Field(default=0.45, ge=0, le=1)
    jpeg: tuple[int, int] = (50, 100)
    noisy: float = Field(default=0.5, ge=0, le=1)
    optics: float = Field(default=0.15, ge=0, le=1)
    blur: tuple[float, float] = (0.0, 0.7)
    sharpen: tuple[float, float] = (0.0, 0.5)
    grey: float = Field(default=0.05, ge=0, le=1)
    jitter: float = Field(default=0.15, ge=0, le=1)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        for name, (low, high), least, most in (
            ("noise", self.noise, 0, 100),
            ("jpeg", self.jpeg, 1, 100),
            ("blur", self.blur, 0, 8),
            ("sharpen", self.sharpen, 0, 4),
        ):
            if not least <= low <= high <= most:
                raise ValueError(f"{name} is a range [low, high] within {least} to {most}, got {[low, high]}")
        return self


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Patches and queries.

    patch: LR pixels along a side; queries: HR pixels drawn per patch, null for all of them
    batch: images per step, over all processes; each gives a patch, or one per scale of ``scales.every``
    degrade: degradations of LR patches, like those of a camera's frames; null for the protocol's bicubic alone
    holdout: images kept out of training for validation; holdout_crop: HR pixels of their central crop
    shrink: each HR patch is first reduced by a random factor in [1, shrink]: finer texture, less of JPEG's traces
    largest: photographs are halved until their short side is below this many pixels
    """

    patch: int = Field(default=32, ge=4)
    batch: int = Field(default=16, ge=1)
    queries: Annotated[int, Field(ge=1)] | None = 1024
    scales: Scales = Field(default_factory=lambda: Scales(uniform=(1.0, 4.0)))
    holdout: int = Field(default=24, ge=1)
    holdout_crop: int = Field(default=288, ge=32)
    largest: int = Field(default=1600, ge=64)
    shrink: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    degrade: DegradeConfig | None = None
    workers: int = Field(default=1, ge=0)


@dataclass(frozen=True, config=STRICT)
class OptimConfig:
    """Adam; linear warm-up, then a cosine to zero, or the rate halved every ``halve_every`` steps.

    loss: "l1", or "l2" for a last stage: L1 commits to the likeliest texture where several fit, as in what
        a reduction aliased, L2 to their mean; "psnr", the logarithm of each patch's L2: what the mean PSNR of
        several images rewards, where L2 looks at the busiest patches alone
    clip: largest norm of the gradient, 0 for none; twice its median (0.03 for L1, 0.002 for L2 with `small`)
        keeps one bad step from ruining a run
    ema: decay of the averaged weights that are validated and saved; 0 turns averaging off
    """

    steps: int = Field(ge=1)
    lr: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=500, ge=0)
    loss: Literal["l1", "l2", "psnr"] = "l1"
    halve_every: Annotated[int, Field(ge=1)] | None = None
    clip: float = Field(default=1.0, ge=0)
    ema: float = Field(default=0.999, ge=0, lt=1)


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """A whole training run: what ``diinn-train fit -c`` reads.

    compile: torch.compile the network
    validate_every: steps between validations, each of which saves; log_every: steps between logged losses
    """

    optim: OptimConfig
    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    compile: bool = False
    validate_every: int = Field(default=2000, ge=1)
    log_every: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _told_what_it_sees(self) -> Self:
        if (self.data.degrade is None) != (self.model.dial is None):
            raise ValueError("data.degrade and model.dial belong together: the dial takes how degraded a patch is")
        degrade, dial = self.data.degrade, self.model.dial
        if degrade and dial and (degrade.noise[1] > dial.noise or 100 - degrade.jpeg[0] > dial.compression):
            raise ValueError(
                f"data.degrade goes up to noise {degrade.noise[1]:g} and compression {100 - degrade.jpeg[0]}, "
                f"model.dial to {dial.noise:g} and {dial.compression:g}: what is beyond the dial could not be given"
            )
        return self

    @property
    def logged_every(self) -> int:
        """``log_every``, or once a validation where that is more often."""
        return min(self.log_every, self.validate_every)

    @model_validator(mode="after")
    def _ends_with_a_validation(self) -> Self:
        if self.optim.steps % self.validate_every:
            raise ValueError(
                f"optim.steps = {self.optim.steps} is not a multiple of validate_every = {self.validate_every}: "
                "what is learnt after the last validation would be lost"
            )
        return self


def parse(kind: type[T], values: object, where: str) -> T:
    """``values`` (from YAML or a checkpoint) as ``kind``; InputError names the first thing wrong."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        found = error.errors()
        first = next((e for e in found if e["type"] == "unexpected_keyword_argument"), found[0])
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            section, _, key = path.rpartition(".")
            message = unknown(f"key in {section}" if section else "key", key, _keys_at(kind, first["loc"][:-1]))
        elif first["type"] == "union_tag_invalid":
            tags = str(first["ctx"]["expected_tags"]).replace("'", "").split(", ")
            message = unknown(f"{path} name", first["ctx"]["tag"], tags)
        elif first["type"] == "literal_error":
            message = unknown(path, first["input"], re.findall(r"'([^']*)'", first["ctx"]["expected"]))
        elif first["type"] == "union_tag_not_found":
            message = f"{path} has no name: add one, as in {path}: {{name: ...}}"
        else:
            message = f"{path} = {first['input']!r}: {first['msg'].removeprefix('Value error, ')}"
        raise InputError(f"{where}: {message}") from None


def _keys_at(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the dataclass at ``location`` below ``kind``; unions are passed by tag."""
    for part in location:
        fields = getattr(kind, "__dataclass_fields__", {})
        if part in fields:
            kind = fields[part].type
            if type(None) in get_args(kind):
                kind = next(k for k in get_args(kind) if k is not type(None))
        elif hasattr(kind, "__metadata__"):
            kind = next(k for k in kind.__origin__.__args__ if k.name == part)
    return list(getattr(kind, "__dataclass_fields__", {}))


def read(path: Path) -> RunConfig:
    """A run's YAML file, checked. What it leaves out is taken from the file of ``extends: OTHER.yaml``, beside it."""
    return parse(RunConfig, values(path), str(path))


def values(path: Path) -> dict[str, Any]:
    """The settings in a YAML file and those it extends; InputError where there are none."""
    found = _values(path, ())
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no settings: begin with extends: FILE.yaml, as those in train/configs do")
    return found


def _values(path: Path, above: tuple[Path, ...]) -> Any:
    path = path.resolve()
    if path in above:
        raise InputError(f"{path} extends itself: {' -> '.join(p.name for p in (*above, path))}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        named = f" that {above[-1]} extends, relative to itself" if above else ""
        raise InputError(f"cannot read the configuration {str(path)!r}{named}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or "extends" not in values:
        return values
    base = _values(path.parent / str(values.pop("extends")), (*above, path))
    return _merged(base, values)


def _merged(base: Any, over: Any) -> Any:
    """``over`` merged into ``base``, key by key.

    A mapping that names another kind replaces the base's whole, and so do ``scales``, of which there is one kind at a
    time.
    """
    if not (isinstance(base, dict) and isinstance(over, dict)) or base.get("name") != over.get(
        "name", base.get("name")
    ):
        return over
    merged = {key: value if key == "scales" else _merged(base.get(key), value) for key, value in over.items()}
    return base | merged


def plain(config: Any) -> dict[str, Any]:
    """A configuration as the plain dict that YAML and checkpoints store."""
    return asdict(config)
