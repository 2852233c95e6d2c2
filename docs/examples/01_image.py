"""One image at any size: python 01_image.py [IMAGE]."""

import sys
import time

import cv2
from diinn.runtime import SuperResolver
from diinn.runtime.sources import demo

if len(sys.argv) > 1:
    frame = cv2.imread(sys.argv[1])  # uint8 [H, W, 3] BGR; None where it cannot be read
    if frame is None:
        sys.exit(f"{sys.argv[1]} is no image that OpenCV reads")
else:
    frame = demo.frame(1.0, (160, 120))  # what the built-in camera sees after a second

with SuperResolver.open("nano") as resolver:
    for size in ((640, 480), (333, 401)):  # (width, height), any
        start = time.perf_counter()
        image = resolver.resize(frame, size)
        name = f"image-{size[0]}x{size[1]}.png"
        cv2.imwrite(name, image)
        print(f"{name}: {1e3 * (time.perf_counter() - start):.0f} ms")
