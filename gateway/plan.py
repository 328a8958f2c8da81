"""What is to be served? Targets, and the names that lead to them: one description, whoever made it.

The command line makes one with a single target, a configuration file one with any number.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from gateway.config.document import Document, Fault
from gateway.config.keys import Counting
from gateway.config.reading import ConfigError, read_config
from gateway.config.structs import Config, NativeTarget, OpenAITarget, VllmTarget
from gateway.fleet.crew import gpus_of
from gateway.fleet.upstream.options import UpstreamOptions
from gateway.keys import client_keys, secret
from gateway.record.recorder import RecordPlan
from gateway.settings import Settings, SettingsError, flag
from gateway.telemetry.plan import TelemetryPlan, telemetry_plan
from gateway.traffic.keys import Key, KeyHash, Keyring, plain_keys
from gateway.traffic.rollout.rollout import RolloutPlan
from gateway.traffic.routes import RoutePlan

# What a file says of each target, and the command line of its only one.
_OF_TARGETS: Final = (
    *("model", "adapter", "served_model_name", "engine", "vllm_python", "vllm_args", "device", "dtype", "quantization"),
    *("max_model_len", "max_running", "kv_memory", "kv_dtype", "gpu_memory", "block_size", "threads", "ttft", "tpot"),
    *("replicas", "worker", "worker_secret_env", "worker_tls_ca", "placement", "max_wait", "tool_parser"),
    *("reasoning_parser", "kv_events", "kv_replay", "upstream", "upstream_file", "upstream_api_key_env"),
    "upstream_tokenizer",
)
_OF_FILES: Final = ("record", "record_content")  # what a file says in a section of its own
_RENAMED: Final = {
    "worker": "workers", "worker_secret_env": "secret_env", "worker_tls_ca": "tls_ca", "upstream": "urls",
    "upstream_file": "file", "upstream_api_key_env": "api_key_env",
    "upstream_tokenizer": "tokenizer",
}  # fmt: skip

_ANSWERS: Final = ("engine", "model", "adapter", "dtype", "quantization", "kv_dtype", "vllm_args", "urls", "worker")
"""What makes a target's answers what they are."""
_ADAPTER: Final = "adapter"  # what a target's only one is called, between gateway and workers


class UpstreamPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A group of OpenAI-compatible servers. ``model`` is what they call it; None: what the client does."""

    urls: tuple[str, ...] = ()
    file: str | None = None
    model: str | None = None
    key_env: str | None = None
    tokenizer: str | None = None
    placement: str = "held"


class Plan(msgspec.Struct, frozen=True):
    """What a gateway serves.

    ``natives`` are the targets with workers that speak our link, as the command line would describe each; ``upstreams``
    are those that requests pass through to. ``names`` has the target of each name that clients may say, ``routes`` what
    those lead to that don't simply stand for one; without them, targets themselves say what they serve. ``keys`` are
    those that clients may have beside the ones in the environment; their limits are counted as ``counting`` says.
    ``record`` says how requests are recorded, if they are, ``telemetry`` where traces and metrics go, if they do.
    """

    natives: Mapping[str, Settings] = {}
    upstreams: Mapping[str, UpstreamPlan] = {}
    names: Mapping[str, str] | None = None
    routes: Mapping[str, RoutePlan] = {}
    keys: tuple[tuple[KeyHash, Key], ...] = ()
    counting: Counting = Counting()
    record: RecordPlan | None = None
    telemetry: TelemetryPlan | None = None

    def names_of(self, target: str) -> list[str]:
        """The names that simply stand for a target."""
        return [name for name, one in (self.names or {}).items() if one == target]

    def called(self, target: str) -> list[str]:
        """All names that may lead to a target."""
        return [*self.names_of(target), *(name for name, one in self.routes.items() if target in one.targets)]

    @property
    def of_routes(self) -> frozenset[str]:
        """The targets that routes lead to."""
        return frozenset().union(*(one.all_targets for one in self.routes.values()))

    def rollouts(self) -> dict[str, RolloutPlan]:
        """The rollouts that are wanted, by model."""
        return {
            name: RolloutPlan(route.rollout, route.variants[0].name, route.variants[1].name, what=self._compared(route))
            for name, route in self.routes.items()
            if route.rollout is not None
        }

    def _compared(self, route: RoutePlan) -> str:
        """What a rollout compares: as long as this stays the same, what it has seen holds."""
        return msgspec.json.encode([(one.edit, self._answers(one.target)) for one in route.variants]).decode()

    def _answers(self, target: str) -> dict[str, Any]:
        """What answers as a target, however many there are of it."""
        one = self.natives.get(target) or self.upstreams[target]
        return {name: getattr(one, name) for name in _ANSWERS if hasattr(one, name)}

    @property
    def started_here(self) -> int:
        """Workers that are processes of ours."""
        return sum(settings.replicas for settings in self.natives.values() if not settings.worker)

    def gpus_before(self, target: str) -> int:
        """GPUs that the workers of targets before ``target`` use, if they use any."""
        before = [self.natives[name] for name in list(self.natives)[: list(self.natives).index(target)]]
        return sum(settings.replicas * gpus_of(settings) for settings in before if not settings.worker)


def make_plan(settings: Settings) -> Plan:
    """The plan of a command line, or of the file that it names.

    Raises:
        SettingsError: there is a fault in one of them, or an environment variable that should have a key has none.
    """
    client_keys(settings)
    if settings.config is not None:
        return _of_file(settings, settings.config)
    if settings.merged_adapter is not None:
        raise SettingsError(
            "--adapter needs --engine vllm. Penstock's own engine serves a model with an adapter as another model: "
            "give each a target in a file (--config), the one with adapter: FOLDER"
        )
    telemetry = telemetry_plan(settings, None, os.environ)
    record = None
    if settings.record is not None:
        record = RecordPlan(path=settings.record, content=settings.record_content)
    if not (settings.upstream or settings.upstream_file):
        return Plan({"w": settings}, record=record, telemetry=telemetry)
    if settings.model is not None or settings.worker:
        raise SettingsError("a model or workers can't be served beside --upstream: give one of the two, or --config")
    upstream = UpstreamPlan(
        urls=settings.upstream,
        file=settings.upstream_file,
        key_env=settings.upstream_api_key_env,
        tokenizer=settings.upstream_tokenizer,
        placement=settings.placement,
    )
    upstream_options(settings, upstream)
    name = settings.served_model_name
    names = {name: "upstream"} if name is not None else None
    return Plan(upstreams={"upstream": upstream}, names=names, record=record, telemetry=telemetry)


def keyring(settings: Settings, plan: Plan) -> Keyring:
    """All keys that clients may have.

    Raises:
        SettingsError: there is none in an environment variable where one should be.
    """
    return Keyring([*plan.keys, *plain_keys(client_keys(settings))])


def upstream_options(settings: Settings, plan: UpstreamPlan) -> UpstreamOptions:
    """How a group of upstreams is spoken to.

    Raises:
        SettingsError: there is no key where one should be.
    """
    return UpstreamOptions(
        connect=settings.upstream_connect_timeout,
        first_byte=settings.upstream_first_byte_timeout,
        idle=settings.upstream_idle_timeout,
        hedge=settings.hedge or 0.0,
        key=secret("--upstream-api-key-env", plan.key_env) if plan.key_env is not None else None,
        tokenizer=plan.tokenizer,
        continuing=settings.upstream_continue,
        max_wait=settings.max_wait,
    )


def differences(old: Plan, new: Plan) -> list[str]:
    """What changes from one plan to the next, in words."""
    return [
        *_changes("target", {**old.natives, **old.upstreams}, {**new.natives, **new.upstreams}),
        *_changes("model", {**(old.names or {}), **old.routes}, {**(new.names or {}), **new.routes}),
        *_changes(
            "key", {key.id: (hash, key) for hash, key in old.keys}, {key.id: (hash, key) for hash, key in new.keys}
        ),
        *(["limits changed"] if old.counting != new.counting else []),
        *(["log changed"] if old.record != new.record else []),
        *(["telemetry changed"] if old.telemetry != new.telemetry else []),
    ]


def _changes(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        if name not in new:
            yield f"{kind} {name} removed"
        elif name not in old:
            yield f"{kind} {name} added"
        elif old[name] != new[name]:
            leads = isinstance(new[name], str)
            said = f": leads to {new[name]} now" if leads else f" changed: {_fields(old[name], new[name])}"
            yield f"{kind} {name}{said}"


def _fields(old: Any, new: Any) -> str:
    """The fields that differ, if both are of one kind."""
    if isinstance(old, tuple):
        (old_hash, old), (new_hash, new) = old, new
        return ", ".join((["hash"] if old_hash != new_hash else []) + ([_fields(old, new)] if old != new else []))
    if isinstance(old, str):
        return "it has a route now"
    if type(old) is not type(new):
        return "engine"
    return ", ".join(
        _RENAMED.get(name, name) for name in old.__struct_fields__ if getattr(old, name) != getattr(new, name)
    )


def _of_file(settings: Settings, file: str) -> Plan:
    defaults = Settings()
    for name in (*_OF_TARGETS, *_OF_FILES):
        if getattr(settings, name) != getattr(defaults, name):
            said = "MODEL" if name == "model" else flag(name)
            where = "under log" if name in _OF_FILES else "of each target"
            raise SettingsError(f"{said} can't be given beside --config: the file says it {where}")
    config, document = read_config(file)
    faults = list(_missing_secrets(config, document))
    natives: dict[str, Settings] = {}
    upstreams: dict[str, UpstreamPlan] = {}
    for name, target in config.targets.items():
        if isinstance(target, OpenAITarget):
            upstreams[name] = UpstreamPlan(
                urls=target.sources,
                file=target.file,
                model=target.model,
                key_env=target.api_key_env,
                tokenizer=target.tokenizer,
                placement=target.placement,
            )
            continue
        try:
            natives[name] = _native(settings, name, target)
        except SettingsError as error:
            faults.append(document.fault(("targets", name), str(error)))
    if faults:
        raise ConfigError(file, faults)
    return Plan(
        natives,
        upstreams,
        {name: model.plain for name, model in config.models.items() if model.plain is not None},
        {name: model.route for name, model in config.models.items() if model.plain is None},
        tuple(key.entry for key in config.keys),
        config.limits,
        _recorded(config),
        telemetry_plan(settings, config.telemetry, os.environ),
    )


def _recorded(config: Config) -> RecordPlan | None:
    if config.log is None:
        return None
    return RecordPlan(
        path=config.log.path,
        content=config.log.content,
        durability=config.log.durability,
        days=max(1, round(config.log.retain / 86_400)) if config.log.retain is not None else None,
        size=config.log.retain_size,
        models={name: model.content for name, model in config.models.items() if model.content is not None},
        keys={key.id: key.content for key in config.keys if key.content is not None},
    )


def _native(settings: Settings, name: str, target: NativeTarget | VllmTarget) -> Settings:
    """A target of a file as the command line would say it."""
    said: dict[str, Any] = {
        field: getattr(target, _RENAMED.get(field, field))
        for field in _OF_TARGETS
        if hasattr(target, _RENAMED.get(field, field))
    }
    said["adapter"] = (f"{_ADAPTER}={target.adapter}",) if target.adapter is not None else ()
    if isinstance(target, VllmTarget):
        arguments = target.vllm_args
        said |= {"engine": "vllm", "vllm_args": msgspec.json.encode(arguments).decode() if arguments else None}
    elif target.adapter is not None and target.workers:
        raise SettingsError(
            "adapter is for workers that are started here: start the others with penstock worker MODEL --adapter "
            f"{target.adapter}, and leave it out"
        )
    return msgspec.structs.replace(settings, served_model_name=name, **said)


def _missing_secrets(config: Config, document: Document) -> Iterator[Fault]:
    """Environment variables that should be there and aren't."""
    yield from _missing_secret(document, ("limits", "redis_env"), config.limits.redis_env)
    if config.telemetry is not None:
        yield from _missing_secret(document, ("telemetry", "headers_env"), config.telemetry.headers_env)
    for name, target in config.targets.items():
        if isinstance(target, OpenAITarget):
            yield from _missing_secret(document, ("targets", name, "api_key_env"), target.api_key_env)
        elif target.secret_env is not None and not os.environ.get(target.secret_env):
            yield document.fault(
                ("targets", name, "secret_env"), f"the environment variable {target.secret_env} is empty or not set"
            )


def _missing_secret(document: Document, path: tuple[str, ...], variable: str | None) -> Iterator[Fault]:
    """The fault of a field that names a variable without a key in it."""
    if variable is not None:
        try:
            secret(path[-1], variable)
        except SettingsError as error:
            yield document.fault(path, str(error))
