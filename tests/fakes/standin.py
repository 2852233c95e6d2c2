"""The real ``diinn.runtime.gpu.device.Device`` on real pycuda and a driver of our own (``standin.cpp``), for
``--device standin``.

pycuda is built from its source against the toolkit's headers, once, into ``build/standin``; the driver whenever it has
changed. What a launch does is what it does on the double: the kernels' sources in the emulator. Everything else, from
pycuda's packing of arguments to the parameter tables of the real cubins, is the real thing.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from diinn.runtime.errors import DiinnError
from diinn.runtime.gpu import compiler, device
from host_device import STREAMS, HostDevice, compile_kernels

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILT = ROOT / "build" / "standin"
PYCUDA = "pycuda==2026.1"
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def toolkit() -> Path:
    """The CUDA toolkit, with its headers; skips where it or a C++ compiler is missing."""
    nvcc = compiler.find_nvcc()
    folders = [nvcc.resolve().parent.parent] if nvcc else []
    folders += [Path("/usr/local/cuda")]
    folder = next((path for path in folders if (path / "include" / "cuda.h").is_file()), folders[0])
    missing = [name for name in ("gcc", "g++", "nm") if shutil.which(name) is None]
    missing += [] if nvcc else ["nvcc"]
    headers = (folder / "include" / "cuda.h", Path(sysconfig.get_paths()["include"]) / "Python.h")
    missing += [path.name for path in headers if not path.is_file()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: real pycuda cannot be built")
    return folder


def _done(*command: object, **options: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return str(done.stdout)


@contextlib.contextmanager
def _alone(folder: Path):  # type: ignore[no-untyped-def]
    """One process at a time; what is made stands in ``folder`` whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():
            yield None
            return
        draft = folder.with_suffix(".part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        yield draft
        draft.rename(folder)


def pycuda() -> Path:
    """A folder with pycuda, built for this Python and this toolkit."""
    cuda_root = toolkit()
    kind = f"{PYCUDA}{sysconfig.get_config_var('SOABI')}{compiler.version(cuda_root / 'bin' / 'nvcc')}"
    folder = BUILT / f"pycuda-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
    with _alone(folder) as draft:
        if draft is None:
            return folder
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
        try:
            _done(*pip, "download", "--quiet", "--no-deps", "--no-binary", "pycuda", "--dest", draft, PYCUDA)
        except RuntimeError as error:
            pytest.skip(f"{PYCUDA} cannot be had: {str(error).strip().splitlines()[-1]}")
        (packed,) = draft.glob("pycuda-*.tar.gz")
        with tarfile.open(packed) as archive:
            archive.extractall(draft / "source", filter="data")
        (source,) = (draft / "source").iterdir()
        empty = draft / "empty"  # a library to link with: names are looked up when pycuda is loaded
        empty.mkdir()
        _done("gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null", "-o", empty / "libcuda.so")
        settings = {"CUDA_ROOT": str(cuda_root), "CUDADRV_LIB_DIR": [str(empty)], "CUDA_ENABLE_CURAND": False}
        (source / "siteconf.py").write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
        quick = os.environ | {"CFLAGS": "-O0 -g0 -w"}
        _done(*pip, "install", "--quiet", "--target", draft / "site", source, env=quick)
        shutil.rmtree(draft / "source")
    return folder


def driver() -> Path:
    """The stand-in for libcuda.so.1, with a stub for each name that pycuda wants and the stand-in does not have."""
    (module,) = (pycuda() / "site" / "pycuda").glob("_driver.*.so")
    source = HERE / "standin.cpp"
    digest = hashlib.sha256(source.read_bytes() + str(module).encode() + Path(__file__).read_bytes())
    folder = BUILT / f"driver-{digest.hexdigest()[:12]}"
    with _alone(folder) as draft:
        if draft is not None:
            compiled = draft / "standin.o"
            flags = ("-std=c++17", "-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror")
            _done("g++", *flags, "-isystem", toolkit() / "include", "-c", source, "-o", compiled)
            wanted, had = (
                {line.split()[-1] for line in _done("nm", *which).splitlines() if line.split()[-1].startswith("cu")}
                for which in (("-D", "--undefined-only", module), ("--defined-only", compiled))
            )
            stubs = "".join(
                f'int {name}(void) {{ return standin_missing("{name}"); }}\n' for name in sorted(wanted - had)
            )
            (draft / "stubs.c").write_text(f"int standin_missing(const char *);\n{stubs}")
            _done("gcc", "-fPIC", "-c", draft / "stubs.c", "-o", draft / "stubs.o")
            objects = (compiled, draft / "stubs.o")
            _done("g++", "-shared", "-Wl,-soname,libcuda.so.1", *objects, "-ldl", "-o", draft / "libcuda.so.1")
    return folder / "libcuda.so.1"


@functools.cache
def load() -> ctypes.CDLL:
    """The stand-in, from now on this process's CUDA driver; ``import pycuda`` works and uses it."""
    library = ctypes.CDLL(str(driver()), mode=ctypes.RTLD_GLOBAL)
    library.standin_set.argtypes = [ctypes.c_char_p, ctypes.c_longlong]
    library.standin_count.argtypes, library.standin_count.restype = [ctypes.c_char_p], ctypes.c_longlong
    library.standin_complaints.restype = ctypes.c_char_p
    library.standin_kernels.argtypes = [ctypes.c_char_p]
    sys.path.append(str(pycuda() / "site"))  # last: it brings other packages, too
    return library


class StandinDevice(device.Device):
    """A real ``Device`` with what tests ask of ``HostDevice``; what is set of the class is what the driver says."""

    capability = HostDevice.capability
    multiprocessors, shared_bytes = HostDevice.multiprocessors, HostDevice.shared_bytes
    integrated = HostDevice.integrated
    free_bytes = HostDevice.free_bytes
    captures, skewed = True, False
    folder: Path
    name = "Stand-in"

    def __init__(self, ordinal: int = 0) -> None:
        library, kind = load(), type(self)
        for name, value in (
            ("capability", int(kind.capability.replace(".", ""))),
            ("multiprocessors", kind.multiprocessors),
            ("shared", kind.shared_bytes),
            ("memory", kind.free_bytes),
            ("integrated", kind.integrated),
        ):
            library.standin_set(name.encode(), value)
        super().__init__(ordinal)
        self._sizes: dict[int, int] = {}
        self._callbacks: list[object] = []
        self.replayed = self.launches = 0
        STREAMS[self.stream] = self

    @classmethod
    def complaints(cls) -> list[str]:
        return load().standin_complaints().decode().splitlines()

    @staticmethod
    def count(what: str) -> int:
        """How many there are of "blocks", "streams", "executables" …, or "bytes"."""
        return int(load().standin_count(what.encode()))

    @property
    def most_bytes(self) -> int:
        return type(self).free_bytes

    @most_bytes.setter
    def most_bytes(self, size: int) -> None:
        load().standin_set(b"memory", min(size, type(self).free_bytes))

    @property
    def blocks(self) -> dict[int, SimpleNamespace]:
        return {address: SimpleNamespace(nbytes=size) for address, size in self._sizes.items()}

    def allocate(self, size: int) -> int:
        address = super().allocate(size)
        self._sizes[address] = -(-max(size, 1) // 256) * 256
        return address

    def free(self, address: int) -> None:
        super().free(address)
        self._sizes.pop(address)

    def kernels(self, source, names):  # type: ignore[no-untyped-def]
        library = compile_kernels(source, self.folder, names)
        library.emulator_skew(self.skewed)
        assert load().standin_kernels(library._name.encode())
        return {name: self._counted(kernel) for name, kernel in super().kernels(source, names).items()}

    def _counted(self, kernel):  # type: ignore[no-untyped-def]
        def put(*arguments, **options):  # type: ignore[no-untyped-def]
            kernel(*arguments, **options)
            self.launches += 1

        return put

    def put(self, work, *arguments):  # type: ignore[no-untyped-def]
        """Add a function of Python to the stream: what the double of TensorRT does."""
        call = CALLBACK(lambda _: work(*arguments))
        self._callbacks.append(call)
        with self.active():
            device._checked(load().cuLaunchHostFunc(ctypes.c_void_p(self.stream), call, None), "cuLaunchHostFunc")

    def capture(self, work):  # type: ignore[no-untyped-def]
        if not self.captures:
            raise DiinnError("the double captures nothing")
        again = super().capture(work)

        def replay() -> None:
            again()
            self.replayed += 1

        return replay


def keep_cubins(patch: pytest.MonkeyPatch) -> None:
    """Cubins are compiled once, whatever cache a test has: they depend on the sources alone."""
    (BUILT / "cubins").mkdir(mode=0o700, parents=True, exist_ok=True)
    original = compiler._kept
    patch.setattr(compiler, "_kept", lambda *what: BUILT / "cubins" / original(*what).name)
