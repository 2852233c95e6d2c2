"""Image files as people have them: known by what they hold, and nothing of it dropped without a word."""

import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from diinn.runtime.errors import InputError, SourceError
from diinn.runtime.images import files as image_files
from diinn.runtime.images.headers import PNG, Facts, cut_short, facts
from streamed import clip, count_frames

Image = pytest.importorskip("PIL.Image", reason="no Pillow here, which writes what OpenCV does not")
COLOUR = (200, 100, 50)  # RGB


def plain(alpha: int | None = None, mode: str = "RGB") -> Any:
    picture = Image.new("RGB", (30, 20), COLOUR)
    if alpha is not None:
        picture.putalpha(alpha)
    return picture if mode == "RGB" else picture.convert(mode)


def pictures(count: int) -> list[Any]:
    return [Image.new("RGB", (30, 20), (40 * number, 100, 200)) for number in range(count)]


def warnings_of(caplog: pytest.LogCaptureFixture, path: Path) -> list[str]:
    caplog.clear()
    image_files.read_bgr(path)
    return [record.getMessage().removeprefix(f"{path}: ") for record in caplog.records]


ENDINGS = {
    "p.jfif": "JPEG",
    "p.jpe": "JPEG",
    "p.JPG": "JPEG",
    "p.pnm": "PPM",
    "p.dib": "BMP",
    "p.jp2": "JPEG2000",
    "p": "JPEG",
    "p.1": "PNG",
    "p.dat": "WEBP",
    "p.mpo": "JPEG",
    "p.gif": "GIF",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_images_are_known_by_what_they_hold(run, name: str) -> None:
    plain().save(name, format=ENDINGS[name])
    assert image_files.is_image(Path(name))
    code, _, err = run("--input", name, "--scale", "2", "--output", "one.png", model="nano")
    assert (code, err) == (0, "")
    assert cv2.imread("one.png").shape == (40, 60, 3)
    Path("in").mkdir()
    Path(name).rename(Path("in") / name)
    for pattern, out in (("in", "folder"), (f"in/{name[:1]}*", "glob")):
        assert run("--input", pattern, "--scale", "1", "--output", out, model="nano")[0] == 0
        (written,) = Path(out).iterdir()
        assert written.name in (name, f"{name}.png")
        np.testing.assert_allclose(image_files.read_bgr(written)[5, 5], COLOUR[::-1], atol=12)


def test_a_still_gif_is_an_image_where_opencv_has_no_decoder_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenCV before 4.11."""
    plain().save(tmp_path / "p.gif")
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: None if bytes(data[:3]) == b"GIF" else decode(data, flags))
    np.testing.assert_allclose(image_files.read_bgr(tmp_path / "p.gif")[5, 5], COLOUR[::-1], atol=2)


def test_films_are_no_images(run, photo: np.ndarray) -> None:
    pictures(4)[0].save("a.gif", save_all=True, append_images=pictures(4)[1:])
    Path("r.mjpeg").write_bytes(cv2.imencode(".jpg", photo)[1].tobytes() * 3)
    clip(Path("f.avi"), 2)
    plain().save("raw.dng", format="TIFF")  # what stands first in one is a thumbnail
    for name, count in (("a.gif", 4), ("r.mjpeg", 3), ("f.avi", 2)):
        assert not image_files.is_image(Path(name))
        assert run("--input", name, "--scale", "1", "--output", "o.mkv", model="nano")[0] == 0
        assert count_frames(Path("o.mkv"))[0] == count
    assert not image_files.is_image(Path("raw.dng"))


def test_several_pictures_in_one_file_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mpo = {"format": "MPO"}
    options = {"p.png": {}, "p.webp": {"lossless": True}, "p.tif": {}, "p.gif": {}, "p.mpo": {}, "p.jpg": mpo}
    for name, more in options.items():
        first, *others = pictures(3)
        first.save(tmp_path / name, save_all=True, append_images=others, **more)
        assert warnings_of(caplog, tmp_path / name) == ["it holds several pictures, the first is taken"], name
        assert warnings_of(caplog, tmp_path / name) == []  # once
        pictures(1)[0].save(tmp_path / f"one-{name}", **more)
        assert warnings_of(caplog, tmp_path / f"one-{name}") == []


def test_a_smaller_picture_or_a_gain_map_in_a_jpeg_is_no_second_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = pictures(2)
    first.save(tmp_path / "p.jpg", "MPO", save_all=True, append_images=[second])
    data = (tmp_path / "p.jpg").read_bytes()
    kind = data.find(b"MPF\0") + 4 + 50 + 16 + 2  # of the second picture in the list
    assert facts(data).pictures == 2
    assert facts(data[:kind] + b"\1" + data[kind + 1 :]).pictures == 1
    assert facts(data + b"http://ns.adobe.com/hdr-gain-map/1.0/").pictures == 1


def test_formats_whose_colours_come_out_wrong_are_refused(run) -> None:
    Path("c.pam").write_bytes(
        b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes((9, 60, 200))
    )
    Path("c.pnm").write_bytes(Path("c.pam").read_bytes())
    Path("c.pfm").write_bytes(b"PF\n1 1\n-1.0\n" + np.float32([0.1, 0.5, 0.9]).tobytes())
    for name in ("c.pam", "c.pnm", "c.pfm"):
        code, _, err = run("--input", name, "--scale", "1", "--output", "o.png", model="nano")
        assert (code, err.count("\n")) == (2, 1)
        assert f"'{name}' is a PAM or PFM, whose colours OpenCV gets wrong: convert it to PNG" in err
    for ending in (".pam", ".pfm"):
        assert not image_files.can_write(ending)


def test_thumbnails_and_masks_of_a_tiff_are_no_pictures(tmp_path: Path) -> None:
    first, second = pictures(2)
    first.save(tmp_path / "p.tif", save_all=True, append_images=[second])
    data = bytearray((tmp_path / "p.tif").read_bytes())
    assert facts(bytes(data)) == Facts(2)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    (second_at,) = struct.unpack_from("<I", data, at + 2 + 12 * count)
    struct.pack_into("<HHII", data, second_at + 2, 254, 4, 1, 1)  # its first tag becomes NewSubfileType, a thumbnail
    assert facts(bytes(data)) == Facts(1)


def associated(path: Path) -> None:
    """Call the alpha of a TIFF associated, and have its colours multiplied by it."""
    picture = np.asarray(Image.open(path)).astype(float)
    picture[..., :3] = np.rint(picture[..., :3] * picture[..., 3:] / 255)
    Image.fromarray(picture.astype(np.uint8), "RGBA").save(path)
    data = bytearray(path.read_bytes())
    found = facts(bytes(data))
    assert found is not None
    data[found.alpha_at] = 1
    path.write_bytes(data)


SEE_THROUGH: dict[str, Callable[[Path], None]] = {
    "rgba.png": lambda path: plain(128).save(path),
    "la.png": lambda path: plain(128, "LA").save(path),
    "colour.png": lambda path: plain().save(path, transparency=COLOUR),
    "palette.png": lambda path: plain().quantize(4).save(path, transparency=0),
    "rgba.webp": lambda path: plain(128).save(path, lossless=True),
    "lossy.webp": lambda path: plain(128).save(path, quality=95),
    "rgba.tif": lambda path: plain(128).save(path),
    "lzw.tif": lambda path: plain(128).save(path, compression="tiff_lzw"),
    "turned.tif": lambda path: plain(128).save(path, tiffinfo={274: 3}),
    "la.tif": lambda path: plain(128, "LA").save(path),
    "16.tif": lambda path: cv2.imwrite(str(path), np.full((20, 30, 4), (50, 100, 200, 128), np.uint16) * 257),
    "unnamed.tif": lambda path: cv2.imwrite(str(path), np.full((20, 30, 4), (50, 100, 200, 128), np.uint8)),
    "multiplied.tif": lambda path: (plain(128).save(path), associated(path)),  # type: ignore[dict-item,return-value]
    "rgba.jp2": lambda path: plain(128).save(path),
}


@pytest.mark.parametrize("name", SEE_THROUGH)
def test_transparency_is_dropped_with_a_word_and_colours_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = tmp_path / name
    SEE_THROUGH[name](path)
    assert "transparency is dropped" in warnings_of(caplog, path)
    colour = (124,) * 3 if name.startswith("la") else COLOUR[::-1]
    np.testing.assert_allclose(image_files.read_bgr(path)[5, 5], colour, atol=1 if name != "lossy.webp" else 4)


def test_16_bits_are_said_of_every_format(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deep = np.full((20, 30, 3), (50, 100, 200), np.uint16) * 257
    for ending in (".png", ".tif", ".ppm"):
        cv2.imwrite(str(tmp_path / f"d{ending}"), deep)
        assert warnings_of(caplog, tmp_path / f"d{ending}") == ["16 bits become 8"], ending
        cv2.imwrite(str(tmp_path / f"s{ending}"), (deep // 257).astype(np.uint8))
        assert warnings_of(caplog, tmp_path / f"s{ending}") == [], ending


def test_fill_bytes_in_a_jpeg_are_no_damage(tmp_path: Path, photo: np.ndarray) -> None:
    data = cv2.imencode(".jpg", photo)[1].tobytes()
    at = 2 + 2 + int.from_bytes(data[4:6], "big")  # the second segment
    filled = data[:2] + b"\xff" * 3 + data[2:at] + b"\xff" * 500 + data[at:]
    (tmp_path / "fill.jpg").write_bytes(filled)
    np.testing.assert_array_equal(
        image_files.read_bgr(tmp_path / "fill.jpg"), cv2.imdecode(np.frombuffer(data, np.uint8), 1)
    )
    for length in (2, 20, at + 3, at + 200, len(filled) - 2):
        assert cut_short(filled[:length]), length


def test_what_is_said_of_a_file_takes_no_damage_amiss() -> None:
    """Any beginning of a file, and any with a byte changed, is looked at without an exception."""
    data = [b"", PNG, b"II*\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff"]
    chunk = b"acTL" + struct.pack(">II", 3, 0)
    data.append(PNG + bytes(30) + struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    loop = struct.pack("<4sIHHHIII", b"II*\0", 8, 1, 338, 3, 1, 2, 8)  # its next directory is itself
    assert facts(loop) == Facts(1, True, False, 2, 18)
    listed = struct.pack("<4sIHHHIIII", b"II*\0", 8, 1, 0xB002, 7, 32, 22, 0, 0) + bytes(24)
    several = b"\xff\xd8\xff\xe2" + struct.pack(">H", 6 + len(listed)) + b"MPF\0" + listed
    assert facts(several) == Facts(2)
    for whole in [*data, loop, several]:
        for length in range(len(whole)):
            facts(whole[:length])
            cut_short(whole[:length])
        for at, value in itertools.product(range(len(whole)), (0, 127, 255)):
            facts(whole[:at] + bytes([value]) + whole[at + 1 :])


def test_an_image_that_its_format_cannot_hold_is_told_another(tmp_path: Path) -> None:
    for ending, most in ((".jpg", 65500), (".webp", 16383)):
        with pytest.raises(InputError, match=rf"{ending} images are at most {most} pixels .* not \d+x1: use .png"):
            image_files.write(tmp_path / f"x{ending}", np.zeros((1, most + 40, 3), np.uint8))
    with pytest.raises(InputError, match=r"cannot write 4x4 as '.pgn'.*: use .png or .jpg"):
        image_files.write(tmp_path / "x.pgn", np.zeros((4, 4, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_an_image_that_cannot_be_written_leaves_the_others(run) -> None:
    Path("in").mkdir()
    for name, width in (("a.png", 8), ("b.png", 16_400), ("c.png", 8)):
        cv2.imwrite(f"in/{name}", np.zeros((1, width, 3), np.uint8))
    code, _, err = run("--input", "in", "--scale", "1", "--output", "out/*.webp", model="nano")
    assert code == 1
    assert "at most 16383 pixels" in err
    assert "1 of 3 images could not be written" in err
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.webp", "c.webp"]


def test_a_file_that_is_nothing_of_the_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"II*\0" + bytes(40))
    with pytest.raises(SourceError, match="is not an image OpenCV can decode"):
        image_files.read_bgr(tmp_path / "x.png")
