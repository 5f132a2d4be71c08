"""Signals that end a program, sent to this process."""

from __future__ import annotations

import os
import signal

import pytest

from data import stopping
from data.stopping import Stopped, held, released, requested, signals


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_stops_the_program_where_it_is(name):
    number = getattr(signal, name)
    with pytest.raises(Stopped) as stop, signals():
        send(number)
    assert (stop.value.number, stop.value.status) == (number, 128 + number)
    assert str(stop.value) == f"stopped by {'Ctrl-C' if name == 'SIGINT' else name}"


def test_no_handler_of_errors_swallows_it():
    assert not issubclass(Stopped, Exception)


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with signals(), signals():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_signals_that_are_ignored_stay_ignored(monkeypatch):
    """A job that nohup started goes on when its terminal sends Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_held_block_runs_to_its_end():
    done = []
    with pytest.raises(Stopped), signals(), held():
        send()
        done.append(requested())
    assert done == [signal.SIGTERM]
    assert requested() == 0


def test_a_block_may_ask_and_leave_by_itself():
    with signals(), pytest.raises(Stopped, match="3 steps saved"), held():
        send()
        raise Stopped(requested(), "3 steps saved")


def test_an_error_in_a_held_block_is_not_hidden():
    with signals(), pytest.raises(KeyError), held():
        send()
        raise KeyError


def test_released_inside_held():
    done = []
    with signals(), pytest.raises(Stopped), held():
        done.append("held")
        with released():
            send()
            done.append("not reached")
    with signals(), held(), released():
        done.append("nothing came")
    assert done == ["held", "nothing came"]


def test_what_was_noted_is_raised_when_it_is_released():
    with signals(), pytest.raises(Stopped), held():
        send()
        assert requested()
        with released():
            pytest.fail("the block began")


@pytest.mark.parametrize(("seconds", "waits"), [(0.3, True), (60.0, False)])
def test_a_second_ctrl_c_does_not_wait(monkeypatch, seconds, waits):
    """The first comes twice under torchrun, at about the same time."""
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    reached = []
    with signals(), pytest.raises(Stopped), held():
        send(signal.SIGINT)
        now[0] = seconds
        send(signal.SIGINT)
        reached.append("the end")
    assert bool(reached) == waits


def test_a_forked_child_ends_as_without_a_handler():
    with signals(), held():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
