"""The preview's server: a page, a WebSocket a viewer (``viewer`` describes its messages), stills and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import cv2
from aiohttp import WSMsgType, web
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.sinks.preview import metrics, request_log
from diinn.runtime.sinks.preview.access import Address, RequestGuard
from diinn.runtime.sinks.preview.jpeg_pair import JpegPair, encoded
from diinn.runtime.sinks.preview.viewer import NONSENSE, Viewer, packed
from diinn.runtime.stream.result import ZOOM, Result
from diinn.runtime.stream.sink import Sink
from diinn.runtime.stream.sink_thread import Key

if TYPE_CHECKING:
    from diinn.runtime.stream.sink import LiveStream

log = logging.getLogger(__name__)
STATE_SECONDS = 1.0
CONNECTIONS_A_VIEWER, OTHER_CONNECTIONS = 6, 16  # browsers open so many to a host
HEARTBEAT = 10.0  # a viewer that does not answer for so long is disconnected
CONTENT = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class _Gate(asyncio.Protocol):
    """Passes a new connection to ``server``, or closes it where ``most`` are open already.

    Each is an open file, and the cameras need some, too.
    """

    def __init__(self, server: web.Server, most: int) -> None:
        self._server, self._most = server, most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self._server.connections) >= self._most:
            transport.close()
            return
        handler = self._server()
        transport.set_protocol(handler)
        handler.connection_made(transport)


class Preview(Sink):
    """A server on a thread of its own; it keeps the newest result of each stream for its viewers."""

    zooms = True

    def __init__(self, address: Address, viewers: int) -> None:
        self._address, self._most = address, viewers
        try:
            self._guard = RequestGuard(address)
        except InputError:
            address.socket.close()
            raise
        self.where = address.url
        self.link = f"{address.reachable}/" + (f"?token={self._guard.token}" if self._guard.token else "")
        self._shown: dict[Key, JpegPair] = {}
        self._viewers: set[Viewer] = set()
        self._stream: LiveStream | None = None
        self._loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="diinn-preview-encode")
        self._thread = threading.Thread(target=self._serve, name="diinn-preview", daemon=True)
        self._ended = asyncio.Event()

    @staticmethod
    def at(address: str, viewers: int) -> Preview:
        """A server listening at ``HOST:PORT``; InputError where that cannot be."""
        return Preview(Address(address), viewers)

    def attach(self, stream: LiveStream) -> None:
        self._stream = stream
        self._thread.start()

    def write(self, result: Result) -> None:
        self._shown[result.key] = JpegPair(result)
        if self._viewers:
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._notify)

    def statistics(self) -> dict[str, Any]:
        return {"viewers": len(self._viewers)}

    def close(self, *, failed: bool = False) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(2)
        else:
            self._loop.close()
        self._address.socket.close()
        self._pool.shutdown(wait=False)

    def _notify(self) -> None:
        for viewer in self._viewers:
            viewer.changed.set()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except Exception:
            log.exception("the preview has ended")
        finally:
            self._loop.close()

    async def _main(self) -> None:
        app = web.Application(middlewares=[self._guarded], client_max_size=2**16)
        app.router.add_get("/", self._page)
        app.router.add_get("/{name:page\\.(?:js|css)}", self._page)
        app.router.add_get("/live", self._live)
        app.router.add_get("/still", self._still)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=request_log.logger(),
            shutdown_timeout=0.1,
            keepalive_timeout=5,
            handle_signals=False,
        )
        await runner.setup()
        assert runner.server is not None
        most = CONNECTIONS_A_VIEWER * self._most + OTHER_CONNECTIONS
        gate = functools.partial(_Gate, runner.server, most)
        accepting = await self._loop.create_server(gate, sock=self._address.socket)
        ticker = asyncio.ensure_future(self._send_state())
        await self._ended.wait()
        ticker.cancel()
        accepting.close()
        goodbyes = [viewer.socket.close(code=1001, message=b"the stream has ended") for viewer in self._viewers]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*goodbyes, return_exceptions=True), 0.3)
        await runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            self._guard.check(request)
            answer: web.StreamResponse = await handler(request)
        except web.HTTPException as error:
            error.headers.update(HEADERS)
            raise
        if not answer.prepared:
            answer.headers.update(HEADERS)
        return answer

    async def _page(self, request: web.Request) -> web.Response:
        self._guard.admit(request)
        name = request.match_info.get("name", "page.html")
        text = files("diinn.runtime.sinks.preview").joinpath(name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=CONTENT[name])

    async def _metrics(self, request: web.Request) -> web.Response:
        body = await self._in_thread(lambda: metrics.text(self._snapshot()))
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _still(self, request: web.Request) -> web.Response:
        camera, view = request.query.get("camera", ""), request.query.get("view", "")
        shown = self._shown.get((camera, view))
        if shown is None:
            names = [key for key in sorted(self._shown.copy()) if not key[1].startswith(ZOOM)]
            queries = [urlencode({"camera": c, "view": v}, errors="surrogateescape") for c, v in names]
            there = ", ".join(f"?{query}" for query in queries)
            raise web.HTTPNotFound(
                text=f"no picture of camera {camera!r}, view {view!r}; there is: {there or 'none'}\n"
            )
        body = await self._in_thread(lambda: encoded(".png", shown.result.image))
        name = "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{camera} {view} {shown.result.sequence}")
        headers = {"Content-Disposition": f'attachment; filename="{name}.png"'}
        return web.Response(body=body, content_type="image/png", headers=headers)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        if len(self._viewers) >= self._most:
            raise web.HTTPServiceUnavailable(text=f"{self._most} viewers are watching already: close one\n")
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT, max_msg_size=4096)
        assert self._stream is not None
        viewer = Viewer(self._stream, socket)
        self._viewers.add(viewer)  # before anything is awaited: two must not get the last place
        sender: asyncio.Future[None] | None = None
        try:
            await socket.prepare(request)
            viewer.state = await self._in_thread(self._state)
            viewer.changed.set()
            sender = asyncio.ensure_future(self._send(viewer))
            sender.add_done_callback(lambda _: asyncio.ensure_future(socket.close()))  # so that the page tries again
            async for message in socket:
                if message.type is not WSMsgType.TEXT:
                    break
                try:
                    if '"zoom"' in message.data or '"denoise"' in message.data:  # a view is made, a graph opened
                        await self._in_thread(lambda text=message.data: viewer.do(text))
                    else:
                        viewer.do(message.data)
                except NONSENSE as error:
                    await socket.send_json({"error": f"not understood: {type(error).__name__}"})
                except DiinnError as error:
                    await socket.send_json({"error": str(error)})
                viewer.changed.set()
        finally:
            self._viewers.discard(viewer)
            if sender is not None:
                sender.cancel()
            viewer.leave()
        return socket

    async def _send(self, viewer: Viewer) -> None:
        with contextlib.suppress(ConnectionError):
            while not viewer.socket.closed:
                await viewer.changed.wait()
                viewer.changed.clear()
                state, viewer.state = viewer.state, ""
                if state:
                    await viewer.socket.send_str(state)
                    for trouble in viewer.troubles():
                        await viewer.socket.send_json({"error": trouble})
                for name, pane in list(viewer.panes.items()):
                    shown = self._shown.get(pane.key)
                    if not pane.ready or shown is None or shown is pane.sent:
                        continue
                    pane.ready, pane.sent, compare = False, shown, pane.compare
                    try:
                        jpegs = await self._in_thread(lambda s=shown, c=compare: s.jpegs(c))
                    except (DiinnError, cv2.error, MemoryError) as error:  # of this picture; the next may do
                        pane.ready = True
                        await viewer.socket.send_json({"error": f"{shown.result.camera}: {error}"})
                        continue
                    await viewer.socket.send_bytes(packed(name, pane, shown.result, jpegs))

    async def _send_state(self) -> None:
        while True:
            await asyncio.sleep(STATE_SECONDS)
            try:
                self._forget()
                state = await self._in_thread(self._state) if self._viewers else ""
            except Exception:  # the next second may do better, and pictures must not pile up
                log.exception("the page's state could not be sent")
                continue
            for viewer in self._viewers:
                viewer.state = state
            self._notify()

    def _forget(self) -> None:
        """Drop pictures of views that are no more: they are most of a preview's memory."""
        assert self._stream is not None
        wanted = {(lane.name, view) for lane in self._stream.lanes for view in (*lane.specs, *lane.zooms)}
        for key in self._shown.keys() - wanted:
            del self._shown[key]

    def _state(self) -> str:
        assert self._stream is not None
        resolver = self._stream.resolver
        streams = [{"camera": lane.name, "view": view} for lane in self._stream.lanes for view in lane.specs]
        dial = resolver.bundle.dial
        model = {
            "name": resolver.bundle.name,
            "backend": resolver.backend.describe(),
            "noise": dial.noise if dial else 0,
            "auto": resolver.bundle.estimator is not None,
        }
        return json.dumps({"state": self._snapshot(), "streams": streams, "model": model})

    def _snapshot(self) -> dict[str, Any]:
        assert self._stream is not None
        return self._stream.snapshot()

    def _in_thread(self, work: Any) -> Any:
        return self._loop.run_in_executor(self._pool, work)
