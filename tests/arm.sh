#!/usr/bin/env bash
# What `make test-arm` runs: the runtime on aarch64, emulated, against the same on this machine.
#
# Debian's packages for arm64 (Python, OpenCV, NumPy), ONNX Runtime's wheel for aarch64 and this project lie under
# build/arm64, unpacked by this machine's own tools; qemu-aarch64 runs what is in there. diinn-doctor has to be content,
# the demo camera has to become a video, and a picture has to come out as it does here, but for one grey level.
# Mounts are made in a namespace of this script's own: they end with it, however it ends.
#
# PYTHON: the Python here that has diinn and pip (.venv/bin/python); QEMU_CPU: the processor to play (cortex-a76)
set -euo pipefail
cd "$(dirname "$0")/.."

RELEASE=bookworm
PACKAGES="base-files coreutils dash libc-bin python3 python3-opencv python3-venv"
ONNXRUNTIME=1.23.2
MODELS="nano small"
FRAMES=3
EMULATOR=/usr/bin/qemu-aarch64-static

PYTHON=${PYTHON:-$PWD/.venv/bin/python}
export DEBIAN_FRONTEND=noninteractive
PLACE=$PWD/build/arm64
ROOT=$PLACE/root # whole, or not there
SHARED=$PLACE/shared # /shared in the root
ENTRY=diinn-arm-$$ # in binfmt_misc

not_run() {
  echo "test-arm: not run, $1"
  exit 0
}

failed() {
  echo "test-arm: $1" >&2
  exit 1
}

step() {
  echo "test-arm: $1 (after $SECONDS s)"
}

# ---- may it run here? ----

[ "$(uname -s)" = Linux ] || not_run "it wants Linux"
[ "$(uname -m)" != aarch64 ] || not_run "this machine is aarch64 itself: make test is the test here"
[ "$(id -u)" = 0 ] || not_run "it wants root, for a chroot and qemu in binfmt_misc"
for tool in apt-get dpkg-deb unshare flock chroot; do
  command -v $tool > /dev/null || not_run "there is no $tool here"
done
"$PYTHON" -c 'import diinn.runtime, onnxruntime, pip' 2> /dev/null ||
  failed "$PYTHON has not all of diinn, ONNX Runtime and pip: make test-arm, or PYTHON=..."
if [ -z "${DIINN_ARM_INSIDE-}" ]; then
  unshare --mount --propagation private true 2> /dev/null || not_run "a mount namespace of its own is not permitted"
  DIINN_ARM_INSIDE=1 exec unshare --mount --propagation private bash "tests/$(basename "$0")"
fi
mkdir -p "$PLACE/binfmt" "$SHARED"
mount -t binfmt_misc none "$PLACE/binfmt" 2> /dev/null || not_run "binfmt_misc cannot be mounted"
exec 9> "$PLACE/lock"
flock -n 9 || failed "another run is using $PLACE"

# ---- Debian's packages for arm64, by the apt of this machine and from its mirror ----

sources() {
  local mirror signed=/usr/share/keyrings/debian-archive-keyring.gpg
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Origin: Debian' |
    grep -v -e '-security$' -e '-backports$' | head -n 1 | cut -d ' ' -f 1) || true
  [ -n "$mirror" ] || return 1
  [ -e $signed ] && signed="[signed-by=$signed]" || signed=
  echo "deb $signed $mirror $RELEASE main" > "$PLACE/apt/sources.list"
}

apt_arm() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root \
    -o APT::Install-Recommends=false -o Dir::Etc::SourceList="$PLACE/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State="$PLACE/apt/state" -o Dir::State::status="$PLACE/apt/status" -o Dir::Cache="$PLACE/apt/cache" "$@"
}

make_root() {
  local new=$PLACE/root.new deb folder
  rm -rf --one-file-system "$ROOT" "$new" "$PLACE/apt"
  mkdir -p "$new/usr/bin" "$new/usr/sbin" "$new/usr/lib" "$PLACE/apt/state/lists/partial" "$PLACE/apt/cache/archives/partial"
  : > "$PLACE/apt/status"
  apt-get update -qq || true # it may be that a list that is not wanted here cannot be had
  sources || not_run "apt here has no mirror of Debian's"
  apt_arm update
  step "fetching Debian's packages for arm64"
  # shellcheck disable=SC2086
  apt_arm install --yes --download-only $PACKAGES
  step "unpacking $(find "$PLACE/apt/cache/archives" -name '*.deb' | wc -l) of them"
  for folder in bin sbin lib; do ln -s usr/$folder "$new/$folder"; done
  for deb in "$PLACE"/apt/cache/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -p --keep-directory-symlink -C "$new"
  done
  for folder in "$new"/usr/lib/aarch64-linux-gnu/{blas,lapack}; do # what update-alternatives does
    ln -s "${folder##*/}/lib${folder##*/}.so.3" "$new/usr/lib/aarch64-linux-gnu/"
  done
  # pip as Debian's ensurepip would give it
  "$PYTHON" -m zipfile -e "$(echo "$new"/usr/share/python-wheels/pip-*.whl)" "$new/opt/pip"
  mkdir -p "$new/shared" "$new/proc" "$new/sys" "$new/dev"
  rm -r "$PLACE/apt"
  echo "$RECIPE" > "$new/recipe"
  mv "$new" "$ROOT"
}

command -v $EMULATOR > /dev/null || {
  apt-get update -qq || true
  apt-get install -qq -y --no-install-recommends qemu-user-static > /dev/null || not_run "there is no qemu-user-static"
}
[ -n "${QEMU_CPU-}" ] || case $($EMULATOR -cpu help || true) in
  *cortex-a76*) QEMU_CPU=cortex-a76 ;; # the nearest to a Jetson Orin's
  *) QEMU_CPU=max ;;                   # an older QEMU
esac
RECIPE="1 $RELEASE $PACKAGES"
[ "$(cat "$ROOT/recipe" 2> /dev/null)" = "$RECIPE" ] || make_root

# ---- from here on this machine runs aarch64 ----

header='\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
trap 'echo -1 > "$PLACE/binfmt/$ENTRY"' EXIT
printf '%s' ":$ENTRY:M::$header:$mask:$EMULATOR:F" > "$PLACE/binfmt/register"
mount --bind "$SHARED" "$ROOT/shared"
mount --rbind /dev "$ROOT/dev"
mount -t proc proc "$ROOT/proc"
mount -t sysfs -o ro sysfs "$ROOT/sys"

arm() {
  env -i PATH=/opt/venv/bin:/usr/bin:/usr/sbin HOME=/root LANG=C.UTF-8 QEMU_CPU="$QEMU_CPU" chroot "$ROOT" "$@"
}

# ---- this project and what it wants of PyPI's ----

python=$(readlink "$ROOT/usr/bin/python3") # python3.11
venv=$ROOT/opt/venv

fetch_wheels() {
  step "fetching wheels for aarch64"
  rm -rf "$SHARED/wheels"
  mkdir -p "$SHARED/wheels"
  grep -E '^(aiohttp|prometheus-client|PyYAML|rich)==' constraints.txt > "$PLACE/constraints.txt"
  # typing_extensions: wanted on Python 3.11 alone, and pip asks the Python that it runs in.
  "$PYTHON" -m pip download -qq --dest "$SHARED/wheels" --only-binary=:all: --implementation cp \
    --python-version "${python#python}" --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 -c "$PLACE/constraints.txt" \
    "${wheel}[stream]" "onnxruntime==$ONNXRUNTIME" 'numpy<2' typing_extensions
  rm -f "$SHARED"/wheels/numpy-*.whl "$SHARED"/wheels/diinn-*.whl # NumPy stays Debian's
  echo "$wants" > "$SHARED/wheels/wants"
}

make_venv() {
  rm -rf "$venv"
  arm ldconfig
  arm python3 -m venv --system-site-packages --without-pip /opt/venv
}

rm -rf "$PLACE/source" "$SHARED/own"
mkdir "$PLACE/source"
cp -r pyproject.toml setup.cfg README.md LICENSE train export runtime benchmarks "$PLACE/source"
"$PYTHON" -m pip wheel -qq --no-deps --wheel-dir "$SHARED/own" "$PLACE/source"
wheel=$(echo "$SHARED"/own/diinn-*.whl)
wants="$RECIPE $ONNXRUNTIME $(cat setup.cfg constraints.txt | cksum)"
[ "$(cat "$SHARED/wheels/wants" 2> /dev/null)" = "$wants" ] || fetch_wheels
[ "$(cat "$venv/wants" 2> /dev/null)" = "$wants" ] || make_venv
step "installing them there"
rm -rf "$venv/lib/$python/site-packages"/diinn*
arm env PYTHONPATH=/opt/pip python -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
  --no-index --find-links /shared/wheels --no-compile "/shared/own/${wheel##*/}[stream]" "onnxruntime==$ONNXRUNTIME"
echo "$wants" > "$venv/wants"

# ---- the three checks ----

rm -rf "$SHARED/out"
mkdir -p "$SHARED/out"
step "diinn-doctor, emulating $QEMU_CPU"
arm diinn-doctor nano

step "the demo camera"
arm diinn-run --camera demo --input-size 160x120 --input-rate 1 --out-size 320x240 --model nano --max-frames $FRAMES --stall-timeout 60 \
  --headless --no-progress --output /shared/out/demo.mp4
"$PYTHON" - "$SHARED/out/demo.mp4" $FRAMES << 'PYTHON'
import sys

import cv2

video = cv2.VideoCapture(sys.argv[1])
frames = [image for good, image in iter(video.read, (False, None)) if good]
sizes = {image.shape for image in frames}
print(f"a video of {len(frames)} pictures, {sizes}")
sys.exit(len(frames) < int(sys.argv[2]) or sizes != {(240, 320, 3)})
PYTHON

step "a picture, here and there"
"$PYTHON" -c 'import cv2, sys; from diinn.runtime.sources import demo; cv2.imwrite(sys.argv[1], demo.frame(3.0, (200, 150)))' \
  "$SHARED/out/picture.png"
for model in $MODELS; do
  picture="--input picture.png --scale 4 --model $model --backend onnxruntime --no-progress"
  # shellcheck disable=SC2086
  (cd "$SHARED/out" && "$PYTHON" -m diinn.runtime.cli.run $picture --output "$model-here.png")
  # shellcheck disable=SC2086
  arm env -C /shared/out diinn-run $picture --output "$model-arm.png"
  step "$model is done"
done
# shellcheck disable=SC2086
"$PYTHON" - "$SHARED/out" $MODELS << 'PYTHON'
import sys
from pathlib import Path

import cv2
import numpy as np

out, worst = Path(sys.argv[1]), 0
for model in sys.argv[2:]:
    here, there = (cv2.imread(str(out / f"{model}-{where}.png")).astype(int) for where in ("here", "arm"))
    assert here.shape == there.shape == (600, 800, 3), (here.shape, there.shape)
    off = np.abs(here - there)
    wrong, most = np.count_nonzero(off), int(off.max())
    print(f"{model}: {wrong} of {off.size} values differ, {wrong / off.size * 1e6:.1f} of a million, by at most {most}")
    worst = max(worst, most)
sys.exit("more than one grey level" if worst > 1 else 0)
PYTHON
step "passed"
