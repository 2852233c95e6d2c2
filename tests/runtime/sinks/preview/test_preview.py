"""The preview: who gets in, what viewers get, and that none of them slows the cameras."""

import asyncio
import contextlib
import json
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import cv2
import numpy as np
import pytest
from diinn.benchmarks.mjpeg_server import burnt
from diinn.runtime import CameraSettings, DiinnError, InputError, Stream, SuperResolver
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.sinks.preview import Preview, jpeg_pair, metrics
from diinn.runtime.stream.stop import Stop
from served import Served, until

VIEWS = {"full": ViewSpec(dsize=(320, 240)), "part": ViewSpec.parse("roi:40,30,80,60:160x120")}


@pytest.fixture
def preview(nothing_leaks: None, mjpeg: Callable[..., Served], nano: SuperResolver) -> Iterator[Preview]:
    """A camera with two views, on a free port of the loopback."""
    page = Preview.at("127.0.0.1:0", viewers=3)
    stream = Stream([CameraSettings(mjpeg().url, "front", views=VIEWS)], nano, sinks=[page])
    stream.start()
    until(lambda: len(page._shown) == 2)
    yield page
    stream.close()


def ask(url: str, **options: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a GET."""

    async def get() -> tuple[int, dict[str, str], bytes]:
        options.setdefault("allow_redirects", False)
        async with aiohttp.ClientSession() as session, session.get(url, **options) as answer:
            return answer.status, dict(answer.headers), await answer.read()

    return asyncio.run(get())


@asynccontextmanager
async def viewer(page: Preview, **options: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{page.where}/live", **options) as ws:
        yield ws


async def picture(ws: aiohttp.ClientWebSocketResponse, answer: bool = True) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The next picture's header and images."""
    while True:
        message = await ws.receive(timeout=20)
        if message.type is aiohttp.WSMsgType.BINARY:
            break
        assert message.type is aiohttp.WSMsgType.TEXT
    length = struct.unpack_from("<I", message.data)[0]
    header = json.loads(message.data[4 : 4 + length])
    at, images = 4 + length, []
    for size in header["lengths"]:
        images.append(cv2.imdecode(np.frombuffer(message.data[at : at + size], np.uint8), cv2.IMREAD_COLOR))
        at += size
    if answer:
        await ws.send_json({"do": "drawn", "pane": header["pane"]})
    return header, images


def watch(pane: str = "1", view: str = "full", compare: bool = False, camera: str = "front") -> dict[str, Any]:
    return {"do": "watch", "pane": pane, "camera": camera, "view": view, "compare": compare}


def test_the_page_and_nothing_from_outside(preview: Preview) -> None:
    status, headers, body = ask(preview.where)
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    page = body.decode()
    for name in ("page.js", "page.css"):
        assert f'"{name}"' in page
        assert ask(f"{preview.where}/{name}")[0] == 200
        page += ask(f"{preview.where}/{name}")[2].decode()
    assert not re.findall(r"(?:https?:)?//[a-z][a-z0-9-]*\.[a-z]", page)
    assert ask(f"{preview.where}/server.py")[0] == 404
    assert ask(f"{preview.where}/../server.py")[0] == 404


NONSENSE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x1b[31m\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nno header\r\n\r\n",
    b"\r\n" * 50 + b"\x00",
]


def test_requests_that_are_none_are_said_once(preview: Preview, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever sends them, without a token, and however often."""
    for number in range(200):
        with socket.create_connection((preview._address.bound, preview._address.port), 10) as connection:
            connection.settimeout(10)
            connection.sendall(NONSENSE[number % len(NONSENSE)])
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in records] == [
        "preview: something that is no request of HTTP came (1 so far)"
    ]
    assert not records[0].exc_info
    assert ask(preview.where)[0] == 200


def test_a_fault_in_an_answer_is_one_line(
    preview: Preview, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> bytes:
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(metrics, "text", broken)
    assert [ask(f"{preview.where}/metrics")[0] for _ in range(5)] == [500] * 5
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith("preview: a request failed, unexpected ZeroDivisionError at test_preview.py:")
    assert not record.exc_info


def test_viewers_get_the_newest_frame_of_what_they_watch(preview: Preview) -> None:
    async def look() -> None:
        async with viewer(preview) as ws:
            state = await ws.receive_json(timeout=10)
            assert state["streams"] == [{"camera": "front", "view": v} for v in VIEWS]
            assert state["state"]["cameras"]["front"]["state"] == "live"
            await ws.send_json(watch())
            numbers = []
            for _ in range(6):
                header, images = await picture(ws)
                assert (header["camera"], header["view"], header["zoomed"]) == ("front", "full", False)
                assert images[0].shape == (240, 320, 3)
                assert header["age"] < 3000
                numbers.append((header["sequence"], burnt(images[0])))
                await asyncio.sleep(0.1)
            assert numbers == sorted(set(numbers))

    asyncio.run(look())


def test_both_pictures_are_of_one_frame(preview: Preview) -> None:
    async def look() -> None:
        async with viewer(preview) as ws:
            await ws.send_json(watch(compare=True))
            for _ in range(4):
                _, (ours, plain) = await picture(ws)
                assert ours.shape == plain.shape == (240, 320, 3)
                assert burnt(ours) == burnt(plain)
                assert not np.array_equal(ours, plain)
            await ws.send_json(watch(compare=False))
            lengths = [len((await picture(ws))[0]["lengths"]) for _ in range(3)]
            assert lengths[-1] == 1

    asyncio.run(look())


def test_the_slider_works_on_a_camera_that_has_stalled(preview: Preview) -> None:
    async def look() -> None:
        preview._stream.sources[0].close()
        await asyncio.sleep(0.5)
        async with viewer(preview) as ws:
            await ws.send_json(watch())
            header, images = await picture(ws)
            assert len(images) == 1
            await ws.send_json(watch(compare=True))
            again, images = await picture(ws)
            assert len(images) == 2
            assert again["sequence"] == header["sequence"]

    asyncio.run(look())


def test_a_zoom_at_the_edge_whatever_the_rounding(preview: Preview) -> None:
    """Shares that add up to a little more than one."""

    async def look() -> None:
        rng = np.random.default_rng(3)
        async with viewer(preview) as ws:
            await ws.send_json(watch())
            await picture(ws)
            for _ in range(300):
                x, y = rng.uniform(0.01, 0.99, 2)
                rect = [x, y, 1 - x + 1e-16, 1 - y]
                await ws.send_json({"do": "zoom", "pane": "1", "rect": rect, "size": [32, 24]})
            await until_zoomed(ws, True)
        assert preview._stream.busy

    asyncio.run(look())


def test_frozen_viewers_do_not_hold_up_the_end(
    nothing_leaks: None, mjpeg: Callable[..., Served], nano: SuperResolver
) -> None:
    page = Preview.at("127.0.0.1:0", viewers=8)
    stream = Stream([CameraSettings(mjpeg().url, "front", views=VIEWS)], nano, sinks=[page])
    stream.start()
    until(lambda: len(page._shown) == 2)
    host, port = page.where.removeprefix("http://").split(":")
    frozen = []
    for _ in range(6):  # they shake hands and never read or answer again
        frozen.append(socket.create_connection((host, int(port))))
        frozen[-1].sendall(
            f"GET /live HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
    until(lambda: len(page._viewers) == 6)
    began = time.monotonic()
    stop = Stop()
    stop.interrupted = True
    stream.close(stop)
    assert time.monotonic() - began < 2
    assert stream.sink_threads[0].failure is None
    for each in frozen:
        each.close()


def test_odd_requests_are_refused_quietly(preview: Preview, caplog: pytest.LogCaptureFixture) -> None:
    host, port = preview.where.removeprefix("http://").split(":")
    for line in ("Host: [", f"Host: {host}:{port}\r\nOrigin: http://["):
        with socket.create_connection((host, int(port))) as line_to:
            line_to.sendall(f"GET / HTTP/1.1\r\n{line}\r\nConnection: close\r\n\r\n".encode())
            assert line_to.recv(100).split()[1] in (b"403", b"400")
    assert ask(f"{preview.where}/still?camera=front&view=full", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert caplog.text == ""


@pytest.mark.parametrize(
    "address", ["[::1", "[foo]:80", "..:80", "a" * 70 + ":80", "u:p@127.0.0.1:80", ":80", "h:99999"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InputError) as error:
        Preview.at(address, viewers=1)
    assert "write http://127.0.0.1:8080" in str(error.value)
    assert "u:p" not in str(error.value)


def test_a_part_is_decoded_at_the_size_of_the_pane_and_parts_of_it_too(preview: Preview) -> None:
    async def look() -> None:
        async with viewer(preview) as ws:
            await ws.send_json(watch(view="part"))
            await picture(ws)
            await ws.send_json({"do": "zoom", "pane": "1", "rect": [0, 0.5, 0.5, 0.5], "size": [400, 300]})
            header, images = await until_zoomed(ws, True)
            assert images[0].shape == (300, 400, 3)
            assert [view.crop for view in preview._stream.lanes[0].zooms.values()] == [(0, 0.5, 0.5, 0.5)]
            await ws.send_json({"do": "zoom", "pane": "1", "rect": [0.5, 0, 0.5, 0.5], "size": [200, 200]})
            while images[0].shape != (200, 200, 3):
                header, images = await picture(ws)
            lane = preview._stream.lanes[0]
            assert [view.crop for view in lane.zooms.values()] == [(0.25, 0.5, 0.25, 0.25)]
            status, _, body = ask_later(f"{preview.where}/still?camera=front&view={header['still']}")
            assert status == 200
            assert cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR).shape == (200, 200, 3)
            await ws.send_json({"do": "whole", "pane": "1"})
            assert (await until_zoomed(ws, False))[1][0].shape == (120, 160, 3)
            assert not lane.zooms
            await ws.send_json({"do": "zoom", "pane": "1", "rect": [0, 0, 1, 1], "size": [300, 300]})
            await until_zoomed(ws, True)
        until(lambda: not lane.zooms)  # the viewer has gone
        until(lambda: len(preview._shown) == 2)

    asyncio.run(look())


async def until_zoomed(ws: aiohttp.ClientWebSocketResponse, zoomed: bool) -> tuple[dict[str, Any], list[np.ndarray]]:
    while True:
        header, images = await picture(ws)
        if header["zoomed"] is zoomed:
            return header, images


def ask_later(url: str) -> tuple[int, dict[str, str], bytes]:
    """``ask`` from within a running loop."""
    found: list[tuple[int, dict[str, str], bytes]] = []
    thread = threading.Thread(target=lambda: found.append(ask(url)))
    thread.start()
    thread.join()
    return found[0]


def test_nonsense_is_answered_and_the_viewer_stays(preview: Preview) -> None:
    async def look() -> None:
        async with viewer(preview) as ws:
            await ws.send_json(watch())
            for nonsense, word in (
                ({"do": "zoom", "pane": "none", "rect": [0, 0, 1, 1], "size": [99, 99]}, "not understood"),
                ({"do": "fly", "pane": "1"}, "not understood"),
                ({"do": "denoise", "pane": "1", "value": -1}, "noise = -1 is not a finite number"),
                ({"do": "denoise", "pane": "1", "value": float("nan")}, "is not a finite number"),
                ({"do": "denoise", "pane": "1", "value": "lots"}, "not understood"),
                ({"do": "denoise", "pane": "1", "value": True}, "denoise True is not understood"),
                ({"do": "denoise", "pane": "1"}, "not understood"),
                ({"do": "denoise", "pane": "none", "value": 1}, "not understood"),
                ({"do": "watch"}, "not understood"),
                ([], "not understood"),
                ({"do": "zoom", "pane": "1", "rect": [0, 0, 1, 1], "size": [float("inf"), 99]}, "not understood"),
                (watch("2", camera="none"), None),
                ({"do": "zoom", "pane": "2", "rect": [0, 0, 1, 1], "size": [99, 99]}, "unknown camera 'none'"),
                ({"do": "zoom", "pane": "1", "rect": [0, 0, 1e-9, 1], "size": [99, 99]}, "too small"),
                ({"do": "zoom", "pane": "1", "rect": [0, 0, float("nan"), 1], "size": [99, 99]}, "from 0 to 1"),
                ({"do": "zoom", "pane": "1", "rect": [0, 0, 1, 1], "size": [1, 1]}, "cannot show"),
            ):
                await ws.send_json(nonsense)
                while word is not None:
                    message = await ws.receive(timeout=10)
                    if message.type is aiohttp.WSMsgType.TEXT and "error" in json.loads(message.data):
                        assert word in json.loads(message.data)["error"]
                        break
                    if message.type is aiohttp.WSMsgType.BINARY:
                        await ws.send_json({"do": "drawn", "pane": "1"})
            await picture(ws)

    asyncio.run(look())


def test_a_huge_zoom_is_bounded(preview: Preview) -> None:
    async def look() -> None:
        async with viewer(preview) as ws:
            await ws.send_json(watch())
            await ws.send_json({"do": "zoom", "pane": "1", "rect": [0, 0, 1, 1], "size": [10**6, 10**6]})
            header, _ = await until_zoomed(ws, True)
            assert header["size"][0] * header["size"][1] <= 1280 * 960

    asyncio.run(look())


def test_connections_are_counted_whoever_they_are(preview: Preview) -> None:
    port = int(preview.where.rpartition(":")[2])
    with contextlib.ExitStack() as idle:
        opened = [idle.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(90)]  # no request
        opened[-1].settimeout(3)  # those without a request are closed after five seconds
        assert opened[-1].recv(1) == b""
        opened[0].settimeout(0.2)
        with pytest.raises(TimeoutError):
            opened[0].recv(1)
    until(lambda: _answers(preview))


def _answers(preview: Preview) -> bool:
    with contextlib.suppress(OSError):
        return ask(preview.where)[0] == 200
    return False


def test_a_picture_that_cannot_be_made_is_told_and_the_next_comes(
    preview: Preview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise DiinnError("no JPEG today")

    async def look() -> None:
        async with viewer(preview) as ws:
            await ws.send_json(watch())
            await picture(ws)
            with monkeypatch.context() as broken:
                broken.setattr(jpeg_pair, "encoded", fail)
                for _ in range(100):
                    message = await ws.receive(timeout=10)
                    if message.type is aiohttp.WSMsgType.BINARY:  # encoded just before
                        await ws.send_json({"do": "drawn", "pane": "1"})
                    elif "error" in (answer := message.json()):
                        break
                assert answer == {"error": "front: no JPEG today"}
            await picture(ws)

    asyncio.run(look())


def test_viewers_are_counted_and_the_next_is_refused(preview: Preview) -> None:
    async def look() -> None:
        async with viewer(preview), viewer(preview), viewer(preview):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with viewer(preview):
                    pass
            assert refused.value.status == 503
        await asyncio.sleep(0.2)
        async with viewer(preview) as ws:  # there is room again
            await ws.receive_json(timeout=10)

    asyncio.run(look())


def test_a_viewer_that_hangs_slows_nobody(preview: Preview) -> None:
    """It reads nothing and confirms nothing: one picture is on its way to it, the others get theirs."""

    async def look() -> None:
        async with viewer(preview) as hanging, viewer(preview) as ws:
            for each in (hanging, ws):
                await each.send_json(watch(compare=True))
            numbers = [(await picture(ws))[0]["sequence"] for _ in range(15)]
            assert numbers == sorted(set(numbers))
            kinds = []
            while aiohttp.WSMsgType.BINARY not in kinds or kinds[-1] is aiohttp.WSMsgType.BINARY:
                kinds.append((await hanging.receive(timeout=10)).type)
            assert kinds.count(aiohttp.WSMsgType.BINARY) == 1

    processed = preview._stream.stats.processed
    began = time.monotonic()
    asyncio.run(look())
    assert (preview._stream.stats.processed - processed) / (time.monotonic() - began) > 3


def test_metrics(preview: Preview) -> None:
    status, headers, body = ask(f"{preview.where}/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    text = body.decode()
    assert 'diinn_camera_up{camera="front"} 1.0' in text
    assert 'diinn_camera_state{camera="front",state="retrying"} 0.0' in text
    found = re.search(r'diinn_frames_processed_total{camera="front"} (\S+)', text)
    assert found
    assert float(found.group(1)) > 0
    assert re.search(r'diinn_age_seconds{camera="front",quantile="0.99"} 0\.\d', text)
    from prometheus_client.parser import text_string_to_metric_families

    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert len({(s.name, tuple(s.labels.items())) for s in samples}) == len(samples)


def test_stills(preview: Preview) -> None:
    status, headers, body = ask(f"{preview.where}/still?camera=front&view=full")
    assert status == 200
    assert re.fullmatch(r'attachment; filename="front-full-\d+\.png"', headers["Content-Disposition"])
    assert cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR).shape == (240, 320, 3)
    status, _, body = ask(f"{preview.where}/still?camera=back&view=full")
    assert status == 404
    assert b"there is: ?camera=front&view=full" in body


def test_pages_of_other_sites_do_not_get_in(preview: Preview) -> None:
    """Neither by a name that points here, nor by a script that connects here."""
    port = preview.where.rpartition(":")[2]
    for path in ("/", "/live", "/metrics", "/still?camera=front&view=full"):
        assert ask(preview.where + path, headers={"Host": f"evil.example:{port}"})[0] == 403
    assert ask(preview.where, headers={"Host": f"localhost:{port}"})[0] == 200

    async def look() -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with viewer(preview, headers={"Origin": "http://evil.example"}):
                pass
        assert refused.value.status == 403
        async with viewer(preview, headers={"Origin": preview.where}) as ws:
            await ws.receive_json(timeout=10)

    asyncio.run(look())


def test_other_machines_need_the_token(nano: SuperResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Preview.at("0.0.0.0:0", viewers=3)
    stream = Stream(["demo"], nano, sinks=[page])
    stream.start()
    until(lambda: page._shown)
    here = f"http://127.0.0.1:{page.where.rpartition(':')[2]}"
    token = page.link.partition("?token=")[2]
    assert len(token) >= 24
    for path in ("/", "/page.js", "/live", "/metrics", "/still?camera=demo&view=full"):
        assert ask(here + path)[0] == 401
        assert ask(here + path, headers={"Authorization": "Bearer \udcff"})[0] == 401
        assert ask(here + path, headers={"Authorization": "Bearer wrong"})[0] == 401
    assert ask(f"{here}/?token={token[:-1]}")[0] == 401
    assert ask(f"{here}/metrics", headers={"Authorization": f"Bearer {token}"})[0] == 200
    status, headers, _ = ask(f"{here}/?token={token}")
    assert (status, headers["Location"]) == (303, "/")  # the address bar and the history do not keep it
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    name, value = cookie.split(";")[0].split("=", 1)
    assert ask(here, cookies={name: value})[0] == 200
    assert token not in json.dumps(stream.snapshot())
    stream.close()
    monkeypatch.setenv("DIINN_TOKEN", "chosen-by-the-user")
    fixed = Preview.at("0.0.0.0:0", viewers=1)
    assert fixed.link.endswith("?token=chosen-by-the-user")
    fixed.close()
    for word in ("short", "with+signs/as=base64has", "sixteen-letters-é"):
        monkeypatch.setenv("DIINN_TOKEN", word)
        with pytest.raises(InputError, match="DIINN_TOKEN is no token: use 16 or more"):
            Preview.at("0.0.0.0:0", viewers=1)


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on http://127.0.0.1:{port}: .* choose another port"):
            Preview.at(f"127.0.0.1:{port}", viewers=1)


def test_views_that_change_are_told(preview: Preview) -> None:
    async def look() -> None:
        async with viewer(preview) as ws:
            await ws.send_json(watch())
            await picture(ws)
            preview._stream.set_views("front", {"other": "full:80x60"})
            while True:
                message = await ws.receive(timeout=10)
                if message.type is aiohttp.WSMsgType.TEXT:
                    state = json.loads(message.data)
                    if state["streams"] == [{"camera": "front", "view": "other"}]:
                        break
            await ws.send_json({"do": "close", "pane": "1"})
            await ws.send_json(watch("2", "other"))
            assert (await picture(ws))[1][0].shape == (60, 80, 3)

    asyncio.run(look())
    until(lambda: [key for key in preview._shown if key != ("front", "other")] == [])
