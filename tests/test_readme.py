"""Every command of the README and of docs/: run where it can be, parsed where it needs a camera or an hour."""

import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from diinn.benchmarks import __main__ as bench
from diinn.benchmarks import evaluate
from diinn.export import to_onnx, to_trt
from diinn.runtime.cli import build, doctor, run
from diinn.runtime.sources import demo
from diinn.train import main as train

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
NEEDS_HARDWARE_OR_TIME = (
    *("--camera 0", "--output http://", "diinn-train fit", "diinn.train.main fit", "--benchmark", "comparison"),
    *("diinn-bench streaming", "diinn-bench soak", "diinn-bench topics"),
)


def _bench(name: str, args: list[str]) -> int:
    return bench.main([name, *args])


PROGRAMS: dict[str, tuple[Callable[[list[str]], int], Callable[[], object]]] = {
    "diinn-run": (run.main, run.parser),
    "diinn-train": (train.main, train.parser),
    "diinn-eval": (evaluate.main, evaluate.parser),
    "python export/to_onnx.py": (to_onnx.main, to_onnx.parser),
    "torchrun --nproc-per-node 4 -m diinn.train.main": (train.main, train.parser),
    "python export/to_trt.py": (to_trt.main, to_trt.parser),
    "diinn-doctor": (doctor.main, doctor.parser),
    "diinn-build": (build.main, build.parser),
    "diinn-export": (to_onnx.main, to_onnx.parser),
    **{
        f"diinn-bench {name}": (partial(_bench, name), import_module(f"diinn.benchmarks.{name}").parser)
        for name in bench.BENCHMARKS
    },
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def commands() -> list[str]:
    """Each once, in the order of the pages, as files that one makes another may name."""
    lines = [
        re.split(r"\s+#", line)[0].strip()
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
    ]
    return list(dict.fromkeys(line for line in lines if line))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, checkpoint_path: Path, photo_folder: Path) -> Path:
    """A folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("readme")
    cv2.imwrite(str(folder / "photo.jpg"), demo.frame(5.0, (80, 60)))
    shutil.copytree(photo_folder, folder / "photos")
    shutil.copytree(photo_folder, folder / "benchmark" / "Set5")
    shutil.copy(checkpoint_path, folder / "ckpt.pth")
    if importlib.util.find_spec("rosbags") is not None:
        import bagged

        bagged.write(folder / "drive.mcap", bagged.drive(12))
    return folder


@pytest.mark.parametrize("command", commands())
def test_command(
    command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.delenv("DISPLAY", raising=False)
    name = next((p for p in PROGRAMS if command.startswith(p + " ")), None)
    if "drive.mcap" in command and not (workplace / "drive.mcap").exists():
        pytest.skip("bags need rosbags: pip install 'diinn[bag]'")
    if name is not None:
        main, parser = PROGRAMS[name]
        args = shlex.split(command.removeprefix(name))
        if any(word in command for word in NEEDS_HARDWARE_OR_TIME):
            parser().parse_args(args)  # type: ignore[attr-defined]
            assert all((ROOT / a).exists() for a in args if a.startswith("train/"))
        else:
            assert main(args) == 0, capfd.readouterr().err
    elif command.startswith("make "):
        assert (
            subprocess.run(["make", "-n", command.split()[1]], cwd=ROOT, capture_output=True, check=False).returncode
            == 0
        )
    elif command.startswith("pip install "):
        setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
        for extra in re.findall(r"\[(.*)\]", command)[0].split(","):
            assert f"\n{extra} =\n" in setup
    else:
        pytest.fail(f"a page has a command no test knows: {command}")


def test_the_first_hour_is_two_commands_and_what_stands_around_them() -> None:
    _, two, after = blocks("docs/first-hour.md", "text")
    found = re.findall(r"^venv/bin/(.*?)(?= 2>&1| *$)", two + after, re.MULTILINE)
    assert len(found) == 4
    assert len(two.splitlines()) == 2
    for command in found:
        name = next(name for name in PROGRAMS if command.startswith(name))
        PROGRAMS[name][1]().parse_args(shlex.split(command.removeprefix(name)))  # type: ignore[attr-defined]


def test_the_outputs_the_commands_promise(workplace: Path) -> None:
    if not (workplace / "mine.diinn").exists():
        pytest.skip("the commands themselves were not run in this session")
    assert cv2.imread(str(workplace / "out.png")).shape == (480, 640, 3)
    assert (workplace / "demo.mp4").stat().st_size > 0
    assert len(list((workplace / "bigger").iterdir())) == 8
    assert (workplace / "mine.diinn" / "bundle.json").exists()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page(page: str) -> None:
    v, u = np.mgrid[0:48, 0:64].astype(np.float32)
    scope = {"frame": demo.frame(1.0, (64, 48)), "map_x": u, "map_y": v}
    for block in blocks(page, "python"):
        exec(block, scope)
    assert scope["big"].shape == (480, 640, 3)
    assert scope["flat"].shape == (48, 64, 3)
    assert scope["crop"].shape == (240, 320, 3)
    if page == "README.md":
        assert scope["exact"].dtype == np.float32


def test_the_file_of_cameras(tmp_path: Path) -> None:
    from diinn.runtime import CameraSettings
    from diinn.runtime.stream import settings

    (block,) = blocks("docs/cameras.md", "yaml")
    (tmp_path / "cameras.yaml").write_text(block)
    (tmp_path / "front.yaml").write_text(
        "image_width: 640\nimage_height: 480\ndistortion_model: plumb_bob\n"
        "camera_matrix: {data: [500, 0, 320, 0, 500, 240, 0, 0, 1]}\n"
    )
    front, second = settings.load(tmp_path / "cameras.yaml", CameraSettings(""))
    assert list(front.views) == ["whole", "plate", "flat", "left"]
    assert second.uri == "csi://0"


# What a page may name though git does not keep it.
MADE = {"runtime/gpu/kernels/prebuilt/"}
NAMED = ("README.md", "CONTRIBUTING.md", *(page for page in PAGES if page.startswith("docs/")))
RESULTS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))]


@pytest.mark.parametrize("page", [*NAMED, *RESULTS])
def test_what_a_page_links_to_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        there = (ROOT / page).parent / target if target else ROOT / page
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}, f"{target}#{anchor}"


@pytest.mark.parametrize("page", NAMED)
def test_files_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in set(re.findall(r"[`\s(]((?:train|export|runtime|benchmarks|tests|docs)/[\w./*-]*)", text)) - MADE:
        assert list(ROOT.glob(path.rstrip("/.,"))), path
    for module in re.findall(r"python -m diinn\.([\w.]+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert re.search(rf"^[a-z -]*\b{target}\b[a-z -]*:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_the_readme_stays_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 140
