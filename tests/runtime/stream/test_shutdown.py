"""The end of a stream, called for by any thread at any time."""

import threading
import time

import pytest
from diinn.runtime import InputError, Stop, Stream, SuperResolver
from streamed import Kept, camera


class Slow(SuperResolver):
    """Takes its time to close."""

    closed_at = 0.0

    def close(self) -> None:
        time.sleep(0.5)
        super().close()
        type(self).closed_at = time.monotonic()


def test_close_returns_once_the_model_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread, too."""
    monkeypatch.setattr("diinn.runtime.stream.stream.SuperResolver", Slow)
    stream = Stream([camera("demo")], "nano", sinks=[Kept()])
    runner = threading.Thread(target=stream.run)
    runner.start()
    while not stream.stats.processed:
        time.sleep(0.01)
    stream.close()
    assert 0 < Slow.closed_at <= time.monotonic()
    assert stream.resolver.backend.closed
    runner.join()


def test_closed_by_another_thread_before_it_has_begun(nano: SuperResolver) -> None:
    """``run`` has been called, and ends without an error."""
    stream = Stream([camera("demo")], nano, sinks=[Kept()])
    shutdown, closing = stream._shutdown, threading.Thread(target=stream.close)
    begin = shutdown.start

    def late() -> None:
        closing.start()
        while not shutdown.begun:
            time.sleep(0.01)
        begin()

    shutdown.start = late  # type: ignore[method-assign]
    stream.run()
    closing.join(10)
    assert not closing.is_alive()
    assert not stream.busy


def test_a_stream_that_was_closed_does_not_start(nano: SuperResolver) -> None:
    sink = Kept()
    stream = Stream([camera("demo")], nano, sinks=[sink])
    stream.close()
    with pytest.raises(InputError, match="a stream runs once"):
        stream.run()
    assert sink.results == []


@pytest.mark.parametrize("threads", [2, 5])
def test_many_may_close_it_at_once(nano: SuperResolver, threads: int) -> None:
    stream = Stream([camera("demo")], nano, sinks=[Kept()])
    stream.start()
    closers = [threading.Thread(target=stream.close) for _ in range(threads)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(20)
    assert not any(closer.is_alive() for closer in closers)
    assert not stream.busy


def test_a_deadline_and_a_condition_end_a_run(nano: SuperResolver) -> None:
    stop = Stop()
    stop.deadline = time.monotonic() + 0.5
    Stream([camera("demo")], nano).run(stop)
    assert stop.requested
    assert not stop.interrupted
    Stream([camera("demo")], nano).run(Stop(lambda: True))
