"""Ctrl-C and SIGTERM where the main thread does not answer: native code that loads or compares a model."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from diinn.runtime.cli import signals
from diinn.runtime.cli.signals import ended_by_signals
from onnx import TensorProto, helper, numpy_helper
from served import until
from tiny import rehash

RUN = (sys.executable, "-m", "diinn.runtime.cli.run", "--camera", "demo", "--output", "none", "--model")
DOCTOR = (sys.executable, "-m", "diinn.runtime.cli.doctor")


@pytest.fixture
def endless(bundle_path: Path, tmp_path: Path) -> Path:
    """A bundle whose encoder never ends."""
    folder = Path(shutil.copytree(bundle_path, tmp_path / "endless.diinn"))
    model = onnx.load(folder / "encoder.onnx")
    frame = model.graph.input[0]
    for node in model.graph.node:
        node.input[:] = ["looped" if name == "frame" else name for name in node.input]
    on, out = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "on_out"))
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    before, after = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("before", "after"))
    body = [helper.make_node("Identity", ["on"], ["on_out"]), helper.make_node("Identity", ["before"], ["after"])]
    loop = helper.make_graph(body, "body", [count, on, before], [out, after])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    model.graph.node.insert(0, helper.make_node("Loop", ["", "always", frame.name], ["looped"], body=loop))
    onnx.save(model, folder / "encoder.onnx")
    rehash(folder)
    return folder


def seconds(process: subprocess.Popen) -> float:
    """Of a processor that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def computing(process: subprocess.Popen) -> bool:
    """Whether ONNX Runtime is loaded."""
    return "onnxruntime_pybind11" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")
@pytest.mark.parametrize(
    ("command", "number", "code"),
    [(RUN, signal.SIGINT, 130), (RUN, signal.SIGTERM, 143), (DOCTOR, signal.SIGINT, -signal.SIGINT)],
)
def test_a_graph_that_never_ends_is_ended_by_a_signal(
    endless: Path, command: Sequence[str], number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen([*command, str(endless)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: computing(process), 60)
        begun = seconds(process)
        until(lambda: seconds(process) > begun + 2, 60)  # to load all takes less
        process.send_signal(number)
        sent = time.monotonic()
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - sent < 2
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (code, "")


def test_who_leaves_in_time_is_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with ended_by_signals(5.0):
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: bool(heard))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert not [thread for thread in threading.enumerate() if thread.name == "diinn-signals"]


def test_other_signals_and_other_threads_are_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with ended_by_signals(0.0):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    done = []

    def elsewhere() -> None:
        with ended_by_signals():
            done.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert (ended, done) == ([], [True])


@pytest.mark.parametrize("after", [0.0, 0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("command", ["run", "doctor"])
def test_ctrl_c_right_after_the_start_prints_no_trace(command: str, after: float) -> None:
    """From our first line on: what Python does before it is its own."""
    code = "import sys; from diinn.runtime.cli import start as s; s.quietly(); print('x', flush=True); "
    options = ["--camera", "demo", "--output", "none", "--model", "nano"] if command == "run" else ["nano"]
    words = [sys.executable, "-c", f"{code}sys.exit(s.{command}())", *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "x\n"
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert err == ""
    assert process.returncode in (130, -signal.SIGINT) or "Verdict" in out  # a quick machine's doctor is done
