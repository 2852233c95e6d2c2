"""A checkpoint to a bundle: graphs, description, golden sample, checked before it is moved into place."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from diinn.export import arguments, fp16_acceptance, graphs, parity, quantize
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.bundles import golden
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.geometry import grid
from diinn.runtime.noise.strength import Dial
from diinn.train import checkpoint, protocol
from diinn.train import estimator as estimators
from diinn.train.config import plain
from diinn.train.estimator import Estimator
from diinn.train.model import SuperResolutionModel

ESTIMATOR = Path(checkpoint.__file__).parent / "checkpoints" / "estimator.pth"  # the shipped models'


@dataclass(frozen=True)
class Exported:
    """The result of an export: the bundle's path, and the parity table."""

    path: Path
    rows: list[parity.Row]


def export(
    source: Path,
    out: Path | None = None,
    *,
    quality: Mapping[str, Any] | None = None,
    licence: str = "unspecified",
    estimator: Path = ESTIMATOR,
) -> Exported:
    """Write the bundle of checkpoint ``source`` to ``out`` (default: beside it, NAME.diinn).

    quality: scores to put on its card
    estimator: for a model with a dial, the estimator of frames' strengths: a file that ``diinn-train estimator`` wrote

    A bundle of that name is replaced at the end, in one step; on failure nothing is left and the old one stays.

    Raises CheckpointError, InputError, or DiinnError when the graphs differ from PyTorch.
    """
    loaded = checkpoint.load(source)
    network = _estimator(estimator, loaded.model) if loaded.model.config.dial is not None else None
    target = out or source.with_suffix(bundles.SUFFIX)
    with _draft(target) as draft:
        _write(draft, loaded, {"sha256": bundles.sha256(source), "step": loaded.step}, quality or {}, licence, network)
        rows = parity.compare(loaded.model, draft)
    return Exported(target, rows)


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A folder to fill; it becomes ``target`` at the end, in one step, or nothing is left of it."""
    if target.suffix != bundles.SUFFIX:
        raise InputError(
            f"--out {str(target)!r} does not end in {bundles.SUFFIX}: name it {target.stem}{bundles.SUFFIX}"
        )
    if target.exists() and not (target / "bundle.json").is_file():
        raise InputError(f"{str(target)!r} exists and is not a bundle: choose another --out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"cannot write to {str(target.parent)!r}: {error.strerror}: choose another --out") from None
    try:
        draft = workplace / target.name
        draft.mkdir()
        yield draft
        _put_in_place(draft, target, workplace / "replaced")
    except OSError as error:
        raise DiinnError(f"cannot write {str(target)!r}: {error.strerror or error}; nothing was left behind") from None
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _write(
    folder: Path,
    loaded: checkpoint.Checkpoint,
    source: Mapping[str, Any],
    quality: Mapping[str, Any],
    licence: str,
    estimator: Estimator | None,
) -> None:
    model = loaded.model
    maps = graphs.map_specs(model)
    encoder = graphs.encoder(model, folder / "encoder.onnx")
    plain_decoder = graphs.decoder(model, folder / "decoder.onnx")
    graphs.gather_decoder(plain_decoder, maps, folder / "gather_decoder.onnx")
    files = {"fp32": {role: f"{role}.onnx" for role in bundles.ROLES["fp32"]}}
    measured = {}
    try:
        half = fp16_acceptance.make(encoder, plain_decoder, model.decoder.layout, _dial(model))
    except DiinnError as error:
        measured["fp16"] = {"left_out": str(error)}
    else:
        files["fp16"] = {role: f"{role}.fp16.onnx" for role in bundles.ROLES["fp16"]}
        onnx.save(half.encoder, folder / files["fp16"]["encoder"])
        onnx.save(half.decoder, folder / files["fp16"]["decoder"])
        measured["fp16"] = half.card
    layers = graphs.layers(model)
    if layers is not None:
        largest = arguments.largest(encoder, plain_decoder, model.decoder.layout, _dial(model))
        np.savez_compressed(folder / bundles.LAYERS, **layers, largest_argument=largest)
    if estimator is not None:
        graphs.estimator(estimator, folder / bundles.ESTIMATOR)
        parity.compare_estimator(estimator, folder / bundles.ESTIMATOR)
    np.savez_compressed(folder / "golden.npz", **_golden_sample(model, loaded.scales))
    architecture = plain(model.config)
    description = {
        "format": bundles.FORMAT,
        "version": bundles.VERSION,
        "architecture": {"encoder": architecture["encoder"], "decoder": architecture["decoder"]},
        "scales": list(loaded.scales),
        "normalisation": {"mean": model.config.mean, "std": model.config.std, "applied": "inside encoder and decoder"},
        "colour": "RGB",
        "dial": architecture["dial"],
        "receptive_radius": model.receptive_radius,
        "workspace_bytes_per_pixel": graphs.workspace_bytes(encoder),
        "opset": graphs.OPSET,
        "maps": [{"name": m.name, "channels": m.channels} for m in maps],
        "folded": model.decoder.folded,
        "query": list(model.decoder.layout.columns),
        "graphs": files,
        "measured": measured,
        "files": {p.name: bundles.sha256(p) for p in sorted(folder.iterdir())},
        "source": source,
        "quality": quality,
        "licence": licence,
    }
    (folder / "bundle.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _dial(model: SuperResolutionModel) -> Dial | None:
    found = model.config.dial
    return None if found is None else Dial(found.noise, found.compression)


def _estimator(path: Path, model: SuperResolutionModel) -> Estimator | None:
    """The estimator of ``path``, if it was trained for the model's dial; None for a clone without the shipped one."""
    if path == ESTIMATOR and not path.exists():
        return None
    found = estimators.load(path)
    if found.dial != model.config.dial:
        raise InputError(
            f"{path} estimates noise up to {found.dial.noise:g} and compression up to {found.dial.compression:g}, the "
            "model was trained for another range: train an estimator for it, diinn-train estimator"
        )
    return found


def _golden_sample(model: SuperResolutionModel, scales: tuple[float, float]) -> dict[str, Any]:
    """The golden frame's three views as PyTorch computes them."""
    frame = golden.frame()
    sample: dict[str, Any] = {"frame": frame, "tolerance": np.float32(parity.TOLERANCE), **golden.arguments()}
    dial = model.config.dial
    if dial is not None:
        most = (dial.noise, dial.compression)
        sample["strengths"] = np.array([(0, 0), tuple(n / 2 for n in most), most], np.float64)
    rgb = torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1).float() / 255
    for number, strength in enumerate(golden.strengths(sample, dial=dial is not None)):
        for name, view in golden.views(sample, model.decoder.layout).items():
            queries = view.queries((frame.shape[1], frame.shape[0]), scales, model.decoder.layout)
            out = protocol.decode(model, rgb, queries, (strength.noise, strength.compression)).numpy()
            if queries.outside is not None:
                out[queries.outside] = view.border_value
            image = out.reshape(*queries.shape, 3)[..., ::-1]
            sample[golden.output(name, number)] = image.astype(np.float32)
    return sample


def add_int8(bundle: bundles.Bundle, frames: Sequence[grid.Float32], target: Path) -> quantize.Quantised:
    """A copy of ``bundle`` with int8 graphs calibrated on ``frames`` (see ``quantize.make``).

    target: where it is written; may be replaced
    """
    if "fp16" not in bundle.graphs:
        bundle.graph("encoder", "fp16")  # raises with the reason: int8 graphs are fp16 elsewhere
    encoder, decoder = (onnx.load(bundle.graph(role)) for role in bundles.ROLES["int8"])
    arguments = bundle.measured.get("fp16", {}).get("sine_arguments") != "fp16"
    with _draft(target) as draft:
        made = quantize.make(encoder, decoder, bundle.layout, frames, bundle.dial, arguments=arguments)
        shutil.copytree(bundle.path, draft, dirs_exist_ok=True)
        description = json.loads((draft / "bundle.json").read_text(encoding="utf-8"))
        names = {role: f"{role}.int8.onnx" for role in bundles.ROLES["int8"]}
        for role, graph in zip(names, (made.encoder, made.decoder), strict=True):
            onnx.save(graph, draft / names[role])
            description["files"][names[role]] = bundles.sha256(draft / names[role])
        description["graphs"]["int8"] = names
        description["measured"]["int8"] = made.card
        (draft / "bundle.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        bundles.load(draft)
    return made


def _put_in_place(draft: Path, target: Path, aside: Path) -> None:
    """Rename ``draft`` to ``target``; a bundle of that name is removed only once the new one is in place."""
    if not target.exists():
        draft.rename(target)
        return
    target.rename(aside)
    try:
        draft.rename(target)
    except BaseException:
        aside.rename(target)
        raise
