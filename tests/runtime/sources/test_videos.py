"""Video files as people have them: odd rates, odd sizes, damaged, cut short, onto a disk that fills up."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from diinn.benchmarks.mjpeg_server import burnt
from diinn.runtime import DiinnError, sources
from diinn.runtime.geometry.view import View
from diinn.runtime.sinks import files
from diinn.runtime.sinks.files import VideoFile
from diinn.runtime.sources import CaptureOptions, demo, open_source
from diinn.runtime.sources.misses import Misses
from diinn.runtime.stream.result import WHOLE, Result
from diinn.runtime.util.containers import extent
from streamed import clip, count_frames, video


def ffmpeg(*words: str) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("no FFmpeg here: apt-get install ffmpeg")
    subprocess.run(["ffmpeg", "-v", "error", "-y", *words], check=True)


FILM = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=30:duration=2")
GAPS = ("-vf", "select='gt(random(0),0.1)'", "-vsync", "vfr")
SOUND = ("-f", "lavfi", "-i", "sine=duration=4")
HEALTHY = {
    "gaps.mkv": [(*FILM, *GAPS, "gaps.mkv")],
    "gaps.avi": [(*FILM, *GAPS, "-c:v", "mjpeg", "gaps.avi")],
    "sound.avi": [(*FILM, *SOUND, "sound.avi")],
    "sound.mp4": [(*FILM, *SOUND, "sound.mp4")],
    "late.mkv": [(*FILM, "-output_ts_offset", "100", "late.mkv")],
    "part.mp4": [(*FILM, "-g", "20", "whole.mp4"), ("-ss", "0.9", "-i", "whole.mp4", "-c", "copy", "part.mp4")],
    "part.ts": [(*FILM, "-g", "20", "whole.ts"), ("-ss", "0.9", "-i", "whole.ts", "-c", "copy", "part.ts")],
    "pieces.mp4": [(*FILM, "-g", "20", "-movflags", "frag_keyframe+empty_moov", "pieces.mp4")],
    "open.mkv": [(*FILM, "-live", "1", "open.mkv")],
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_film_whose_container_counts_otherwise_is_whole(run, name: str) -> None:
    for words in HEALTHY[name]:
        ffmpeg(*words)
    code, _, err = run("--input", name, "--scale", "1", "--output", "o.avi", "--max-frames", "200", model="nano")
    assert (code, err) == (0, "")
    assert count_frames(Path("o.avi"))[0] == count_frames(Path(name))[0] >= 20


def test_a_number_of_frames_in_a_header_is_no_evidence(run) -> None:
    data = bytearray(video(Path("clip.avi"), 8).read_bytes())
    for place in (data.index(b"avih") + 24, data.index(b"strh") + 40):
        data[place : place + 4] = (80).to_bytes(4, "little")
    Path("clip.avi").write_bytes(data)
    code, _, err = run("--input", "clip.avi", "--scale", "1", "--output", "o.avi", model="nano")
    assert (code, err) == (0, "")
    assert count_frames(Path("o.avi"))[0] == 8


def test_what_is_left_of_a_film_that_was_cut_short_is_kept(run) -> None:
    whole = video(Path("clip.avi"), 60).read_bytes()
    Path("cut.avi").write_bytes(whole[: len(whole) // 2])
    code, _, err = run("--input", "cut.avi", "--scale", "1", "--output", "o.mkv", "--stats", "s.json", model="nano")
    assert code == 1
    assert err.count("\n") == 1
    frames = count_frames(Path("o.mkv"))[0]
    assert f"{len(whole) // 2} of its {len(whole)} bytes are there: {frames} of 60 frames could be decoded" in err
    assert 25 < frames < 35
    assert json.loads(Path("s.json").read_text().splitlines()[-1])["processed"] == frames


@pytest.mark.parametrize(("pieces", "share"), [("dash+frag_keyframe", 0.5), ("frag_every_frame+empty_moov", 0.7)])
def test_of_a_film_in_pieces_that_was_cut_short_no_number_of_frames_is_guessed(run, pieces: str, share: float) -> None:
    ffmpeg(*FILM, "-c:v", "mpeg4", "-g", "20", "-movflags", pieces, "whole.mp4")
    whole = Path("whole.mp4").read_bytes()
    Path("cut.mp4").write_bytes(whole[: int(share * len(whole))])
    code, _, err = run("--input", "cut.mp4", "--scale", "1", "--output", "o.avi", model="nano")
    assert code == 1
    assert f" bytes are there: {count_frames(Path('o.avi'))[0]} frames could be decoded and are kept" in err


def damaged(path: Path, numbers: tuple[int, ...], start: bytes) -> None:
    """Overwrite the middle of those frames, numbered from 0, of Motion JPEG."""
    data, at = bytearray(path.read_bytes()), -1
    for number in range(max(numbers) + 1):
        at = data.index(start, at + 1)
        if number in numbers:
            data[at + 8 : at + 308] = b"\x13" * 300
    path.write_bytes(data)


def raw_jpegs(path: Path, frames: int) -> Path:
    images = [demo.frame(number / 10, (160, 120)) for number in range(frames)]
    path.write_bytes(b"".join(cv2.imencode(".jpg", image)[1].tobytes() for image in images))
    return path


@pytest.mark.parametrize("lost", [(19,), (29,), (3, 4, 5, 6, 20)], ids=str)
def test_frames_of_a_film_that_cannot_be_decoded_are_left_out_and_said(run, lost: tuple[int, ...]) -> None:
    damaged(clip(Path("film.avi"), 30), lost, b"00dc")
    code, _, err = run("--input", "film.avi", "--scale", "1", "--output", "o.avi", "--stats", "s.json", model="nano")
    assert code == 0
    what = (
        "1 frame could not be decoded and was"
        if len(lost) == 1
        else f"{len(lost)} frames could not be decoded and were"
    )
    assert err == f"diinn-run: 'film.avi': {what} left out\n"
    assert count_frames(Path("o.avi"))[0] == 30 - len(lost)
    summary = json.loads(Path("s.json").read_text().splitlines()[-1])
    assert summary["cameras"]["film.avi"]["undecodable"] == len(lost)


def test_raw_jpegs_of_which_one_is_damaged(run) -> None:
    damaged(raw_jpegs(Path("film.mjpeg"), 20), (11,), b"\xff\xd8\xff")
    code, _, err = run("--input", "film.mjpeg", "--scale", "1", "--output", "o.avi", model="nano")
    assert (code, err) == (0, "diinn-run: 'film.mjpeg': 1 frame could not be decoded and was left out\n")
    assert count_frames(Path("o.avi"))[0] == 19


def test_a_film_that_cannot_be_wound_back_loops(run) -> None:
    raw_jpegs(Path("film.mjpeg"), 3)
    code, out, err = run("--input", "film.mjpeg", "--loop", "--max-frames", "8", "--output", "none", model="nano")
    assert (code, err) == (0, "")
    assert "8 frames" in out


def test_the_end_of_a_film_takes_no_time(tmp_path: Path) -> None:
    misses = Misses(2000, 5.0)
    assert sum(misses.another(0.0) for _ in range(1)) == 0  # five seconds went by
    source = open_source(str(clip(tmp_path / "film.avi", 3)), CaptureOptions())
    assert [burnt(frame.image) for frame in source.frames()] == [0, 1, 2]  # type: ignore[attr-defined]
    source.close()


def endings(path: Path) -> Iterator[Path]:
    for name, codec in files.VIDEO_SUFFIXES.items():
        made = path.with_suffix(name)
        writer = cv2.VideoWriter(str(made), cv2.VideoWriter.fourcc(*codec), 10, (64, 48))
        for number in range(20):
            writer.write(demo.frame(number, (64, 48)))
        writer.release()
        yield made


def test_containers_say_whether_they_are_whole(tmp_path: Path) -> None:
    for path in endings(tmp_path / "film"):
        whole = path.read_bytes()
        found = extent(path)
        assert (found.cut_short, found.finished) == (False, True), path
        path.write_bytes(whole[:-100])
        assert extent(path).cut_short, path
        path.write_bytes(whole[:5])
        assert not extent(path).cut_short, path
    found = extent(clip(tmp_path / "film.avi", 20))
    assert (found.cut_short, found.finished) == (False, True)
    with (tmp_path / "film.avi").open("ab") as file:
        file.write(b"something behind it")
    assert not extent(tmp_path / "film.avi").cut_short
    data = bytearray((tmp_path / "film.avi").read_bytes())
    data[4:8] = b"\xff" * 4  # as a recorder that lost its power leaves it
    (tmp_path / "film.avi").write_bytes(data)
    found = extent(tmp_path / "film.avi")
    assert (found.cut_short, found.finished) == (False, False)


def result(image: np.ndarray, sequence: int) -> Result:
    frame = sources.Frame(image, "cam", sequence, 0.0, sequence / 10)
    return Result(image, "cam", "full", frame, WHOLE, View.resize((image.shape[1], image.shape[0])), sequence / 10)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 18 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(sink: VideoFile, image: np.ndarray) -> None:
    for number in range(100):
        sink.write(result(image, number))


@pytest.mark.parametrize("ending", files.VIDEO_SUFFIXES)
def test_a_video_ends_whole_before_its_disk_is_full(disk: Path, ending: str) -> None:
    sink = VideoFile(disk / f"v{ending}", lambda: 10.0, live=False)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    with pytest.raises(DiinnError, match=r"has less than 16 MiB left: it was ended after \d+ frames") as full:
        fill(sink, noise)
    sink.close(failed=True)
    frames = count_frames(disk / f"v{ending}")[0]
    assert 3 < frames < 100
    assert f"after {frames} frames" in str(full.value)
    assert [path.name for path in disk.iterdir()] == [f"v{ending}"]


def test_a_video_that_another_programs_files_cut_is_an_error_and_kept(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LEAST_FREE", 0)  # nothing was seen of it
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for ending, kept in ((".avi", True), (".mp4", False)):
        sink = VideoFile(disk / f"v{ending}", lambda: 10.0, live=True)
        for number in range(5):
            sink.write(result(noise, number))
        (disk / "other").write_bytes(bytes(files_free(disk)))
        for number in range(5, 20):
            sink.write(result(noise, number))
        with pytest.raises(DiinnError, match="is not whole, though 20 frames" if kept else "could not be written"):
            sink.close()
        assert (disk / f"v{ending}").exists() == kept
        (disk / "other").unlink()
    assert 0 < count_frames(disk / "v.avi")[0] < 20


@pytest.mark.parametrize("ending", files.VIDEO_SUFFIXES)
@pytest.mark.parametrize("frames", [1, 2, 3, 13, 40])
def test_videos_of_any_length_are_seen_to_be_whole(tmp_path: Path, ending: str, frames: int) -> None:
    for rate in (1.0, 29.97, 240.0):
        sink = VideoFile(tmp_path / f"v{ending}", lambda rate=rate: rate, live=False)  # type: ignore[misc]
        for number in range(frames):
            sink.write(result(demo.frame(number, (32, 24)), number))
        sink.close()
        assert count_frames(tmp_path / f"v{ending}")[0] == frames


def files_free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


@pytest.mark.parametrize("ending", files.VIDEO_SUFFIXES)
def test_a_video_of_an_odd_size_loses_nothing_and_says_so(run, ending: str) -> None:
    name = f"v{ending}"
    code, out, err = run(
        "--camera", "demo", "--out-size", "321x241", "--max-frames", "2", "--output", name, model="nano"
    )
    assert (code, err) == (0, "")
    assert "-> 321x241 (scale 2.01), model nano" in out
    assert f"output {name} (padded to 322x242: sizes of videos are even)" in out
    capture = cv2.VideoCapture(name)
    image = capture.read()[1].astype(int)
    assert image.shape == (242, 322, 3)
    assert np.abs(image[:, 320] - image[:, 321]).mean() < 8
    assert np.abs(image[240] - image[241]).mean() < 8
