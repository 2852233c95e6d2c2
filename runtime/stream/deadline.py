"""What a batch gives up so that it meets its deadline, in which order, and when that is taken back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diinn.runtime.stream.result import BICUBIC, REDUCED, WHOLE

STEPS = (REDUCED, BICUBIC)
HEADROOM = 0.8  # of the deadline: what a batch with one step less must be expected to take before it is tried
HOLD = 1.0  # seconds for which that must have been so
FORGET = 0.98  # a cost that is not measured any more is believed a little less with each batch
LEARN = 0.25  # weight of the newest measurement


@dataclass(frozen=True)
class Load:
    """The work that one camera adds to a batch.

    pixels: LR pixels to encode; queries, reduced: pixels to decode, whole and with reduced views
    """

    camera: str
    pixels: int
    queries: int
    reduced: int


class Deadline:
    """Keeps batches within ``seconds`` from a frame's arrival to its result.

    Cameras give up in the order of their weights, the lightest first (the last named of equal ones): all go to reduced
    views one after another, then all to bicubic ones. One step is taken back when the batch is expected to take less
    than ``HEADROOM`` of the deadline with it for ``HOLD`` seconds.
    """

    def __init__(self, seconds: float, weights: Mapping[str, float]) -> None:
        self.seconds = seconds
        self.depth = 0  # steps taken: 0 to two a camera
        last_first = list(weights)[::-1]
        self._order = sorted(last_first, key=lambda camera: weights[camera])
        self._encode = self._decode = 0.0  # seconds per LR pixel and per query
        self._calm_since: float | None = None

    def plan(self, loads: Sequence[Load], waited: float, now: float) -> dict[str, str]:
        """The quality of every camera's views in a batch whose oldest frame has ``waited`` seconds already.

        Giving up everything does not help a frame that is late before its batch begins: half of the deadline is for
        the batch, whatever was waited.
        """
        waited = min(waited, self.seconds / 2)
        most = len(STEPS) * len(self._order)
        while self.depth < most and self._cost(loads, self._levels(self.depth)) > self.seconds - waited:
            self.depth += 1
            self._calm_since = None
        if self.depth and self._cost(loads, self._levels(self.depth - 1)) <= HEADROOM * self.seconds - waited:
            self._calm_since = now if self._calm_since is None else self._calm_since
            if now - self._calm_since >= HOLD:
                self.depth -= 1
                self._calm_since = None
        else:
            self._calm_since = None
        return self._levels(self.depth)

    def learn(self, loads: Sequence[Load], levels: dict[str, str], encode: float, decode: float) -> None:
        """What a batch took, seconds."""
        pixels, queries = self._work(loads, levels)
        self._encode = _updated(self._encode, encode, pixels)
        self._decode = _updated(self._decode, decode, queries)

    def _levels(self, depth: int) -> dict[str, str]:
        levels = dict.fromkeys(self._order, WHOLE)
        for step in range(depth):
            levels[self._order[step % len(self._order)]] = STEPS[step // len(self._order)]
        return levels

    def _cost(self, loads: Sequence[Load], levels: dict[str, str]) -> float:
        pixels, queries = self._work(loads, levels)
        return pixels * self._encode + queries * self._decode

    @staticmethod
    def _work(loads: Sequence[Load], levels: dict[str, str]) -> tuple[int, int]:
        pixels = queries = 0
        for load in loads:
            level = levels[load.camera]
            if level != BICUBIC:
                pixels += load.pixels
                queries += load.queries if level == WHOLE else load.reduced
        return pixels, queries


def _updated(believed: float, seconds: float, amount: int) -> float:
    if not amount:
        return believed * FORGET
    measured = seconds / amount
    return measured if not believed else (1 - LEARN) * believed + LEARN * measured
