"""A test double of the few TensorRT classes diinn uses, on ONNX Runtime. Not TensorRT: it exercises our control flow.

It builds nothing: an "engine" is the ONNX file with a header, run by ONNX Runtime on host memory. What it does hold to:
names and enumerations of the version it plays (``DIINN_DOUBLE_VERSION``), shapes within the profile, None and False
where the real one fails. ``DIINN_DOUBLE_FAIL`` says where it is to fail.
"""

import ctypes
import enum
import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import onnx
from diinn.runtime.util.onnx_runtime import ort as onnxruntime

__version__ = os.environ.get("DIINN_DOUBLE_VERSION", "10.13.0.35")
MAJOR = int(__version__.split(".")[0])
MAGIC = b"double\n"


def failing() -> str:
    return os.environ.get("DIINN_DOUBLE_FAIL", "")


def _enum(name, eight, ten, eleven):
    names = eight if MAJOR == 8 else ten if MAJOR == 10 else eleven
    return enum.IntEnum(name, names.split(), start=0)


NetworkDefinitionCreationFlag = _enum(
    "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "EXPLICIT_BATCH STRONGLY_TYPED", "STRONGLY_TYPED"
)
BuilderFlag = _enum(
    "BuilderFlag", "FP16 INT8 TF32 OBEY_PRECISION_CONSTRAINTS", "FP16 INT8 TF32 OBEY_PRECISION_CONSTRAINTS", "TF32"
)
TacticSource = _enum(
    "TacticSource", *["CUBLAS CUBLAS_LT CUDNN EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS"] * 2, "EDGE_MASK_CONVOLUTIONS"
)
MemoryPoolType = enum.IntEnum("MemoryPoolType", ["WORKSPACE"], start=0)
LayerType = enum.IntEnum(
    "LayerType", ["COMPUTE", "CONSTANT", "SHAPE", "QUANTIZE", "DEQUANTIZE", "SLICE", "SHUFFLE", "CONVOLUTION"], start=0
)
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
DataType = enum.Enum("DataType", {"FLOAT": onnx.TensorProto.FLOAT, "HALF": onnx.TensorProto.FLOAT16})


def nptype(dtype):
    return {DataType.FLOAT: np.float32, DataType.HALF: np.float16}[dtype]


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self):
        pass


class Logger(ILogger):
    def __init__(self, min_severity=ILogger.WARNING):
        super().__init__()

    def log(self, severity, msg):
        pass


class IHostMemory(bytes):
    pass


class ILayer:
    def __init__(self, node, dtype):
        kinds = {"QuantizeLinear": LayerType.QUANTIZE, "DequantizeLinear": LayerType.DEQUANTIZE}
        self.name, self.num_outputs = node.name, len(node.output)
        self.type = kinds.get(node.op_type, LayerType.CONSTANT if node.op_type == "Constant" else LayerType.COMPUTE)
        self._output = SimpleNamespace(dtype=dtype, name=node.output[0])
        self._inputs = [SimpleNamespace(name=name) for name in node.input]
        self.output_types = {}

    @property
    def num_inputs(self):
        return len(self._inputs)

    def get_input(self, index):
        return self._inputs[index]

    def get_output(self, index):
        return self._output

    def set_output_type(self, index, dtype):
        assert MAJOR < 11, "gone in 11"
        self.output_types[index] = dtype


class Network:
    def __init__(self, flags):
        self.flags, self.model, self.layers = flags, None, []

    def load(self, path):
        self.model = onnx.load(path)
        graph = onnx.shape_inference.infer_shapes(self.model).graph
        kinds = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.output]}
        known = {kind.value: kind for kind in DataType}
        self.layers = [ILayer(node, known.get(kinds.get(node.output[0]))) for node in graph.node]

    @property
    def num_layers(self):
        return len(self.layers)

    @property
    def num_outputs(self):
        return len(self.model.graph.output)

    def get_output(self, index):
        return SimpleNamespace(name=self.model.graph.output[index].name)

    def get_layer(self, index):
        return self.layers[index]


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    def parse_from_file(self, path):
        if failing() == "parse":
            self.errors = ["In node 3: no importer for Sin"]
            return False
        self.network.load(path)
        return True

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, opt, most):
        if failing() == "shape":
            raise ValueError("dimensions out of range")
        self.shapes[name] = (tuple(least), tuple(opt), tuple(most))


class TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return IHostMemory(b"timing:" + __version__.encode())


class Config:
    def __init__(self):
        self.flags, self.profiles, self.workspace, self.timing, self.tactics = {BuilderFlag.TF32}, [], None, None, None

    def set_memory_pool_limit(self, pool, size):
        self.workspace = size

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def set_tactic_sources(self, mask):
        self.tactics = mask
        return failing() != "tactics"

    def add_optimization_profile(self, profile):
        if failing() == "profile":
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return None if data and not bytes(data).startswith(b"timing:") else TimingCache(bytes(data))

    def set_timing_cache(self, cache, ignore_mismatch):
        self.timing = cache
        return not cache.data or cache.data == b"timing:" + __version__.encode()

    def get_timing_cache(self):
        return self.timing


class Builder:
    def __init__(self, logger):
        if failing() == "gpu":
            raise TypeError("pybind11::init(): factory function returned nullptr")
        if failing() == "no driver":
            os.kill(os.getpid(), signal.SIGSEGV)
        self.logger = logger

    def create_network(self, flags=0):
        return Network(flags)

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        if failing() == "build":
            self.logger.log(ILogger.ERROR, "Cuda Runtime (out of memory)")
            return None
        typed = "STRONGLY_TYPED" in NetworkDefinitionCreationFlag.__members__
        typed = typed and bool(network.flags >> NetworkDefinitionCreationFlag.STRONGLY_TYPED & 1)
        if failing() == "typed" and typed:
            self.logger.log(ILogger.ERROR, "no kernel for a cast")
            return None
        if failing() == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if failing() == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if failing() == "slow":
            time.sleep(1.5)
        if failing() == "hang":
            time.sleep(600)
        self.logger.log(ILogger.WARNING, "a weight is subnormal in fp16")
        (profile,) = config.profiles
        header = {
            "version": __version__,
            "network": [f.name for f in NetworkDefinitionCreationFlag if network.flags >> f & 1],
            "flags": sorted(flag.name for flag in config.flags),
            "workspace": config.workspace,
            "tactics": config.tactics,
            "timing": config.timing.data.decode(),
            "shapes": profile.shapes,
            "held": sorted(x.name for x in network.layers if getattr(x, "precision", None) is DataType.FLOAT),
            "outputs": sorted(x.name for x in network.layers if x.output_types),
        }
        return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + network.model.SerializeToString())


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, data):
        if failing() == "no memory":
            self.logger.log(ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 99 bytes.)")
            return None
        if failing() == "deserialise" or not data.startswith(MAGIC):
            return None
        _, header, model = data.split(b"\n", 2)
        return Engine(json.loads(header), model)


class Engine:
    def __init__(self, header, model):
        self.header = header
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.types = {
            v.name: DataType.HALF if v.type == "tensor(float16)" else DataType.FLOAT
            for v in [*self.session.get_inputs(), *self.session.get_outputs()]
        }

    @property
    def num_io_tensors(self):
        return len(self.types)

    def get_tensor_name(self, index):
        return [*self.types][index]

    def get_tensor_mode(self, name):
        given = {v.name for v in self.session.get_inputs()}
        return TensorIOMode.INPUT if name in given else TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name, profile_index):
        assert profile_index == 0
        return self.header["shapes"][name]

    def get_tensor_dtype(self, name):
        return self.types[name]

    def create_execution_context(self):
        return None if failing() == "context" else Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}

    def set_optimization_profile_async(self, index, stream):
        return index == 0

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.header["shapes"][name]
        self.shapes[name] = tuple(shape)
        return all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def infer_shapes(self):
        return [v.name for v in self.engine.session.get_inputs() if v.name not in self.shapes]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address % 256 == 0 and bool(address)

    def execute_async_v3(self, stream):
        if failing() == "run":
            return False
        from host_device import STREAMS

        STREAMS[stream].put(self._run, dict(self.shapes), dict(self.addresses))
        return True

    def _run(self, shapes, addresses):
        session = self.engine.session
        feed = {v.name: self._host(v.name, shapes[v.name], addresses).copy() for v in session.get_inputs()}
        outputs = [v.name for v in session.get_outputs()]
        for name, values in zip(outputs, session.run(outputs, feed), strict=True):
            typed = self.engine.header["network"] == ["STRONGLY_TYPED"]
            if name == "rgb" and (failing() in ("nan", "wrong") or (failing() == "typed wrong" and typed)):
                values = values + np.float32(np.nan if failing() == "nan" else 0.1)
            self._host(name, values.shape, addresses)[...] = values

    def _host(self, name, shape, addresses):
        dtype = np.dtype(nptype(self.engine.types[name]))
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)
