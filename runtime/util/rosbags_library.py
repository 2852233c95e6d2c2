"""rosbags, the library that reads and writes bags: imported when a bag is opened, and what it may raise."""

from __future__ import annotations

import importlib
import struct
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from diinn.runtime.errors import InputError

REMEDY = "pip install 'diinn[bag]'"
# What it and what is behind it raise for damaged files, beside their own: they trust what they read.
_OF_PYTHON: tuple[type[Exception], ...] = (ValueError, TypeError, LookupError, AssertionError, EOFError, RuntimeError)
_OF_PYTHON += (ArithmeticError, OSError, struct.error)


def check() -> None:
    """InputError where it is not installed."""
    _module("rosbags.rosbag2")


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"bags need rosbags, and {error.name or 'it'} is not there: {REMEDY}") from None


@cache
def types(*, ros1: bool) -> Any:
    """The message types of ROS, those of images as they are in every distribution."""
    typesys = _module("rosbags.typesys")
    return typesys.get_typestore(typesys.Stores.ROS1_NOETIC if ros1 else typesys.Stores.ROS2_JAZZY)


def zstd() -> ModuleType:
    """Python's module of that name, or what stands for it before 3.14."""
    try:
        return importlib.import_module("compression.zstd")
    except ImportError:
        return _module("backports.zstd")


def lz4(data: bytes) -> bytes:
    """What data compressed by LZ4 hold, frames of it as bags of ROS 1 have them."""
    return bytes(_module("lz4.frame").decompress(data))


def opened(path: Any) -> Any:
    """One file of a bag, by its ending: a ``Reader`` of rosbags that is open.

    path: a Path, or what rosbags takes for one
    """
    of_ros1 = path.suffix == ".bag"
    reader = _module("rosbags.rosbag1" if of_ros1 else "rosbags.rosbag2").Reader(path)
    reader.open()
    return reader


def connection(number: int, topic: str, kind: str, count: int) -> Any:
    """A topic of a bag as rosbags describes it, without the definition of its type."""
    interfaces = _module("rosbags.interfaces")
    definition = interfaces.MessageDefinition(interfaces.MessageDefinitionFormat.NONE, "")
    return interfaces.Connection(
        number, topic, kind, definition, "", count, interfaces.ConnectionExtRosbag2("cdr", []), None
    )


def kept() -> Any:
    """The quality of service of a topic whose last message late subscribers get."""
    i = _module("rosbags.interfaces")
    forever = i.QosTime(2147483647, 4294967295)
    return i.Qos(
        i.QosHistory.KEEP_LAST,
        1,
        i.QosReliability.RELIABLE,
        i.QosDurability.TRANSIENT_LOCAL,
        forever,
        forever,
        i.QosLiveliness.AUTOMATIC,
        forever,
        False,
    )


@cache
def failures() -> tuple[type[Exception], ...]:
    """What reading a damaged bag raises."""
    of_ros1, of_ros2 = _module("rosbags.rosbag1").ReaderError, _module("rosbags.rosbag2").ReaderError
    serde, typesys = _module("rosbags.serde").SerdeError, _module("rosbags.typesys").TypesysError
    return (of_ros1, of_ros2, serde, typesys, zstd().ZstdError, _module("apsw").Error, *_OF_PYTHON)


def reason(error: BaseException) -> str:
    """What one of ``failures`` says, in a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def writer(folder: Path) -> Any:
    """A writer of MCAP into a new folder, not open yet."""
    module = _module("rosbags.rosbag2")
    return module.Writer(folder, version=9, storage_plugin=module.StoragePlugin.MCAP)
