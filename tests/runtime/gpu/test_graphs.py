"""CUDA graphs: work that comes again is replayed, and what mostly does not is no longer captured."""

import pytest
from diinn.runtime.gpu.graphs import MOST_GRAPHS, GraphCache


def test_what_is_mostly_captured_in_vain_is_run_directly(device_kind: type, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    device = device_kind()
    graphs, done = GraphCache(device, wanted=True), []
    for key in (key for key in range(100) for _ in range(2)):  # each comes twice, so that a graph is launched once
        graphs.run(key, lambda key=key: done.append(key))  # type: ignore[misc]
    assert len(done) >= 200 - MOST_GRAPHS
    assert graphs.count == MOST_GRAPHS + 1
    assert [r.message for r in caplog.records] == ["no CUDA graphs from here on: most of them are captured in vain"]
    device.close()


def test_what_comes_often_enough_is_replayed_for_good(device_kind: type) -> None:
    device = device_kind()
    graphs, work = GraphCache(device, wanted=True), []
    for key in (key for key in range(100) for _ in range(4)):
        graphs.run(key, lambda: work.append(1))
    assert graphs.count == 300
    device.close()
