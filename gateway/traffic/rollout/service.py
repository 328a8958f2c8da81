"""How far is each model's rollout, and what has it seen? Rollouts of one gateway, kept across its restarts.

Requests are reported as they come and as they end, which costs microseconds. All rollouts are looked at every
`LOOK_EVERY` seconds. What they know is written to the data folder, a file a model, at once when a weight changes and
every few seconds else; of a restart remain unknown only those requests that had not been compared.

Of several gateway processes one leads. The others read its files, and follow; what they see they tell it, so that all
requests are evidence (`gateway.traffic.rollout.reports`).
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from gateway.batches.folder import outlast
from gateway.traffic.ending import Ending
from gateway.traffic.leader import EVERY, ToLeader
from gateway.traffic.rollout.outcome import READ_ANSWERS, outcome_of
from gateway.traffic.rollout.reports import Began, Came, Ended, Reporting, short
from gateway.traffic.rollout.rollout import Rollout, RolloutPlan
from gateway.traffic.rollout.saved import Saved, SavedRollouts, encode
from gateway.wire.rollouts import ChangeShown, GuardShown, RolloutShown

LOOK_EVERY: Final = 0.25
_SAVE_EVERY: Final = 2.0
_HISTORY: Final = 50
_TOLD_WITHIN: Final = 5  # times `EVERY`, another process has told of a request, unless it is very busy
_FAULT: Final = "rolled back: what was seen of it can't be weighed, by a fault that is in the log"

log = logging.getLogger(__name__)


class NotPossible(Exception):
    """What an operator asked for makes no sense in the state that a rollout is in; the message says why."""


class _Entry:
    """A rollout, and what has happened to it.

    ``unsaved``: the file doesn't have all of it. ``read``: which file it was read from (`SavedRollouts.written`).
    """

    def __init__(self, model: str, plan: RolloutPlan, rollout: Rollout, history: list[ChangeShown]) -> None:
        self.model = model
        self.plan = plan
        self.rollout = rollout
        self.history = deque(history, maxlen=_HISTORY)
        self.unsaved = True
        self.read: tuple[int, ...] | None = None
        self._named = blake2b(msgspec.msgpack.encode(plan), digest_size=8).hexdigest()

    @property
    def drawn(self) -> str:
        """For which rollout, and with which weight, arms are drawn now."""
        return f"{self._named} {self.rollout.weight:g}"

    def save(self) -> Saved:
        """What the file is to hold."""
        return Saved(self.model, self.plan, self.rollout.save(), list(self.history))

    def note(self, at: float, what: str, why: str) -> None:
        """Remember a change."""
        self.history.append(ChangeShown(at, what, why))
        self.unsaved = True


class Rollouts:
    """The rollouts of a gateway process, by the names of their models.

    Args:
        folder: the data folder, in which ``rollouts`` is made; None: a restart begins all rollouts anew.
        clock: seconds since the epoch.
        leads: False for one of several processes that goes by what another one finds out.
        to_leader: the way to that one, for one that doesn't.
        followed: there are others that this one leads.

    Attributes:
        on_change: called with a model's name when its weight or status has changed, but not by `change`.
        failures: how often something could not be written.
    """

    def __init__(
        self,
        folder: Path | None,
        clock: Callable[[], float] = time.time,
        *,
        leads: bool = True,
        to_leader: ToLeader | None = None,
        followed: bool = False,
    ) -> None:
        self._leads = leads
        self._reporting: Reporting | None = None
        if to_leader is not None:
            self._reporting = Reporting(to_leader.tell)
            to_leader.on_loss.append(self._reporting.lose)
        self._followed = followed
        self.on_change: Callable[[str], None] = lambda model: None
        self.failures = 0
        self._saved = SavedRollouts(folder / "rollouts") if folder is not None else None
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._urgent = asyncio.Event()
        self._changed_models = False
        self._failing = False

    def change(self, plans: Mapping[str, RolloutPlan]) -> None:
        """Have the rollouts that ``plans`` say, by model: those that are as they were go on, all others begin anew.

        What is no longer wanted is forgotten. At the start, what an earlier process has left goes on as well.
        """
        before = self._entries
        self._entries = {model: self._entry(model, plan, before.get(model)) for model, plan in plans.items()}
        self._changed_models = True
        self._urgent.set()

    # What requests report

    def weight(self, model: str) -> float | None:
        """The share of a model's traffic that is its canary's now, in percent; None where it has no rollout."""
        entry = self._entries.get(model)
        return entry.rollout.weight if entry is not None else None

    def reads_answers(self, model: str) -> bool:
        """Whether `ended` should be told what was answered: a guard depends on it."""
        entry = self._entries.get(model)
        return entry is not None and not READ_ANSWERS.isdisjoint(entry.plan.config.guard)

    def came(self, model: str, uid: int, canary: bool, unit: str) -> None:
        """A request was given its arm by chance.

        Not to be told of: requests that ask for a variant, or came to the one as a fallback of the other.

        Args:
            uid: no other request of the process has it.
            unit: what the arm sticks to; "" where that is the request itself.
        """
        entry = self._entries.get(model)
        if entry is None:
            return
        if self._leads:
            entry.rollout.came(uid, canary, short(unit), self._clock())
        elif self._reporting is not None and entry.rollout.status == "running":
            self._reporting.came(uid, model, entry.drawn, canary, short(unit))

    def began(self, model: str, uid: int, ttft: float) -> None:
        """A stream's first token was there after ``ttft`` seconds. Need not be told, but of answers that take minutes.

        Without it, a request that has not ended after two minutes counts as one without a first token.
        """
        if self._reporting is not None:
            self._reporting.began(uid, model, ttft)
        elif (entry := self._entries.get(model)) is not None:
            entry.rollout.began(uid, ttft)

    def ended(self, model: str, uid: int, ending: Ending, request: str = "") -> None:
        """A request is over. ``request``: its id, by which `feedback` may come; "" where none will."""
        if self._reporting is not None:
            self._reporting.ended(uid, model, outcome_of(ending), request if self._takes_feedback(model) else "")
            return
        entry = self._entries.get(model)
        if entry is not None and self._leads and entry.rollout.status == "running":
            entry.rollout.ended(uid, outcome_of(ending), request)

    def _takes_feedback(self, model: str) -> bool:
        entry = self._entries.get(model)
        return entry is not None and entry.rollout.takes_feedback

    def feedback(self, request: str, score: float) -> bool:
        """What a user says of a request, the higher the better; False where it counts for no rollout (any more)."""
        return any(entry.rollout.rate(request, score) for entry in self._entries.values())

    async def rate(self, request: str, score: float) -> bool:
        """`feedback`, which may be quicker than another process that has yet to tell of the request."""
        if self.feedback(request, score):
            return True
        if not self._followed or not any(map(self._takes_feedback, self._entries)):
            return False
        for _ in range(_TOLD_WITHIN):
            await asyncio.sleep(EVERY)
            if self.feedback(request, score):
                return True
        return False

    # What other processes report

    @property
    def untold(self) -> int:
        """Requests that count for no rollout, because the process that leads could not be told of them."""
        return self._reporting.untold if self._reporting is not None else 0

    def take(self, process: int, report: Came | Began | Ended) -> None:
        """What another process, which is called ``process``, has seen."""
        entry = self._entries.get(report.model)
        if entry is None:
            return
        uid = process, report.uid
        match report:
            case Came():
                if report.drawn == entry.drawn:
                    entry.rollout.came(uid, report.canary, report.unit, self._clock())
            case Began():
                entry.rollout.began(uid, report.ttft)
            case Ended():
                entry.rollout.ended(uid, report.outcome, report.name)

    def lose(self, process: int) -> None:
        """Nothing more will come from another process; another number is given to what comes later."""
        for entry in self._entries.values():
            entry.rollout.lose(process)

    # What time does

    async def run(self) -> None:
        """Look and save until cancelled."""
        saving = asyncio.create_task(self._keep_saved())
        try:
            while True:
                self.look()
                await asyncio.sleep(LOOK_EVERY)
        finally:
            saving.cancel()
            await asyncio.wait({saving})
            await self.save()
            if self._saved is not None:
                self._saved.close()

    def look(self) -> None:
        """Weigh what has become known, and let weights follow."""
        for entry in list(self._entries.values()):
            if self._leads:
                self._look(entry)
            else:
                self._follow(entry)

    async def save(self) -> None:
        """Write what the folder doesn't have yet. Where that can't be done it is tried again the next time."""
        if (saved := self._saved) is None or not self._leads:
            return
        unsaved = [entry for entry in self._entries.values() if entry.unsaved]
        if not unsaved and not self._changed_models:
            return
        files = {entry.model: encode(entry.save()) for entry in unsaved}
        models = list(self._entries)
        self._mark(unsaved, False)
        try:
            await _in_thread(lambda: saved.write(files, models))
        except asyncio.CancelledError:
            self._mark(unsaved, True)
            raise
        except OSError as error:
            self._mark(unsaved, True)
            self.failures += 1
            if not self._failing:
                log.warning("rollouts can't be saved: %s; a restart would undo what they do from now on", error)
            self._failing = True
        else:
            if self._failing:
                log.info("rollouts are saved again")
            self._failing = False

    def _mark(self, entries: Iterable[_Entry], unsaved: bool) -> None:
        self._changed_models = unsaved
        for entry in entries:
            entry.unsaved = unsaved

    def _look(self, entry: _Entry) -> None:
        rollout = entry.rollout
        compared = rollout.compared
        try:
            moved = rollout.look(self._clock())
        except Exception:
            log.exception("rollout model=%s", entry.model)
            rollout.roll_back(_FAULT, self._clock())
            moved = True
        if moved:
            what = "rolled back" if rollout.status == "rolled_back" else f"to {rollout.weight:g} %"
            self._changed(entry, what, rollout.reason)
        elif rollout.compared != compared:
            entry.unsaved = True

    def _follow(self, entry: _Entry) -> None:
        """Go over to what the process that leads has saved, if it is about the same canary."""
        if self._saved is None or (written := self._saved.written(entry.model)) in (None, entry.read):
            return
        found = self._read(entry.model)
        if found is None or found.plan != entry.plan:
            return  # it has yet to read the configuration
        before = entry.rollout.weight
        entry.rollout, entry.history, entry.read = found.rollout, found.history, written
        if entry.rollout.weight != before:
            self.on_change(entry.model)

    async def _keep_saved(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SAVE_EVERY):
                    await self._urgent.wait()
            self._urgent.clear()
            await self.save()

    # What operators do

    def promote(self, model: str, why: str = "") -> None:
        """Give the canary everything.

        Raises:
            KeyError: there is no such rollout.
            NotPossible: it has been promoted already.
        """
        entry = self._entries[model]
        if entry.rollout.status == "promoted":
            raise NotPossible("it has been promoted already")
        entry.rollout.promote(_by_operator("promoted", why), self._clock())
        self._changed(entry, "to 100 %", entry.rollout.reason)

    def roll_back(self, model: str, why: str = "") -> None:
        """Take everything from the canary.

        Raises:
            KeyError: there is no such rollout.
            NotPossible: it has been rolled back already.
        """
        entry = self._entries[model]
        if entry.rollout.status == "rolled_back":
            raise NotPossible("it has been rolled back already")
        entry.rollout.roll_back(_by_operator("rolled back", why), self._clock())
        self._changed(entry, "rolled back", entry.rollout.reason)

    def restart(self, model: str, why: str = "") -> None:
        """Begin again at the first step, with no evidence.

        Raises:
            KeyError: there is no such rollout.
        """
        entry = self._entries[model]
        entry.rollout = Rollout(entry.plan.config, self._clock())
        self._changed(entry, f"begun at {entry.rollout.weight:g} %", _by_operator("begun again", why))

    def hold(self, model: str, why: str = "") -> None:
        """Keep a rollout at its weight; guards may still roll it back.

        Raises:
            KeyError: there is no such rollout.
            NotPossible: it isn't running, or is held already.
        """
        self._hold(model, True, "held", why)

    def go_on(self, model: str, why: str = "") -> None:
        """Have a rollout that is held go on.

        Raises:
            KeyError: there is no such rollout.
            NotPossible: it isn't held.
        """
        self._hold(model, False, "going on", why)

    def shown(self) -> list[RolloutShown]:
        """How all rollouts stand."""
        return [_show(entry, self._clock()) for entry in self._entries.values()]

    def _hold(self, model: str, held: bool, what: str, why: str) -> None:
        entry = self._entries[model]
        rollout = entry.rollout
        if rollout.status != "running":
            raise NotPossible(f"it is {rollout.status.replace('_', ' ')}")
        if rollout.held == held:
            raise NotPossible("it is held already" if held else "it isn't held")
        rollout.hold(held)
        self._changed(entry, what, _by_operator(what, why))

    def _changed(self, entry: _Entry, what: str, why: str) -> None:
        entry.note(self._clock(), what, why)
        level = logging.WARNING if entry.rollout.status == "rolled_back" else logging.INFO
        log.log(level, "rollout model=%s canary=%s %s: %s", entry.model, entry.plan.canary, what, why)
        self._urgent.set()
        self.on_change(entry.model)

    def _entry(self, model: str, plan: RolloutPlan, before: _Entry | None) -> _Entry:
        if before is None:
            before = self._load(model)
        if before is not None and before.plan == plan:
            return before
        now = self._clock()
        entry = _Entry(model, plan, Rollout(plan.config, now), list(before.history) if before is not None else [])
        why = "the rollout is new" if before is None else "the canary, or what is asked of it, is another one"
        entry.note(now, f"begun at {entry.rollout.weight:g} %", why)
        return entry

    def _load(self, model: str) -> _Entry | None:
        """What an earlier process has left of a rollout. What can't be read is put aside."""
        entry = self._read(model)
        if entry is not None and self._leads:
            log.info("rollout model=%s goes on at %g %%", model, entry.rollout.weight)
        return entry

    def _read(self, model: str) -> _Entry | None:
        if self._saved is None:
            return None
        try:
            saved = self._saved.load(model)
            if saved is None:
                return None
            rollout = Rollout(saved.plan.config, self._clock(), saved.state)
            entry = _Entry(model, saved.plan, rollout, saved.history)
            _show(entry, self._clock())
        except (OSError, LookupError, ValueError) as error:
            if self._leads:
                log.warning("rollout model=%s begins anew, for what was saved of it is of no use: %s", model, error)
                self._saved.put_aside(model)
            return None
        return entry


def _show(entry: _Entry, now: float) -> RolloutShown:
    rollout, plan = entry.rollout, entry.plan
    controls, canaries = rollout.compared
    steps = len(plan.config.steps)
    return RolloutShown(
        model=entry.model,
        stable=plan.stable,
        canary=plan.canary,
        status="held" if rollout.held else rollout.status,
        weight=rollout.weight,
        step=min(rollout.step + 1, steps),
        steps=steps,
        since=rollout.since,
        reason=rollout.reason or entry.history[-1].why,
        controls=controls,
        canaries=canaries,
        guards=[
            GuardShown(
                name=guard.name,
                says=guard.describe(),
                worse=guard.worse,
                worse_limit=rollout.worse_limit,
                harmless=guard.harmless,
                harmless_limit=rollout.harmless_limit,
                hope=guard.hope,
            )
            for guard in rollout.guards
        ],
        missing=rollout.missing(now),
        history=list(reversed(entry.history)),
    )


def _by_operator(what: str, why: str) -> str:
    return f"{what} by an operator: {why}" if why else f"{what} by an operator"


async def _in_thread(function: Callable[[], None]) -> None:
    """Call ``function`` in a thread. Cancelled, this waits until it has returned."""
    future = asyncio.get_running_loop().run_in_executor(None, function)
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        await outlast(future)
        raise
