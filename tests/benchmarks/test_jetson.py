"""The benchmark for a robot's own computer: its readers on a made file system, its tables on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from diinn.benchmarks import jetson, roofline
from diinn.benchmarks.__main__ import main as bench
from diinn.benchmarks.board import Board, Watched
from diinn.runtime.bundles import bundle as bundles

Patch, Output = pytest.MonkeyPatch, pytest.CaptureFixture[str]


def write(root: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """What an Orin shows."""
    chip = "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
    write(
        tmp_path,
        {
            f"{chip}/name": "ina3221",
            f"{chip}/in1_label": "VDD_IN",
            f"{chip}/in1_input": 5000,
            f"{chip}/curr1_input": 2400,
            f"{chip}/in2_label": "VDD_CPU_GPU_CV",
            f"{chip}/in2_input": 5000,
            f"{chip}/curr2_input": 800,
            f"{chip}/in3_label": "NC",
            f"{chip}/in3_input": 5000,
            f"{chip}/curr3_input": 99999,
            f"{chip}/in7_label": "Sum of shunt voltages",
            f"{chip}/in7_input": 9,
            "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 51250,
            "sys/class/thermal/thermal_zone1/type": "off",
            "sys/class/devfreq/17000000.gpu/cur_freq": 918000000,
            "sys/class/devfreq/17000000.gpu/min_freq": 306000000,
            "sys/class/devfreq/17000000.gpu/max_freq": 1020000000,
            "sys/class/hwmon/hwmon1/name": "pwmfan",
            "sys/class/hwmon/hwmon1/pwm1": 51,
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
        },
    )
    return tmp_path


def test_an_orin_is_read(orin: Path) -> None:
    board = Board(orin)
    assert board.watts() == pytest.approx(12.0)  # the input rail alone
    assert board.temperatures() == {"gpu-thermal": 51.25}
    assert board.gpu_clock() == (918, 306, 1020)
    assert board.fan() == pytest.approx(0.2)
    facts = board.facts()
    assert facts["model"] == "NVIDIA Jetson Orin Nano"
    assert facts["L4T"] == "R36 (release), REVISION: 4.3"
    assert facts["power"] == "readable"
    assert board.warnings() == ["clocks are not locked (GPU 306 to 1020 MHz): run sudo jetson_clocks"]
    write(orin, {"sys/class/devfreq/17000000.gpu/min_freq": 1020000000})
    assert board.warnings() == []


def test_without_an_input_rail_the_rails_are_added(orin: Path) -> None:
    (orin / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in1_label").write_text("VDD_GPU\n")
    assert Board(orin).watts() == pytest.approx(12.0 + 4.0)


def test_a_thor_is_read(tmp_path: Path) -> None:
    chip = "sys/bus/i2c/devices/2-0044/hwmon/hwmon5"
    write(tmp_path, {f"{chip}/name": "ina238", f"{chip}/power1_input": 31_500_000})
    assert Board(tmp_path).watts() == pytest.approx(31.5)


def test_an_agx_orin_and_a_total_beside_rails(orin: Path) -> None:
    chip = "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
    names = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    rails = {f"{chip}/in{n}_label": name for n, name in enumerate(names, 1)}
    rails |= {f"{chip}/in{n}_input": 5000 for n in (1, 2, 3)} | {f"{chip}/curr{n}_input": 1000 for n in (1, 2, 3)}
    write(orin, rails)
    assert Board(orin).watts() == pytest.approx(15.0)  # the 5 V rail is one of three
    write(orin, {"sys/bus/i2c/devices/2-0044/hwmon/hwmon5/name": "ina238"})
    write(orin, {"sys/bus/i2c/devices/2-0044/hwmon/hwmon5/power1_input": 31_500_000})
    assert Board(orin).watts() == pytest.approx(31.5)


def test_nothing_is_said_to_be_missing(tmp_path: Path) -> None:
    board = Board(tmp_path)
    assert board.watts() is None
    assert board.temperatures() == {}
    facts = board.facts()
    assert facts["power"] == "not readable here"
    assert facts["nvpmodel"] == "not installed"
    assert facts["GPU clock"] == "not readable"
    with Watched(board) as watched:
        pass
    assert watched.watts is None


def test_broken_files_are_no_crash(orin: Path) -> None:
    for path in orin.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff nonsense")
    board = Board(orin)
    assert board.watts() is None
    assert board.gpu_clock() is None
    board.facts()


def test_power_and_throttling_are_watched(orin: Path) -> None:
    with Watched(Board(orin)) as watched:
        while not watched._clocks:
            watched._stop.wait(0.02)
        write(orin, {"sys/class/devfreq/17000000.gpu/cur_freq": 500000000})
        for _ in range(100):
            if watched._clocks and watched._clocks[-1] == 500:
                break
            watched._stop.wait(0.02)
    assert watched.watts == pytest.approx(12.0)
    assert (watched.slowest, watched.fastest) == (500, 918)


def test_tables_json_and_plot(
    orin: Path, bundle_path: Path, tmp_path: Path, monkeypatch: Patch, capsys: Output
) -> None:
    monkeypatch.setattr(jetson, "CELLS", (*[((16, 12), (20, 16), n) for n in (1, 2, 3)], ((16, 12), (32, 24), 1)))
    args = [str(bundle_path), "--seconds", "0", "--least", "2", "--soak", "0", "--psnr", "tiny=27.5"]
    given = jetson.parser().parse_args([*args, "--out", str(tmp_path / "r.json")])
    assert jetson.run(given, Board(orin)) == 0
    output = capsys.readouterr().out
    assert "2 x 16x12 → 20x16" in output
    assert "PROJECTION, not measured" in output
    assert "WARNING: clocks are not locked" in output
    kept = json.loads((tmp_path / "r.json").read_text())
    assert kept["facts"]["model"] == "NVIDIA Jetson Orin Nano"
    first = kept["rows"][0]
    assert first["watts"] == pytest.approx(12.0)
    assert first["joules"] == pytest.approx(12.0 / first["frames_per_second"])
    assert (tmp_path / "r.png").stat().st_size > 1000
    assert "PROJECTION" in (tmp_path / "r.md").read_text()


def test_a_model_that_fails_is_a_row(bundle_path: Path, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "r.json"
    assert bench(["jetson", str(bundle_path), "--backend", "tensorrt", "--soak", "0", "--out", str(out)]) == 1
    assert "no NVIDIA driver here" in json.loads(out.read_text())["rows"][0]["failed"]
    capsys.readouterr()
    assert bench(["jetson", "nothing"]) == 2
    assert bench(["jetson", str(bundle_path), "--psnr", "tiny"]) == 2
    assert "write it as NAME=dB" in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'matplotlib'): sys.modules[name] = None\n"
        "from diinn.benchmarks import jetson\n"
        "print(jetson.plot([], {}, None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "pip install matplotlib" in done.stdout


def test_floors_and_projections() -> None:
    card = roofline.JETSONS["AGX Orin 64GB"]
    assert card.matrix == pytest.approx(42.6e12, rel=0.01)
    floors = card.floors(roofline.Work(card.matrix, 0, card.bandwidth / 2))
    assert floors["matrix"] == pytest.approx(1000)
    assert floors["bytes"] == pytest.approx(500)
    small = bundles.load("small")
    work = roofline.of(small, (160, 120), (640, 480), 1)
    decoder = 2 * (6 * 32 + 2 * 2 * 32 * 32) * 640 * 480
    assert work.sines == 3 * 32 * 640 * 480
    assert work.flop == pytest.approx(decoder + 2 * 350_000 * 160 * 120, rel=0.1)
    four = roofline.of(small, (160, 120), (640, 480), 4)
    assert four.flop == pytest.approx(4 * work.flop)
