"""An undistorted view and a virtual camera, super-resolved in one step instead of interpolated twice."""

from pathlib import Path

import cv2
from diinn.runtime import CameraSettings, Stream
from diinn.runtime.geometry.calibration import Calibration

# A camera_info of ROS or OpenCV's own file; here a lens with a barrel distortion.
Path("calib.yaml").write_text(
    "image_width: 160\nimage_height: 120\ndistortion_model: plumb_bob\n"
    "camera_matrix: {data: [120, 0, 80, 0, 120, 60, 0, 0, 1]}\n"
    "distortion_coefficients: {data: [-0.25, 0.05, 0, 0, 0]}\n"
)
camera = CameraSettings(
    "demo",
    name="front",
    calibration=Calibration.load("calib.yaml"),
    views={
        "flat": "rectify:400x300",
        "left": "virtual:-15,0,40:320x240",  # 15 degrees to the left, 40 degrees across
    },
)

for result in Stream([camera], "nano", max_frames=1):
    cv2.imwrite(f"{result.view}.png", result.image)
    print(f"{result.view}.png: {result.image.shape[1]}x{result.image.shape[0]}")
