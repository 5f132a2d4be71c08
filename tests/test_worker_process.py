"""The signals for a run are held back while a worker starts, and arrive at the parent later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from data.worker_process import FOR_THE_PARENT, is_stopped, signals_held

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signal masks")


def blocked():
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_signals_are_held_back_and_arrive_later():
    came = []
    before, handler = blocked(), signal.signal(signal.SIGUSR1, lambda *_: came.append(1))
    try:
        with signals_held():
            assert blocked() >= set(FOR_THE_PARENT)
            # Others of the test runner's threads might take it if it were for the whole process.
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            assert came == []
        assert came == [1]
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert blocked() == before


def test_they_are_let_go_after_an_error():
    before = blocked()
    with pytest.raises(KeyError), signals_held():
        raise KeyError
    assert blocked() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_stopped_processes_are_known():
    with subprocess.Popen(["sleep", "1000"]) as child:
        try:
            assert not is_stopped(child.pid)
            child.send_signal(signal.SIGSTOP)
            os.waitpid(child.pid, os.WUNTRACED)
            assert is_stopped(child.pid)
        finally:
            child.kill()
    assert not is_stopped(child.pid)  # it is gone


def test_a_terminals_and_a_schedulers_signals_are_among_them():
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP} <= set(FOR_THE_PARENT)
    assert signal.SIGKILL not in FOR_THE_PARENT
