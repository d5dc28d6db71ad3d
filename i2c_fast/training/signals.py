"""Stopping on request: the step in progress ends, a checkpoint is written, the process exits."""

import signal
from types import FrameType
from typing import Any, Self

# EX_TEMPFAIL of sysexits.h: not done, not broken; run again with --resume.
STOPPED_STATUS = 75


class StopRequest:
    """While open, SIGTERM, SIGUSR1 and SIGINT only set `requested`; a second SIGINT interrupts at once.

    Schedulers send SIGTERM, or SIGUSR1 some time ahead of it, before they take a machine away.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.requested: str | None = None  # of this process
        self.agreed: str | None = None  # of all ranks
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._request) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
