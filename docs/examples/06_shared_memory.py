"""Read another process's frames in place: what ``diinn-run --output shm://NAME`` writes. In C: read_frames.c."""

import os
import subprocess
import sys
import time

from diinn.runtime import DiinnError, SharedReader

name = f"diinn-example-{os.getpid()}"
run = [sys.executable, "-m", "diinn.runtime.cli.run", "--camera", "demo", "--model", "nano", "--out-size", "320x240"]
writer = subprocess.Popen([*run, "--duration", "30", "--no-progress", "--output", f"shm://{name}"])

reader, number = None, 0
while writer.poll() is None and number < 5:
    if reader is None:
        try:
            reader = SharedReader(name)
        except DiinnError:  # not there yet
            time.sleep(0.05)
        continue
    frame = reader.newest(after=number)
    if frame is None:
        time.sleep(0.001)
        continue
    mean = frame.image.mean()  # in place: no copy
    if reader.still_valid(frame):  # not written over meanwhile
        number = frame.number
        print(f"frame {number}: {frame.image.shape[1]}x{frame.image.shape[0]}, mean {mean:.1f}")
writer.terminate()
writer.wait()
sys.exit(0 if number >= 5 else "no frames came")
