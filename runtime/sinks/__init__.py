"""Where results go: one URI each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path

from diinn.runtime.errors import InputError, unknown
from diinn.runtime.images import files as image_files
from diinn.runtime.sinks import bag, ros_topic
from diinn.runtime.sinks.files import VIDEO_SUFFIXES, ImageFile, ImageFolder, VideoFile, check_folder, still_name
from diinn.runtime.sinks.gstreamer import GStreamer
from diinn.runtime.sinks.raw import Pipe, SharedMemory
from diinn.runtime.sinks.window import Window, has_display
from diinn.runtime.sources import Source
from diinn.runtime.sources.bag import BagTopic
from diinn.runtime.sources.uri import public
from diinn.runtime.stream.sink import NullSink, Sink
from diinn.runtime.stream.stop import Stop
from diinn.runtime.util.file_names import as_file, fitting, local

__all__ = ["VIDEO_SUFFIXES", "NullSink", "Sink", "Streams", "open_sinks", "result_paths"]
log = logging.getLogger(__name__)
OTHER_VIDEOS = (".webm", ".m4v", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".3gp", ".ogv", ".mjpeg", ".h264", ".gif")
SCHEMES = ("display", "file", "gst", "http", "shm", ros_topic.SCHEME)
Keyed = tuple[Sink, frozenset[tuple[str, str]] | None]  # a sink and the (camera, view) it takes, None for all


@dataclass(frozen=True)
class Streams:
    """What there is to write: the views of each source, by name."""

    views: Sequence[tuple[Source, Sequence[str]]]

    @property
    def each(self) -> list[tuple[Source, str]]:
        return [(source, view) for source, views in self.views for view in views]

    @cached_property
    def labels(self) -> dict[tuple[str, str], str]:
        """What files of each stream, (camera, view), are called; no two alike, whatever the names."""
        found: dict[tuple[str, str], str] = {}
        taken: set[str] = set()
        for source, views in self.views:
            for view in views:
                wanted = file_name(f"{source.name}-{view}" if len(views) > 1 else source.name)
                label, number = wanted, 1
                while label in taken:
                    number += 1
                    label = f"{wanted}-{number}"
                taken.add(label)
                found[source.name, view] = label
        return found


def open_sinks(
    outputs: Sequence[str], streams: Streams, *, headless: bool, stop: Stop, viewers: int = 8
) -> list[Keyed]:
    """The sinks that ``outputs`` name; without any, windows where there is a display.

    Those opened already are closed when one fails.
    """
    opened: list[Keyed] = []
    with ExitStack() as failing:
        for keyed in chain.from_iterable(
            [_open(output, streams, headless, stop, viewers) for output in outputs]
            or [_default(streams, headless, stop)]
        ):
            failing.callback(keyed[0].close, failed=True)
            _check_topics(keyed[0], [sink for sink, _ in opened])
            opened.append(keyed)
        failing.pop_all()
    return opened


def result_paths(outputs: Sequence[str]) -> tuple[Path, ...]:
    """The files and folders that ``outputs`` name."""
    named = [_parts(_without_options(output)) for output in outputs if output not in ("", "none", "-")]
    paths = [
        Path(rest if separator else scheme) for scheme, separator, rest in named if scheme == "file" or not separator
    ]
    return tuple(path.parent if path.name.startswith("*.") else path for path in paths)


def _check_topics(sink: Sink, others: Sequence[Sink]) -> None:
    """InputError where two outputs publish one topic."""
    if isinstance(sink, ros_topic.RosTopics):
        taken = {topic for other in others if isinstance(other, ros_topic.RosTopics) for topic in other.topics}
        if twice := sorted(taken & sink.topics):
            raise InputError(f"two outputs publish {twice[0]}: choose another topic for one of them")


def _without_options(output: str) -> str:
    found = bag.split(output)
    return found[0] if found else output


def _parts(output: str) -> tuple[str, str, str]:
    """Scheme in small letters, separator and rest of a URI; the path alone where there is no scheme."""
    scheme, separator, rest = local(output).partition("://")
    return (scheme.lower(), separator, rest) if separator else (output, "", "")


def _default(streams: Streams, headless: bool, stop: Stop) -> Iterator[Keyed]:
    if headless or not has_display():
        yield NullSink(), None
        return
    try:
        yield from list(_windows(streams, stop))
    except InputError as error:
        log.warning("%s", error)
        yield NullSink(), None


def _open(output: str, streams: Streams, headless: bool, stop: Stop, viewers: int) -> Iterator[Keyed]:
    """The sinks of one URI, each opened as it is iterated."""
    scheme, separator, rest = _parts(output)
    if output == "none":
        yield NullSink(), None
    elif output == "-":
        if len(streams.each) > 1:
            raise InputError(
                f"--output - holds one stream, these are {len(streams.each)}: give one camera and one view, "
                "or --output shm://NAME"
            )
        yield Pipe(), None
    elif separator and scheme == "display":
        if headless:
            raise InputError("--headless and --output display:// exclude each other")
        if not has_display():
            raise InputError(f"--output {output}: there is no display here; give a file, a folder or none")
        yield from _windows(streams, stop)
    elif separator and scheme == "http":
        from diinn.runtime.sinks.preview import Preview

        yield Preview.at(rest, viewers), None
    elif separator and scheme == "shm":
        for source, view in streams.each:
            name = rest if len(streams.each) == 1 else f"{rest}.{streams.labels[source.name, view]}"
            yield SharedMemory(name, source.name, view), frozenset({(source.name, view)})
    elif separator and scheme == "gst":
        yield from _pipelines(output, rest, streams)
    elif separator and scheme == ros_topic.SCHEME:
        yield ros_topic.RosTopics(rest, streams.views), None
    elif separator in ("", "://") and scheme in ("", "file", output) and (found := bag.split(rest or output)):
        yield _bag(found, streams), None
    elif separator and scheme != "file":
        raise InputError(unknown("output scheme", scheme, SCHEMES))
    elif not (rest if separator else output):
        raise InputError(
            "--output is empty: give a file, a folder, 'FOLDER/*.png', display://0, http://127.0.0.1:8080 or none"
        )
    elif not separator and output.partition(":")[0].lower() in SCHEMES:
        scheme = output.partition(":")[0].lower()
        raise InputError(f"--output {output!r}: write {scheme}:// with two slashes, or ./{output} for a file")
    else:
        text = rest if separator else output
        path, folder = Path(text), text.endswith(("/", "/."))
        for source, view in streams.each:
            yield _file(path, streams, source, view, folder=folder), frozenset({(source.name, view)})


def _pipelines(output: str, description: str, streams: Streams) -> Iterator[Keyed]:
    """A pipeline for each stream, with its name and number in place of ``{stream}`` and ``{number}``."""
    where, each = public(output), streams.each
    if not description.strip():
        raise InputError("--output gst:// names nothing: write gst://PIPELINE, as 'gst://x264enc ! … ! filesink …'")
    if len(each) > 1 and not any(mark in description for mark in ("{stream}", "{number}")):
        raise InputError(
            f"--output {where} takes one stream, these are {len(each)}: write {{stream}} or {{number}} where their "
            "pipelines differ, as location={stream}.mkv or port=500{number}"
        )
    for number, (source, view) in enumerate(each):
        if source.files:
            raise InputError(f"images do not go into a pipeline {where}: give a folder or an image file")
        label = streams.labels[source.name, view]
        own = description.replace("{stream}", label).replace("{number}", str(number))
        name = f"{where} of {label}" if len(each) > 1 else where
        yield GStreamer(name, own, _rate_of(source), source.live), frozenset({(source.name, view)})


def _rate_of(source: Source) -> Callable[[], float]:
    """What gives a source's frames per second once it is open; 30 where it states none."""
    return lambda: source.rate or 30.0


def _bag(found: tuple[str, str], streams: Streams) -> Sink:
    path = Path(found[0])
    if path.exists() and not path.is_file():
        raise InputError(f"--output {str(path)!r} is there and is no file: give another, or none to write nothing")
    check_folder(path.parent)
    for source, _ in streams.views:
        if isinstance(source, BagTopic) and source.path.resolve() in (path.resolve(), path.parent.resolve()):
            raise InputError(f"--output {str(path)!r} would replace the input or a part of it: choose another")
    return bag.BagFile(path, found[1], [(source, list(views)) for source, views in streams.views])


def _windows(streams: Streams, stop: Stop) -> Iterator[Keyed]:
    for source, view in streams.each:
        title = f"diinn {streams.labels[source.name, view]}"
        yield Window(title, bool(source.files), stop), frozenset({(source.name, view)})


def _file(path: Path, streams: Streams, source: Source, view: str, *, folder: bool) -> Sink:
    """The sink of one stream; folder: whether ``path`` was written as one, with a slash behind it."""
    suffix = path.suffix.lower()
    still = bool(source.files)
    folder = folder or path.is_dir() or not suffix
    if path.exists() and not (path.is_dir() if folder else path.is_file()):
        kind = "folder" if folder else "file"
        raise InputError(f"--output {str(path)!r} is there and is no {kind}: give another, or none to write nothing")
    check_folder(path if folder else path.parent)
    several = len(streams.each) > 1
    label = streams.labels[source.name, view]
    if path.name == f"*{suffix}" and image_files.can_write(suffix) and not folder:
        into = path.parent / fitting(label) if several else path.parent
        _keep_apart(source, lambda relative: into / still_name(relative, suffix))
        return ImageFolder(into, suffix, live=source.live)
    if folder:
        if len(source.files) == 1 and several:
            ending = still_name(source.files[0][1], "").suffix
            target = path / fitting(f"{label.replace(ending, '') if ending else label}{ending}")
            _keep_apart(source, lambda _: target)
            return ImageFile(target)
        if still:
            into = path / fitting(label) if several else path
            _keep_apart(source, lambda relative: into / still_name(relative, ""))
            return ImageFolder(into)
        name = label if Path(label).suffix.lower() in VIDEO_SUFFIXES else f"{label}.mp4"
        return VideoFile(path / fitting(name), _rate_of(source), source.live)
    if several or len(source.files) > 1:
        raise InputError(f"one file {str(path)!r} cannot hold several sources, views or images: give a folder")
    if suffix in VIDEO_SUFFIXES:
        if still:
            raise InputError(f"images do not go into a video {str(path)!r}: give a folder or an image file")
        return VideoFile(path, _rate_of(source), source.live)
    if not image_files.can_write(suffix):
        raise InputError(
            f"--output {str(path)!r}: {_other_ending(suffix, still)}; for a folder write {str(path) + '/'!r}"
        )
    if not still:
        raise InputError(
            f"frames of {source.name} do not go into one image {str(path)!r}: give a video file, a folder, or "
            f"{str(path.with_name('*' + suffix))!r} for an image of each frame"
        )
    _keep_apart(source, lambda _: path)
    return ImageFile(path)


def _other_ending(suffix: str, still: bool) -> str:
    """What is wrong with the ending of an output, and which others there are."""
    if suffix in OTHER_VIDEOS and not still:
        return f"videos are not written as {suffix!r}: choose one of {', '.join(VIDEO_SUFFIXES)}"
    return unknown("ending", suffix, image_files.SUFFIXES if still else [*VIDEO_SUFFIXES, *image_files.SUFFIXES])


def _keep_apart(source: Source, target: Callable[[Path], Path]) -> None:
    """InputError if a result would replace the image it is made from, or another result."""
    taken: set[Path] = set()
    place = cache(Path.resolve)
    for file, relative in source.files:
        if target(relative) in taken:
            raise InputError(f"two images would become {str(target(relative))!r}: give a folder instead")
        taken.add(target(relative))
        if target(relative).name == file.name and place(target(relative).parent) == place(file.parent):
            raise InputError(f"--output would replace the input {str(file)!r}: choose another")


def file_name(source: str) -> str:
    """A source's name, as a file may have it."""
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in source).strip("_.") or "camera"
    return fitting(as_file(plain))
