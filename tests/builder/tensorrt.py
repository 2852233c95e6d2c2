"""NVIDIA's real parser and builder under TensorRT's name: TensorRT for RTX, which builds engines on a CPU.

Nothing is played but what diinn asks of a machine with a GPU: the version (``DIINN_BUILDER_AS``), and that builds name
the architectures they are for (``DIINN_BUILDER_TARGETS``), since there is no GPU to take them from. What the network is
after parsing goes to the file ``$DIINN_BUILDER_NETWORK``.
"""

import json
import os
from pathlib import Path

import tensorrt_rtx_bindings as real
from tensorrt_rtx_bindings import *  # noqa: F403

__version__ = os.environ["DIINN_BUILDER_AS"]


class Builder(real.Builder):
    def __init__(self, logger):
        real.Builder.__init__(self, logger)

    def create_builder_config(self):
        config = real.Builder.create_builder_config(self)
        targets = os.environ["DIINN_BUILDER_TARGETS"].split(",")
        config.num_compute_capabilities = len(targets)
        for i, name in enumerate(targets):
            assert config.set_compute_capability(getattr(real.ComputeCapability, name), i)
        return config

    def build_serialized_network(self, network, config):
        path = os.environ.get("DIINN_BUILDER_NETWORK")
        if path:
            Path(path).write_text(json.dumps(_tensors(network)))
        return real.Builder.build_serialized_network(self, network, config)


def _tensors(network):
    """Type and shape of every input and output."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return {
        kind: {tensor.name: [tensor.dtype.name, list(tensor.shape)] for tensor in tensors}
        for kind, tensors in (("inputs", inputs), ("outputs", outputs))
    }
