"""The shape of the house: arrows between rooms, what is packed, what the runtime drags in."""

import ast
import configparser
import graphlib
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

ROOMS = ("train", "export", "runtime", "benchmarks")
ARROWS = {
    "runtime": set(),
    # The geometry, and leaves that import nothing but NumPy and OpenCV.
    "train": {
        "diinn.runtime.geometry.grid",
        "diinn.runtime.errors",
        "diinn.runtime.images.arrays",
        "diinn.runtime.images.files",
        "diinn.runtime.images.folders",
        "diinn.runtime.util.early_interrupt",
        "diinn.runtime.util.memory",
        "diinn.runtime.util.command_line",
        "diinn.runtime.noise.sensor_noise",
        "diinn.runtime.noise.strength",
    },
    "export": {"diinn.train", "diinn.runtime"},
    "benchmarks": {"diinn.train", "diinn.runtime", "diinn.export"},
}
HEAVY = {"torch", "lightning", "torchmetrics", "onnx", "pydantic", "yaml"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_run_one_way(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for name in imports(path):
            if name.startswith("diinn."):
                allowed = ARROWS[room] | {f"diinn.{room}"}
                assert any(name == a or name.startswith(a + ".") for a in allowed), f"{path} imports {name}"
            elif room == "runtime":
                assert name.split(".")[0] not in HEAVY - {"yaml"}, f"{path} imports {name}"


# Each of the runtime's folders and files may import those that stand before it.
ORDER = ["errors", "util", "images", "geometry", "noise", "bundles", "sources", "gpu", "cpu", "engines", "backends"]
ORDER += ["super_resolver", "stream", "sinks", "cli", "examples"]


def test_arrows_within_the_runtime_run_one_way_too() -> None:
    """Imports for types count; and no modules import each other in a circle."""
    home = ROOT / "runtime"
    modules = {("diinn", *path.relative_to(ROOT).with_suffix("").parts): path for path in home.rglob("*.py")}
    names = {".".join(parts).removesuffix(".__init__"): path for parts, path in modules.items()}
    depends: dict[str, set[str]] = {}
    for name, path in names.items():
        found = {i for i in imports(path) if i.startswith("diinn.runtime.")}
        if name != "diinn.runtime":
            here = name.split(".")[2]
            for other in {i.split(".")[2] for i in found} & {*ORDER}:
                assert ORDER.index(other) <= ORDER.index(here), f"{path} imports {other}"
            depends[name] = {i if i in names else i.rpartition(".")[0] for i in found} & names.keys() - {name}
    assert {name.split(".")[2] for name in depends} == {*ORDER}
    graphlib.TopologicalSorter(depends).prepare()  # raises for a circle


def test_the_runtime_reads_yaml_and_graphs_in_one_place_each() -> None:
    """Where their hostile kinds are refused: no bare loader, no session of a path, which nobody has checked."""
    for path in (ROOT / "runtime").rglob("*.py"):
        assert path.name == "yaml_file.py" or not any(name.split(".")[0] == "yaml" for name in imports(path)), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("InferenceSession"):
                first = ast.unparse(node.args[0])
                assert first == "content" or ".graph_content(" in first, f"{path}: {first}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert path == ROOT / "runtime" / "bundles" / "files.py", path


BY_NAME = {"VideoCapture", "VideoWriter", "FileStorage", "imread", "imreadmulti", "imwrite", "imwritemulti", "imcount"}
BY_NAME |= {"haveImageReader", "haveImageWriter", "imreadanimation", "imwriteanimation"}


def test_what_is_compared_with_the_cpu_asks_for_it() -> None:
    """By default the encoder goes to a GPU that works."""
    asked = [
        (path.name, line.strip())
        for room in ("benchmarks", "export")
        for path in (ROOT / room).glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r'[=(]"onnxruntime"', line)
    ]
    assert len(asked) > 4
    assert [line for line in asked if '"cpu"' not in line[1] and '"openvino"' not in line[1]] == []


def test_opencv_gets_names_of_files_from_one_place() -> None:
    """It ends the process for one that is no UTF-8, and takes what stands before a colon for a protocol."""
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        if path == ROOT / "runtime" / "util" / "opencv.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func).split(".")
            by_name = called[0] == "cv2" and called[-1] in BY_NAME
            assert not by_name or "FILE_STORAGE_MEMORY" in ast.unparse(node), f"{path}:{node.lineno} {called[-1]}"


def test_setup_cfg_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = {p.parent for room in ROOMS for p in (ROOT / room).rglob("__init__.py")}
    assert listed == {"diinn." + ".".join(f.relative_to(ROOT).parts) for f in folders}


def test_no_module_of_export_hides_another() -> None:
    """``python export/to_onnx.py`` puts export/ first on sys.path."""
    names = {p.stem for p in (ROOT / "export").glob("*.py")} - {"__init__"}
    assert not names & (set(sys.stdlib_module_names) | HEAVY | {"onnxruntime", "tensorrt", "numpy", "cv2", "rich"})


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120, check=False)


def test_grid_loads_numpy_alone() -> None:
    code = "import sys; import diinn.runtime.geometry.grid; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(python(code).stdout.split())
    assert "numpy" in loaded
    assert not loaded & (HEAVY | {"cv2", "onnxruntime", "rich"})


def test_nothing_is_reported_to_the_makers_of_onnx_runtime(tmp_path: Path) -> None:
    code = """
import os, pathlib
from diinn.runtime import SuperResolver
SuperResolver.open("nano").close()
links = filter(os.path.lexists, map(str, pathlib.Path("/proc/self/fd").iterdir()))
print([p for p in map(os.readlink, links) if "onnxruntime.db" in p])
"""
    if sys.platform != "linux":
        pytest.skip("open files are read from /proc")
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    assert not list(tmp_path.rglob("*"))


def test_the_runtime_runs_where_torch_cannot_be_imported(bundle_path: Path, photo_path: Path, tmp_path: Path) -> None:
    code = f"""
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {sorted(HEAVY)!r}:
            raise ImportError('forbidden: ' + name)
sys.meta_path.insert(0, NoTorch())
from diinn.runtime.cli.run import main
sys.exit(main(sys.argv[1:]))
"""
    out = tmp_path / "out.png"
    args = ["--input", str(photo_path), "--model", str(bundle_path), "--out-size", "200x150", "--output", str(out)]
    done = python(code, *args)
    assert done.returncode == 0, done.stderr
    assert out.exists()


def test_types_reach_a_users_script(tmp_path: Path) -> None:
    """Every name that ``diinn.runtime`` gives, with its type: one wrong call in a script is one error."""
    from diinn import runtime

    names = ", ".join(runtime.__all__)
    script = tmp_path / "script.py"
    script.write_text(
        f"from diinn.runtime import {names}\n"
        "with SuperResolver.open('small') as resolver:\n"
        "    reveal_type(resolver.resize)\n"
        "    resolver.resise(3)\n"
        "for result in Stream(['demo'], 'small'):\n"
        "    reveal_type(result)\n"
    )
    rooms = tmp_path / "typed" / "diinn"
    rooms.mkdir(parents=True)
    for room in ROOMS:
        (rooms / room).symlink_to(ROOT / room)
    options = ["--strict", "--explicit-package-bases", "--namespace-packages", "--ignore-missing-imports"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--cache-dir", str(ROOT / "build" / "mypy-script"), str(script)],
        env={**os.environ, "MYPYPATH": str(rooms.parent)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    wrong = [line for line in done.stdout.splitlines() if "script.py" in line and "error" in line]
    assert len(wrong) == 1, done.stdout
    assert '"SuperResolver" has no attribute "resise"' in wrong[0]
    assert "diinn.runtime.stream.result.Result" in done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what git would ship."""
    source = tmp_path_factory.mktemp("source") / "diinn"
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "dist", "runs", "out", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignore)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("diinn/")}
    wanted = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            data = (
                path.suffix in (".yaml", ".cu", ".cpp", ".h", ".c", ".html", ".css", ".js")
                or path.parent.parent.name == "shipped"
                or path.name in ("paper.csv", "py.typed")
            )
            if path.is_file() and (path.suffix == ".py" or data):
                wanted.add(f"diinn/{path.relative_to(ROOT).as_posix()}")
    assert packed == wanted
    assert any(name.endswith("small.diinn/encoder.onnx") for name in packed)


@pytest.mark.slow
def test_the_wheel_runs_in_a_fresh_environment_without_torch(wheel: Path, photo_path: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    done = subprocess.run(
        [*pip, *constraints, f"{wheel}[cpu]"], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    probe = [str(home / "bin" / "python"), "-c", "import torch"]
    assert subprocess.run(probe, capture_output=True, check=False).returncode != 0
    out = tmp_path / "out.png"
    command = [home / "bin" / "diinn-run", "--input", photo_path, "--out-size", "640x480", "--output", out]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "80x60 -> 640x480" in ran.stdout
    assert out.exists()
