"""Names of files and cameras as people have them: bytes that are no text, colons, long ones, folders with dots."""

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from diinn.runtime.errors import InputError, SourceError
from diinn.runtime.sinks import result_paths
from diinn.runtime.sources import CaptureOptions, open_input, open_source
from diinn.runtime.stream import settings
from diinn.runtime.stream.settings import CameraSettings
from diinn.runtime.util.command_line import guarded
from diinn.runtime.util.file_names import as_file, as_utf8, fitting, readable
from diinn.runtime.util.opencv import open_camera
from diinn.train.photographs import split_holdout
from streamed import clip, count_frames

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
ODD = ("caf\udce9", "12:30:00", "ä中", "new\nline", "100%d", "-x", "a b'c\"")
BARE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # as a service or a container has it


def frames_in(path: Path) -> int:
    shutil.copyfile(path, "copy" + path.suffix)  # under a name that OpenCV takes
    return count_frames(Path("copy" + path.suffix))[0]


@pytest.mark.parametrize("start", ["file:", "FILE://localhost", "file://"])
def test_addresses_of_files_may_be_written_as_other_programs_do(run, tmp_path: Path, start: str) -> None:
    film = clip(tmp_path / "film.avi", 2)
    assert (
        run("--input", f"{start}{film}", "--output", f"{start}{tmp_path}/o.avi", "--scale", "1", model="nano")[0] == 0
    )
    assert run("--camera", f"{start}{film}", "--output", "none", "--scale", "1", model="nano")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"film.avi", "o.avi"}


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_videos_may_be_called_anything(run, name: str) -> None:
    film = clip(Path("film.avi"), 4)
    Path(name).mkdir()
    film.rename(Path(name) / f"{name}.avi")
    shutil.copyfile(Path(name) / f"{name}.avi", f"{name}.avi")
    for number, asked in enumerate((f"--input={name}.avi", f"--input={name}/{name}.avi", f"--input=file://{name}.avi")):
        out = Path(name) / f"{name}-{number}.mkv"
        code, _, err = run(asked, "--scale", "1", f"--output={out}", model="nano")
        assert (code, err) == (0, "")
        assert frames_in(out) == 4
    assert not [path for path in Path(name).iterdir() if "partial" in path.name]


def test_images_and_folders_may_be_called_anything(run, photo: np.ndarray) -> None:
    for name in ODD:
        Path(name).mkdir()
        (Path(name) / f"{name}.png").write_bytes(cv2.imencode(".png", photo[:8, :8])[1].tobytes())
        out = f"out-{name}"
        code, _, err = run(f"--input={name}", "--scale", "1", f"--output={out}", model="nano")
        assert (code, err) == (0, "")
        assert (Path(out) / f"{name}.png").is_file()


def test_raw_streams_are_known_under_any_name(run, photo: np.ndarray) -> None:
    Path("r\udce9.mjpeg").write_bytes(cv2.imencode(".jpg", photo)[1].tobytes() * 3)
    code, out, _ = run("--input", "r\udce9.mjpeg", "--scale", "1", "--output", "none", model="nano")
    assert code == 0
    assert "r\\xe9.mjpeg: 80x60" in out
    assert "3 frames" in out


def test_names_where_the_locale_is_ascii(tmp_path: Path, photo: np.ndarray) -> None:
    for name, written in (("ä.png", "ö.png"), ("film ä.avi", "film ö.mkv")):
        if name.endswith("png"):
            (tmp_path / name).write_bytes(cv2.imencode(".png", photo[:8, :8])[1].tobytes())
        else:
            clip(tmp_path / "film.avi", 3).rename(tmp_path / name)
        words = ["--input", name, "--scale", "1", "--output", written, "--model", "nano"]
        command = [sys.executable, "-m", "diinn.runtime.cli.run", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **BARE}, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert (tmp_path / written).stat().st_size > 0


def test_a_file_of_cameras_where_the_locale_is_ascii(tmp_path: Path) -> None:
    clip(tmp_path / "film.avi", 3).rename(tmp_path / "film ä.avi")
    (tmp_path / "c.yaml").write_text('cameras:\n  - {uri: "film ä.avi", name: "Tür"}\n', encoding="utf-8")
    words = ["--cameras", "c.yaml", "--scale", "1", "--output", "out", "--stats", "-", "--model", "nano"]
    command = [sys.executable, "-m", "diinn.runtime.cli.run", *words]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **BARE}, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Tür.mp4"]


def test_an_address_that_is_no_text_is_refused() -> None:
    for address in ("/dev/video\udcff", "rtsp://127.0.0.1:9/\udcff", "videotestsrc name=\udcff ! appsink"):
        with pytest.raises(SourceError, match=r"its address is no UTF-8: write what is not ASCII as %XX"):
            open_camera(address, cv2.CAP_ANY, [])


def test_schemes_may_be_written_large() -> None:
    for uri, address in (("HTTP://h:80/Path", "http://h:80/Path"), ("RTSP://u:P@h/X", "rtsp://u:P@h/X")):
        assert open_source(uri).device.address == address  # type: ignore[attr-defined]


def test_schemes_of_outputs_may_be_written_large(run, photo_path: Path) -> None:
    assert run("--input", photo_path, "--scale", "1", "--output", "FILE://o.png", model="nano")[0] == 0
    assert Path("o.png").is_file()
    args = ("--camera", "demo", "--max-frames", "1", "--output")
    assert "open http://127.0.0.1:" in run(*args, "HTTP://127.0.0.1:0", model="nano")[1]
    assert result_paths(["none", "-", "a.png", "FILE://b/", "out/*.png", "http://h", "shm://x", "12:30.mp4"]) == (
        *(Path(name) for name in ("a.png", "b", "out", "12:30.mp4")),
    )


def test_paths_in_a_file_of_cameras_may_have_colons(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text('cameras:\n  - uri: "12:30:00.avi"\n  - uri: "FILE://a:b.avi"\n  - uri: demo\n')
    found = settings.load(tmp_path / "c.yaml", CameraSettings(""))
    assert [camera.uri for camera in found] == [
        str(tmp_path / "12:30:00.avi"),
        f"file://{tmp_path / 'a:b.avi'}",
        "demo",
    ]
    with pytest.raises(InputError, match=r"--input takes files, 'rtsp:/h' is a stream"):
        open_input("rtsp:/u:p@h/x", CaptureOptions())


LONG = ("x" * 251, "中" * 83, "\udce9" * 251)


@pytest.mark.parametrize("stem", LONG, ids=["ascii", "three bytes", "no text"])
def test_names_as_long_as_they_may_be(run, photo: np.ndarray, stem: str) -> None:
    image = cv2.imencode(".png", photo[:8, :8])[1].tobytes()
    Path("in").mkdir()
    for name in (stem + ".png", "a.png"):
        (Path("in") / name).write_bytes(image)
    assert run("--input", "in", "--scale", "1", "--output", "out", model="nano")[::2] == (0, "")
    assert {p.name for p in Path("out").iterdir()} == {p.name for p in Path("in").iterdir()}
    assert run("--input", "in", "--scale", "1", "--output", "out/*.webp", model="nano")[::2] == (0, "")
    assert len(list(Path("out").glob("*.webp"))) == 2
    clip(Path("film.avi"), 2).rename(f"{stem}.avi")
    assert run("--input", f"{stem}.avi", "--scale", "1", "--output", f"{stem}.mkv", model="nano")[::2] == (0, "")
    assert Path(f"{stem}.mkv").stat().st_size > 0
    assert run("--input", f"{stem}.avi", "--scale", "1", "--output", "films/", model="nano")[::2] == (0, "")
    assert [path.suffix for path in Path("films").iterdir()] == [".avi"]


def test_a_name_that_is_too_long_is_one_line(run, photo_path: Path) -> None:
    for name in ("y" * 253 + ".png", "y" * 253 + ".mp4"):
        code, _, err = run("--input", photo_path, "--scale", "1", "--output", name, model="nano")
        assert code in (1, 2)
        assert err.count("\n") == 1
    assert [path.name for path in Path.cwd().iterdir()] == [photo_path.name]


@pytest.mark.parametrize("folder", ["run.v2/", "set.2024-01-02/", "pics.png/", "run.mp4/", "new/x.y/."])
def test_a_slash_says_folder(run, photo_path: Path, folder: str) -> None:
    assert run("--input", photo_path, "--scale", "1", "--output", folder, model="nano")[0] == 0
    assert (Path(folder) / photo_path.name).is_file()
    assert run("--camera", "demo", "--max-frames", "1", "--output", f"file://{folder}", model="nano")[0] == 0
    assert (Path(folder) / "demo.mp4").is_file()


def test_a_name_with_a_dot_that_is_no_ending_is_told_how_to_say_folder(run, photo_path: Path) -> None:
    code, _, err = run("--input", photo_path, "--output", "set.2024-01-02")
    assert code == 2
    assert "for a folder write 'set.2024-01-02/'" in err


def test_videos_of_other_endings_are_told_those_that_are_written(run, photo_path: Path) -> None:
    code, _, err = run("--camera", "demo", "--output", "x.webm")
    assert code == 2
    assert "videos are not written as '.webm': choose one of .mp4, .avi, .mkv, .mov" in err


def test_many_names_take_no_time() -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    began = time.monotonic()
    sources = [Named("camera") for _ in range(20_000)]
    settings.name_apart(sources)  # type: ignore[arg-type]
    assert len({source.name for source in sources}) == 20_000
    assert time.monotonic() - began < 20  # hours, where each is compared with each


def test_names_as_text_and_as_files() -> None:
    assert (as_utf8("ä"), as_utf8("\udce9"), as_utf8("\udcc3\udca4")) == ("ä", None, "ä")
    assert (readable("caf\udce9"), readable("ä\ud800")) == ("caf\\xe9", "ä\\ud800")
    assert as_file("ä") == "ä"
    for name in ("y" * 300 + ".png", "中" * 100, "ä" * 200 + ".mp4", "\udce9" * 300 + ".avi"):
        short = fitting(name)
        assert 230 < len(os.fsencode(short)) <= 255
        assert Path(short).suffix == Path(name).suffix
    assert len({fitting("z" * 300 + f"-{number}.mp4") for number in range(50)}) == 50
    assert fitting("as.it.is") == "as.it.is"


def test_the_hold_out_takes_names_that_are_no_text() -> None:
    files = [Path(f"{name}.png") for name in ("a", "\udce9", "ä", "b")]
    training, held = split_holdout(files, 2)
    assert sorted(map(os.fsencode, training + held)) == sorted(map(os.fsencode, files))


def test_what_is_printed_of_a_name_that_is_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    assert guarded("diinn", "", lambda: print("caf\udce9") or 0) == 0  # type: ignore[func-returns-value]
    record = logging.makeLogRecord({"msg": "%s is left out", "args": ("\x1b[31mcaf\udce9",)})  # as training logs it
    assert logging.lastResort.format(record) == r"\x1b[31mcaf\xe9 is left out"
    assert capfd.readouterr().out == "caf\\udce9\n"
