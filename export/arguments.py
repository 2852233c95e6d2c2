"""How large the arguments of a decoder's sines get: what decides whether a kernel has to reduce them."""

import numpy as np
import onnx
from diinn.export import fp16_acceptance as frames
from diinn.runtime.geometry import grid
from diinn.runtime.noise.strength import Dial


def largest(
    encoder: onnx.ModelProto, decoder: onnx.ModelProto, layout: grid.Layout, dial: Dial | None = None
) -> np.float32:
    """The largest magnitude of an argument of ``Sin`` in the fp32 graphs, radians.

    Seen on the frames that fp16 is measured on, those that have what pictures have and those made to drive activations
    far, at every strength and scale of theirs. A network may meet worse: what is decided by it needs a margin.

    dial: of the encoder, if it has one
    """
    maps = [value.name for value in encoder.graph.output]
    arguments = {node.input[0] for node in decoder.graph.node if node.op_type == "Sin"}
    to_maps, to_arguments = frames.Tapped(encoder, set()), frames.Tapped(decoder, arguments)
    found: dict[str, float] = {}
    for frame in [*frames.measured_frames(), *frames.adversarial_frames().values()]:
        size = frame.shape[2], frame.shape[1]
        for given in frames.with_strengths(frame, dial):
            values = to_maps.run({"frame": given[None]}, {})
            rows = {name: values[name].reshape(-1, values[name].shape[-1]) for name in maps}
            for dsize in frames.DSIZES:
                index, query = grid.resize(size, dsize, layout).arrays()
                to_arguments.run({**{name: rows[name][index] for name in maps}, "query": query}, found)
    return np.float32(max(found.values()))
