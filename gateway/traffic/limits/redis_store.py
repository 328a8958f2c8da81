"""What do gateways on several hosts use up together? Counting in Redis, and what becomes of limits when it is away.

Every decision is made by one script in Redis (`redis_script`), so that together all gateways admit what a single one
would: while Redis answers, the over-admission is nothing. A process has one call under way at a time, in which all
requests and ends of the meantime go together: the busier it is, the less a decision costs.

When Redis doesn't answer within ``timeout``, or with an error, nobody waits for it any longer, until a call that is
tried once a second succeeds. Meanwhile, as configured,

- *open*: each process counts by itself, up to its part of every limit: the limit divided by the processes that lived
  when Redis was last heard, rounded up. Since each begins with nothing used up, all of them together may admit one
  whole limit once more than they should, and a part more for each process that is started or restarted meanwhile;
- *closed*: requests of keys with limits are refused.

What was used is told to Redis once it is back; of a call whose answer was lost it may be told twice. A gateway that
dies is forgotten after ``ttl``, and what it held is free.
"""

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from gateway.traffic.limits.contract import Decided, Granted, Refused, Reservation, Standing, Unknown, Verdict
from gateway.traffic.limits.counting import LocalStore
from gateway.traffic.limits.limit import Account, Limits, Rate
from gateway.traffic.limits.redis_script import SCRIPT
from gateway.traffic.limits.table import MICRO, Use, refusal, standing, tighter

_PREFIX: Final = "penstock:{limits}:"
"""Of all names in Redis. The braces keep them on one node of a cluster, as a script needs it."""
_HOLDERS: Final = f"{_PREFIX}holders"
_RETRY: Final = 1.0  # seconds between two tries while it is away
_MOST: Final = 256  # asks in a call, so that others get their turn in between

WhenAway = Literal["open", "closed"]

log = logging.getLogger(__name__)


class _Tally:
    """What this process holds of an account, and what was used of it that Redis doesn't know of."""

    __slots__ = ("held", "limits", "running", "used")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = self.running = self.used = 0


class _Ask(msgspec.Struct):
    """A request that waits for its verdict."""

    accounts: tuple[Account, ...]
    tokens: int
    decided: Decided


class _Alone(Reservation):
    """What was reserved without Redis: ``here`` is the reservation in this process's own store."""

    __slots__ = ("here",)

    def __init__(self, store: "RedisStore", accounts: tuple[Account, ...], tokens: int, here: Reservation) -> None:
        super().__init__(store, accounts, tokens)
        self.here = here


class _Reply(msgspec.Struct, array_like=True):
    """What the script returns."""

    now: int
    holders: int
    answers: list[tuple[int, list[tuple[int, int, int, int, int]]]]


_encode: Final = msgspec.msgpack.Encoder().encode
_reply: Final = msgspec.msgpack.Decoder(_Reply)


class RedisStore:
    """What all gateways with the same Redis use up together.

    Args:
        url: ``redis://HOST:PORT/DATABASE``, ``rediss://…`` or ``unix://PATH``.
        timeout: seconds that a call may take.
        ttl: seconds after which a process that wasn't heard of is dead.
    """

    def __init__(
        self,
        url: str,
        when_away: WhenAway = "open",
        *,
        timeout: float = 0.1,
        ttl: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis: Any = Redis.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0), max_connections=1
        )
        self._when_away = when_away
        self._timeout = timeout
        self._ttl = ttl
        self._holder = secrets.token_hex(8)
        self._alone = LocalStore(clock)
        self._holders = 1
        self._sha = ""
        self.away = False
        """Whether limits are counted without Redis."""
        self._tallies: dict[str, _Tally] = {}
        self._changed: dict[str, None] = {}
        self._asks: list[_Ask] = []
        self._left = False
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # What requests call

    def reserve(self, accounts: tuple[Account, ...], tokens: int, decided: Decided) -> Verdict | None:
        """See `contract.Store`; the verdict comes at once only while Redis is away."""
        if self.away:
            return self._reserve_alone(accounts, tokens)
        self._asks.append(_Ask(accounts, tokens, decided))
        self._go()
        return None

    def settle(self, reservation: Reservation, used: int) -> None:
        """See `contract.Settling`."""
        if isinstance(reservation, _Alone):
            reservation.here.settle(used)
        for account in reservation.accounts:
            tally = self._tally(account)
            tally.held -= reservation.tokens
            tally.running -= 1
            tally.used += used
            self._changed[account.name] = None
        self._go()

    async def leave(self) -> None:
        """See `contract.Store`. What is not settled yet is free after ``ttl``."""
        self._left = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        asks, self._asks = self._asks, []
        for ask in asks:
            self._decide(ask, Unknown("The server is shutting down."))
        if self._task is not None and not self.away:
            if self._changed:
                await self._exchange()
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self._timeout):
                    await self._redis.hdel(_HOLDERS, self._holder)
        await self._redis.aclose()

    # Alone

    def _reserve_alone(self, accounts: tuple[Account, ...], tokens: int) -> Verdict:
        if self._when_away == "closed":
            return Unknown("Limits can't be checked now.")
        parts = tuple(Account(name, part(limits, self._holders)) for name, limits in accounts)
        verdict = self._alone.reserve(parts, tokens, _never)
        if isinstance(verdict, Granted):
            self._hold(accounts, tokens)
            self._changed.update((account.name, None) for account in accounts)
            return verdict._replace(reservation=_Alone(self, accounts, tokens, verdict.reservation))
        assert isinstance(verdict, Refused)
        if math.isinf(verdict.retry_after) and all(_fits(limits, tokens) for _, limits in accounts):
            return verdict._replace(retry_after=_RETRY)  # it would fit, if Redis were there
        return verdict

    def _hold(self, accounts: tuple[Account, ...], tokens: int) -> None:
        for account in accounts:
            tally = self._tally(account)
            tally.held += tokens
            tally.running += 1

    def _tally(self, account: Account) -> _Tally:
        tally = self._tallies.get(account.name)
        if tally is None:
            tally = self._tallies[account.name] = _Tally(account.limits)
        tally.limits = account.limits
        return tally

    # With Redis

    def _go(self) -> None:
        self._work.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Tell Redis what there is to tell, and that we live."""
        while not self._left:  # cancelled in a call, the client may take that for a lost connection, and go on
            if self.away:
                await asyncio.sleep(_RETRY)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._ttl / 4):
                        await self._work.wait()
            await self._exchange()
            if not self._asks and not self._changed:
                self._work.clear()

    async def _exchange(self) -> None:
        """One call, and the verdicts that it brings."""
        asks, self._asks = self._asks[:_MOST], self._asks[_MOST:]
        changed, self._changed = self._changed, {}
        for ask in asks:
            for account in ask.accounts:
                self._tally(account)
                changed[account.name] = None
        told = {name: self._tallies[name].used for name in changed}
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._call(asks, list(changed))
            verdicts = [
                self._verdict(ask, bool(granted), [Use(reply.now, *use) for use in uses])
                for ask, (granted, uses) in zip(asks, reply.answers, strict=True)
            ]
        except Exception as error:  # whatever it is: those who wait must hear of it
            self._changed = changed | self._changed
            if self._left:
                self._asks = asks + self._asks
            else:
                self._lose(asks, error)
            return
        except asyncio.CancelledError:
            self._changed = changed | self._changed
            self._asks = asks + self._asks
            raise
        for name, used in told.items():
            self._tallies[name].used -= used
        self._holders = max(1, reply.holders)
        if self.away:
            self.away = False
            log.info("limits are counted in Redis again")
        for ask, verdict in zip(asks, verdicts, strict=True):
            if isinstance(verdict, Granted):
                self._hold(ask.accounts, ask.tokens)
            self._decide(ask, verdict)

    async def _call(self, asks: list[_Ask], names: list[str]) -> _Reply:
        """Run the script.

        Raises:
            Exception: Redis is away, refuses, or is none.
        """
        place = {name: index for index, name in enumerate(names, 1)}
        said = _encode(
            (
                self._holder,
                int(self._ttl * MICRO),
                [_account(self._tallies[name]) for name in names],
                [(ask.tokens, [place[account.name] for account in ask.accounts]) for ask in asks],
            )
        )
        keys = [_HOLDERS, *(f"{_PREFIX}account:{name}" for name in names)]
        if not self._sha:
            self._sha = await self._redis.script_load(SCRIPT)
        try:
            got = await self._redis.evalsha(self._sha, len(keys), *keys, said)
        except NoScriptError:
            got = await self._redis.eval(SCRIPT, len(keys), *keys, said)
        return _reply.decode(got)

    def _verdict(self, ask: _Ask, granted: bool, uses: list[Use]) -> Verdict:
        if not granted:
            use, (_, limits) = uses[-1], ask.accounts[len(uses) - 1]
            refused = refusal(use, limits, ask.tokens)
            if refused is None:
                raise RuntimeError(f"Redis refused what fits: {use}, {limits}, {ask.tokens}")
            return refused._replace(
                requests=standing(use.requests, limits.requests),
                tokens=standing(use.tokens + use.held * MICRO, limits.tokens),
            )
        requests: Standing | None = None
        tokens: Standing | None = None
        for use, (_, limits) in zip(uses, ask.accounts, strict=True):
            requests = tighter(requests, standing(use.requests + MICRO, limits.requests))
            tokens = tighter(tokens, standing(use.tokens + (use.held + ask.tokens) * MICRO, limits.tokens))
        return Granted(Reservation(self, ask.accounts, ask.tokens), requests, tokens)

    def _lose(self, asks: list[_Ask], error: Exception) -> None:
        """Redis is away: decide without it."""
        if not self.away:
            self.away = True
            log.warning(
                "limits are counted without Redis (%s): %s", self._when_away, str(error) or "it does not answer"
            )
        asks, self._asks = [*asks, *self._asks], []
        for ask in asks:
            self._decide(ask, self._reserve_alone(ask.accounts, ask.tokens))

    @staticmethod
    def _decide(ask: _Ask, verdict: Verdict) -> None:
        try:
            ask.decided(verdict)
        except Exception:
            log.exception("a verdict on limits could not be carried out")


def part(limits: Limits, holders: int) -> Limits:
    """The part of one of so many processes, rounded up."""

    def of(amount: int) -> int:
        return -(-amount // holders)

    requests, tokens, concurrent, day = limits.requests, limits.tokens, limits.concurrent, limits.tokens_per_day
    return Limits(
        requests=Rate(of(requests.amount), requests.seconds) if requests is not None else None,
        tokens=Rate(of(tokens.amount), tokens.seconds) if tokens is not None else None,
        concurrent=of(concurrent) if concurrent is not None else None,
        tokens_per_day=of(day) if day is not None else None,
    )


def _fits(limits: Limits, tokens: int) -> bool:
    return (limits.tokens is None or tokens <= limits.tokens.amount) and (
        limits.tokens_per_day is None or tokens <= limits.tokens_per_day
    )


def _account(tally: _Tally) -> tuple[int, ...]:
    limits = tally.limits
    requests, tokens = limits.requests or _NONE, limits.tokens or _NONE
    return (
        requests.amount,
        requests.seconds,
        tokens.amount,
        tokens.seconds,
        limits.concurrent or 0,
        limits.tokens_per_day or 0,
        tally.used,
        tally.held,
        tally.running,
    )


_NONE: Final = Rate(0, 1)


def _never(verdict: Verdict) -> None:
    raise AssertionError(f"a local store decides at once, not later: {verdict}")
