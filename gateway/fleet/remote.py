"""How is a worker reached that somebody else starts: on another host, or by another supervisor?

The gateway only connects, and connects again whenever the link has broken: after 0.1 s, 0.2 s, … at most 5 s.
"""

import asyncio
import contextlib
import logging
import ssl
from typing import Final

from gateway.fleet.worker import Worker

_CONNECT_WITHIN: Final = 5.0  # seconds; a host that has gone says nothing, and the kernel would try for minutes

log = logging.getLogger(__name__)


class RemoteWorker:
    """Keeps ``worker`` connected to what listens on ``address``.

    Args:
        secret: what the worker and we both know; empty: nothing.
        tls: how its certificate is checked; None: no TLS.
    """

    def __init__(self, worker: Worker, address: str, secret: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        self.worker = worker
        self._address = address
        self._secret = secret
        self._tls = tls
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep it connected until `stop`."""
        pause, said = 0.1, ""
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(_CONNECT_WITHIN):
                    await self.worker.connect(self._address, self._secret, self._tls)
            except FileNotFoundError:
                log.debug("worker=%s does not listen yet", self.worker.name)
            except OSError as error:
                # ssl's errors are OSErrors too, with the certificate's fault in them.
                reason = str(error) or f"nobody answered within {_CONNECT_WITHIN:g} s"
                if reason != said:
                    said = reason
                    log.error("worker=%s can't be reached: %s; trying on", self.worker.name, reason)
            else:
                if self._stopping.is_set():
                    self.worker.close()
                await self.worker.lost.wait()
                if self.worker.was_greeted:
                    pause, said = 0.1, ""
                if not self._stopping.is_set() and self.worker.reason != said:
                    said = self.worker.reason
                    log.error("worker=%s was lost: %s; connecting again", self.worker.name, said)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, 5.0)

    async def stop(self, timeout: float) -> None:
        """Leave it: others may go on using it."""
        self.kill()

    async def restart(self, timeout: float) -> None:
        """Nothing: whoever started it restarts it. It tells when it drains, and nothing is lost."""

    def kill(self) -> None:
        """Give the connection up."""
        self._stopping.set()
        self.worker.close()
