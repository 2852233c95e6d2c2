"""Checkpoints: our self-describing ``.pth`` and the authors' Lightning files, through one call.

Ours is a plain dict that ``torch.load(weights_only=True)`` reads: format, version, model (the
configuration and normalisation), scales trained, weights in the paper's layout, step, training
configuration and validation log.
"""

import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diinn.runtime.errors import CheckpointError, DiinnError, InputError, unknown
from diinn.train.config import parse, plain
from diinn.train.model import ModelConfig, SuperResolutionModel
from torch import Tensor

FORMAT, VERSION = "diinn-checkpoint", 1
MOST_BYTES = 2**32  # the paper's network with its optimiser's state has 0.4 GiB


@dataclass(frozen=True)
class Checkpoint:
    """A model and how it was trained.

    scales: (lowest, highest) scale trained; step: optimiser steps taken
    run: the training configuration, plain; log: one dict per validation
    """

    model: SuperResolutionModel
    scales: tuple[float, float]
    step: int = 0
    run: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, float]] = field(default_factory=list)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` whole or not at all."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in checkpoint.model.state_dict().items()}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": plain(checkpoint.model.config),
        "state": state,
        "scales": list(checkpoint.scales),
        "step": checkpoint.step,
        "run": checkpoint.run,
        "log": checkpoint.log,
    }
    write(path, content)


def write(path: Path, content: dict[str, Any]) -> None:
    """``torch.save``, whole or not at all; DiinnError where it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(content, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer has its own type for a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DiinnError(f"cannot write {str(path)!r}: {reason}") from None
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint of ours or of the paper's authors, whatever its file ending.

    Raises CheckpointError for a file that is missing, holds code instead of tensors, is no checkpoint,
    is of another architecture, does not fit its configuration or holds weights that are not finite.
    """
    content = read(path)
    if content.get("format") == FORMAT:
        if content.get("version") != VERSION:
            raise CheckpointError(
                f"{path} has checkpoint version {content.get('version')!r}, this project reads {VERSION}: "
                "update diinn or save it again"
            )
        checkpoint = _ours(path, content)
    elif "state_dict" in content and "hyper_parameters" in content:
        checkpoint = _authors(path, content)
    else:
        callbacks = content.get("callbacks")
        if isinstance(callbacks, dict) and "CheckpointWriter" in callbacks:
            raise CheckpointError(f"{path} is what diinn-train --resume goes on from: give the last.pth beside it")
        keys = ", ".join(sorted(map(str, content))[:6])
        raise CheckpointError(
            f"{path} is not a diinn checkpoint (keys: {keys}): give a .pth that diinn-train wrote, "
            "or a Lightning checkpoint of the paper's authors"
        )
    for name, value in checkpoint.model.state_dict().items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: weight {name} holds NaN or infinity: use an earlier checkpoint")
    return checkpoint


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, tensors and plain values alone; CheckpointError where it is none."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"cannot read {str(path)!r}: it is no file; give a .pth or .ckpt file")
        if path.stat().st_size > MOST_BYTES:
            raise CheckpointError(f"{str(path)!r} is larger than {MOST_BYTES >> 30} GiB, which no checkpoint here is")
        with path.open("rb") as file:
            damaged = _damaged(zipfile.ZipFile(file)) if zipfile.is_zipfile(file) else None
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint {str(path)!r}: give the path of a .pth or .ckpt file") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except CheckpointError:
        raise
    except Exception:  # zipfile raises a dozen unrelated types
        damaged = "its list of contents"
    if damaged:  # torch.load does not look at checksums
        raise CheckpointError(f"{path} is damaged ({damaged}): copy it again, or use an earlier checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        named = re.search(r"GLOBAL (\S+)|global (\S+)", text)
        if named and "unsupported" in text.lower():
            what = next(g for g in named.groups() if g)
            raise CheckpointError(
                f"{path} holds code ({what}) instead of tensors alone and is not loaded: "
                "save its state_dict again with plain values"
            ) from None
        raise CheckpointError(f"{path} is not a checkpoint: torch.load cannot read it") from None
    except MemoryError:
        raise
    except Exception:  # of damaged bytes PyTorch raises a dozen unrelated types
        raise CheckpointError(f"{path} is not a checkpoint, or is truncated: torch.load cannot read it") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _damaged(archive: zipfile.ZipFile) -> str | None:
    """The first member that is not as it was written.

    PyTorch stores members uncompressed; a compressed one, which might unpack to terabytes, is not PyTorch's.
    """
    packed = (item.filename for item in archive.infolist() if item.compress_type != zipfile.ZIP_STORED)
    return next(packed, None) or archive.testzip()


def _ours(path: Path, content: dict[str, Any]) -> Checkpoint:
    try:
        config = parse(ModelConfig, content["model"], str(path))
        low, high = (float(s) for s in content["scales"])
        state = _tensors(path, content["state"])
        known = Checkpoint(
            _build(path, config, state), (low, high), int(content["step"]), content["run"], content["log"]
        )
    except InputError as error:
        raise CheckpointError(str(error)) from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} is a damaged diinn checkpoint: {error!r}") from None
    return known


def _tensors(path: Path, state: object) -> dict[str, Tensor]:
    if not (isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())):
        raise CheckpointError(f"{path}: its weights are not tensors by name: it is a damaged checkpoint")
    return {str(name): value for name, value in state.items()}


def _build(path: Path, config: ModelConfig, state: dict[str, Tensor]) -> SuperResolutionModel:
    with torch.device("meta"):
        model = SuperResolutionModel(config)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: weight {name} has shape {found.get(name, 'missing')}, its configuration "
                f"needs {expected.get(name, 'none of that name')}"
            )
    model.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    return model.eval()


# The authors' parameter names, and ours
RENAMED = (
    (r"^decoder\.K\.(\d+)\.0", r"decoder.modulation.\1"),
    (r"^decoder\.Q\.(\d+)\.0", r"decoder.synthesis.\1"),
    (r"^decoder\.first_layer\.0", r"decoder.first"),
    (r"^decoder\.last_layer", r"decoder.last"),
)
RENAMED_LIIF = tuple((rf"^imnet\.layers\.{2 * i}\.", f"decoder.imnet.{i}.") for i in range(64))
RENAMED_METASR = ((r"^imnet\.layers\.0\.", "decoder.hidden."), (r"^imnet\.layers\.2\.", "decoder.filters."))
AUTHORS = {"diinn": RENAMED, "liif": RENAMED_LIIF, "metasr": RENAMED_METASR}
MODULATIONS = {1: "m", 2: "mz", 3: "sz"}  # by mode


def _authors(path: Path, content: dict[str, Any]) -> Checkpoint:
    """The authors' Lightning checkpoint: architecture from its hyper-parameters and shapes."""
    options = content["hyper_parameters"]
    if not isinstance(options, dict):
        raise CheckpointError(f"{path}: its hyper_parameters are no dict: it is not one of the authors' checkpoints")
    arch, mode = options.get("arch"), options.get("mode", 3)
    if arch not in AUTHORS:
        raise CheckpointError(f"{path}: {unknown('arch', arch, AUTHORS)}")
    if arch == "diinn" and mode == 4:
        raise CheckpointError(
            f"{path} is of mode 4, whose last layer is a 3x3 convolution over output pixels: it is not "
            "in the paper and cannot be decoded query by query; use a mode 3 checkpoint"
        )
    if arch == "diinn" and mode not in MODULATIONS:
        raise CheckpointError(f"{path} is of mode {mode!r}: 1, 2 and 3 can be loaded")
    state = {}
    for name, value in _tensors(path, content["state_dict"]).items():
        if name.startswith("net."):
            ours = name.removeprefix("net.")
            for theirs, replacement in AUTHORS[arch]:
                ours = re.sub(theirs, replacement, ours)
            if ours.startswith("decoder.") and value.dim() == 4:
                value = value.flatten(1)  # 1×1 convolution to matrix
            state[ours] = value
    config = _authors_config(path, state, {"name": arch, "mode": mode})
    return Checkpoint(_build(path, config, state), (2.0, 4.0), int(content.get("global_step", 0)))


def _authors_config(path: Path, state: dict[str, Tensor], options: dict[str, Any]) -> ModelConfig:
    """Width and depth of encoder and decoder by the shapes of their weights."""

    def count(pattern: str) -> int:
        return len({m.group(1) for m in (re.match(pattern, k) for k in state) if m})

    try:
        encoder = {
            "name": "rdn",
            "channels": state["encoder.SFENet1.weight"].shape[0],
            "growth": state["encoder.RDBs.0.convs.0.conv.0.weight"].shape[0],
            "blocks": count(r"encoder\.RDBs\.(\d+)\."),
            "layers": count(r"encoder\.RDBs\.0\.convs\.(\d+)\."),
        }
        decoder: dict[str, Any] = {"name": options["name"]}
        if options["name"] == "metasr":
            decoder["width"] = state["decoder.hidden.weight"].shape[0]
        elif options["name"] == "liif":
            decoder |= {"depth": count(r"decoder\.imnet\.(\d+)\.") - 1, "width": len(state["decoder.imnet.0.bias"])}
        else:
            decoder |= {
                "depth": count(r"decoder\.synthesis\.(\d+)\."),
                "width": state["decoder.last.weight"].shape[1],
                "modulation": MODULATIONS[options["mode"]],
                "init_q": "decoder.first.weight" in state,
            }
    except KeyError as error:
        raise CheckpointError(
            f"{path} has no weight {error.args[0]}: it is not an RDN checkpoint of arch {options['name']}"
        ) from None
    return parse(ModelConfig, {"encoder": encoder, "decoder": decoder}, str(path))
