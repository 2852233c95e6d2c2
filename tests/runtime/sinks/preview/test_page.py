"""The page as a browser shows it: headless Chromium, a real stream."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diinn.runtime import CameraSettings, Stream, SuperResolver
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.sinks.preview import Preview
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from served import Served, chromium, until

QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1100,760"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = chromium()
    for word in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path_factory.mktemp("downloads"))})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture
def preview(
    nothing_leaks: None, mjpeg: Callable[..., Served], nano: SuperResolver, browser: webdriver.Chrome
) -> Iterator[Preview]:
    page = Preview.at("127.0.0.1:0", viewers=2)
    views = {"full": ViewSpec(dsize=(320, 240))}
    stream = Stream([CameraSettings(mjpeg().url, name, views=views) for name in ("left", "right")], nano, sinks=[page])
    stream.start()
    browser.get(page.where)
    yield page
    browser.get("about:blank")
    stream.close()


def pane(browser: webdriver.Chrome, camera: str) -> Any:
    return browser.find_element(By.CSS_SELECTOR, f'[data-pane="{camera}/full"]')


def canvas(browser: webdriver.Chrome, camera: str) -> Any:
    return pane(browser, camera).find_element(By.TAG_NAME, "canvas")


def sequence(browser: webdriver.Chrome, camera: str) -> int:
    found = browser.find_elements(By.CSS_SELECTOR, f'[data-pane="{camera}/full"] canvas')
    return int((found and found[0].get_attribute("data-sequence")) or -1)


def pixel(browser: webdriver.Chrome, camera: str, x: int, y: int) -> list[int]:
    script = "return [...arguments[0].getContext('2d').getImageData(arguments[1], arguments[2], 1, 1).data]"
    found: list[int] = browser.execute_script(script, canvas(browser, camera), x, y)
    return found


def test_two_cameras_are_live(browser: webdriver.Chrome, preview: Preview) -> None:
    until(lambda: min(sequence(browser, "left"), sequence(browser, "right")) >= 0)
    before = sequence(browser, "left"), sequence(browser, "right")
    until(lambda: sequence(browser, "left") > before[0] and sequence(browser, "right") > before[1])
    assert canvas(browser, "left").get_attribute("data-size") == "320x240"
    until(lambda: "fps" in pane(browser, "left").find_element(By.CLASS_NAME, "figures").text)
    figures = pane(browser, "left").find_element(By.CLASS_NAME, "figures").text
    assert "age" in figures
    assert "dropped" in figures
    until(lambda: pane(browser, "left").find_element(By.CLASS_NAME, "state").text == "live")  # sent once a second
    assert "nano" in browser.find_element(By.ID, "model").text
    colours = {tuple(pixel(browser, "left", x, y)) for x in range(8, 320, 40) for y in range(60, 240, 40)}
    assert len(colours) > 10  # a picture, not a plane


def test_the_slider_moves_between_bicubic_and_ours(browser: webdriver.Chrome, preview: Preview) -> None:
    until(lambda: min(sequence(browser, "left"), sequence(browser, "right")) >= 0)
    assert canvas(browser, "left").get_attribute("data-compared") == "false"
    slider = pane(browser, "left").find_element(By.TAG_NAME, "input")
    ActionChains(browser).move_to_element(slider).click().perform()  # its middle
    until(lambda: canvas(browser, "left").get_attribute("data-compared") == "true")
    assert 40 <= int(slider.get_attribute("value") or 0) <= 60
    edge = round(320 * (100 - int(slider.get_attribute("value") or 0)) / 100)
    until(lambda: pixel(browser, "left", edge, 120)[:3] == [0x6C, 0xB6, 0xFF])  # the line between them
    assert canvas(browser, "right").get_attribute("data-compared") == "false"


def test_the_dial_is_turned_and_shows_what_auto_finds(browser: webdriver.Chrome, preview: Preview) -> None:
    until(lambda: min(sequence(browser, "left"), sequence(browser, "right")) >= 0)
    auto, level = (pane(browser, "left").find_element(By.CLASS_NAME, name) for name in ("auto", "level"))
    until(lambda: level.is_displayed() and auto.is_selected())  # sent once a second
    dial = preview._stream.lane("left").denoise
    assert dial.wanted == "auto"
    ActionChains(browser).move_to_element(level).click().perform()  # its middle
    until(lambda: dial.wanted != "auto")
    assert not auto.is_selected()
    assert dial.wanted.noise == pytest.approx(10, abs=1)
    until(lambda: canvas(browser, "left").get_attribute("data-noise") == f"{dial.wanted.noise:g}")
    assert preview._stream.lane("right").denoise.wanted == "auto"
    auto.click()
    until(lambda: dial.wanted == "auto")
    preview._stream.set_denoise("right", 4)  # elsewhere: the page follows
    right = pane(browser, "right").find_element(By.CLASS_NAME, "level")
    until(lambda: right.get_attribute("value") == "4")


def test_a_dragged_part_comes_back_at_the_size_of_the_pane(browser: webdriver.Chrome, preview: Preview) -> None:
    until(lambda: min(sequence(browser, "left"), sequence(browser, "right")) >= 0)  # nothing on the page moves any more
    area = canvas(browser, "right")
    width, height = area.size["width"], area.size["height"]
    drag = ActionChains(browser).move_to_element_with_offset(area, -width // 4, -height // 4)
    drag.click_and_hold().move_by_offset(width // 2, height // 2).release().perform()
    until(lambda: canvas(browser, "right").get_attribute("data-zoomed") == "true")
    size = canvas(browser, "right").get_attribute("data-size") or ""
    found = tuple(map(int, size.split("x")))
    density = browser.execute_script("return window.devicePixelRatio")
    assert found[0] == pytest.approx(width * density, abs=3)
    assert found[1] == pytest.approx(height * density, abs=3)
    lane = next(lane for lane in preview._stream.lanes if lane.name == "right")
    (spec,) = lane.zooms.values()
    assert spec.crop == pytest.approx((0.25, 0.25, 0.5, 0.5), abs=0.02)
    before = sequence(browser, "right")
    until(lambda: sequence(browser, "right") > before)  # it stays live
    assert canvas(browser, "left").get_attribute("data-zoomed") == "false"
    pane(browser, "right").find_element(By.CLASS_NAME, "whole").click()
    until(lambda: canvas(browser, "right").get_attribute("data-zoomed") == "false")
    until(lambda: not lane.zooms)


def test_a_camera_that_goes_is_shown(browser: webdriver.Chrome, preview: Preview) -> None:
    until(lambda: sequence(browser, "left") >= 0)
    camera = preview._stream.sources[0]
    camera._worker.kill()
    until(lambda: camera.reconnects == 1)
    until(lambda: "1 reconnects" in pane(browser, "left").find_element(By.CLASS_NAME, "figures").text)


def test_nothing_comes_from_outside_and_nothing_fails(browser: webdriver.Chrome, preview: Preview) -> None:
    browser.get_log("performance")
    browser.get(preview.where)
    until(lambda: sequence(browser, "left") >= 0)
    time.sleep(1)
    asked = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
        if message["method"] == "Network.webSocketCreated":
            asked.append(message["params"]["url"])
    mine = preview.where.partition("://")[2]
    assert any(url.endswith("/page.js") for url in asked)
    assert any(url.startswith("ws://") for url in asked)
    for url in asked:
        assert url.startswith((f"http://{mine}", f"ws://{mine}", "data:", "blob:")), url
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_save_downloads_the_whole_view(browser: webdriver.Chrome, preview: Preview, tmp_path: Path) -> None:
    until(lambda: sequence(browser, "left") >= 0)
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    pane(browser, "left").find_element(By.CLASS_NAME, "save").click()
    until(lambda: list(tmp_path.glob("left-full-*.png")))


def test_a_wrong_token_shows_nothing(browser: webdriver.Chrome, nano: SuperResolver, nothing_leaks: None) -> None:
    page = Preview.at("0.0.0.0:0", viewers=2)
    stream = Stream(["demo"], nano, sinks=[page])
    stream.start()
    here = f"http://127.0.0.1:{page.where.rpartition(':')[2]}"
    browser.get(f"{here}/?token=wrong")
    assert "a token is wanted" in browser.page_source
    assert not browser.find_elements(By.TAG_NAME, "canvas")
    token = page.link.partition("?token=")[2]
    browser.get(f"{here}/?token={token}")
    assert browser.current_url == f"{here}/"  # it is not in the address any more
    until(lambda: sequence(browser, "demo") >= 0)
    browser.get("about:blank")
    stream.close()


@pytest.mark.parametrize("width", [320, 420, 640])
def test_nothing_is_cut_off_on_a_narrow_page(preview: Preview, browser: webdriver.Chrome, width: int) -> None:
    """A telephone's. The window cannot be that narrow; what the page takes its width from can."""
    size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        until(lambda: sequence(browser, "left") >= 0)
        browser.execute_script("document.querySelector('h2').textContent = 'front_left_camera_'.repeat(4)")
        script = """
            const out = []
            for (const pane of document.querySelectorAll(".pane"))
              for (const part of pane.querySelectorAll("h2, .state, .figures, footer *"))
                if (part.getClientRects().length) {
                  const [inner, outer] = [part.getBoundingClientRect(), pane.getBoundingClientRect()]
                  if (inner.right > outer.right || inner.left < outer.left || inner.bottom > outer.bottom)
                    out.push(part.outerHTML.slice(0, 60))
                }
            const page = document.documentElement
            return [innerWidth, page.scrollWidth - page.clientWidth, out]
        """
        until(lambda: browser.execute_script(script)[0] == width)
        _, hidden, outside = browser.execute_script(script)
        assert (hidden, outside) == (0, [])
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
