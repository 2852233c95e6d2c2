"""The DIINN decoder as one CUDA kernel: which form of it runs on a device, its weights there, and its launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from diinn.runtime.errors import InputError
from diinn.runtime.gpu.compiler import KERNELS
from diinn.runtime.gpu.device import Device

# By K of the kernels: warps of a block at most, and of a multiprocessor at once: their launch bounds.
WARPS = {16: (8, 24), 32: (8, 16), 64: (8, 16), 128: (6, 12), 256: (8, 8)}
WIDTHS = (*WARPS,)
BLOCKS_OF = (8, 6, 4, 2, 1)  # warps that a block may have
BLOCK_BYTES = 1024  # of shared memory that each block costs besides its own
LARGEST_UNREDUCED = 100.0  # of a sine's argument, as the special function unit takes it
MARGIN = 4.0  # what it may be larger than where the exporter looked
ROWS = 32  # queries a warp decodes at once


@dataclass(frozen=True)
class Plan:
    """How ``fused_decoder.cu`` runs on a device.

    kernel: its name; warps: of a block; shared: bytes of shared memory a block takes
    blocks: of each multiprocessor at the same time
    """

    kernel: str
    warps: int
    shared: int
    blocks: int


def plan(width: int, depth: int, shared_bytes: int, *, reduced: bool = False) -> Plan:
    """The form with the most warps at once on a multiprocessor whose blocks may have so much shared memory.

    Of several, weights that stay in shared memory come first, then two blocks, which need not wait for each other, then
    larger ones.

    width, depth: K and N; reduced: whether sines are reduced, see ``needs_reduction``

    Raises InputError for a decoder that has no kernel.
    """
    if width not in WIDTHS:
        raise InputError(f"no fused kernel for a decoder {width} wide, only for {', '.join(map(str, WIDTHS))}")
    piece = width * 64  # bytes of one group's weights, and of a warp's activations
    pieces = (depth - 1) * width // 16
    largest, at_once = WARPS[width]
    forms = [("streamed", 2)] if width == 256 else [("resident", pieces), ("streamed", 2)]
    found = []
    for warps in (warps for warps in BLOCKS_OF if warps <= largest):
        for form, kept in forms:
            shared = (kept + warps) * piece
            fitting = (shared_bytes + BLOCK_BYTES) // (shared + BLOCK_BYTES)
            blocks = min(at_once // warps, fitting)
            if blocks:
                rank = (blocks * warps, form == "resident", blocks > 1, warps)
                found.append((rank, Plan(f"fused_{width}_{form}{'_reduced' * reduced}", warps, shared, blocks)))
    if not found:
        raise InputError(
            f"a decoder {width} wide needs {3 * piece} bytes of shared memory, the device has {shared_bytes}"
        )
    return max(found, key=lambda item: item[0])[1]


def needs_reduction(layers: Mapping[str, Any]) -> bool:
    """Whether arguments of sines may be beyond what the special function unit takes as it is.

    layers: as ``Bundle.layers`` gives them; one that does not say how large they get, or nothing that can be, needs it
    """
    return not 0 < float(layers.get("largest_argument", np.inf)) * MARGIN <= LARGEST_UNREDUCED


def planned(device: Device, layers: Mapping[str, Any]) -> Plan:
    """How a decoder runs on a device. Raises InputError where it has no kernel.

    layers: as ``Bundle.layers`` gives them
    """
    if tuple(map(int, device.capability.split("."))) < (7, 5):
        raise InputError(f"no fused kernel for compute capability {device.capability}, only for 7.5 and later")
    width, depth = layers["first"].shape[0], len(layers["bias"]) + 1
    return plan(width, depth, device.shared_bytes, reduced=needs_reduction(layers))


class FusedDecoder:
    """A decoder's weights on the device, and the kernel that takes them.

    layers: as ``Bundle.layers`` gives them. Raises InputError for a decoder that has no kernel.
    """

    def __init__(self, device: Device, layers: Mapping[str, Any]) -> None:
        self._device, self.width, self.depth = device, layers["first"].shape[0], len(layers["bias"]) + 1
        self.plan = planned(device, layers)
        names = (self.plan.kernel, "pack_hidden", "pack_last")
        self._kernels = device.kernels(KERNELS / "fused_decoder.cu", names)
        self._weights = self._upload(layers)

    def _upload(self, layers: Mapping[str, Any]) -> list[np.uint64]:
        """hidden, first, bias, last, last_bias in device memory, as the kernel takes them."""
        device, width = self._device, self.width
        words, last_words = layers["hidden"].size // 2, width // 16 * 64
        packed = device.allocate(max(words, 1) * 4), device.allocate(last_words * 4)
        given = []
        pairs = layers["bias"].reshape(-1, 1, 2).repeat(2, axis=1)  # of units, each twice
        arrays = {**layers, "bias": pairs, "last_bias": np.pad(layers["last_bias"], (0, 5))}
        for name in ("hidden", "first", "bias", "last", "last_bias"):
            values = np.ascontiguousarray(arrays[name], np.float32)
            given.append(device.allocate(values.nbytes))
            device.upload(given[-1], values)
        hidden, first, bias, last, last_bias = map(np.uint64, given)
        kinds = (("pack_hidden", words, hidden, packed[0]), ("pack_last", last_words, last, packed[1]))
        for name, count, source, target in kinds:
            if count:
                self._kernels[name](count, np.int64(count), np.int32(width), source, np.uint64(target))
        device.wait()
        for address in (hidden, last):
            device.free(int(address))
        return [np.uint64(packed[0]), first, bias, np.uint64(packed[1]), last_bias]

    def decode(self, maps: int, count: int, segments: int, at: int) -> None:
        """Put on the stream: ``count`` queries of so many ``SEGMENT``s at an address; maps: of the maps' addresses."""
        rows = self.plan.warps * ROWS
        grid = min(-(-count // rows), self._device.multiprocessors * self.plan.blocks)
        block = self.plan.warps * 32
        facts = (np.int32(count), np.int32(segments), np.uint64(at), np.int32(self.depth))
        self._kernels[self.plan.kernel](
            grid * block, *facts, *self._weights, np.uint64(maps), block=block, shared=self.plan.shared
        )
