#!/usr/bin/env bash
# The runtime's tests with other libraries and Pythons than those of .venv: make test-oldest | test-system | test-pythons | test-ros.
# Their environments are under build/. What this machine lacks is said, and kept in build/skipped; nothing fails for it.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}

# A Python of a version, by its name or pyenv's; nothing where there is none.
python_of() {
  local found
  for found in "python$1" "$HOME"/.pyenv/versions/"$1".*/bin/python; do
    if "$found" -c '' 2> /dev/null; then
      command -v "$found"
      return
    fi
  done
}

skip() { # WHAT
  echo "SKIPPED: $1" | tee -a build/skipped
}

install() { # ENVIRONMENT WHAT...
  local environment=$1
  shift
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: "$@"
}

# The oldest libraries that setup.cfg allows, on the last Python that its oldest NumPy has wheels for.
oldest() {
  local found
  found=$(python_of 3.10)
  if [ -z "$found" ]; then
    skip "no Python 3.10 here: not tested with the oldest libraries"
    return
  fi
  sed -nE 's/^ +([A-Za-z-]+)>=([0-9.]+)$/\1==\2.*/p' setup.cfg | sed -E 's/==([0-9]+)\.\*/==\1.0.*/' | sort -u > build/oldest.txt
  "$found" -m venv --clear build/oldest
  install build/oldest -c build/oldest.txt -e '.[cpu,test-runtime]'
  tests_of build/oldest tests/runtime
}

# The distribution's own Python, NumPy and OpenCV, which has GStreamer: as README sets up a Jetson.
system() {
  if ! /usr/bin/python3 -c 'import cv2, ensurepip' 2> /dev/null; then
    skip "no python3-opencv and python3-venv here: not tested with the system's OpenCV"
    return
  fi
  /usr/bin/python3 -m venv --clear --system-site-packages build/system
  install build/system 'numpy<2' onnxruntime -e '.[stream,test-runtime]'
  tests_of build/system tests/runtime/{stream,sources,sinks,images} tests/runtime/util/test_{opencv,file_names}.py \
    tests/runtime/cli/test_refusals.py
}

# ROS 2 as wheels: the names that go together, without what any of them would bring instead.
ros() {
  local found
  found=$(python_of 3.11)
  if [ -z "$found" ]; then
    skip "no Python 3.11 here: not tested with ROS 2"
    return
  fi
  "$found" -m venv --clear build/ros
  install build/ros -c constraints.txt -e '.[cpu,bag,test-runtime]' mcap
  if ! "build/ros/bin/python" -m pip install --quiet --disable-pip-version-check \
    ros-jazzy-{rclpy,rmw-fastrtps-cpp,sensor-msgs,geometry-msgs,diagnostic-msgs} "empy<4"; then
    skip "ROS 2's wheels cannot be installed here: not tested with ROS 2"
    return
  fi
  build/ros/bin/python tests/tf2_messages.py || skip "tf2_msgs cannot be compiled here: transforms of turned views are not tested"
  local files=(tests/runtime/sources/test_{bag,ros_topic}.py tests/runtime/sinks/test_{bag_file,ros_topics}.py
    tests/runtime/cli/test_ros2.py tests/runtime/geometry/test_view_camera.py)
  # Processes find each other on the bus when the machine lets them: what fails is tried once more, by itself.
  tests_of build/ros -n 1 --timeout 180 "${files[@]}" || tests_of build/ros -n 1 --timeout 180 --last-failed "${files[@]}"
}

tests_of() { # ENVIRONMENT TESTS...
  local environment=$1
  shift
  "$environment/bin/python" -c 'import cv2, numpy, onnxruntime, sys; print(
    f"Python {sys.version.split()[0]}, NumPy {numpy.__version__}, OpenCV {cv2.__version__}, ONNX Runtime {onnxruntime.__version__}")'
  "$VENV/bin/python" tests/tiny.py build/tiny
  "$environment/bin/python" -m pytest -m 'not slow' "$@"
}

# README's first command on the other Pythons that are here.
pythons() {
  local found own
  own=$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null || true)
  for version in 3.10 3.11 3.12 3.13 3.14; do
    found=$(python_of $version)
    if [ -z "$found" ]; then
      skip "no Python $version here: not tried"
    elif [ "$version" = "$own" ]; then
      echo "Python $version is the one of $VENV"
    else
      make run PYTHON="$found" VENV="build/python$version"
    fi
  done
}

mkdir -p build
"$1"
