"""Who asks shadows, and compares what they answer, without anybody noticing? The service, one per gateway process.

A copy of a request waits in its target's `Line` from the primary's first byte on, is asked, and waits for the primary's
end. A thread then makes of both answers what `gateway.traffic.shadow.judging` says, for up to a quarter of the time;
what operators see is counted here. Everything is bounded: the copies that wait for a target and that it is answering,
the bytes of all copies together, the time and the size of an answer. What has no room is dropped and counted.

Of several gateway processes each has its own copies, and tells the one that leads what came of them.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gateway.telemetry.lines import about
from gateway.telemetry.metrics import Metrics
from gateway.traffic.answers import ENDPOINTS, Answer, Said
from gateway.traffic.ending import Ending
from gateway.traffic.leader import ToLeader
from gateway.traffic.shadow import standing
from gateway.traffic.shadow.judging import Judged, Pair, judge_all
from gateway.traffic.shadow.line import Line
from gateway.traffic.shadow.privacy import KEPT, Privacy
from gateway.traffic.shadow.reports import CopiesLost, PairJudged, Telling
from gateway.traffic.shadow.request import shadow_body
from gateway.traffic.shadow.review import Review
from gateway.traffic.shadow.sampling import Sampling, ShadowPlan
from gateway.traffic.shadow.saved import Saved
from gateway.traffic.shadow.standing import Key, Loss, Standing
from gateway.wire.shadows import Shadow, ShadowList, ShadowPair

ANSWER_LIMIT: Final = 1 << 20
"""Bytes of a shadow's answer. Whoever asks may stop reading there: a longer one is no answer."""
_HELD: Final = 64 << 20  # bytes of all copies and answers
_BODY: Final = 4 << 20  # of a request that is copied
_TIMEOUT: Final = 120.0
_BATCH: Final = 32  # pairs that are judged at once
_REST: Final = 3.0  # times as long as judging took, nothing is judged
_PAUSE: Final = 0.05  # at least so long
_SAVE: Final = 5.0
_TELL: Final = 0.5
_NOT_THE_TARGET: Final = frozenset({400, 413, 422})  # these say something about a request, others about who answers

log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """What a target has answered."""

    status: int
    body: bytes


Ask = Callable[[str, str, bytes], Awaitable[Asked]]
"""Asks a target, by its name, at an endpoint, with a body that may have another model's name in it."""


class _Copy:
    """A request on its way to a shadow. ``held``: bytes that are counted for it; ``over``: nothing more comes of it."""

    __slots__ = ("answer", "body", "endpoint", "held", "key", "model", "over", "plan", "request_id", "said")

    def __init__(self, model: str, endpoint: str, body: bytes, plan: ShadowPlan, request_id: str, key: str) -> None:
        self.model = model
        self.endpoint = endpoint
        self.body = body
        self.plan = plan
        self.request_id = request_id
        self.key = key
        self.answer: Answer | Said | None = None
        self.said: bytes | None = None
        self.held = len(body)
        self.over = False

    @property
    def key_of_standing(self) -> Key:
        return self.model, self.plan.target, self.endpoint


class Copies:
    """The copies of one request. Whoever has them must call `primary` once, however the request ends."""

    __slots__ = ("_copies", "_shadows")

    def __init__(self, shadows: "Shadows", copies: Sequence[_Copy]) -> None:
        self._shadows = shadows
        self._copies = copies

    @property
    def wanted(self) -> bool:
        """Whether anybody will want to know what the primary answers."""
        return any(not copy.over for copy in self._copies)

    def primary(self, ending: Ending, said: Said | None = None) -> None:
        """The primary's answer is complete, or will never be: without a whole answer there is nothing to compare.

        It is the ending's, or else what was ``said``, which is read where nobody waits for it.
        """
        answer = ending.answer or said if ending.outcome == "ok" else None
        for copy in self._copies:
            if not copy.over:
                self._shadows._primary_ended(copy, answer)
        self._copies = ()


class Shadows:
    """The shadows of all models.

    Args:
        ask: asks a target.
        folder: the data folder, in which ``shadows/`` has the counts and the pairs that differ; None: nothing is
            written down.
        to_leader: the way to the process that is to know what came of all copies, where this isn't the one.
        timeout: seconds that a shadow may take.
        clock: seconds, of a clock that is never set.
    """

    def __init__(
        self,
        ask: Ask,
        folder: Path | None,
        metrics: Metrics,
        *,
        to_leader: ToLeader | None = None,
        timeout: float = _TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._telling = Telling(to_leader.tell) if to_leader is not None else None
        self._saved = Saved(folder / "shadows" if folder is not None and to_leader is None else None)
        self._privacy = Privacy()
        self._metrics = metrics
        self._timeout = timeout
        self._clock = clock
        self._samplings: dict[str, Sampling] = {}
        self._lines: dict[str, Line[_Copy]] = {}
        self._reviews: dict[tuple[str, str], Review] = {}
        self._standings: dict[Key, Standing] = self._saved.load()
        self._running = False
        self._askers: set[asyncio.Task[None]] = set()
        self._held = 0
        self._ready: deque[_Copy] = deque()
        self._told: dict[Path, list[bytes]] = {}  # pairs of other processes that have yet to be written
        self._some = asyncio.Event()
        self._changed = False
        metrics.shadow_waiting.set_function(lambda: sum(len(line.waiting) for line in self._lines.values()))

    # What is configured

    def obey(self, privacy: Privacy) -> None:
        """Keep no more of pairs than that. To be called before `change`."""
        self._privacy = privacy

    def change(self, plans: Mapping[str, Sequence[ShadowPlan]]) -> None:
        """From now on models have these shadows. What is known of those that were there stays known."""
        self._samplings = {model: Sampling(model, shadows) for model, shadows in plans.items() if shadows}
        named = {(model, plan.target) for model, shadows in plans.items() for plan in shadows}
        targets = {target for _, target in named}
        for target in [target for target in self._lines if target not in targets]:
            self._drop(self._lines.pop(target).clear())
        for target in targets:
            self._lines.setdefault(target, Line(self._clock))
        for shadow in [shadow for shadow in self._reviews if shadow not in named]:
            del self._reviews[shadow]
        for shadow in named - self._reviews.keys():
            self._reviews[shadow] = self._saved.review(*shadow, self._privacy)
        for key in [key for key in self._standings if key[:2] not in named]:
            del self._standings[key]
            self._changed = True
        self._metrics.keep_shadows(named)
        for shadow in named:
            self._show_agreement(*shadow)

    # What the ways of requests call

    def wants(self, model: str, request_id: str) -> tuple[ShadowPlan, ...]:
        """The shadows of ``model`` that get a copy of this request."""
        sampling = self._samplings.get(model)
        return sampling.draw(request_id) if sampling is not None else ()

    def copy(
        self,
        model: str,
        endpoint: str,
        body: bytes,
        plans: Sequence[ShadowPlan],
        request_id: str,
        key: str = "",
    ) -> Copies:
        """Copy a request, of which an answer has begun, to these shadows; ``body`` is as the client sent it.

        ``key`` is the id of its API key.
        It never waits, and never raises. Where there is no room, or nobody works (`run`), copies are dropped.
        """
        if endpoint not in ENDPOINTS:
            return Copies(self, ())
        made = []
        for plan in plans:
            line = self._lines.get(plan.target)
            room = line is not None and line.takes and len(body) <= _BODY and self._held + len(body) <= _HELD
            if line is None or not room or not self._running:
                self._lose(model, plan.target, endpoint, "dropped")
                continue
            copy = _Copy(model, endpoint, body, plan, request_id, key)
            self._held += copy.held
            line.waiting.append(copy)
            if line.wants_asker:
                line.under_way += 1
                asker = asyncio.get_running_loop().create_task(self._ask_all(plan.target, line))
                self._askers.add(asker)
                asker.add_done_callback(self._askers.discard)
            made.append(copy)
        return Copies(self, made)

    def _primary_ended(self, copy: _Copy, answer: Answer | Said | None) -> None:
        if answer is None:
            self._end(copy, "unread")
        elif not self._hold(copy, answer.size if isinstance(answer, Said) else len(answer.text)):
            self._end(copy, "dropped")
        else:
            copy.answer = answer
            self._pair(copy)

    # The work

    async def run(self) -> None:
        """Ask and compare until cancelled; what is known then is written down."""
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._judge_all())
                group.create_task(self._save_all())
                group.create_task(self._tell_and_keep())
        finally:
            self._running = False
            for asker in self._askers:
                asker.cancel()
            self._drop([copy for line in self._lines.values() for copy in line.clear()])
            if self._telling is not None:
                self._telling.flush()
            for path, lines in self._told.items():
                self._saved.append(path, lines)
            if self._changed:
                self._saved.save(standing.encode(self._standings))

    async def _ask_all(self, target: str, line: Line[_Copy]) -> None:
        """Ask for one copy after the other, until none waits."""
        try:
            while (copy := line.next()) is not None:
                if copy.over:
                    continue
                try:
                    await self._ask_one(target, line, copy)
                except asyncio.CancelledError:
                    self._end(copy, "dropped")
                    raise
                except Exception:
                    which = (target, copy.request_id)
                    log.exception("shadow=%s request=%s: a fault of ours", *which, extra=about(copy.request_id))
                    self._end(copy, "failed", "fault")
        finally:
            line.under_way -= 1

    async def _ask_one(self, target: str, line: Line[_Copy], copy: _Copy) -> None:
        asked = shadow_body(copy.endpoint, copy.body)
        if asked is None:
            self._end(copy, "unread")
            return
        why = ""
        found = Asked(0, b"")
        try:
            async with asyncio.timeout(self._timeout):
                found = await self._ask(target, copy.endpoint, asked)
        except TimeoutError:
            why = "timeout"
        except Exception as error:
            log.debug("shadow=%s request=%s: %r", target, copy.request_id, error, extra=about(copy.request_id))
            why = "no answer"
        if not why and not 200 <= found.status < 300:
            why = str(found.status)
        if not why and len(found.body) > ANSWER_LIMIT:
            why = "too long"
        if not why:
            line.answered()
            self._answered(copy, asked, found.body)
            return
        if found.status in _NOT_THE_TARGET:
            line.answered()
        else:
            self._drop(line.failed())
        self._end(copy, "failed", why)

    def _answered(self, copy: _Copy, asked: bytes, said: bytes) -> None:
        if copy.over:
            return
        kept = asked if copy.plan.keep == "pairs" else b""
        if not self._hold(copy, len(kept) - len(copy.body) + len(said)):
            self._end(copy, "dropped")
            return
        copy.body, copy.said = kept, said
        self._pair(copy)

    def _pair(self, copy: _Copy) -> None:
        """If both answers are there, they can be compared."""
        if copy.said is not None and copy.answer is not None:
            self._ready.append(copy)
            self._some.set()

    async def _judge_all(self) -> None:
        """Compare the answers that are there, in a thread, and rest."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._ready:
                began = self._clock()
                await self._judge([self._ready.popleft() for _ in range(min(_BATCH, len(self._ready)))])
                await asyncio.sleep(max(_PAUSE, _REST * (self._clock() - began)))

    async def _judge(self, copies: Sequence[_Copy]) -> None:
        try:
            pairs = [self._pair_of(copy) for copy in copies]
            found = await asyncio.to_thread(self._judge_and_seal, pairs)
        except Exception:
            log.exception("shadows: answers could not be compared")
            found = [None] * len(copies)
        written: dict[Path, list[bytes]] = {}
        for copy, judged in zip(copies, found, strict=True):
            if copy.over:
                continue
            if judged is None:
                self._end(copy, "unread")
                continue
            key = copy.key_of_standing
            self._count(copy, judged)
            if self._telling is not None:
                self._telling.judged(key, judged)
            else:
                self._keep(key, judged.line, judged.comparison.agrees, written)
        for path, lines in written.items():
            await asyncio.to_thread(self._saved.append, path, lines)

    def _pair_of(self, copy: _Copy) -> Pair:
        assert copy.answer is not None and copy.said is not None
        mode = self._privacy.mode(copy.model, copy.key)
        asked = copy.body if copy.plan.keep == "pairs" and mode in KEPT else None
        which = (copy.request_id, copy.model, copy.plan.target, copy.endpoint)
        return Pair(*which, time.time(), asked, copy.answer, copy.said, mode)

    def _judge_and_seal(self, pairs: Sequence[Pair]) -> list[Judged | None]:
        found = judge_all(pairs)
        for place, (pair, judged) in enumerate(zip(pairs, found, strict=True)):
            if judged is not None and judged.line and pair.asked is not None:
                found[place] = judged._replace(line=self._privacy.seal(judged.line, pair.at, pair.asked))
        return found

    def _keep(self, key: Key, line: bytes, agrees: bool, written: dict[Path, list[bytes]]) -> None:
        """Keep a pair for review; what is to be written to files goes to ``written``."""
        kept = self._reviews.get(key[:2])
        if kept is not None and line:
            kept.add(line, agrees)
            if kept.path is not None and not agrees:
                written.setdefault(kept.path, []).append(line)

    async def _tell_and_keep(self) -> None:
        """Tell the process that leads what was lost, or write what others have told this one."""
        while True:
            await asyncio.sleep(_TELL)
            if self._telling is not None:
                self._telling.flush()
            told, self._told = self._told, {}
            for path, lines in told.items():
                await asyncio.to_thread(self._saved.append, path, lines)

    def take(self, report: PairJudged | CopiesLost) -> None:
        """What another process has to say of its copies."""
        known = self._standing(*report.key)
        if known is None:
            return
        match report:
            case PairJudged(key, comparison, paths, line, left):
                known.add(comparison, paths)
                self._show_agreement(*key[:2])
                self._keep(key, line, comparison.agrees, self._told)
                self._saved.unwritten += left
            case CopiesLost(_, loss, why, count):
                known.lose(loss, why, count)

    async def _save_all(self) -> None:
        """Write down what is known, every few seconds."""
        while True:
            await asyncio.sleep(_SAVE)
            if self._changed:
                self._changed = False
                if not await asyncio.to_thread(self._saved.save, standing.encode(self._standings)):
                    self._changed = True

    def _count(self, copy: _Copy, judged: Judged) -> None:
        known = self._standing(copy.model, copy.plan.target, copy.endpoint)
        if known is not None:
            known.add(judged.comparison, judged.paths)
            self._metrics.shadowed(copy.model, copy.plan.target, "compared")
            self._show_agreement(copy.model, copy.plan.target)
        self._let_go(copy)

    def _show_agreement(self, model: str, target: str) -> None:
        known = [it for key, it in self._standings.items() if key[:2] == (model, target)]
        if compared := sum(it.compared for it in known):
            self._metrics.shadow_agreement(model, target, sum(it.agreed for it in known) / compared)

    # What becomes of copies

    def _hold(self, copy: _Copy, size: int) -> bool:
        """Count more bytes for a copy, if there is room for them."""
        if self._held + size > _HELD:
            return False
        self._held += size
        copy.held += size
        return True

    def _drop(self, copies: Sequence[_Copy]) -> None:
        for copy in copies:
            self._end(copy, "dropped")

    def _end(self, copy: _Copy, loss: Loss, why: str = "") -> None:
        """No pair comes of a copy."""
        if not copy.over:
            self._lose(copy.model, copy.plan.target, copy.endpoint, loss, why)
            self._let_go(copy)

    def _let_go(self, copy: _Copy) -> None:
        """Nothing more comes of a copy."""
        copy.over = True
        self._held -= copy.held
        copy.held = 0
        copy.body, copy.said, copy.answer = b"", None, None

    def _lose(self, model: str, target: str, endpoint: str, loss: Loss, why: str = "") -> None:
        known = self._standing(model, target, endpoint)
        if known is not None:
            known.lose(loss, why)
            self._metrics.shadowed(model, target, loss)
            if self._telling is not None:
                self._telling.lost((model, target, endpoint), loss, why)

    def _standing(self, model: str, target: str, endpoint: str) -> Standing | None:
        """What is known of a shadow; None where there is no such shadow any more."""
        key = model, target, endpoint
        known = self._standings.get(key)
        if known is None and (model, target) in self._reviews:
            known = self._standings[key] = Standing()
        self._changed = True
        return known

    # What operators see

    def shown(self) -> ShadowList:
        """How all shadows compare, and how their targets are."""
        return ShadowList(
            [self._shadow(model, plan) for model, found in sorted(self._samplings.items()) for plan in found.plans],
            self._saved.unwritten,
        )

    def _shadow(self, model: str, plan: ShadowPlan) -> Shadow:
        line = self._lines[plan.target]
        known = [it.shown(key[2]) for key, it in sorted(self._standings.items()) if key[:2] == (model, plan.target)]
        return Shadow(
            model=model,
            target=plan.target,
            sample=plan.sample,
            keep=plan.keep,
            waiting=len(line.waiting),
            under_way=line.under_way,
            rest=line.rest,
            endpoints=known,
        )

    def pairs(self, model: str, target: str, limit: int, *, differing: bool = True) -> list[ShadowPair] | None:
        """The newest pairs of a shadow, those that differ or all; None where there is no such shadow."""
        kept = self._reviews.get((model, target))
        return kept.newest(limit, differing=differing) if kept is not None else None
