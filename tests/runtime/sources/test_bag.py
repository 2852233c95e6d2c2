"""Bags as sources: every format that recorders write, whole and cut, and what is wrong with others."""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import bagged
import cv2
import numpy as np
import pytest
from bagged import IMAGE, LATE, Messages, drive, numbered, stamp, write
from diinn.benchmarks.mjpeg_server import burnt
from diinn.runtime import DiinnError, InputError
from diinn.runtime.sources import CaptureOptions, Frame, open_source
from diinn.runtime.sources.bag import BagTopic, in_order
from diinn.runtime.sources.base import Header


def frames(path: Path | str, **options: float) -> list[Frame]:
    source = open_source(str(path), CaptureOptions(**options))
    assert isinstance(source, BagTopic)
    try:
        return list(source.frames())
    finally:
        source.close()


def numbers(found: list[Frame]) -> list[int]:
    return [burnt(frame.image) for frame in found]


KINDS = {
    "drive.bag": {},
    "drive.mcap": {},
    "drive.db3": {},
    "mcap": {},
    "mcap_chunks": {"zstd": "storage"},
    "sqlite": {},
    "sqlite_file": {"zstd": "file"},
    "sqlite_message": {"zstd": "message"},
    "mcap_message": {"zstd": "message"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_of_every_format_with_its_stamp(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / kind, drive(ros1=kind.endswith(".bag")), **KINDS[kind])
    found = frames(path)
    assert numbers(found) == list(range(12))
    headers = [frame.header for frame in found]
    assert [header.stamp for header in headers if header] == [stamp(n) for n in range(12)]
    assert [header.recorded for header in headers if header] == [stamp(n) + LATE for n in range(12)]
    assert {header.frame_id for header in headers if header} == {"front_optical"}
    calibrations = {id(header.calibration): header.calibration for header in headers if header}
    assert len(calibrations) == 1  # it did not change: views need not be made anew
    (calibration,) = calibrations.values()
    assert calibration is not None
    np.testing.assert_array_equal(calibration.k.ravel(), bagged.K)
    assert calibration.distortion.tolist() == bagged.D


def described(folder: Path, part: str) -> None:
    """Name another part in a folder's description."""
    text = (folder / "metadata.yaml").read_text()
    (folder / "metadata.yaml").write_text(text.replace("relative_file_paths:\n", f"relative_file_paths:\n  - {part}\n"))


def test_a_split_bag_is_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "sqlite", drive(6))
    for number, messages in enumerate((drive(5, first=11), drive(5, first=6)), 1):  # in whatever order they are named
        write(tmp_path / f"more{number}.db3", messages).replace(folder / f"more{number}.db3")
        described(folder, f"more{number}.db3")
    found = frames(folder)
    assert numbers(found) == list(range(16))


def test_a_part_of_a_bag_by_its_own_seconds(tmp_path: Path) -> None:
    path = write(tmp_path / "drive.mcap", drive(20))
    assert numbers(frames(path, start=0.5, duration=0.35)) == [5, 6, 7, 8]
    assert numbers(frames(path, start=1.7)) == [17, 18, 19]
    source = open_source(str(path), CaptureOptions(start=1.0))
    assert (source.total, source.timed, round(source.rate or 0)) == (10, True, 10)
    source.close()
    with pytest.raises(InputError, match=r"1\.9 s long: --start 9 is behind its end"):
        open_source(str(path), CaptureOptions(start=9))


def test_topics_by_name(tmp_path: Path) -> None:
    both = drive(3) + drive(3, "/rear/image_raw") + bagged.jpegs(3, "/left/image_raw/compressed")
    path = write(tmp_path / "drive.mcap", both)
    with pytest.raises(
        InputError, match=r"several topics of images, give one as .topic=/front/image_raw, .topic=/left"
    ):
        open_source(str(path))
    for topic in ("/rear/image_raw", "rear/image_raw", "/left/image_raw/compressed"):
        assert numbers(frames(f"{path}?topic={topic}")) == [0, 1, 2]
    with pytest.raises(InputError, match=r"has no topic /read/image_raw.*did you mean '/rear/image_raw'"):
        open_source(f"{path}?topic=/read/image_raw")
    with pytest.raises(InputError, match=r"topic /words of .* is std_msgs/msg/String, no image"):
        open_source(f"{path}?topic=/words")
    with pytest.raises(InputError, match="unknown option 'topics': did you mean 'topic'"):
        open_source(f"{path}?topics=/words")
    with pytest.raises(InputError, match=r"\?topic= names none"):
        open_source(f"{path}?")
    words = write(tmp_path / "words.mcap", [m for m in drive(3) if m[0] == "/words"])
    with pytest.raises(InputError, match="holds no topic of images, but /words"):
        open_source(str(words))


def test_several_topics_are_several_cameras(run, tmp_path: Path) -> None:
    path = write(tmp_path / "drive.mcap", drive(3) + drive(4, "/rear/image_raw"))
    code, out, err = run(
        *("--input", f"{path}?topic=/rear/image_raw&topic=/front/image_raw", "--scale", "1", "--output", "o/"),
        model="nano",
    )
    assert (code, err) == (0, "")
    assert "7 frames" in out
    assert {p.name for p in Path("o").iterdir()} == {"rear_image_raw.mp4", "front_image_raw.mp4"}


def color(encoding: str) -> tuple[np.ndarray, int]:
    """One colour, blue 40, green 90, red 200, in an encoding, [5, 7] or what it takes; and how far off it may be."""
    b, g, r = 40, 90, 200
    deep = encoding.endswith("16")
    pixel = {"rgb": [r, g, b], "bgr": [b, g, r], "8UC3": [b, g, r], "rgba": [r, g, b, 9], "bgra": [b, g, r, 9]}
    name = encoding.removesuffix("16").removesuffix("8")
    if encoding.startswith("bayer"):
        pattern = np.tile(np.array([{"r": r, "g": g, "b": b}[c] for c in name[-4:]]).reshape(2, 2), (3, 4))[:5, :7]
    elif name in ("mono", "8UC1"):
        pattern = np.full((5, 7), g)
    elif name in pixel or encoding in pixel:
        pattern = np.tile(pixel.get(name, pixel.get(encoding)), (5, 7, 1))
    else:  # by BT.601, as video has it
        y, u, v = 117, 90, 180
        pair = [u, y, v, y] if encoding in ("yuv422", "uyvy") else [y, u, y, v]
        return np.tile(np.array(pair, np.uint8).reshape(1, 2, 2), (5, 4, 1)), 3
    return (pattern.astype(np.uint16) << 8 | 77 if deep else pattern.astype(np.uint8)), 0


ENCODINGS = ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "8UC1", "8UC3", "rgb16", "bgr16", "rgba16", "bgra16", "mono16"]
ENCODINGS += ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"]
ENCODINGS += [f"bayer_{name}{bits}" for name in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)]


@pytest.mark.parametrize("ros1", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings(tmp_path: Path, encoding: str, padded: bool, ros1: bool) -> None:
    pixels, most = color(encoding)
    made = Messages(ros1=ros1)
    messages = [
        ("/image", IMAGE, stamp(n), made.image(stamp(n), pixels, encoding, step=80 if padded else 0, big=big))
        for n, big in enumerate((False, True))
    ]
    found = frames(write(tmp_path / ("x.bag" if ros1 else "x.mcap"), messages))
    assert len(found) == 2
    expected = [90, 90, 90] if encoding in ("mono8", "8UC1", "mono16") else [40, 90, 200]
    for frame in found:
        assert frame.image.shape == (*pixels.shape[:2], 3)
        assert np.abs(frame.image.astype(int) - expected).max() <= most


def test_compressed_images(tmp_path: Path) -> None:
    made, picture = Messages(), numbered(5)
    jpeg, png = (cv2.imencode(ending, picture)[1].tobytes() for ending in (".jpg", ".png"))
    deep = cv2.imencode(".png", picture.astype(np.uint16) << 8)[1].tobytes()
    grey = cv2.imencode(".png", picture[..., 0])[1].tobytes()
    forms = [("jpeg", jpeg), ("rgb8; jpeg compressed bgr8", jpeg), ("png", png), ("bgr16; png compressed ", deep)]
    forms += [("mono8; png compressed ", grey), ("", jpeg)]
    messages = [
        ("/c", bagged.COMPRESSED, stamp(n), made.compressed(stamp(n), data, form))
        for n, (form, data) in enumerate(forms)
    ]
    found = frames(write(tmp_path / "x.mcap", messages))
    assert numbers(found) == [5] * 6
    for number in (2, 3):
        np.testing.assert_array_equal(found[number].image, picture)


BAD_ENCODINGS = {
    "nv21": ("nv21", (4, 4), "unknown encoding 'nv21'"),
    "depth": ("16UC1", (4, 4), "unknown encoding '16UC1'"),
    "control": ("\x1b[31m", (4, 4), r"unknown encoding '\\x1b\[31m'"),
    "odd": ("yuv422", (4, 5), "yuv422 images with an odd width of 5"),
}


@pytest.mark.parametrize("name", BAD_ENCODINGS)
def test_an_encoding_that_is_not_taken_is_named(run, tmp_path: Path, name: str) -> None:
    encoding, shape, words = BAD_ENCODINGS[name]
    data = Messages().image(stamp(0), np.zeros((*shape, 2), np.uint8), encoding)
    path = write(tmp_path / "x.mcap", [("/image", IMAGE, stamp(0), data)])
    code, _, err = run("--input", path, "--output", "none", model="nano")
    assert code == 2
    assert err.count("\n") == 1
    with pytest.raises(InputError, match=words):
        frames(path)


def test_raw_images_in_a_compressed_topic_and_depth_are_refused(tmp_path: Path) -> None:
    grey = cv2.imencode(".png", numbered(0)[..., 0])[1].tobytes()
    for form, words in (("bayer_rggb8; png compressed ", "compressed raw images"), ("16UC1; compressedDepth", "depth")):
        data = Messages().compressed(stamp(0), grey, form)
        path = write(tmp_path / f"{words[:5]}.mcap", [("/c", bagged.COMPRESSED, stamp(0), data)])
        with pytest.raises(InputError, match=words):
            frames(path)


def test_damaged_images_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = Messages()
    good = cv2.imencode(".jpg", numbered(3))[1].tobytes()
    data = [good, good[: len(good) // 2], b"", b"GIF89a" + bytes(60), good]
    messages = [("/c", bagged.COMPRESSED, stamp(n), made.compressed(stamp(n), d)) for n, d in enumerate(data)]
    messages.insert(1, ("/c", bagged.COMPRESSED, stamp(0) + 9, messages[0][3][:40]))
    path = write(tmp_path / "x.mcap", messages)
    assert numbers(frames(path)) == [3, 3]
    assert (
        "4 images were left out, the last since its compressed image (jpeg) is neither a JPEG nor a PNG" in caplog.text
    )
    only = write(tmp_path / "y.mcap", messages[1:3])
    with pytest.raises(InputError, match="holds no image that can be taken"):
        frames(only)


def test_images_that_are_shorter_than_they_say(tmp_path: Path) -> None:
    made = Messages()
    values = {"height": 4, "width": 6, "encoding": "bgr8", "is_bigendian": 0}
    for step, size, words in ((18, 40, "40 bytes where 72"), (7, 72, "rows have 7 bytes where 18"), (18, 0, "0 bytes")):
        header = made.header(stamp(0))
        data = made.bytes(IMAGE, header=header, **values, step=step, data=np.zeros(size, np.uint8))
        path = write(tmp_path / f"{step}-{size}.mcap", [("/i", IMAGE, stamp(0), data)])
        with pytest.raises(InputError, match=words):
            frames(path)
    last_row_bare = np.concatenate([np.zeros(3 * 20, np.uint8), np.full(18, 9, np.uint8)])
    data = made.bytes(IMAGE, header=made.header(stamp(0)), **values, step=20, data=last_row_bare)
    (found,) = frames(write(tmp_path / "bare.mcap", [("/i", IMAGE, stamp(0), data)]))
    assert (found.image[3] == 9).all()


@pytest.mark.parametrize("kind", ["x.mcap", "x.db3", "mcap", "sqlite", "x.bag", "bz2.bag", "lz4.bag"])
def test_of_a_bag_that_was_cut_what_is_readable_is_used(run, tmp_path: Path, kind: str) -> None:
    path = write(
        tmp_path / kind, drive(60, ros1=kind.endswith(".bag")), zstd=kind[:3] if "4." in kind or "z2" in kind else ""
    )
    file = path if path.suffix else next(p for p in path.iterdir() if p.suffix in (".mcap", ".db3"))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * 0.6)])
    code, _, err = run("--input", path, "--scale", "1", "--output", "o.avi", "--stats", "s.json", model="nano")
    assert code == 1
    assert err.count("\n") == 1
    assert "is cut short or being written" in err
    done = json.loads(Path("s.json").read_text().splitlines()[-1])["processed"]
    assert 13 <= done <= 36  # chunks are of a megabyte
    assert f"{done} frames of /front/image_raw were done and are kept" in err
    source, found = BagTopic(path), []
    with pytest.raises(DiinnError, match="cut short"):
        found.extend(burnt(frame.image) for frame in source.frames())
    source.close()
    assert found == list(range(done))


def test_a_bag_that_is_being_written(tmp_path: Path) -> None:
    """What a recorder has put on the disk so far, in files of both kinds."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(tmp_path / "live", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/front/image_raw", IMAGE, typestore=store)
        for number in range(50):
            at = stamp(number)
            writer.write(connection, at, Messages().image(at, numbered(number)))
        source = BagTopic(tmp_path / "live")
        found = []
        with pytest.raises(DiinnError, match="cut short or being written"):
            found.extend(burnt(frame.image) for frame in source.frames())
        source.close()
    assert len(found) > 15
    assert found == list(range(len(found)))
    assert len(frames(tmp_path / "live")) == 50


def test_what_a_folders_description_does_not_name_is_no_part_of_it(run, tmp_path: Path) -> None:
    path = write(tmp_path / "mcap", drive(4))
    write(tmp_path / "mcap" / "other.mcap", [("/other/image_raw", IMAGE, stamp(0), Messages().image(0, numbered(0)))])
    source = BagTopic(path)
    assert source.topic == "/front/image_raw"
    source.close()
    code, _, err = run("--input", path, "--scale", "1", "--output", path / "o.mcap", model="nano")
    assert code == 2
    assert "would replace the input or a part of it" in err


def test_a_missing_part_of_a_split_bag_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "mcap", drive(4))
    (folder / "metadata.yaml").write_text(
        (folder / "metadata.yaml").read_text().replace("- mcap.mcap", "- mcap.mcap\n  - mcap_1.mcap")
    )
    source = BagTopic(folder)
    with pytest.raises(DiinnError, match=r"'mcap_1.mcap' of it is missing; 4 frames"):
        list(source.frames())
    source.close()


def test_a_folder_without_its_description(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "mcap", drive(4))
    (folder / "metadata.yaml").unlink()
    assert numbers(frames(folder)) == [0, 1, 2, 3]
    assert "has no metadata.yaml: it is being written, or was not finished" in caplog.text
    (folder / "metadata.yaml").write_text("a: &x [1]\nb: *x\n")
    assert numbers(frames(folder)) == [0, 1, 2, 3]
    assert "the files beside it are taken" in caplog.text


def test_types_that_nobody_knows_are_no_hindrance(tmp_path: Path) -> None:
    """A bag's own definitions are not needed: those of images are ROS's, and others are not read."""
    folder = write(tmp_path / "sqlite", drive(4))
    with sqlite3.connect(folder / "sqlite.db3") as database:
        database.execute("UPDATE message_definitions SET encoded_message_definition = 'no such {'")
        database.execute("UPDATE topics SET type = 'acme_msgs/msg/Secret' WHERE name = '/words'")
    assert numbers(frames(folder)) == [0, 1, 2, 3]


def with_stamps(path: Path, stamps: list[int]) -> list[Frame]:
    """The frames of a bag whose images were recorded one after the other, numbered, with other stamps than that."""
    made = Messages()
    messages = [("/i", IMAGE, stamp(n), made.image(at, numbered(n))) for n, at in enumerate(stamps)]
    return frames(write(path, messages))


def test_frames_come_in_the_order_of_their_stamps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    order = [1, 0, 2, 5, 3, 4, *range(14, 5, -1), 15]  # the sixth to the fourteenth from last to first
    found = with_stamps(tmp_path / "x.mcap", [stamp(n) for n in order])
    assert [frame.header.stamp for frame in found if frame.header] == [stamp(n) for n in range(16)]
    assert numbers(found) == [order.index(n) for n in range(16)]
    assert not caplog.text


def test_frames_before_a_damage_are_kept() -> None:
    def damaged() -> Iterator[tuple[Header, int]]:
        for number in (2, 1, 3):
            yield Header(stamp(number), "front", 0, None), number
        raise DiinnError("damaged")

    ordered = in_order(damaged())
    assert [next(ordered)[1] for _ in range(3)] == [1, 2, 3]
    with pytest.raises(DiinnError, match="damaged"):
        next(ordered)


def test_a_clock_that_was_put_back_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stamps = [stamp(n) for n in [*range(100, 120), *range(10)]]
    found = with_stamps(tmp_path / "x.mcap", stamps)
    assert [frame.header.stamp for frame in found if frame.header] == stamps
    assert "stamps went back (1 of 30 frames)" in caplog.text


def test_messages_that_stand_in_another_order_than_they_came(tmp_path: Path) -> None:
    for kind in ("x.mcap", "x.db3", "x.bag"):
        messages = drive(9, ros1=kind == "x.bag")
        found = frames(write(tmp_path / kind, messages[9:] + messages[:9]))
        assert numbers(found) == list(range(9)), kind


def test_a_stamp_of_zero_is_that_of_the_recording(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    messages = [("/i", IMAGE, stamp(n), Messages().image(0, numbered(n))) for n in range(3)]
    found = frames(write(tmp_path / "x.mcap", messages))
    assert [frame.header.stamp for frame in found if frame.header] == [stamp(n) for n in range(3)]
    assert caplog.text.count("stamp of zero") == 1


def test_a_calibration_that_changes(tmp_path: Path) -> None:
    messages = drive(4, info=False)
    made = Messages()
    for number, k in ((1, bagged.K), (2, [160.0, *bagged.K[1:]]), (3, [0.0] * 9)):
        messages.append(("/front/camera_info", bagged.INFO, stamp(number) + 1, made.info(stamp(number), k=k)))
    found = frames(write(tmp_path / "x.mcap", sorted(messages, key=lambda message: message[2])))
    calibrations = [frame.header.calibration for frame in found if frame.header]
    assert [c.k[0, 0] if c else None for c in calibrations] == [150, 150, 160, None]  # the first holds before it came


def test_a_calibration_that_is_none_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    messages = drive(2, info=False)
    info = Messages().info(stamp(0), d=[0.1, 0.2, 0.3])
    found = frames(write(tmp_path / "x.mcap", [("/front/camera_info", bagged.INFO, stamp(0), info), *messages]))
    assert [frame.header.calibration for frame in found if frame.header] == [None, None]
    assert "'/front/camera_info' is no camera calibration: 3 distortion coefficients" in caplog.text


def test_a_turned_picture_is_not_that_of_its_calibration(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mcap", drive(2))
    source = open_source(str(path), CaptureOptions(flip="rotate-180"))
    for frame in (frame for frame in source.frames()):  # type: ignore[attr-defined]
        assert frame.header.calibration is None
    source.close()


def junk(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    def put(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    whole = write(tmp_path / "whole.bag", drive(3, ros1=True)).read_bytes()
    empty = tmp_path / "folder"
    empty.mkdir()
    put("folder/metadata.yaml", b"rosbag2_bagfile_information:\n  relative_file_paths: []\n")
    return {
        "empty": (put("e.mcap", b""), "is empty"),
        "words": (put("w.mcap", b"words and words " * 9), "is no bag that can be read"),
        "no database": (put("w.db3", b"words and words " * 99), "is no bag that can be read"),
        "no ros1": (put("w.bag", b"#ROSBAG V1.2\n" * 9), "is no bag that can be read"),
        "cut ros1": (put("c.bag", whole[: len(whole) // 2]), "rosbag reindex mends it"),  # in its first chunk
        "header alone": (put("h.mcap", b"\x89MCAP0\r\n"), "is no bag that can be read"),
        "active": (put("a.bag.active", whole), "rosbag reindex mends it"),
        "empty folder": (empty, "no bag in folder"),
        "no file": (tmp_path / "none.mcap", "no file"),
        "no file, a topic": (Path(f"{tmp_path}/none.mcap?topic=/a"), "no bag .*none.mcap"),
        "no messages": (write(tmp_path / "n.mcap", []), "holds no messages"),
    }


def test_what_is_no_bag(run, tmp_path: Path) -> None:
    for name, (path, words) in junk(tmp_path).items():
        with pytest.raises(InputError, match=words):
            open_source(str(path))
        code, _, err = run("--input", path, "--output", "none", model="nano")
        assert (code, err.count("\n")) == (2, 1), (name, err)


def test_damage_of_every_kind_ends_in_an_error_of_ours(tmp_path: Path) -> None:
    """Bytes overwritten anywhere: frames, or one error of ours."""
    rng = np.random.default_rng(7)
    for kind in ("x.mcap", "x.db3", "x.bag"):
        whole = write(tmp_path / kind, drive(5, ros1=kind == "x.bag")).read_bytes()
        for place in rng.integers(0, len(whole), 40):
            damaged = bytearray(whole)
            damaged[place : place + 60] = rng.integers(0, 256, 60, np.uint8).tobytes()[: len(whole) - place]
            (tmp_path / kind).write_bytes(damaged)
            with contextlib.suppress(DiinnError):
                frames(tmp_path / kind)
        (tmp_path / kind).unlink()


def test_options_that_bags_do_not_have(run, tmp_path: Path) -> None:
    path = write(tmp_path / "x.mcap", drive(3))
    with pytest.raises(InputError, match="read once: leave out --loop"):
        open_source(str(path), CaptureOptions(loop=True))
    code, _, err = run("--camera", "demo", "--start", "3", "--output", "none", model="nano")
    assert code == 2
    assert "--start 3 is for bags" in err


def test_duration_is_the_bags_and_not_the_clocks(run, tmp_path: Path) -> None:
    path = write(tmp_path / "x.mcap", drive(20))
    args = ("--input", path, "--start", "0.2", "--duration", "0.95", "--scale", "1", "--output", "o.avi")
    code, out, err = run(*args, model="nano")
    assert (code, err) == (0, "")
    assert "10 frames" in out


def test_memory_stays_level_over_a_long_bag(tmp_path: Path) -> None:
    """Frames of a megabyte each, many times what may be held at once."""
    import psutil

    size = (640, 480)
    made, picture = Messages(), np.zeros((480, 640, 3), np.uint8)
    messages = (("/i", IMAGE, stamp(n), made.image(stamp(n), picture)) for n in range(300))
    path = write(tmp_path / "long.mcap", messages, zstd="storage")  # type: ignore[arg-type]
    source = open_source(str(path), CaptureOptions())
    held = []
    for frame in source.frames():  # type: ignore[attr-defined]
        assert frame.size == size
        held.append(psutil.Process().memory_info().rss)
    source.close()
    assert len(held) == 300
    assert max(held[50:]) - held[50] < 60 * 2**20  # all of them are 264 MiB


def test_a_bag_in_a_file_of_cameras(run, tmp_path: Path) -> None:
    write(tmp_path / "drive.mcap", drive(4) + drive(4, "/rear/image_raw"))
    Path("cameras.yaml").write_text(
        "cameras:\n"
        "  - {name: front, uri: 'drive.mcap?topic=/front/image_raw', views: {flat: 'rectify:160x120'}}\n"
        "  - {name: rear, uri: 'drive.mcap?topic=/rear/image_raw', views: {whole: 'full:160x120'}}\n"
    )
    code, _, err = run("--cameras", "cameras.yaml", "--output", "o/", model="nano")
    assert (code, err) == (0, "")
    assert {p.name for p in Path("o").iterdir()} == {"front.mp4", "rear.mp4"}


def test_without_rosbags_it_is_said_what_to_install(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = write(tmp_path / "drive.mcap", drive(2))
    shutil.copy(path, tmp_path / "film.mcap")
    code = (
        "import sys\n"
        "sys.modules.update({name: None for name in ('rosbags', 'rosbags.rosbag2', 'rosbags.rosbag1')})\n"
        "from diinn.runtime.cli.run import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for words in (["--input", str(path)], ["--camera", "demo", "--output", str(tmp_path / "o.mcap")]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words, "--model", "nano"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 2
        assert "bags need rosbags" in done.stderr
        assert "pip install 'diinn[bag]'" in done.stderr
        assert done.stderr.count("\n") == 1
