"""Link is the connection to Tiercel of one process of the engine: made on a thread of its own, so that a cache that
is away neither delays nor stops a start, and closed at the first sign of trouble.

    connecting --connected--> open --closed by who met trouble--> closed --a probe succeeded--> open

While a link is not open nobody asks the cache for anything that a request waits for: requests are computed. Probes
run on the link's thread, at growing intervals, and cost requests nothing.

Threads: any may read `open` and `client` and call `trouble`; `probe` runs on the link's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import tiercel

log = logging.getLogger("vllm.tiercel")

_FIRST_PROBE_S = 0.25
_LAST_PROBE_S = 5.0
_FIRST_CONNECT_S = 0.5
_LAST_CONNECT_S = 30.0
_MEASURE_S = 1.0  # At least so long between two probes of an open link.

Probe = Callable[[tiercel.Client], bool]


class Link:
    def __init__(self, options: dict[str, Any], probe: Probe, who: str, factory: Callable[..., Any] = tiercel.Client) -> None:
        self._options = options
        self._probe = probe
        self._who = who
        self._factory = factory
        self._changed = threading.Condition()
        self._ending = False
        self._troubled = False
        self._measure = False
        self._measured_at = 0.0
        self._client: Any = None
        self.closings = 0
        self._thread = threading.Thread(target=self._run, name=f"tiercel-{who}", daemon=True)
        self._thread.start()

    @property
    def client(self) -> Any:
        """None until a node has answered; stays when the link closes."""
        return self._client

    @property
    def open(self) -> bool:
        return self._client is not None and not self._troubled

    def trouble(self, what: str) -> None:
        """Closes the link until a probe succeeds."""
        with self._changed:
            if self._troubled or self._ending:
                return
            self._troubled = True
            self.closings += 1
            self._changed.notify_all()
        log.warning("Tiercel (%s): %s; computing without the cache until it answers again", self._who, what)

    def measure(self) -> None:
        """A probe, soon, of an open link: how quick it is may have changed."""
        with self._changed:
            if time.monotonic() - self._measured_at >= _MEASURE_S:
                self._measured_at = time.monotonic()
                self._measure = True
                self._changed.notify_all()

    def wait_open(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.open, timeout_s)

    def close(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(timeout=5)
        if self._client is not None:
            self._client.close()

    def _pause(self, seconds: float) -> bool:
        """False: the link ends."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._ending, seconds)

    def _run(self) -> None:
        if not self._connect():
            return
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._troubled or self._measure or self._ending)
                measure, self._measure = self._measure and not self._troubled, False
            if measure:
                self._try()
            elif not self._recover():
                return

    def _try(self) -> bool:
        try:
            return self._probe(self._client)
        except Exception:
            log.debug("Tiercel (%s): probe", self._who, exc_info=True)
            return False

    def _connect(self) -> bool:
        wait_s, told = _FIRST_CONNECT_S, False
        while not self._ending:
            try:
                client = self._factory(**self._options)
            except Exception as error:  # No node, or a certificate that is not good: either may mend.
                if not told:
                    log.warning("Tiercel (%s): %s; computing without the cache", self._who, error)
                    told = True
            else:
                with self._changed:
                    self._client = client
                    self._changed.notify_all()
                return True
            if not self._pause(wait_s):
                return False
            wait_s = min(2 * wait_s, _LAST_CONNECT_S)
        return False

    def _recover(self) -> bool:
        wait_s = _FIRST_PROBE_S
        while self._pause(wait_s):
            if self._try():
                with self._changed:
                    self._troubled = False
                    self._changed.notify_all()
                log.warning("Tiercel (%s): the cache answers again", self._who)
                return True
            wait_s = min(2 * wait_s, _LAST_PROBE_S)
        return False
