"""The networks that the benchmarks compare, as checkpoint, bundle and published form."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diinn.export import writer
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.errors import InputError
from diinn.train import checkpoint
from diinn.train.config import parse
from diinn.train.model import ModelConfig, SuperResolutionModel

# The paper's network (section 3.3): RDN-B, two 4-layer MLPs of 256 units.
PAPER = {"encoder": {"name": "rdn"}, "decoder": {"name": "diinn", "depth": 4, "width": 256}}
NAMES = ("paper", *bundles.shipped())


@dataclass(frozen=True)
class Network:
    """A network as PyTorch model and as bundle, the same weights in both."""

    name: str
    model: SuperResolutionModel
    bundle: Path


@contextmanager
def network(name: str) -> Iterator[Network]:
    """``paper``, or a shipped model, with random weights.

    Speed does not depend on the weights, and a bundle holds none for PyTorch.
    """
    torch.manual_seed(0)
    if name == "paper":
        values: object = PAPER
    elif name in bundles.shipped():
        bundle = bundles.load(name)
        values = {**bundle.architecture, "dial": asdict(bundle.dial) if bundle.dial else None}
    else:
        raise InputError(f"no network {name!r}: choose one of {', '.join(NAMES)}")
    model = SuperResolutionModel(parse(ModelConfig, values, name)).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.pth"
        checkpoint.save(path, checkpoint.Checkpoint(model, (1.0, 4.0)))
        yield Network(name, model, writer.export(path).path)
