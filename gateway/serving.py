"""Which targets run now, and which name leads to which? They are started, replaced while they run, and let go.

A change is made in three steps. New targets are started beside the old ones; if one of them can't be, the old ones stay
in force. Then the names lead elsewhere, all at once. What has lost its last name goes once its last request has ended.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.link import Progress
from gateway.api.context import Context, ReloadError
from gateway.api.inside import Application, ask
from gateway.config.keys import Counting
from gateway.fleet.crew import Place
from gateway.fleet.running_target import RunningTarget
from gateway.fleet.served_model import ServedModel
from gateway.fleet.worker_process import WorkerStartError
from gateway.lane.lanes import Lanes
from gateway.lane.placer import placing
from gateway.lane.service import Passing
from gateway.plan import Plan, UpstreamPlan, differences, keyring, make_plan, upstream_options
from gateway.record.recorder import Recorder
from gateway.record.upkeep import Upkeep
from gateway.settings import Settings, SettingsError
from gateway.telemetry.telemetry import Telemetry
from gateway.text.template import TemplateError
from gateway.text.tokenizer import TokenizerError
from gateway.traffic.leader import Followers, Report, ToLeader
from gateway.traffic.limits.stores import make_store
from gateway.traffic.rollout.service import Rollouts
from gateway.traffic.routes import Route
from gateway.traffic.shadow.privacy import Privacy
from gateway.traffic.shadow.reports import CopiesLost, PairJudged
from gateway.traffic.shadow.service import ANSWER_LIMIT, Asked, Shadows
from gateway.traffic.watching import Watching

_ELSEWHERE_WITHIN: Final = 10.0  # seconds for a new target that runs elsewhere to answer; then it is taken as it is
_LOOK_EVERY: Final = 0.1
_GRACE: Final = 2.0

StartError = (WorkerStartError, TokenizerError, TemplateError, SettingsError)
"""What keeps a target from being started."""

log = logging.getLogger(__name__)


Target = RunningTarget | Passing


class Serving:
    """The targets of one gateway process.

    Args:
        settings: what the command line says.
        context: where names lead to; it is kept up to date.
        directory: where the workers' sockets go.
        command_of: says what to run as a worker that listens on an address.
        on_progress: told how the first worker loads.
        data: the folder in which limits are counted, and rollouts and shadows remember what they know.
        leads: False for one of several gateway processes that another one decides for.
        leader: where, of several processes, the one that leads hears what the others see; None: there are no others.

    Raises:
        SettingsError: there is a fault in the settings, or in the file that they name.
    """

    def __init__(
        self,
        settings: Settings,
        context: Context,
        directory: Path,
        command_of: Callable[[Settings, str], list[str]],
        on_progress: Callable[[Progress], None] | None = None,
        data: Path | None = None,
        *,
        leads: bool = True,
        leader: Path | None = None,
    ) -> None:
        self._settings = settings
        self._context = context
        self._directory = directory
        self._command_of = command_of
        self._on_progress = on_progress
        self._data = data
        self._leads = leads
        self._app: Application | None = None
        to_leader = ToLeader(leader) if leader is not None and not leads else None
        followed = leader is not None and leads
        self._rollouts = context.rollouts = Rollouts(data, leads=leads, to_leader=to_leader, followed=followed)
        self._together: Followers | ToLeader | None = to_leader
        if leader is not None and leads:
            self._together = Followers(leader, self._take, self._rollouts.lose)
        self._rollouts.on_change = self._weigh
        context.metrics.rollouts.watch(self._rollouts)
        self._shadows = context.shadows = Shadows(self._ask, data, context.metrics, to_leader=to_leader)
        context.watching = Watching(self._rollouts, self._shadows)
        self._counting: Counting | None = None
        self._targets: dict[str, RunningTarget] = {}
        self._passings: dict[str, Passing] = {}
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        self._called: dict[Target, set[str]] = {}  # all names that have led to a target since it is there
        self._retiring: set[asyncio.Task[None]] = set()
        self._numbers: dict[str, int] = {}
        self._folders = 0
        self._changing = asyncio.Lock()
        self._begun = False
        context.loading = True
        self._failed: asyncio.Future[None] | None = None
        self.plan = Plan()
        plan = make_plan(settings)
        self.lanes = Lanes(context) if plan.upstreams or settings.config is not None else None
        """The way to upstreams; None where there can't be any."""
        targets = {name: self._make_target(plan, name) for name in plan.natives}
        passings = {name: self._make_passing(plan, name) for name in plan.upstreams}
        self._count(plan)
        self._record(plan)
        self._switch(plan, targets, passings)

    def _take(self, process: int, report: Report) -> None:
        """What another gateway process has seen."""
        if isinstance(report, PairJudged | CopiesLost):
            self._shadows.take(report)
        else:
            self._rollouts.take(process, report)

    def answer_with(self, app: Application) -> None:
        """Let requests from within, such as shadows, be answered by ``app``."""
        self._app = app

    async def run(self) -> None:
        """Keep all targets until cancelled.

        Raises:
            WorkerStartError: a worker ended before it ever answered.
        """
        self._failed = asyncio.get_running_loop().create_future()
        if self._context.recorder is not None:
            self._context.recorder.start()
        everything: list[Target] = [*self._targets.values(), *self._passings.values()]
        for one in everything:
            self._start(one)
        watching = [asyncio.create_task(self._rollouts.run()), asyncio.create_task(self._shadows.run())]
        if self._together is not None:
            watching.append(asyncio.create_task(self._together.run()))
        if self.lanes is not None:
            watching.append(asyncio.create_task(self.lanes.tick()))
        if (record := self.plan.record) is not None and self._leads:
            watching.append(asyncio.create_task(Upkeep(Path(record.path), record.days, record.size).run()))
        try:
            await self._failed
        finally:
            tasks = [*self._tasks.values(), *self._retiring, *watching]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ready(self) -> None:
        """Wait until requests are answered, whatever they ask for.

        What runs elsewhere and can't be reached keeps nobody waiting for long where there is something else.

        Raises:
            TokenizerError, TemplateError: a model can't be used.
        """
        everything: list[Target] = [*self._targets.values(), *self._passings.values()]
        here = [one for one in everything if _starts_here(one)]
        await asyncio.gather(*(one.ready() for one in here))
        elsewhere = [asyncio.create_task(one.ready()) for one in everything if one not in here]
        if not elsewhere:
            self._begin()
            return
        try:
            if not here:
                await asyncio.wait(elsewhere, return_when=asyncio.FIRST_COMPLETED)
            done, _ = await asyncio.wait(elsewhere, timeout=_ELSEWHERE_WITHIN)
            for task in done:
                task.result()
            self._begin()
        finally:
            for task in elsewhere:
                task.cancel()

    def _begin(self) -> None:
        """The start is over."""
        self._begun = True
        self._context.loading = False

    def described(self, names: Sequence[str]) -> str:
        """What is served, under these ``names``, in a few words."""
        plan, count = self.plan, sum(len(passing.targets) for passing in self._passings.values())
        passed = f"passing through to {count} upstream{'' if count == 1 else 's'}"
        hello = next((target.hello for target in self._targets.values()), None)
        if len(plan.natives) == 1 and not plan.upstreams and hello is not None and len(names) == 1:
            return (
                f"model {names[0]}, {hello.dtype} on {hello.device}, context {hello.max_model_len:,} tokens, "
                f"KV cache {hello.kv_tokens:,} tokens"
            )
        if not plan.natives:
            return f"{passed}: {', '.join(names) or 'any model'}"
        return f"models: {', '.join(names)}{f'; {passed}' if plan.upstreams else ''}"

    def changes(self) -> list[str]:
        """What a reload would change, in words.

        Raises:
            ReloadError: the file is wrong.
        """
        try:
            return differences(self.plan, make_plan(self._settings))
        except SettingsError as error:
            raise ReloadError(str(error)) from error

    async def restart(self, timeout: float) -> None:
        """Start every worker of ours anew, one after the other; nothing that runs is lost."""
        for target in list(self._targets.values()):
            await target.restart(timeout)

    async def stop(self, timeout: float) -> None:
        """Let all go; what workers have may take ``timeout`` seconds."""
        for passing in self._passings.values():
            passing.close()
        await asyncio.gather(*(target.stop(timeout) for target in self._running()))
        if self._context.recorder is not None:
            self._context.recorder.close()

    def kill(self) -> None:
        """Let all go without waiting."""
        for target in self._running():
            target.kill()

    # Change

    async def reload(self) -> list[str]:
        """Read the file again and go over to what it says; returns what has changed, in words.

        Raises:
            ReloadError: it is wrong, or what it asks for can't be started; nothing has changed then.
        """
        if not self._begun:
            raise ReloadError("the server is still starting")
        async with self._changing:
            try:
                plan = make_plan(self._settings)
                changes = differences(self.plan, plan)
                if changes:
                    await self._change(plan)
            except StartError as error:
                log.error("the configuration stays as it was: %s", error)
                raise ReloadError(str(error)) from error
        for line in changes or ["nothing has changed"]:
            log.info("reload: %s", line)
        return changes

    async def _change(self, plan: Plan) -> None:
        """Go over to a plan.

        Raises:
            One of `StartError`: a target of it can't be started.
        """
        targets, passings = dict(self._targets), dict(self._passings)
        fresh: dict[str, Target] = {}
        try:
            for name, settings in plan.natives.items():
                if self.plan.natives.get(name) != settings:
                    fresh[name] = targets[name] = self._make_target(plan, name)
            for name, upstream in plan.upstreams.items():
                before = self.plan.upstreams.get(name)
                if before is None or not _only_sources_differ(before, upstream):
                    # In a thread: there may be a tokenizer to read.
                    fresh[name] = passings[name] = await asyncio.to_thread(self._make_passing, plan, name)
            await self._started(fresh)
            self._count(plan)
            self._record(plan)
        except BaseException:
            await self._give_up(fresh.values())
            raise
        running: dict[str, Target] = {**self._targets, **self._passings}
        self._switch(
            plan,
            {name: targets[name] for name in plan.natives},
            {name: passings[name] for name in plan.upstreams},
        )
        kept = {*self._targets.values(), *self._passings.values()}
        for name, one in running.items():
            if one not in kept:
                task = asyncio.create_task(self._retire(name, one))
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)

    def _count(self, plan: Plan) -> None:
        """Have limits counted where a plan says, if it has any.

        Raises:
            SettingsError: they can't be counted there, or are counted elsewhere already.
        """
        if not any(key.limited for _, key in plan.keys):
            return
        if self._counting is None:
            self._context.limits.store = make_store(plan.counting, self._data)
            self._counting = plan.counting
        elif self._counting != plan.counting:
            raise SettingsError("limits: where they are counted can't be changed by a reload, only by a restart")

    def _record(self, plan: Plan) -> None:
        """Have requests recorded as a plan says.

        Raises:
            SettingsError: that would be somewhere else than now.
        """
        recorder, wanted = self._context.recorder, plan.record
        if not self._begun:
            if wanted is not None or plan.telemetry is not None:
                metrics = self._context.metrics
                telemetry = Telemetry(plan.telemetry, metrics) if plan.telemetry is not None else None
                self._context.recorder = recorder = Recorder(wanted, telemetry, self._context.names)
                metrics.request_log.log = recorder.log
                self._shadows.obey(Privacy(recorder))
            return
        telemetry = recorder.telemetry if recorder is not None else None
        if not (plan.telemetry is None if telemetry is None else telemetry.change(plan.telemetry)):
            raise SettingsError("telemetry: only its sample can be changed by a reload, the rest by a restart")
        if not (wanted is None if recorder is None else recorder.change(wanted)):
            if telemetry is not None:
                telemetry.change(self.plan.telemetry)  # as it was
            raise SettingsError("log: where requests are recorded can't be changed by a reload, only by a restart")

    def _switch(self, plan: Plan, targets: dict[str, RunningTarget], passings: dict[str, Passing]) -> None:
        """From here on, all names lead to what a plan says."""
        self.plan, self._targets, self._passings = plan, targets, passings
        for name, one in targets.items():
            self._called.setdefault(one, set()).update(plan.called(name))
        self._context.keys = keyring(self._settings, plan)
        for name, upstream in plan.upstreams.items():
            passings[name].change(upstream.urls, upstream.file)
        context, names = self._context, plan.names
        if self.lanes is not None:
            passing = {name: passings[target].lane for name, target in (names or {}).items() if target in passings}
            asked = next((one.lane for one in passings.values()), None) if names is None else None
            lanes = {name: one.lane for name, one in passings.items()} if plan.routes else {}
            self.lanes.lead(passing, asked, targets=lanes, choosing=bool(targets) or bool(plan.routes))
        self._lead(plan)
        context.awaited = [name for name, target in (names or {}).items() if target in targets]
        context.awaited_targets = [name for name in targets if name in plan.of_routes]
        context.models.clear()
        context.targets.clear()
        for target in targets.values():
            for model in list(target.models.values())[: 1 if names is not None else None]:
                self._publish(target, model)

    def _lead(self, plan: Plan) -> None:
        """Let names with routes lead to what a plan says."""
        self._context.routes = {
            name: Route(name, route, passes=route.targets <= plan.upstreams.keys())
            for name, route in plan.routes.items()
        }
        self._rollouts.change(plan.rollouts())
        self._shadows.change({name: route.shadows for name, route in plan.routes.items()})
        for name in plan.routes:
            self._weigh(name)

    def _weigh(self, model: str) -> None:
        """Let a rollout's canary get what it is due."""
        if (route := self._context.routes.get(model)) is not None:
            route.weigh(self._rollouts.weight(model))

    async def _ask(self, target: str, endpoint: str, body: bytes) -> Asked:
        """Ask a target from within, for a shadow."""
        if self._app is None:
            raise RuntimeError("there is nothing yet that could answer")
        answer = await ask(self._app, endpoint, body, only=target, limit=ANSWER_LIMIT)
        return Asked(answer.status, answer.body)

    def _publish(self, target: RunningTarget, model: ServedModel) -> None:
        """Let clients have a model, if it is any of theirs yet."""
        key = next((name for name, one in self._targets.items() if one is target), None)
        if key is None:
            return  # it is being started, or has just been given up
        if self._settings.config is not None:
            model.target = key
        if key in self.plan.of_routes:
            self._context.targets[key] = model
        names = self.plan.names_of(key) if self.plan.names is not None else [model.name]
        for name in names:
            self._context.models[name] = model.named(name)

    # Targets come and go

    def _make_target(self, plan: Plan, name: str) -> RunningTarget:
        settings = plan.natives[name]
        if settings.config is None:
            place, folder = Place(), self._directory
        else:
            first = self._numbers.get(name, 0)
            self._numbers[name] = first + settings.replicas
            own = 0 if settings.worker else settings.replicas
            place = Place(plan.gpus_before(name), plan.started_here - own, f"{name}-", first)
            folder = self._directory / f"t{self._folders}"
            self._folders += 1
            if own:
                folder.mkdir(exist_ok=True)
        on_progress, self._on_progress = self._on_progress, None
        return RunningTarget(
            settings,
            folder,
            self._command_of,
            self._context.metrics,
            self._publish,
            on_progress,
            place=place,
            name=name if plan.names is not None else "",
        )

    def _make_passing(self, plan: Plan, name: str) -> Passing:
        upstream = plan.upstreams[name]
        try:
            return self._passing(plan, name, upstream)
        except (TokenizerError, TemplateError) as error:
            raise SettingsError(f"the tokenizer of upstreams: {error}") from None

    def _passing(self, plan: Plan, name: str, upstream: UpstreamPlan) -> Passing:
        return Passing(
            self._context,
            upstream.urls,
            upstream.file,
            upstream_options(self._settings, upstream),
            placing=placing(upstream.placement),
            model=upstream.model,
            named=plan.names is not None,
            group=name if self._settings.config is not None else "",
        )

    def _start(self, one: Target) -> asyncio.Task[None]:
        task = asyncio.create_task(one.run())
        self._tasks[one] = task
        task.add_done_callback(lambda task: self._ended(one, task))
        return task

    def _ended(self, one: Target, task: "asyncio.Task[None]") -> None:
        """A target's task has ended: nothing to wonder at where it was let go."""
        self._tasks.pop(one, None)
        in_force = one in self._targets.values() or one in self._passings.values()
        error = None if task.cancelled() else task.exception()
        if error is not None and in_force and self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def _started(self, fresh: Mapping[str, Target]) -> None:
        """Start targets and wait until they can be used.

        Raises:
            One of `StartError`: one of them never will be.
        """
        waiting: set[asyncio.Task[Any]] = set()
        running = {self._start(one) for one in fresh.values()}
        for name, one in fresh.items():
            waiting.add(asyncio.create_task(one.ready() if _starts_here(one) else _reached(name, one)))
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting | running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                waiting -= done
                if running & done:
                    raise RuntimeError("a target ended for no reason")
        finally:
            for task in waiting:
                task.cancel()

    async def _give_up(self, fresh: Iterable[Target]) -> None:
        """Let go of what was started in vain."""
        for one in fresh:
            if isinstance(one, RunningTarget):
                one.kill()
            await self._let_go(one)

    async def _retire(self, name: str, one: Target) -> None:
        """Let a target go once the last request has ended that came when a name of clients' led to it."""
        called = self._called.pop(one, ())
        if isinstance(one, RunningTarget):
            # Which model a request is for isn't known before all of it is there.
            names, begun = {"", name, *called}, set(self._context.exchanges)
            while begun := {exchange for exchange in begun & self._context.exchanges if exchange.model in names}:
                await asyncio.sleep(_LOOK_EVERY)
        elif self.lanes is not None:
            while self.lanes.busy(one.lane):
                await asyncio.sleep(_LOOK_EVERY)
        await self._let_go(one)
        log.info("target=%s has gone", name)

    async def _let_go(self, one: Target) -> None:
        if isinstance(one, RunningTarget):
            await one.stop(_GRACE)
        task = self._tasks.get(one)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if isinstance(one, Passing):
            one.close()

    def _running(self) -> list[RunningTarget]:
        """All that have workers, those that are about to go as well."""
        return [one for one in dict.fromkeys([*self._tasks, *self._targets.values()]) if isinstance(one, RunningTarget)]


def _starts_here(one: RunningTarget | Passing) -> bool:
    """Whether a target's workers are ours: then they come or say why not."""
    return isinstance(one, RunningTarget) and not one.settings.worker


async def _reached(name: str, one: RunningTarget | Passing) -> None:
    """Wait for a target to answer, but not for long: it may be away just now, and the file be right all the same."""
    try:
        await asyncio.wait_for(one.ready(), _ELSEWHERE_WITHIN)
    except TimeoutError:
        log.warning("target=%s can't be reached yet", name)


def _only_sources_differ(old: UpstreamPlan, new: UpstreamPlan) -> bool:
    """Whether going from one to the other takes no more than other addresses."""
    return msgspec.structs.replace(old, urls=new.urls, file=new.file) == new
