"""An image topic of a bag as a source: every frame, in the order of stamps, with its stamp and its calibration."""

from __future__ import annotations

import bisect
import contextlib
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from diinn.runtime.errors import DiinnError, InputError, SourceError, unknown
from diinn.runtime.sources import ros_messages
from diinn.runtime.sources.bag_file import Bag, Topic, is_bag
from diinn.runtime.sources.base import Frame, Header
from diinn.runtime.sources.files import BlockingSource
from diinn.runtime.sources.ros_messages import NANO, Calibrations, EncodingError
from diinn.runtime.util import uri_query

log = logging.getLogger(__name__)
M = TypeVar("M")
HELD = 8  # messages, of those whose stamps say that they belong behind ones recorded later


class BagTopic(BlockingSource):
    """One image topic of a bag.

    Frames that cannot be decoded are left out, counted and logged. ``complete``: whether it was read to its end, or to
    that of the part that was wanted; ``span``: that part, nanoseconds from the first to before the last.
    """

    timed = True

    def __init__(
        self,
        path: Path,
        topic: str | None = None,
        *,
        flip: str | None = None,
        start: float = 0.0,
        duration: float | None = None,
    ) -> None:
        """Open a bag.

        Args:
            path: The bag.
            topic: The image topic; None where there is one alone.
            flip: How frames are turned.
            start: Seconds of the bag that are left out.
            duration: Seconds that are taken; None for all.

        Raises:
            SourceError: It cannot be read, has no such topic, or ends before ``start``.
        """
        self.path = path
        self._bag = Bag(path)
        try:
            found = _image_topic(self._bag, topic)
            super().__init__(found.name, flip)
            self.topic, self._kind = found.name, found.kind
            if start >= self._bag.seconds > 0:
                raise SourceError(
                    f"{str(path)!r} is {self._bag.seconds:.1f} s long: --start {start:g} is behind its end"
                )
        except BaseException:
            self._bag.close()
            raise
        first = self._bag.begin + round(start * NANO)
        last = self._bag.end if duration is None else min(self._bag.end, first + round(duration * NANO))
        self.span, self.complete = (first, last), False
        seconds = self._bag.seconds or 1.0
        self.total = math.ceil(found.count * min(1.0, (last - first) / 1e9 / seconds)) or None
        self.rate = min(1000.0, max(1.0, (found.count - 1) / seconds))
        info = ros_messages.info_topic(found.name)
        self._info = info if info in self._bag.topics and self._bag.topics[info].kind == ros_messages.INFO else None
        self._calibrations = Calibrations(info)
        self._backwards, self._latest, self._unstamped, self._trouble = 0, 0, False, ""

    def frames(self) -> Iterator[Frame]:
        self._look_ahead()
        for header, message in in_order(self._messages()):
            try:
                image = ros_messages.image(message, self._kind)
            except EncodingError as error:
                raise SourceError(f"topic {self.topic} of {str(self.path)!r} {error}") from None
            except SourceError as error:
                self._leave_out(error)
                continue
            self._backwards += header.stamp < self._latest
            self._latest = header.stamp
            frame = Frame(image, self.name, self.captured, header.stamp / NANO, time.monotonic(), None, header)
            self.captured += 1
            yield frame
        self._end()

    def _messages(self) -> Iterator[tuple[Header, object]]:
        """The images as messages, in the order of recording, each with what was known of the camera then."""
        for topic, recorded, data in self._bag.messages({self.topic, self._info or self.topic}, *self.span):
            if topic == self._info:
                self._take_info(data)
                continue
            try:
                message = self._bag.decode(topic, data)
            except SourceError as error:
                self._leave_out(error)
                continue
            yield self._header(message, recorded), message

    def _leave_out(self, error: SourceError) -> None:
        self._trouble = str(error)
        self.undecodable += 1

    def _look_ahead(self) -> None:
        """Take the first ``camera_info``, which may have been recorded after the first image."""
        for start in (self.span[0], None):
            if self._info is None or self._calibrations.latest is not None:
                return
            first = next(self._bag.messages({self._info}, start), None)
            if first is not None:
                self._take_info(first[2])

    def _take_info(self, data: bytes) -> None:
        assert self._info is not None
        with contextlib.suppress(SourceError):  # one that is damaged: the last one holds
            self._calibrations.take(ros_messages.info_fields(self._bag.decode(self._info, data)))

    def _header(self, message: object, recorded: int) -> Header:
        stamp = ros_messages.stamp(message)
        if not stamp:
            stamp = recorded
            if not self._unstamped:
                self._unstamped = True
                log.warning("%s: images bear a stamp of zero; the time of their recording is taken", self.topic)
        # A mirrored or turned picture is another camera's.
        calibration = None if self._flip else self._calibrations.latest
        return Header(stamp, str(message.header.frame_id), recorded, calibration)  # type: ignore[attr-defined]

    def _end(self) -> None:
        if not self.captured:
            raise SourceError(
                f"topic {self.topic} of {str(self.path)!r} holds no image that can be taken in that time: "
                f"{self._trouble or 'choose another topic, --start or --duration'}"
            )
        if self.undecodable:
            log.warning("%s: %d images were left out, the last since %s", self.topic, self.undecodable, self._trouble)
        if self._backwards:
            log.warning(
                "%s: stamps went back (%d of %d frames), as by a clock that was set; frames before that come first",
                *(self.topic, self._backwards, self.captured),
            )
        self.complete = True
        if self._bag.cut_short:
            raise DiinnError(f"{self._bag.cut_short}; {self.captured} frames of {self.topic} were done and are kept")

    def release(self) -> None:
        self._bag.close()


def in_order(messages: Iterable[tuple[Header, M]]) -> Iterator[tuple[Header, M]]:
    """Messages in the order of their stamps, where that differs from the order of recording by at most ``HELD``.

    One whose stamp is before those that went already begins anew: a clock was put back, or a simulation started again.
    """
    held: list[tuple[Header, M]] = []
    latest = 0  # of those that went
    try:
        for item in messages:
            if item[0].stamp < latest:
                yield from held
                held, latest = [item], 0
                continue
            bisect.insort(held, item, key=lambda one: one[0].stamp)
            if len(held) > HELD:
                latest = held[0][0].stamp
                yield held.pop(0)
    except DiinnError:  # it cannot be read any further
        yield from held
        raise
    yield from held


def _image_topic(bag: Bag, wanted: str | None) -> Topic:
    """The topic that is meant."""
    where = repr(str(bag.path))
    images = {name: topic for name, topic in bag.topics.items() if topic.kind in ros_messages.IMAGES}
    if wanted is not None:
        name = wanted if wanted.startswith("/") else f"/{wanted}"
        if name in images:
            return images[name]
        if name in bag.topics:
            raise SourceError(f"topic {name} of {where} is {bag.topics[name].kind}, no image: {_choices(images)}")
        raise SourceError(f"{where} has no topic {name}: {_choices(images)}; {unknown('topic', name, images)}")
    if len(images) == 1:
        return next(iter(images.values()))
    if not images:
        kinds = ", ".join(sorted(bag.topics)[:8])
        raise SourceError(f"{where} holds no topic of images, but {kinds or 'nothing'}: record one beside them")
    raise SourceError(f"{where} holds several topics of images, {_choices(images)}")


def _choices(images: dict[str, Topic]) -> str:
    if not images:
        return "it has none of images"
    return "give one as ?topic=" + ", ?topic=".join(sorted(images))


def split(uri: str) -> tuple[str, list[str]]:
    """The path of a bag's ``PATH?topic=/a&topic=/b`` and its topics, none where it names none or is no bag.

    Raises:
        InputError: It asks for something else.
    """
    path, separator, query = uri.rpartition("?")
    if not separator or os.path.exists(uri) or not is_bag(Path(path)):  # noqa: PTH110  never raises
        return uri, []
    topics = [topic for _, topic in uri_query.pairs(query, repr(uri), {"topic": None})]
    if not topics or not all(topics):
        raise InputError(f"{uri!r}: ?topic= names none: write ?topic=/NAME")
    return path, list(dict.fromkeys(topics))
