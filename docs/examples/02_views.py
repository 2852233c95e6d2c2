"""Encode a frame once and decode several views of it: the whole, a rectangle between pixels, and a strip."""

import cv2
from diinn.runtime import SuperResolver, View
from diinn.runtime.sources import demo

frame = demo.frame(1.0, (160, 120))
views = {
    "whole": View.resize((480, 360)),
    "part": View.roi((40.25, 30.5, 64, 48), (480, 360)),  # x, y, width, height in pixels of the frame
    "strip": View.roi((0, 70, 160, 20), (640, 80)),
}

with SuperResolver.open("nano") as resolver:
    (encoded,) = resolver.encode([frame], denoise="auto")  # the costly part, once
    print(f"cleaned of {encoded.strength}")
    for name, image in zip(views, resolver.decode(encoded, list(views.values())), strict=True):
        cv2.imwrite(f"view-{name}.png", image)
        print(f"view-{name}.png: {image.shape[1]}x{image.shape[0]}")
