"""Ctrl-C and SIGTERM: the first asks the loop to finish its step, save and stop; the second stops at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
SIGNALS = {code: number.name for number, code in EXIT_CODES.items()}


class Interrupts:
    """While entered, `requested` tells whether a signal came, `exit_code` which one."""

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self._signal] if self._signal is not None else 0

    def __enter__(self) -> Interrupts:
        for number in EXIT_CODES:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)
        # Written straight to the terminal: a signal handler must not touch the progress bar's lock.
        print(f"\n{self._signal.name}: finishing this step and saving; again to stop at once", flush=True)
