"""Is a configuration file right, and if not, where and why? Each fault has its line, path and what would be right."""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path as File
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from engine.link import parse_address
from gateway.config.document import Document, Fault, Path, listed, read
from gateway.config.keys import ApiKey, Counting, wrong_counting, wrong_keys
from gateway.config.log import RequestLog
from gateway.config.models import Model, wrong_model
from gateway.config.structs import Config, NativeTarget, OpenAITarget, Target, VllmTarget
from gateway.config.telemetry import Telemetry, wrong_telemetry
from gateway.config.values import decode_value
from gateway.fleet.upstream.sources import parse_source
from gateway.settings import SettingsError

_S = TypeVar("_S", bound=msgspec.Struct)

_ENGINES: Final[dict[str, type[Target]]] = {"native": NativeTarget, "vllm": VllmTarget, "openai": OpenAITarget}
_AT: Final = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_TYPES: Final = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "a list",
    "object": "a mapping", "null": "nothing",
}  # fmt: skip


class ConfigError(SettingsError):
    """A file that can't be used. ``faults`` are all that were found, in the order of their lines."""

    def __init__(self, file: str, faults: Iterable[Fault]) -> None:
        self.faults = sorted(faults, key=lambda fault: fault.line)
        self.shown = [fault.shown(file) for fault in self.faults]
        super().__init__("\n".join(self.shown))


def read_config(file: str) -> tuple[Config, Document]:
    """What ``file`` says, and where.

    Raises:
        ConfigError: it can't be read, or is wrong.
    """
    try:
        text = File(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(file, [Fault(1, (), f"this file can't be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(file, [Fault(line, (), "this file can't be read: it is not valid UTF-8")]) from None
    document = read(text)
    faults = list(document.faults)
    config = decode_config(document, faults) if not faults else None
    if config is None or faults:
        raise ConfigError(file, faults)
    return config, document


def decode_config(document: Document, faults: list[Fault]) -> Config:
    """What a document says, as far as it is right: what is wrong goes to ``faults``."""
    models, targets = _sections(document, faults)
    keys, counting = _keys(document, faults)
    log = _section(document, "log", RequestLog, faults)
    telemetry = _section(document, "telemetry", Telemetry, faults)
    faults += wrong_telemetry(document, telemetry)
    faults += _unlike(document, models, targets)
    faults += wrong_keys(document, keys.items(), _names(document, "models"))
    faults += wrong_counting(document, counting)
    return Config(
        models=models, targets=targets, keys=tuple(keys.values()), limits=counting, log=log, telemetry=telemetry
    )


def _sections(document: Document, faults: list[Fault]) -> tuple[dict[str, Model], dict[str, Target]]:
    """Decode entry by entry, so that each has its own fault."""
    top = document.value
    if not isinstance(top, dict):
        faults.append(document.fault((), "the file has two sections: models and targets"))
        return {}, {}
    known = Config.__struct_fields__
    faults += [document.fault((name,), _unknown(name, known)) for name in top if name not in known]
    faults += [
        document.fault((name,), f"{name} has to be a mapping with at least one name in it")
        for name in ("models", "targets")
        if not isinstance(top.get(name), dict) or not top[name]
    ]
    if faults:
        return {}, {}
    models: dict[str, Model] = {}
    targets: dict[str, Target] = {}
    for name, value in top["models"].items():
        model = _decode(document, ("models", name), value, Model, faults)
        if model is not None:
            models[name] = model
    for name, value in top["targets"].items():
        kind = _kind(document, ("targets", name), value, faults)
        target = _decode(document, ("targets", name), value, kind, faults) if kind is not None else None
        if target is not None:
            targets[name] = target
    return models, targets


def _keys(document: Document, faults: list[Fault]) -> tuple[dict[int, ApiKey], Counting]:
    """The keys that are right in themselves, by their places, and where their limits are counted."""
    top = document.value if isinstance(document.value, dict) else {}
    said = top.get("keys", [])
    if not isinstance(said, list):
        faults.append(document.fault(("keys",), "keys are a list, such as [{id: team-a, hash: ...}]"))
        said = []
    elif "keys" in top and not said:
        faults.append(document.fault(("keys",), "at least one key has to be there; without keys, everybody may ask"))
    decoded = ((index, _decode(document, ("keys", index), value, ApiKey, faults)) for index, value in enumerate(said))
    keys = {index: key for index, key in decoded if key is not None}
    counting = _decode(document, ("limits",), top.get("limits", {}), Counting, faults)
    return keys, counting or Counting()


def _section(document: Document, name: str, kind: type[_S], faults: list[Fault]) -> _S | None:
    """A section that may be missing."""
    said = document.value.get(name) if isinstance(document.value, dict) else None
    return _decode(document, (name,), said, kind, faults) if said is not None else None


def _kind(document: Document, path: Path, value: Any, faults: list[Fault]) -> "type[Target] | None":
    if not isinstance(value, dict):
        faults.append(document.fault(path, "a target is a mapping, such as {engine: native, model: ./model}"))
        return None
    engine = value.get("engine")
    if not isinstance(engine, str) or engine not in _ENGINES:
        said = "engine is missing" if engine is None else f"engine {engine!r} is unknown"
        faults.append(document.fault((*path, "engine"), f"{said}: it is {listed(_ENGINES)}"))
        return None
    return _ENGINES[engine]


def _decode(document: Document, path: Path, value: Any, kind: type[_S], faults: list[Fault]) -> _S | None:
    try:
        return msgspec.convert(value, kind, dec_hook=decode_value)
    except msgspec.ValidationError as error:
        faults.append(_translated(document, path, kind, value, error))
        return None


def _translated(document: Document, path: Path, kind: type, value: Any, error: msgspec.ValidationError) -> Fault:
    """What msgspec found wrong, in words for who wrote the file."""
    found = _AT.match(str(error))
    what, below = (found["what"], found["path"] or "") if found else (str(error), "")
    steps: list[str | int] = [int(index) if index else name for name, index in _STEP.findall(below)]
    if "..." in below:  # msgspec doesn't say which key: the first whose value is wrong
        steps = _search(kind, value, below)
    at = (*path, *steps)
    if field := re.fullmatch(r"Object contains unknown field `(.*)`", what):
        return document.fault((*at, field[1]), _unknown(field[1], _fields(kind, steps)))
    if field := re.fullmatch(r"Object missing required field `(.*)`", what):
        return document.fault(at, f"{field[1]} is missing")
    if types := re.fullmatch(r"Expected `(.*?)`(.*?)(?:, got `(.*)`)?", what):
        but = f", but this is {_words(types[3])}" if types[3] else ""
        return document.fault(at, f"expected {_words(types[1])}{types[2]}{but}")
    if what.startswith("Invalid enum value"):
        return document.fault(at, f"{what[len('Invalid enum value ') :]} is unknown: it is {_choices(kind, steps)}")
    return document.fault(at, what[:1].lower() + what[1:])


def _search(kind: type, value: Any, below: str) -> list[str | int]:
    """The path of the entry at fault in a mapping: that of the first one with which ``kind`` is wrong there."""
    field, _, rest = below.partition("[...]")
    field = field.lstrip(".")
    for name, one in (value.get(field) or {}).items():
        try:
            msgspec.convert({**value, field: {name: one}}, kind, dec_hook=decode_value)
        except msgspec.ValidationError as error:
            if f"$.{field}[...]" in str(error):
                return [field, name, *(name for name, _ in _STEP.findall(rest))]
    return [field]


def _fields(kind: type, steps: list[str | int]) -> tuple[str, ...]:
    """The fields that there are, of ``kind`` or of what it has at ``steps``."""
    inner = _struct_at(kind, steps)
    return ("engine", *inner.__struct_fields__) if inner in _ENGINES.values() else inner.__struct_fields__


def _struct_at(kind: Any, steps: Iterable[str | int]) -> Any:
    """The struct that ``kind`` has at ``steps``; what they say beside names of fields leads to no other one."""
    for step in steps:
        if step in kind.__struct_fields__:
            kind = _struct_in(get_type_hints(kind)[str(step)]) or kind
    return kind


def _struct_in(hint: Any) -> Any:
    """The struct that a type is or has in it; None if it has none."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    return next((found for one in get_args(hint) if (found := _struct_in(one)) is not None), None)


def _unknown(name: str, fields: Iterable[str]) -> str:
    close = get_close_matches(name, list(fields), 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"there is no such field; {hint}There are: {', '.join(fields)}"


def _words(types: str) -> str:
    return " or ".join(_TYPES.get(name, name) for name in types.split(" | ") if name != "null" or types == "null")


def _choices(kind: type, steps: list[str | int]) -> str:
    fields = [step for step in steps if isinstance(step, str)]
    hint = get_type_hints(_struct_at(kind, fields[:-1]))[fields[-1]]
    while get_origin(hint) is not Literal:
        hint = get_args(hint)[0]
    return listed(get_args(hint))


def _names(document: Document, section: str) -> Mapping[str, Any]:
    """What there is in ``models`` or ``targets``, right or wrong."""
    said = document.value.get(section) if isinstance(document.value, dict) else None
    return said if isinstance(said, dict) else {}


def _unlike(document: Document, models: dict[str, Model], targets: dict[str, Target]) -> Iterator[Fault]:
    """What can be right in itself, and is wrong beside the rest."""
    known = _names(document, "targets")
    for name, model in models.items():
        yield from wrong_model(document, name, model, known)
    for name, target in targets.items():
        if isinstance(target, OpenAITarget):
            yield from _wrong_upstreams(document, ("targets", name), target)
        else:
            yield from _wrong_workers(document, ("targets", name), target)


def _wrong_upstreams(document: Document, path: Path, target: OpenAITarget) -> Iterator[Fault]:
    if not target.urls and target.file is None:
        yield document.fault(path, "urls or file has to say where the servers are")
    for field in ("kv_events", "kv_replay"):
        count = len(getattr(target, field))
        if count not in (0, 1, len(target.urls)):
            yield document.fault((*path, field), "this is one for each of urls, in their order, or one for all of them")
            return
        if count == 1 < len(target.urls) and "*" not in getattr(target, field)[0]:
            yield document.fault((*path, field, 0), "one for all of urls has * for the host, such as tcp://*:5557")
    for index, source in enumerate(target.sources):
        try:
            parse_source(source)
        except ValueError as error:
            yield document.fault((*path, "urls", index), str(error))


def _wrong_workers(document: Document, path: Path, target: NativeTarget | VllmTarget) -> Iterator[Fault]:
    for index, address in enumerate(target.workers):
        try:
            parse_address(address)
        except ValueError as error:
            yield document.fault((*path, "workers", index), str(error))
        if address in target.workers[:index]:
            yield document.fault((*path, "workers", index), "the same worker was named twice")
    if target.workers and target.replicas > 1:
        yield document.fault((*path, "replicas"), "replicas are started here; leave it out beside workers")
    if target.secret_env is None and any(address.startswith("tcp:") for address in target.workers):
        yield document.fault((*path, "workers"), "workers on tcp:// need secret_env: the secret that they were given")
    if target.kv_replay is not None and target.kv_events is None:
        yield document.fault((*path, "kv_replay"), "kv_replay needs kv_events: there is nothing to replay without it")
    for field in ("ttft", "tpot", "max_wait"):
        if getattr(target, field) == 0:
            yield document.fault((*path, field), "this has to be above 0")
