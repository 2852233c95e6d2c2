"""``tf2_msgs`` for the Python that runs this: it has no wheel, but the generators that ROS 2's wheels bring make it.

``python tests/tf2_messages.py`` generates TFMessage, compiles it with g++, and installs it beside the other messages.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PREFIX = Path(sys.prefix)
IDL = """
#include "geometry_msgs/msg/TransformStamped.idl"
module tf2_msgs {
  module msg {
    struct TFMessage {
      sequence<geometry_msgs::msg::TransformStamped> transforms;
    };
  };
};
"""
FASTRTPS, INTROSPECTION = "rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c"
# Library, the folder of its sources, and what it is linked with.
GENERATOR, TYPESUPPORT = "tf2_msgs__rosidl_generator_c", "tf2_msgs__rosidl_typesupport_c"
LIBRARIES = {
    GENERATOR: ("c", ["geometry_msgs__rosidl_generator_c", "rosidl_runtime_c", "rcutils"]),
    f"tf2_msgs__{FASTRTPS}": (
        "fastrtps",
        [GENERATOR, f"geometry_msgs__{FASTRTPS}", FASTRTPS, "rosidl_typesupport_fastrtps_cpp", "fastcdr"],
    ),
    f"tf2_msgs__{INTROSPECTION}": ("introspection", [GENERATOR, f"geometry_msgs__{INTROSPECTION}", INTROSPECTION]),
    TYPESUPPORT: ("support", [GENERATOR, "rosidl_typesupport_c"]),
    "tf2_msgs_s__rosidl_typesupport_c": ("python", [GENERATOR, TYPESUPPORT, "geometry_msgs__rosidl_generator_py"]),
}


def generate(below: Path) -> None:
    """Write the sources of each library into a folder of its own."""
    os.environ["AMENT_PREFIX_PATH"] = str(PREFIX)
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

    (below / "msg").mkdir()
    (below / "msg/TFMessage.idl").write_text(IDL)
    both = [FASTRTPS, INTROSPECTION]
    kinds = {
        "c": GenerateC("c"),
        "fastrtps": GenerateFastRTPSCTypesupport("fastrtps_c"),
        "introspection": GenerateIntrospectionCTypesupport("introspection_c"),
        "support": GenerateCTypesupport("c", typesupport_implementations=both),
        "python": GeneratePython("py", typesupport_implementations=["rosidl_typesupport_c"]),
    }
    for name, kind in kinds.items():
        kind.generate("tf2_msgs", [f"{below}:msg/TFMessage.idl"], [str(PREFIX / "share")], below / name / "tf2_msgs")


def compile_into(below: Path, libraries: Path, package: Path) -> None:
    """Compile the sources below a folder; libraries go beside ROS's, the module and its classes into ``package``."""
    import numpy

    headers = [below / name for name, _ in LIBRARIES.values()] + [PREFIX / "include", *(PREFIX / "include").iterdir()]
    headers += [Path(sysconfig.get_paths()["include"]), Path(numpy.get_include())]
    for name, (folder, needs) in LIBRARIES.items():
        module = folder == "python"
        target = package / f"{name}.so" if module else libraries / f"lib{name}.so"
        sources = sorted(path for path in (below / folder).rglob("*.c*") if path.suffix in (".c", ".cpp"))
        objects = []
        for source in sources:
            objects.append(source.with_suffix(".o"))
            compiler = "gcc" if source.suffix == ".c" else "g++"
            includes = [f"-I{path}" for path in headers]
            subprocess.run([compiler, "-w", "-fPIC", "-O1", *includes, "-c", source, "-o", objects[-1]], check=True)
        found = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", *(f"-l{need}" for need in needs)]
        subprocess.run(["g++", "-shared", *objects, "-o", target, *found], check=True)


def main() -> None:
    package = Path(sysconfig.get_paths()["purelib"]) / "tf2_msgs"
    (package / "msg").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        below = Path(folder)
        generate(below)
        compile_into(below, PREFIX / "lib", package)
        for path in (below / "python/tf2_msgs/msg").glob("*.py"):
            (package / "msg" / path.name).write_bytes(path.read_bytes())
    (package / "__init__.py").touch()


if __name__ == "__main__":
    main()
