"""Stop strings in a stream of text: nothing that belongs to one is ever handed on, wherever the stream was cut.

Each string is followed by the automaton of Knuth, Morris and Pratt (1977): one state, the length of its longest
beginning that the text ends with. So the time is linear, and the result does not depend on how the text was cut.
"""

from collections.abc import Sequence


class StopWatch:
    """Watches for several stop strings. The first one to be complete ends the text, before its own first character."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._failures = [_failures(stop) for stop in stops]
        self._states = [0] * len(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Take `text`; returns what is certain not to belong to a stop string; nothing more once one was found."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        start = len(self._held)
        self._held += text
        for end in range(start + 1, len(self._held) + 1):
            complete = self._step(self._held[end - 1])
            if complete is not None:
                self.found = complete
                return self._release(end - len(complete), drop=True)
        return self._release(len(self._held) - max(self._states))

    def finish(self) -> str:
        """The text is over: what was held back after all belongs to it."""
        return self._release(len(self._held))

    def _release(self, n: int, *, drop: bool = False) -> str:
        released, self._held = self._held[:n], "" if drop else self._held[n:]
        return released

    def _step(self, character: str) -> str | None:
        """Advance every automaton; the longest stop string that is complete now, if any."""
        complete: str | None = None
        for index, (stop, failures) in enumerate(zip(self._stops, self._failures, strict=True)):
            state = self._states[index]
            while state and stop[state] != character:
                state = failures[state - 1]
            state += stop[state] == character
            self._states[index] = state
            if state == len(stop) and (complete is None or len(stop) > len(complete)):
                complete = stop
        return complete


def _failures(stop: str) -> list[int]:
    """For each beginning of `stop`, the length of its longest proper beginning that is also its end."""
    failures = [0] * len(stop)
    state = 0
    for i in range(1, len(stop)):
        while state and stop[i] != stop[state]:
            state = failures[state - 1]
        state += stop[i] == stop[state]
        failures[i] = state
    return failures
