"""The folded network against the published form, written from the paper alone."""

import numpy as np
import pytest
import torch
from diinn.train import protocol
from diinn.train.config import parse
from diinn.train.encoders import ResidualEncoder
from diinn.train.model import ModelConfig, SuperResolutionModel
from diinn.train.published import PublishedModel, positional_features

TINY_RDN = {"name": "rdn", "channels": 8, "growth": 4, "blocks": 2, "layers": 3}


def build(encoder: dict[str, object], depth: int, width: int) -> SuperResolutionModel:
    torch.manual_seed(depth)
    values = {"encoder": encoder, "decoder": {"name": "diinn", "depth": depth, "width": width}}
    return SuperResolutionModel(parse(ModelConfig, values, "test")).eval()


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize(
    ("lr", "out"), [((7, 9), (14, 27)), ((9, 5), (31, 17)), ((5, 7), (18, 23)), ((13, 11), (13, 11))]
)
def test_folded_is_published(depth: int, lr: tuple[int, int], out: tuple[int, int]) -> None:
    model = build(TINY_RDN, depth, 12)
    frame = torch.rand(3, *lr)
    with torch.inference_mode():
        wanted = PublishedModel(model)(frame[None], out)[0]
    torch.testing.assert_close(protocol.super_resolve(model, frame, out), wanted, atol=2e-6, rtol=0)


def test_positional_features_of_figure_3() -> None:
    y, x, ratio = positional_features((2, 2), (4, 4))[0]
    assert y[:, 0].tolist() == [-0.5, 0.5, -0.5, 0.5]
    assert x[0].tolist() == [-0.5, 0.5, -0.5, 0.5]
    assert (ratio == 0.25).all()


def test_rdn_b_has_the_papers_size() -> None:
    with torch.device("meta"):
        model = build({"name": "rdn"}, 4, 256)
    assert sum(p.numel() for p in model.encoder.parameters()) == pytest.approx(21.97e6, rel=1e-3)
    assert model.encoder.channels == 64


def test_edsr_baseline_is_16_blocks_of_64() -> None:
    encoder = build({"name": "edsr"}, 1, 4).encoder
    assert isinstance(encoder, ResidualEncoder)
    assert encoder.channels == 64
    assert len(encoder.blocks) == 16


@pytest.mark.parametrize("encoder", [TINY_RDN, {"name": "compact", "channels": 8, "blocks": 2}])
def test_the_receptive_radius_is_exact(encoder: dict[str, object]) -> None:
    model = build(encoder, 2, 4)
    radius, size = model.receptive_radius, 41
    for parameter in model.parameters():  # all positive: no path can cancel
        parameter.data.abs_().add_(0.01)
    frame = torch.rand(1, 3, size, size).requires_grad_()
    model.encode(frame)[0][0, size // 2, size // 2].sum().backward()
    assert frame.grad is not None
    touched = np.flatnonzero(frame.grad[0].abs().sum((0, 1)).numpy())
    assert touched.tolist() == list(range(size // 2 - radius, size // 2 + radius + 1))


def test_training_forward_is_decode_of_encode() -> None:
    model = build(TINY_RDN, 3, 8)
    frames = torch.rand(2, 3, 6, 5)
    index = torch.tensor([0, 29, 30, 59])  # first and last pixel of both frames
    query = torch.rand(4, 3)
    rows = tuple(m.reshape(-1, 8)[index] for m in model.encode(frames))
    torch.testing.assert_close(model(frames, index, query), model.decode(rows, query))
