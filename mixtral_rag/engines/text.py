"""From the bytes of tokens to text that is safe to show: whole characters, stop texts withheld."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Joins token bytes into text and watches for stop texts.

    A character may span tokens, and a stop text may span pieces; what could still become either is
    held back until it is decided.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = [s for s in stop if s]
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self.stopped = False

    def push(self, data: bytes) -> str:
        """Take the bytes of one token and return the text that has become certain."""
        return self._release(self._decoder.decode(data))

    def finish(self) -> str:
        """Return what was held back; nothing after a stop text."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        self._held += text
        found = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:  # the first to be complete ends the text, however it came in pieces
            self.stopped = True
            return self._held[: min(found)[1]]
        keep = self._undecided()
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def _undecided(self) -> int:
        """Length of the longest end of the held text that could begin a stop text."""
        for size in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-size:]) for s in self._stop):
                return size
        return 0
