"""A tiny model with random weights: its checkpoint and its bundles.

``python tests/tiny.py FOLDER`` makes the bundles for an environment without PyTorch, whose tests find them there.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path


def checkpoint(path: Path) -> Path:
    """Of a model with a dial, at ``path``."""
    import torch
    from diinn.train import checkpoint
    from diinn.train.decoders import DiinnConfig
    from diinn.train.encoders import CompactConfig
    from diinn.train.model import DialConfig, ModelConfig, SuperResolutionModel

    torch.manual_seed(1)
    encoder, decoder = CompactConfig(channels=16, blocks=1), DiinnConfig(depth=3, width=16)
    model = SuperResolutionModel(ModelConfig(encoder, decoder, dial=DialConfig()))
    checkpoint.save(path, checkpoint.Checkpoint(model, (1.0, 4.0), 7))
    return path


def rehash(folder: Path) -> None:
    """Make a bundle's bundle.json agree with its files again."""
    from diinn.runtime.bundles import bundle as bundles

    values = json.loads((folder / "bundle.json").read_text())
    values["files"] = {name: bundles.sha256(folder / name) for name in values["files"]}
    (folder / "bundle.json").write_text(json.dumps(values))


def bundle(checkpoint: Path, folder: Path) -> Path:
    """``tiny.diinn`` in ``folder``."""
    from diinn.export import writer

    return writer.export(checkpoint, folder / "tiny.diinn").path


def dialless(path: Path, folder: Path) -> Path:
    """``plain.diinn`` in ``folder``, of version 2, which knows no dial, of the same model without its dial."""
    from diinn.export import writer
    from diinn.train import checkpoint
    from diinn.train.model import SuperResolutionModel

    known = checkpoint.load(path)
    model = SuperResolutionModel(replace(known.model.config, dial=None))
    state = dict(known.model.state_dict())
    state["encoder.head.weight"] = state["encoder.head.weight"][:, :3]
    model.load_state_dict(state)
    checkpoint.save(folder / "plain.pth", replace(known, model=model))
    made = writer.export(folder / "plain.pth").path
    description = json.loads((made / "bundle.json").read_text())
    assert description.pop("dial") is None
    (made / "bundle.json").write_text(json.dumps(description | {"version": 2}))
    return made


def of_layers(folder: Path, width: int, depth: int, **decoder: object) -> Path:
    """The bundle of a model with random weights and a decoder of that width and depth, in ``folder``."""
    import torch
    from diinn.export import writer
    from diinn.train import checkpoint
    from diinn.train.config import parse
    from diinn.train.model import ModelConfig, SuperResolutionModel

    torch.manual_seed(width + depth)
    values = {
        "encoder": {"name": "compact", "channels": 8, "blocks": 1},
        "decoder": {"name": "diinn", "depth": depth, "width": width, **decoder},
        "dial": {},
    }
    path = folder / f"k{width}n{depth}.pth"
    model = SuperResolutionModel(parse(ModelConfig, values, "test"))
    with torch.no_grad():
        for layer in model.decoder.get_submodule("synthesis"):
            layer.weight *= 2  # arguments beyond one period
    checkpoint.save(path, checkpoint.Checkpoint(model, (1.0, 4.0)))
    return writer.export(path).path


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    made = checkpoint(target / "tiny.pth")
    bundle(made, target)
    dialless(made, target)
