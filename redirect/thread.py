"""The one thread that does rule work.

python-iptables' `Table` objects are process-wide and bound to the namespace last entered, so work on two workloads must
not overlap; and a thread that stays the same keeps the libraries' thread-local state in one place. Hence a single
executor for the process: a second one would break the promise, however many objects asked for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import trio

T = TypeVar("T")

_GRACE_SECONDS = 30.0
_executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="redirect")  # starts its thread upon first use


async def run(function: Callable[..., T], *args: object) -> T:
    """Call `function(*args)` on the thread, after whatever was asked for earlier; its result, or what it raised.

    If cancelled while waiting its turn, it is never called; once it has begun it is waited for (for at most
    30 s), so that no caller goes on while its rules are half-written.
    """
    token = trio.lowlevel.current_trio_token()
    done = trio.Event()
    future = _executor.submit(function, *args)

    def wake(_future: Future[T]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    future.add_done_callback(wake)
    try:
        await done.wait()
    except trio.Cancelled:
        if not future.cancel():
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _GRACE_SECONDS):
                await done.wait()
        raise
    return future.result()
