"""Folders as people have them: links, pipes, other files, results of the last run."""

import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from diinn.runtime.errors import SourceError
from diinn.runtime.images.folders import find, search
from diinn.runtime.sources import CaptureOptions, open_input
from diinn.train.photographs import find_images
from streamed import clip


def image(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.full((8, 8, 3), shade, np.uint8))[1].tobytes())
    return path


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find(folder)]


def test_links_lead_on_but_not_round_and_round(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a.png", "z/b.png"):
        image(folder / name)
    image(tmp_path / "elsewhere" / "c.png")
    (folder / "again").symlink_to(folder / "z")  # its own folder keeps its name
    (folder / "far").symlink_to(tmp_path / "elsewhere")
    (folder / "here").symlink_to(".")
    (folder / "z" / "up").symlink_to("..")
    (folder / "itself").symlink_to("itself")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "one.png").symlink_to(tmp_path / "elsewhere" / "c.png")
    assert names(folder) == ["a.png", "far/c.png", "one.png", "z/b.png"]
    assert find_images(folder)  # what trains is found in the same way


def test_what_is_no_file_is_no_image(run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    image(folder / "a.png")
    image(folder / "b.png" / "inside.png")
    os.mkfifo(folder / "pipe.png")
    assert names(folder) == ["a.png", "b.png/inside.png"]
    assert search(folder).left_out == {".png": 1}
    began = time.monotonic()
    code, _, err = run("--input", folder / "pipe.png", model="nano")
    assert (code, time.monotonic() - began < 10) == (2, True)
    assert "is neither a file nor a folder" in err


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(run, tmp_path: Path) -> None:
    image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere.png")
    code, _, err = run("--input", "in", "--scale", "1", "--output", "out", model="nano")
    assert code == 1
    assert "no file 'in/gone.png'" in err
    assert "1 of 2 images could not be read" in err
    assert (tmp_path / "out" / "a.png").is_file()


def test_what_is_left_out_is_one_line(run, tmp_path: Path) -> None:
    image(tmp_path / "in" / "a.png")
    for name in ("x.heic", "y.HEIC", "sub/z.mp4", "notes", "e.txt", ".hidden", ".DS_Store"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"what it may be")
    code, _, err = run("--input", "in", "--scale", "1", "--output", "out", model="nano")
    assert (code, err) == (0, "diinn-run: in: 5 files left out: .heic, .mp4, .txt, no ending\n")
    code, _, err = run("--input", "in/*", "--scale", "1", "--output", "out", model="nano")
    assert (code, err) == (0, "diinn-run: in/*: 4 files left out: .heic, .txt, no ending\n")
    (tmp_path / "in" / "a.png").unlink()
    with pytest.raises(SourceError, match=r"no image in folder '.*': looked for .*; 5 files left out: .heic, .mp4"):
        open_input(str(tmp_path / "in"), CaptureOptions())


@pytest.mark.parametrize("output", ["in/out", "in/out.v2/", "in/sub/../out", "file://in/out", "in/out/*.png"])
def test_results_are_no_input_of_the_next_run(run, tmp_path: Path, output: str) -> None:
    image(tmp_path / "in" / "a.png")
    image(tmp_path / "in" / "sub" / "b.png")
    for _ in range(2):
        code, out, err = run("--input", "in", "--scale", "1", "--output", output, model="nano")
        assert code == 0
        assert "2 frames" in out
    assert err == "diinn-run: in: 2 images where results go left out\n"


def test_a_result_in_its_own_folder_is_no_input(run, tmp_path: Path) -> None:
    image(tmp_path / "in" / "a.png")
    for _ in range(2):
        code, out, err = run("--input", "in", "--scale", "1", "--output", "in/big.png", model="nano")
        assert (code, "1 frame" in out) == (0, True), err


def test_globs_of_videos(run, tmp_path: Path) -> None:
    (tmp_path / "vids").mkdir()
    clip(tmp_path / "vids" / "a.avi", 3)
    code, out, err = run("--input", "vids/*.avi", "--scale", "1", "--output", "none", model="nano")
    assert (code, err, "3 frames" in out) == (0, "", True)
    clip(tmp_path / "vids" / "b.avi", 3)
    code, _, err = run("--input", "vids/*.avi", model="nano")
    assert code == 2
    assert "'vids/*.avi' matches 2 files, none of them an image: give each video as an --input of its own" in err


def test_globs_go_round_no_loop(tmp_path: Path) -> None:
    image(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "loop").symlink_to(".")
    assert [file.name for file, _ in open_input(f"{tmp_path}/**/*.png", CaptureOptions()).files] == ["x.png"]


def test_many_files_are_listed_soon(tmp_path: Path) -> None:
    first = image(tmp_path / "in" / "000000.png")
    for number in range(1, 30_000):
        os.link(first, tmp_path / "in" / f"{number:06d}.png")
    began = time.monotonic()
    assert len(open_input(f"{tmp_path}/in/*.png", CaptureOptions()).files) == 30_000
    assert len(open_input(f"{tmp_path}/in", CaptureOptions()).files) == 30_000
    assert time.monotonic() - began < 20  # where each name is compared with each it is a minute
