"""Two cameras through one model: the newest frame of each, as a loop."""

from collections import Counter

from diinn.runtime import CameraSettings, Stream

# In place of "demo": 0, csi://0, rtsp://USER:PASSWORD@HOST/PATH, gst://PIPELINE.
cameras = [
    CameraSettings("demo", name="left", views={"whole": "full:320x240"}),
    CameraSettings("demo", name="right", views={"whole": "full:320x240", "part": "roi:40,30,80,60:320x240"}),
]

seen = Counter()
for result in Stream(cameras, "nano", max_frames=10):  # 10 frames of both cameras together; without it, for ever
    seen[result.key] += 1
    print(f"{result.camera} {result.view} frame {result.sequence}: {1e3 * result.age:.0f} ms old, {result.quality}")
    # result.image is uint8 [h, w, 3] BGR and shared: draw on result.image.copy().
print(dict(seen))
