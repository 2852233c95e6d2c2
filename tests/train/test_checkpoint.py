"""Checkpoints: ours, the authors', and files that are neither."""

import collections
import os
import re
import time
import zipfile
from pathlib import Path

import pytest
import torch
from diinn.runtime import CheckpointError
from diinn.train import checkpoint, protocol
from diinn.train.config import parse
from diinn.train.model import ModelConfig, SuperResolutionModel
from diinn.train.published import PublishedModel

RDN = {"name": "rdn", "channels": 8, "growth": 4, "blocks": 2, "layers": 3}
DECODERS = {
    "diinn": {"name": "diinn", "depth": 4, "width": 16},
    "liif": {"name": "liif", "depth": 4, "width": 16},
    "metasr": {"name": "metasr", "width": 16},
}


def authors_names(model: SuperResolutionModel) -> dict[str, torch.Tensor]:
    """The state dict under the names of the authors' code: theirs are Sequential(Conv2d, activation), and MLPs whose
    activations count as layers."""
    state = {}
    for name, value in PublishedModel(model).state_dict().items():
        name = re.sub(r"^decoder\.(K\.\d+|Q\.\d+|first_layer)\.", r"decoder.\1.0.", name)
        name = re.sub(r"^decoder\.imnet\.", "imnet.layers.", name)
        state[f"net.{name}"] = value
    return state


def authors_file(path: Path, decoder: dict[str, object], **options: object) -> SuperResolutionModel:
    """A Lightning checkpoint as the authors' code writes it, of a small RDN."""
    torch.manual_seed(0)
    model = SuperResolutionModel(parse(ModelConfig, {"encoder": RDN, "decoder": decoder}, "test"))
    state = collections.OrderedDict(authors_names(model))
    state["sub"] = state["div"] = torch.full((1, 3, 1, 1), 0.5)
    torch.save(
        {
            "epoch": 49,
            "global_step": 4000,
            "pytorch-lightning_version": "1.6.0",
            "state_dict": state,
            "optimizer_states": [],
            "lr_schedulers": [{"milestones": collections.Counter({10: 1}), "gamma": 0.5}],
            "hyper_parameters": {"arch": decoder["name"], "mode": 3, "init_q": False, **options},
        },
        path,
    )
    return model


def assert_loads(path: Path, model: SuperResolutionModel) -> None:
    loaded = checkpoint.load(path)
    assert loaded.model.config == model.config
    assert loaded.step == 4000
    frame = torch.rand(3, 7, 9)
    with torch.inference_mode():
        wanted = PublishedModel(model)(frame[None], (15, 22))[0]
    torch.testing.assert_close(protocol.super_resolve(loaded.model, frame, (15, 22)), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["epoch=49.ckpt", "diinn.pth", "no-ending"])
def test_the_authors_checkpoints_load(tmp_path: Path, name: str) -> None:
    assert_loads(tmp_path / name, authors_file(tmp_path / name, DECODERS["diinn"]))


@pytest.mark.parametrize("arch", ["liif", "metasr"])
def test_the_authors_rivals_load(tmp_path: Path, arch: str) -> None:
    assert_loads(tmp_path / "a.ckpt", authors_file(tmp_path / "a.ckpt", DECODERS[arch]))


@pytest.mark.parametrize(("mode", "modulation"), [(1, "m"), (2, "mz"), (3, "sz")])
@pytest.mark.parametrize("init_q", [False, True])
def test_the_authors_variants_load(tmp_path: Path, mode: int, modulation: str, init_q: bool) -> None:
    decoder = {**DECODERS["diinn"], "modulation": modulation, "init_q": init_q}
    assert_loads(tmp_path / "a.ckpt", authors_file(tmp_path / "a.ckpt", decoder, mode=mode, init_q=init_q))


def test_the_names_are_those_of_the_authors_files(tmp_path: Path) -> None:
    authors_file(tmp_path / "a.ckpt", {**DECODERS["diinn"], "init_q": True})
    names = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"].keys()
    assert {"net.encoder.RDBs.1.convs.2.conv.0.weight", "net.encoder.GFF.1.bias", "sub"} <= names
    assert {"net.decoder.K.3.0.weight", "net.decoder.Q.0.0.bias", "net.decoder.first_layer.0.weight"} <= names
    assert "net.decoder.last_layer.weight" in names
    authors_file(tmp_path / "b.ckpt", DECODERS["liif"])
    names = torch.load(tmp_path / "b.ckpt", weights_only=True)["state_dict"].keys()
    assert {"net.imnet.layers.0.weight", "net.imnet.layers.8.bias"} <= names


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"mode": 4}, "mode 4"),
        ({"mode": 7}, "mode 7"),
        ({"arch": "liff"}, "unknown arch 'liff': did you mean 'liif'"),
        ({"arch": "bicubic"}, "unknown arch 'bicubic'"),
        ({"arch": "metasr"}, "no weight decoder.hidden.weight"),
    ],
)
def test_the_authors_other_models_are_refused_by_name(tmp_path: Path, options: dict[str, object], word: str) -> None:
    authors_file(tmp_path / "a.ckpt", DECODERS["diinn"], **options)
    with pytest.raises(CheckpointError, match=word):
        checkpoint.load(tmp_path / "a.ckpt")


def test_ours_comes_back_as_it_was(tmp_path: Path, checkpoint_path: Path) -> None:
    first = checkpoint.load(checkpoint_path)
    checkpoint.save(tmp_path / "again.pth", first)
    again = checkpoint.load(tmp_path / "again.pth")
    assert again.model.config == first.model.config
    assert (again.scales, again.step) == ((1.0, 4.0), 7)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_the_weights_are_stored_in_the_papers_layout(checkpoint_path: Path) -> None:
    state = torch.load(checkpoint_path, weights_only=True)["state"]
    assert state["decoder.modulation.0.weight"].shape == (16, 9 * 16)  # w_0 over z
    assert state["decoder.modulation.1.weight"].shape == (16, 16 + 9 * 16)  # w_1 over [s z]
    assert state["decoder.synthesis.0.weight"].shape == (16, 3)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("code-was-run",)


def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "state": Malicious()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"holds code \(.*\) instead of tensors"):
        checkpoint.load(tmp_path / "evil.pth")
    assert not Path("code-was-run").exists()


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"", "not a checkpoint"), (b"hello", "not a checkpoint"), (b"PK\x03\x04 cut", "not a checkpoint")],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, data: bytes, word: str) -> None:
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=word):
        checkpoint.load(tmp_path / "a.pth")


def test_a_truncated_checkpoint(tmp_path: Path, checkpoint_path: Path) -> None:
    data = checkpoint_path.read_bytes()
    (tmp_path / "a.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoint.load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content",
    [
        {"weights": 1},
        [1, 2],
        {"state_dict": {}, "hyper_parameters": {"arch": "diinn"}},
        {"state_dict": [1], "hyper_parameters": {"arch": "diinn"}},
        {"state_dict": {}, "hyper_parameters": None},
    ],
)
def test_other_pickles(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "a.pth")


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path / "none.pth")
    with (tmp_path / "huge.pth").open("wb") as file:
        file.truncate(40 * 2**30)
    with pytest.raises(CheckpointError, match="is larger than 4 GiB, which no checkpoint here is"):
        checkpoint.load(tmp_path / "huge.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="it is no file; give a"):
        checkpoint.load(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoint.load(tmp_path)


def test_a_file_that_was_damaged_or_cut_short(checkpoint_path: Path, tmp_path: Path) -> None:
    data = bytearray(checkpoint_path.read_bytes())
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"is not a checkpoint, or is truncated|is damaged"):
        checkpoint.load(tmp_path / "cut.pth")
    data[len(data) // 2] ^= 1  # one bit of a weight
    (tmp_path / "flipped.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged \(.*data.*\): copy it again"):
        checkpoint.load(tmp_path / "flipped.pth")


@pytest.mark.parametrize("change", ["lzma", "bomb", "encrypted", "method", "version"])
def test_members_that_pytorch_would_not_write(checkpoint_path: Path, tmp_path: Path, change: str) -> None:
    """Packed ones, damaged or a bomb, are not unpacked; what zipfile cannot read is one line."""
    path = tmp_path / "a.pth"
    kind = {"lzma": zipfile.ZIP_LZMA, "bomb": zipfile.ZIP_DEFLATED}.get(change, zipfile.ZIP_STORED)
    with zipfile.ZipFile(checkpoint_path) as known, zipfile.ZipFile(path, "w", kind) as made:
        for number, item in enumerate(known.infolist()):
            made.writestr(item.filename, bytes(2**27) if change == "bomb" and not number else known.read(item))
    data = bytearray(path.read_bytes())
    first = data.index(b"PK\1\2")
    if change == "lzma":
        data[60:100] = bytes(40)
    elif change != "bomb":
        for at, (local, central), value in (("encrypted", (6, 8), 1), ("method", (8, 10), 93), ("version", (4, 6), 99)):
            if at == change:
                data[local] = data[first + central] = value
    path.write_bytes(data)
    begun = time.process_time()
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged \(.*: copy it again"):
        checkpoint.load(path)
    assert time.process_time() - begun < 2


def damaged(checkpoint_path: Path, path: Path, **changes: object) -> Path:
    torch.save(torch.load(checkpoint_path, weights_only=True) | changes, path)
    return path


def test_contents_that_do_not_fit(tmp_path: Path, checkpoint_path: Path) -> None:
    content = torch.load(checkpoint_path, weights_only=True)
    state = content["state"]
    cases = {
        "version 9": {"version": 9},
        "unknown key in decoder.diinn 'depht': did you mean 'depth'": {
            "model": {**content["model"], "decoder": {"name": "diinn", "depht": 3}}
        },
        "decoder.last.bias has shape missing": {"state": {k: v for k, v in state.items() if k != "decoder.last.bias"}},
        "needs none of that name": {"state": {**state, "extra": torch.zeros(1)}},
        r"has shape \(2,\)": {"state": {**state, "decoder.last.bias": torch.zeros(2)}},
        "decoder.last.bias holds NaN": {"state": {**state, "decoder.last.bias": torch.full((3,), float("nan"))}},
        "damaged": {"scales": None},
        "not tensors by name": {"state": {"a": 1}},
        "blocks = 1000000": {"model": {**content["model"], "encoder": {"name": "compact", "blocks": 10**6}}},
    }
    for word, changes in cases.items():
        with pytest.raises(CheckpointError, match=word):
            checkpoint.load(damaged(checkpoint_path, tmp_path / "a.pth", **changes))
