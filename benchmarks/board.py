"""What a Jetson reports: power, temperature, clocks, fan, power mode. All of it from files and two programs.

Every reader takes the root of the file system, so that tests can make one; what is missing is reported, not guessed.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

INTERVAL = 0.05  # seconds between two looks at the power
INPUT_RAIL = "VDD_IN"  # of a module in all, where there is one
LEFT_OUT = ("NC", "")
SUM_CHANNEL = 7  # of an ina3221: the sum of others


@dataclass(frozen=True)
class Board:
    """A machine, read below ``root``."""

    root: Path = Path("/")

    def watts(self) -> float | None:
        """Power of the whole module, watts; None where nothing measures it.

        From an ina238 (Thor), else an ina3221's input rail, else the sum of its rails.
        """
        rails: dict[str, float] = {}
        totals: list[float] = []
        for chip in sorted(self.root.glob("sys/bus/i2c/devices/*/hwmon/hwmon*")):
            kind = _text(chip / "name")
            if kind == "ina3221":
                rails |= _ina3221(chip)
            elif kind == "ina238":
                micro = _number(chip / "power1_input")
                if micro is not None:
                    totals.append(micro / 1e6)
        if totals:
            return sum(totals)
        if INPUT_RAIL in rails:
            return rails[INPUT_RAIL]
        return sum(rails.values()) if rails else None

    def temperatures(self) -> dict[str, float]:
        """Degrees Celsius by thermal zone."""
        found = {}
        for zone in sorted(self.root.glob("sys/class/thermal/thermal_zone*")):
            milli = _number(zone / "temp")
            if milli is not None:
                found[_text(zone / "type") or zone.name] = milli / 1000
        return found

    def gpu_clock(self) -> tuple[float, float, float] | None:
        """The GPU's (current, least, most) frequency in MHz, by its governor; None where it is not readable."""
        for path in sorted(self.root.glob("sys/class/devfreq/*")):
            if any(word in path.name for word in ("gpu", "ga10b", "gv11b", "gpc", "gb10b")):
                values = [_number(path / name) for name in ("cur_freq", "min_freq", "max_freq")]
                known = [value / 1e6 for value in values if value is not None]
                if len(known) == 3:
                    return known[0], known[1], known[2]
        return None

    def fan(self) -> float | None:
        """How hard the fan runs, from 0 to 1."""
        for path in sorted(self.root.glob("sys/class/hwmon/hwmon*")):
            if "fan" in (_text(path / "name") or ""):
                pwm = _number(path / "pwm1")
                if pwm is not None:
                    return pwm / 255
        return None

    def facts(self) -> dict[str, str]:
        """Model, JetPack's release, power mode, clocks, fan: each found, or reported as missing."""
        clock, fan = self.gpu_clock(), self.fan()
        return {
            "model": _text(self.root / "proc/device-tree/model") or "not a Jetson, or it does not say",
            "L4T": (_text(self.root / "etc/nv_tegra_release") or "none").splitlines()[0].lstrip("# "),
            "nvpmodel": _said("nvpmodel", "-q"),
            "jetson_clocks": _said("jetson_clocks", "--show"),
            "GPU clock": f"{clock[0]:.0f} MHz, between {clock[1]:.0f} and {clock[2]:.0f}" if clock else "not readable",
            "fan": f"{fan:.0%}" if fan is not None else "not readable",
            "power": "readable" if self.watts() is not None else "not readable here",
        }

    def warnings(self) -> list[str]:
        """Reasons to doubt figures of this machine."""
        clock = self.gpu_clock()
        if clock is not None and clock[1] < clock[2]:
            return [f"clocks are not locked (GPU {clock[1]:.0f} to {clock[2]:.0f} MHz): run sudo jetson_clocks"]
        return []


def _ina3221(chip: Path) -> dict[str, float]:
    """Watts by rail."""
    found = {}
    for channel in range(1, SUM_CHANNEL):
        label = _text(chip / f"in{channel}_label") or ""
        volts, amperes = _number(chip / f"in{channel}_input"), _number(chip / f"curr{channel}_input")
        if label not in LEFT_OUT and volts is not None and amperes is not None:
            found[label] = volts * amperes / 1e6
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _said(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        return "not installed"
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not answer: {error}"
    return " / ".join((done.stdout or done.stderr).split("\n")).strip(" /") or f"exit code {done.returncode}"


@dataclass
class Watched:
    """A board's readings while the context is open.

    Mean watts (None if not readable), the least and the largest GPU clock in MHz (0 if not readable).
    """

    board: Board
    watts: float | None = None
    slowest: float = 0.0
    fastest: float = 0.0
    _powers: list[float] = field(default_factory=list)
    _clocks: list[float] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while True:
            power, clock = self.board.watts(), self.board.gpu_clock()
            self._powers += [] if power is None else [power]
            self._clocks += [] if clock is None else [clock[0]]
            if self._stop.wait(INTERVAL):
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.watts = statistics.fmean(self._powers) if self._powers else None
        self.slowest, self.fastest = min(self._clocks, default=0.0), max(self._clocks, default=0.0)


def soak(work: object, seconds: float) -> None:
    """Run ``work`` for so many seconds, to warm the machine up."""
    assert callable(work)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        work()
