"""What the soak calls wrong, and that it watches."""

import random
from typing import Any

from diinn.benchmarks.soak import Findings, duration, soak, verdict


def summary(reconnects: int = 3, other: int = 0) -> dict[str, Any]:
    calm = {"reconnects": 0, "processed": 9}
    cameras = {"a": calm, "b": calm, "c": {**calm, "reconnects": other}, "d": {**calm, "reconnects": reconnects}}
    return {"cameras": cameras}


def findings(threads: float = 0.0, files: float = 0.0, memory: float = 0.0) -> Findings:
    """Samples of a minute that grow by so much a sample, and come and go as with batches and zooms."""
    comes_and_goes = random.Random(0).choices((0, 40), k=58)
    samples = [
        (1.0 * i, 10 + int(threads * i), 20 + int(files * i), 110 + memory * i + more)
        for i, more in enumerate(comes_and_goes)
    ]
    return Findings(samples, pictures=5, visits=3, flaps=3)


def test_level_is_level() -> None:
    output = "diinn-run: camera d: stopped delivering frames; next try in 0.4 s\n"
    assert verdict(findings(), summary(), output) == []


def test_what_grows_is_wrong() -> None:
    assert "threads grew" in verdict(findings(threads=0.1), summary(), "")[0]
    assert "open files grew" in verdict(findings(files=0.2), summary(), "")[0]
    assert "memory grew" in verdict(findings(memory=3.0), summary(), "")[0]


def test_what_else_is_wrong() -> None:
    assert "d fell out 3 times and came back 1 times" in verdict(findings(), summary(reconnects=1), "")
    assert "c: 2 reconnects" in verdict(findings(), summary(other=2), "")[0]
    assert verdict(findings(), summary(), "Traceback\n") == ["it logged: Traceback"]
    assert verdict(Findings(), summary(), "")[0] == "it ended before it could be watched"


def test_durations() -> None:
    assert [duration(text) for text in ("60s", "10m", "8h")] == [60, 600, 28800]


def test_a_few_seconds_of_it() -> None:
    found, last, output = soak(8.0)
    assert found.errors == []
    assert found.visits >= 3
    assert found.pictures > 0
    assert found.samples
    assert len(last["cameras"]) == 4
    assert "Traceback" not in output
