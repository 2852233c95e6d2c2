"""Renders docs/preview.gif: screenshots of the page by headless Chromium, with slider and zoom in use.

``python docs/render_preview.py docs/preview.gif`` with the extra ``test``, Chromium and its driver.
"""

import io
import shutil
import sys
import tempfile
import time

from diinn.runtime import CameraSettings, CaptureOptions, Stream
from diinn.runtime.sinks.preview import Preview
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

WORDS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1320,800")
SHARES = (100, 80, 60, 40, 20, 0, 50, 100)  # of the picture that is ours
WIDTH, COLOURS = 640, 64  # of the GIF


def browser(home: str) -> webdriver.Chrome:
    """Headless Chromium, as the tests start it."""
    options = Options()
    options.binary_location = shutil.which("chromium") or sys.exit("no Chromium here")
    for word in (*WORDS, f"--user-data-dir={home}"):
        options.add_argument(word)
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


def screenshots(page: webdriver.Chrome) -> list[Image.Image]:
    """The slider to bicubic and back, then a part dragged out, which is decoded at the size of the pane."""
    shots = []

    def shoot(count: int = 1, pause: float = 0.6) -> None:
        for _ in range(count):
            time.sleep(pause)
            shot = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")
            shots.append(shot.resize((WIDTH, round(shot.height * WIDTH / shot.width)), Image.Resampling.LANCZOS))

    for share in SHARES:
        for slider in page.find_elements(By.CLASS_NAME, "share"):
            page.execute_script(
                "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", slider, share
            )
        shoot()
    canvas = page.find_elements(By.TAG_NAME, "canvas")[0]
    drag = ActionChains(page).move_to_element_with_offset(canvas, -120, -90).click_and_hold()
    drag.move_by_offset(200, 150).perform()
    shoot()
    ActionChains(page).release().perform()
    shoot(3)
    return shots


def live(page: webdriver.Chrome) -> bool:
    """Whether both cameras show pictures."""
    states = page.find_elements(By.CLASS_NAME, "state")
    return len(states) == 2 and all(state.text == "live" for state in states)


def noise(stream: Stream) -> float:
    """What the noisy camera's noise is estimated at, grey levels."""
    return float(stream.snapshot()["cameras"]["noisy"]["denoise"]["noise"])


def main() -> None:
    """Entry point."""
    preview = Preview.at("127.0.0.1:0", viewers=1)
    size = (160, 120)
    cameras = [
        CameraSettings("demo", "front", CaptureOptions(size=size, rate=4), {"whole": "full:640x480"}),
        CameraSettings("demo", "noisy", CaptureOptions(size=size, rate=4, noise=10), {"whole": "full:640x480"}),
    ]
    stream = Stream(cameras, "nano", sinks=[preview])
    stream.start()
    with tempfile.TemporaryDirectory() as home:
        page = browser(home)
        page.get(preview.where)
        WebDriverWait(page, 60).until(lambda page: live(page) and noise(stream) > 8)
        shots = screenshots(page)
        page.quit()
    stream.close()
    first, *rest = [shot.quantize(COLOURS, dither=Image.Dither.NONE) for shot in shots]
    first.save(sys.argv[1], save_all=True, append_images=rest, duration=600, loop=0, optimize=True)


if __name__ == "__main__":
    main()
