"""What a thread has used is its own."""

from __future__ import annotations

import threading

from shoal_runtime.system import thread_use


def test_a_thread_is_told_what_it_used_itself() -> None:
    used_s: list[float] = []

    def work() -> None:
        before_s, _ = thread_use()
        sum(range(5_000_000))
        used_s.append(thread_use()[0] - before_s)

    other = threading.Thread(target=work)
    before_s, _ = thread_use()
    other.start()
    other.join()
    waited_s = thread_use()[0] - before_s
    assert 0 <= waited_s < used_s[0]
