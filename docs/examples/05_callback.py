"""Your function gets each result in a thread of its own, while the program does something else."""

import threading

from diinn.runtime import CameraSettings, Result, Stream

enough = threading.Event()


def on_result(result: Result) -> None:
    """A slow function misses frames; it delays no camera and no other output."""
    print(f"{result.view} frame {result.sequence}: mean {result.image.mean():.1f}")
    if result.sequence >= 10:
        enough.set()


stream = Stream([CameraSettings("demo", views={"whole": "full:320x240"})], "nano", on_result=on_result)
stream.start()
try:
    enough.wait(timeout=60)  # the program's own work
    stream.set_denoise("demo", 4)  # settings change while it runs
    print(f"{stream.snapshot()['cameras']['demo']['processed']} frames processed")
finally:
    stream.close()
