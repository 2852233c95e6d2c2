"""The folded networks against the published forms, written from the papers alone."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from diinn.runtime.geometry import grid
from diinn.train import protocol
from diinn.train.config import parse
from diinn.train.encoders import ResidualEncoder
from diinn.train.model import ModelConfig, SuperResolutionModel
from diinn.train.published import PublishedModel, positional_features

TINY_RDN = {"name": "rdn", "channels": 8, "growth": 4, "blocks": 2, "layers": 3}
DECODERS = {
    "a": {"name": "diinn", "depth": 3, "width": 12, "modulation": "m", "init_q": True},
    "b": {"name": "diinn", "depth": 3, "width": 12, "modulation": "m"},
    "c": {"name": "diinn", "depth": 3, "width": 12, "modulation": "mz", "init_q": True},
    "d": {"name": "diinn", "depth": 3, "width": 12, "modulation": "mz"},
    "e": {"name": "diinn", "depth": 3, "width": 12, "modulation": "sz", "init_q": True},
    "f": {"name": "diinn", "depth": 3, "width": 12},
    "one layer": {"name": "diinn", "depth": 1, "width": 12},
    "LIIF": {"name": "liif", "depth": 3, "width": 12},
    "Meta-SR": {"name": "metasr", "width": 12},
}
# LR and output (height, width), scales on both sides of 2; no output centre or corner on a border between LR pixels
SIZES = [((7, 9), (11, 16)), ((9, 5), (31, 17)), ((5, 7), (18, 23)), ((13, 11), (23, 41)), ((5, 11), (43, 61))]


def build(encoder: dict[str, object], decoder: dict[str, object]) -> SuperResolutionModel:
    """Random weights, larger than at the start of training, so that every term shows."""
    torch.manual_seed(3)
    model = SuperResolutionModel(parse(ModelConfig, {"encoder": encoder, "decoder": decoder}, "test")).eval()
    for parameter in model.decoder.parameters():
        parameter.data *= 2
    return model


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS.keys())
@pytest.mark.parametrize(("lr", "out"), SIZES)
def test_folded_is_published(decoder: dict[str, object], lr: tuple[int, int], out: tuple[int, int]) -> None:
    model = build(TINY_RDN, decoder)
    frame = torch.rand(3, *lr)
    with torch.inference_mode():
        wanted = PublishedModel(model)(frame[None], out)[0]
    assert wanted.std() > 0.01
    torch.testing.assert_close(protocol.super_resolve(model, frame, out), wanted, atol=1e-5, rtol=0)


def tied(lr: tuple[int, int], out: tuple[int, int], layout: grid.Layout) -> np.ndarray:
    """Output pixels whose position, shifted as the layout says, lies on a border between LR pixels, bool [h, w]."""
    masks = []
    for n_in, n_out in zip(lr, out, strict=True):
        positions = [Fraction((2 * i + (not layout.corner)) * n_in, 2 * n_out) for i in range(n_out)]
        masks.append([any((p + Fraction(shift, 2)) % 1 == 0 for shift in layout.shifts) for p in positions])
    return np.logical_or.outer(*map(np.array, masks))  # type: ignore[no-any-return]


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS.keys())
@pytest.mark.parametrize(("lr", "out"), [((8, 6), (16, 12)), ((8, 6), (20, 9)), ((16, 10), (32, 45)), ((7, 9), (7, 9))])
def test_folded_is_published_but_where_ties_fall_either_way(
    decoder: dict[str, object], lr: tuple[int, int], out: tuple[int, int]
) -> None:
    model = build(TINY_RDN, decoder)
    frame = torch.rand(3, *lr)
    with torch.inference_mode():
        wanted = PublishedModel(model)(frame[None], out)[0]
    gap = (protocol.super_resolve(model, frame, out) - wanted).abs().amax(0).numpy()
    layout = model.decoder.layout
    # LIIF and Meta-SR move a coordinate by 1e-6 and send ties to the later pixel, as the integers do.
    free = ~tied(lr, out, layout) if layout is grid.NEAREST else np.ones(out, bool)
    assert free.any()
    assert gap[free].max() < 1e-5


def test_meta_sr_and_liif_depend_on_what_their_papers_say() -> None:
    """Meta-SR knows the scale of the y axis alone, LIIF the cell of both, DIINN the area."""
    for layout, same in ((grid.CORNER, [True, False]), (grid.ENSEMBLE, [False, False]), (grid.NEAREST, [False, False])):
        first = grid.resize((8, 8), (24, 24), layout).arrays()[1][0, 2:]
        wider, taller = (grid.resize((8, 8), size, layout).arrays()[1][0, 2:] for size in ((40, 24), (24, 40)))
        rest = slice(0, 2) if layout is grid.ENSEMBLE else slice(0, 1)
        assert [bool((first[rest] == other[rest]).all()) for other in (wider, taller)] == same


def test_positional_features_of_figure_3() -> None:
    y, x, ratio = positional_features((2, 2), (4, 4))[0]
    assert y[:, 0].tolist() == [-0.5, 0.5, -0.5, 0.5]
    assert x[0].tolist() == [-0.5, 0.5, -0.5, 0.5]
    assert (ratio == 0.25).all()


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        papers = build({"name": "rdn"}, {"name": "diinn"})
        liif, metasr = (build({"name": "rdn"}, {"name": name}) for name in ("liif", "metasr"))
    assert sum(p.numel() for p in papers.encoder.parameters()) == pytest.approx(21.97e6, rel=1e-3)
    assert papers.encoder.channels == 64
    wanted = {"liif": 580 * 256 + 256 + 3 * (256 * 256 + 256) + 256 * 3 + 3, "metasr": 4 * 256 + 257 * 1728}
    assert sum(p.numel() for p in liif.decoder.parameters()) == wanted["liif"]
    assert sum(p.numel() for p in metasr.decoder.parameters()) == wanted["metasr"]


def test_edsr_baseline_is_16_blocks_of_64() -> None:
    encoder = build({"name": "edsr"}, DECODERS["one layer"]).encoder
    assert isinstance(encoder, ResidualEncoder)
    assert encoder.channels == 64
    assert len(encoder.blocks) == 16


@pytest.mark.parametrize("encoder", [TINY_RDN, {"name": "compact", "channels": 8, "blocks": 2}])
@pytest.mark.parametrize("decoder", ["b", "e", "f", "LIIF", "Meta-SR"])
def test_the_receptive_radius_is_exact(encoder: dict[str, object], decoder: str) -> None:
    model = build(encoder, DECODERS[decoder])
    radius, size = model.receptive_radius, 41
    for parameter in model.parameters():  # all positive: no path can cancel
        parameter.data.abs_().add_(0.01)
    frame = torch.rand(1, 3, size, size).requires_grad_()
    queries = grid.resize((size, size), (3 * size, 3 * size), model.decoder.layout)
    index, query = (torch.from_numpy(a) for a in queries.arrays(np.array([(3 * size + 1) * (3 * size // 2)])))
    maps = [m.reshape(-1, m.shape[-1])[index.long()] for m in model.encode(frame)]
    (sum(m.sum() for m in maps) * query.sum()).backward()  # type: ignore[union-attr]
    assert frame.grad is not None
    touched = np.flatnonzero(frame.grad[0].abs().sum((0, 1)).numpy())
    first = int(index[0]) % size
    reach = int(index.max() % size) - first
    wanted = radius - (len(model.decoder.layout.shifts) - 1)
    assert touched.tolist() == list(range(first - wanted, first + reach + wanted + 1))
    assert reach <= radius - wanted


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS.keys())
def test_training_forward_is_decode_of_encode(decoder: dict[str, object]) -> None:
    model = build(TINY_RDN, decoder)
    frames = torch.rand(2, 3, 6, 5)
    samples = model.decoder.layout.samples
    index = torch.tensor([0, 29, 30, 59]).repeat_interleave(samples)  # first and last pixel of both frames
    query = torch.rand(4 * samples, len(model.decoder.layout.columns))
    rows = tuple(m.reshape(-1, m.shape[-1])[index] for m in model.encode(frames))
    rgb = model(frames, index, query)
    assert rgb.shape == (4, 3)
    torch.testing.assert_close(rgb, model.decode(rows, query))
