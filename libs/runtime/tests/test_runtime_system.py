"""What a thread has used is its own, and rises with what it does."""

from __future__ import annotations

import threading

from shoal_runtime.system import thread_use


def test_a_thread_is_told_what_it_used_itself() -> None:
    cpu_s, faults = thread_use()
    other = threading.Thread(target=lambda: sum(range(200_000)))
    other.start()
    other.join()
    sum(range(2_000_000))
    cpu_then_s, faults_then = thread_use()
    assert cpu_then_s > cpu_s
    assert faults_then >= faults
