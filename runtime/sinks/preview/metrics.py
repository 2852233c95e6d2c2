"""The statistics as Prometheus reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from diinn.runtime.sources.base import LIVE, STATES
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# name: (key of a camera's statistics, what it is)
COUNTERS = {
    "captured": "Frames captured, dropped ones included",
    "processed": "Frames processed",
    "dropped": "Frames that newer ones replaced",
    "undecodable": "Frames that could not be decoded",
    "reconnects": "Times the camera came back",
}


class _Snapshot(Collector):
    def __init__(self, snapshot: dict[str, Any]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        cameras = self._snapshot["cameras"]
        for key, what in COUNTERS.items():
            counter = CounterMetricFamily(
                f"diinn_frames_{key}" if key != "reconnects" else "diinn_reconnects", what, labels=["camera"]
            )
            for name, camera in cameras.items():
                counter.add_metric([name], camera[key])
            yield counter
        up = GaugeMetricFamily("diinn_camera_up", "1 while the camera delivers frames", labels=["camera"])
        state = GaugeMetricFamily("diinn_camera_state", "1 for what the camera is doing", labels=["camera", "state"])
        fps = GaugeMetricFamily("diinn_fps", "Frames processed a second, over the last seconds", labels=["camera"])
        age = GaugeMetricFamily("diinn_age_seconds", "From a frame's arrival to a sink", labels=["camera", "quantile"])
        degraded = CounterMetricFamily(
            "diinn_degraded", "Frames reduced for the deadline", labels=["camera", "quality"]
        )
        noise = GaugeMetricFamily("diinn_noise_level", "What frames are cleaned of, grey levels", labels=["camera"])
        compression = GaugeMetricFamily("diinn_compression", "The same, 100 - JPEG quality", labels=["camera"])
        for name, camera in cameras.items():
            noise.add_metric([name], camera["denoise"]["noise"])
            compression.add_metric([name], camera["denoise"]["compression"])
            up.add_metric([name], float(camera["state"] == LIVE))
            for one in STATES:
                state.add_metric([name, one], float(camera["state"] == one))
            fps.add_metric([name], camera["fps"])
            for quantile, value in camera["age_ms"].items():
                age.add_metric([name, f"0.{quantile[1:]}"], value / 1e3)
            for quality, count in camera["degraded"].items():
                degraded.add_metric([name, quality], count)
        yield from (up, state, fps, age, noise, compression, degraded)
        stages = GaugeMetricFamily("diinn_stage_seconds", "Time of a stage", labels=["stage", "quantile"])
        for stage, times in self._snapshot["ms"].items():
            for quantile, value in times.items():
                stages.add_metric([stage, f"0.{quantile[1:]}"], value / 1e3)
        yield stages
        written = CounterMetricFamily("diinn_output_written", "Views an output took", labels=["output"])
        overtaken = CounterMetricFamily("diinn_output_dropped", "Views newer ones replaced", labels=["output"])
        for counter, key in ((written, "written"), (overtaken, "dropped")):
            counts: Counter[str] = Counter()
            for output in self._snapshot["outputs"]:  # windows all have one name
                counts[output["where"]] += output[key]
            for where, count in counts.items():
                counter.add_metric([where], count)
        yield from (written, overtaken)
        memory = GaugeMetricFamily("diinn_memory_bytes", "Resident memory", labels=["of"])
        memory.add_metric(["process"], self._snapshot["memory_mib"] * 2**20)
        memory.add_metric(["workers"], self._snapshot["workers_mib"] * 2**20)
        yield memory


def text(snapshot: dict[str, Any]) -> bytes:
    """A snapshot of ``Stats`` in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(snapshot))
    return generate_latest(registry)
