"""Which tools can the demo model be given, and what questions take one?

A tool is made up each time: its name from a verb and what it looks up or does, its parameters after what they hold. So
the model has to read the tools it is given, and not to know them. Names of tools are split like all others: one in
eight is held out. What a question asks for, what the tool returns and what the answer is are known by construction.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from engine.demo import names
from engine.demo.conversations import Tool
from engine.demo.domains import TRAINED, Domain
from engine.demo.names import Split, belongs
from engine.demo.sheets import LOOKUP_WORDINGS, carelessly, refer

KINDS: dict[str, int] = {"lookup": 62, "action": 24, "sum": 14}
"""The kinds of tool, and how often each is given in a hundred."""


@dataclass(frozen=True, slots=True)
class Use:
    """A question, the arguments of the call that it takes, what the tool returns to it, and the answer from that."""

    question: str
    arguments: dict[str, Any]
    result: str
    answer: str


@dataclass(frozen=True, slots=True)
class Skill:
    """A tool, the word that tells questions for it from others, and a way to draw a question that takes it."""

    tool: Tool
    word: str
    use: Callable[[Random], Use]

    @property
    def name(self) -> str:
        name: str = self.tool["function"]["name"]
        return name


@dataclass(frozen=True, slots=True)
class _Parameter:
    """What one argument of an action holds: its possible names, its type, its values, and how a request says them."""

    names: tuple[str, ...]
    type: str
    draw: Callable[[Random, Split], Any]
    phrases: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_VERBS = ("get", "get", "get", "find", "read", "check", "show", "fetch", "look_up", "lookup", "query")
_OTHER_VERBS = ("give", "load", "request", "retrieve", "return", "search", "see", "tell", "view", "ask", "list", "know")
_LOOKUPS = (
    *LOOKUP_WORDINGS,
    "Look up the {key} of {e}.",
    "Get me the {key} of {e}.",
    "Check the {key} of {e}.",
    "I need the {key} of {e}.",
    "Do you know the {key} of {e}?",
)
_IN_PLACES = ("What is the {key} in {e}?", "How is the {key} in {e}?", "What is the {key} at {e}?")
_LOOKUP_TEXTS = (
    "Get the {key} of {a}.",
    "Get the {key} of {a}.",
    "Find the {key} of {a}.",
    "The {key} of {a}.",
    "Returns the {key} of {a}.",
    "Look up the {key} of {a}",
    "{key} of {a}",
    "",
)
# Nouns and keys beyond those of the domains. Any key goes with any noun: what matters is where it is copied from.
_NOUNS = _words(
    "account address artist band bank bridge bus cafe car city club company computer country course customer device"
    " district employee event factory ferry file film flight game guest house invoice island lake machine member"
    " museum order package parcel patient person phone plane planet player project region restaurant river road"
    " school server ship shipment song stadium stock street student team ticket tower town user village worker"
)
_KEYS = _words(
    "address age amount balance birthday brand capacity capital category code colour cost currency date deadline"
    " depth discount distance duration email explanation forecast fuel gate height host length level limit load"
    " location mayor name number owner parking population postcode price priority progress rank rating result"
    " revenue salary schedule score seat size speed state status street team time title total traffic type value"
    " version volume wage weather weight width"
)
_TOWNS = _words(
    "Amsterdam Athens Barcelona Berlin Boston Brussels Chicago Cologne Copenhagen Delhi Dresden Dublin Geneva Hamburg"
    " Helsinki Istanbul Kyoto Lima Lisbon London Lyon Madrid Milan Montreal Moscow Munich Nairobi Oslo Paris Porto"
    " Prague Riga Rome Seoul Sydney Tokyo Toronto Turin Venice Vienna Warsaw Zurich"
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_ACTIONS = _words("book reserve order cancel move send buy add remove rent sell clean open close lock pay print return")
_OBJECTS = (
    _Parameter(("item", "product", "article", "thing"), "string", names.GOODS.draw, ("the {}", "a {}")),
    _Parameter(("room", "room_name", "name"), "string", names.ROOMS.draw, ("{}",)),
    _Parameter(("train", "train_name", "name"), "string", names.TRAINS.draw, ("{}",)),
    _Parameter(("book", "title", "name"), "string", names.TITLES.draw, ("{}",)),
    _Parameter(("animal", "animal_name", "name"), "string", names.ANIMALS.draw, ("{}",)),
    _Parameter(("order", "number", "id"), "integer", lambda rng, split: rng.randint(1, 999), ("order {}", "number {}")),
)
_DETAILS = (
    _Parameter(("person", "customer", "guest", "user", "for_whom"), "string", names.PEOPLE.draw, ("for {}",)),
    _Parameter(("place", "destination", "city", "to"), "string", lambda rng, split: _place(rng, split), ("to {}",)),
    _Parameter(("day", "date", "when", "weekday"), "string", lambda rng, split: rng.choice(_DAYS), ("on {}",)),
    _Parameter(
        ("time", "hour", "start"),
        "string",
        lambda rng, split: f"{rng.randint(7, 22)}:{rng.choice(('00', '15', '30', '45'))}",
        ("at {}",),
    ),
    _Parameter(
        ("count", "quantity", "times", "amount"),
        "integer",
        lambda rng, split: rng.randint(2, 99),
        ("{} times", "{} times"),
    ),
    _Parameter(
        ("nights", "days", "length"), "integer", lambda rng, split: rng.randint(2, 28), ("for {} nights", "for {} days")
    ),
    _Parameter(("price", "limit", "euros"), "integer", lambda rng, split: rng.randint(2, 400), ("for {} euros",)),
)
_OPERATIONS: tuple[tuple[str, tuple[str, ...], Callable[[int, int], int]], ...] = (
    ("+", ("add", "add_numbers", "sum", "plus", "get_sum"), lambda a, b: a + b),
    ("-", ("subtract", "minus", "difference", "get_difference"), lambda a, b: a - b),
    ("*", ("multiply", "times", "product", "get_product"), lambda a, b: a * b),
)
_SUMS = ("What is {a} {op} {b}?", "{a} {op} {b}", "How much is {a} {op} {b}?", "Compute {a} {op} {b}.")


def draw_skills(count: int, split: Split, rng: Random, *, domains: Sequence[Domain] = TRAINED) -> list[Skill]:
    """``count`` different tools; no question for one of them could be for another."""
    verb = rng.choice(_VERBS) if rng.random() < 0.6 else None
    skills: list[Skill] = []
    while len(skills) < count:
        skill = draw_skill(rng.choices(list(KINDS), list(KINDS.values()))[0], split, rng, verb=verb, domains=domains)
        if all(skill.word != other.word and skill.name != other.name for other in skills):
            skills.append(skill)
    return skills


def draw_skill(
    kind: str, split: Split, rng: Random, *, verb: str | None = None, domains: Sequence[Domain] = TRAINED
) -> Skill:
    """A tool of one of `KINDS`. ``verb`` is what a lookup's name begins with, if it begins with a verb.

    Raises:
        KeyError: ``kind`` is none of them.
    """
    return {"lookup": _lookup, "action": _action, "sum": _sum}[kind](split, rng, verb or rng.choice(_VERBS), domains)


def _lookup(split: Split, rng: Random, verb: str, domains: Sequence[Domain]) -> Skill:
    domain = rng.choice(domains)
    field = rng.choice((*domain.columns, *domain.columns, *domain.facts))
    if domains is TRAINED and rng.random() < 0.5:
        return _free_lookup(split, rng, verb)
    if field in domain.columns:
        pool, noun, wordings = domain.things, domain.noun, (*_LOOKUPS, *field.asks, *field.asks)
        form = "{}"
    else:
        pool, noun, wordings = domain.places, domain.name, (*_LOOKUPS, *_IN_PLACES)
        form = domain.title
    detail, draw_detail = _detail(split, rng)
    numbered = pool in (names.ROOMS, names.TRAINS) and rng.random() < 0.3

    def use(rng: Random) -> Use:
        thing = refer(form.format(pool.draw(rng, split)), domain, rng)
        value = int(thing.split()[-1]) if numbered else thing
        said, more = draw_detail(rng)
        question = _asked(wordings, field.key, thing, said, rng)
        return _looked_up(question, field.key, thing, {parameter: value, **more}, field.draw(rng, split), rng)

    parameter = rng.choice((noun, noun, noun, noun, f"{noun}_name", "name", "which", "query"))
    if numbered:
        parameter = rng.choice((noun, f"{noun}_number", "number"))
    return Skill(
        _tool(
            _lookup_name(verb, noun, field.key, split, rng),
            _about(field.key, noun, rng),
            {parameter: "integer" if numbered else "string", **detail},
        ),
        field.key,
        use,
    )


def _free_lookup(split: Split, rng: Random, verb: str) -> Skill:
    """A lookup of any key for any noun, with values as some column of the domains has them."""
    noun, key = rng.choice(_NOUNS), rng.choice(_KEYS)
    columns = [field for domain in TRAINED for field in domain.columns]
    field = rng.choice(columns)
    kind = rng.choice(("place", "town", "person", "code", "number", "thing"))
    pool = rng.choice((names.GOODS, names.TITLES, names.ANIMALS, names.ROOMS))
    detail, draw_detail = _detail(split, rng)
    wordings = (*_LOOKUPS, *_IN_PLACES) if kind in ("place", "town") else _LOOKUPS

    def use(rng: Random) -> Use:
        value: str | int
        if kind == "place":
            value = said = names.PLACES.draw(rng, split)
        elif kind == "town":
            value = said = _town(rng, split)
        elif kind == "person":
            value = said = names.PEOPLE.draw(rng, split)
        elif kind == "thing":
            value = said = pool.draw(rng, split)
        else:
            value = (
                rng.randint(1, 9999) if kind == "number" else f"{rng.choice('ABCDEFGHKLMNPRST')}{rng.randint(1, 999)}"
            )
            said = f"{noun} {value}"
        asked, more = draw_detail(rng)
        question = _asked(wordings, key, said, asked, rng)
        return _looked_up(question, key, said, {parameter: value, **more}, field.draw(rng, split), rng)

    parameter = rng.choice((noun, noun, noun, f"{noun}_id", "id", "number"))
    if kind not in ("code", "number"):
        parameter = rng.choice((noun, noun, noun, f"{noun}_name", "name", "query"))
    return Skill(
        _tool(
            _lookup_name(verb, noun, key, split, rng),
            _about(key, noun, rng),
            {parameter: "integer" if kind == "number" else "string", **detail},
        ),
        key,
        use,
    )


def _lookup_name(verb: str, noun: str, key: str, split: Split, rng: Random) -> str:
    """``get_price``, or now and then ``get_room_price``, ``room_price`` or ``price``; whatever is of ``split``."""
    start = rng.choice((0, 0, 0, 0, 0, 1, 1, 2, 3))
    for first in (verb, *rng.sample(_VERBS, len(_VERBS)), *_OTHER_VERBS):
        forms = [f"{first}_{key}", f"{first}_{noun}_{key}", f"{noun}_{key}", key, f"{first}_{key}_of_{noun}"]
        for form in (*forms[start:], *forms[:start]):
            name = form.lower().replace(" ", "_").replace("-", "_")
            if belongs(name, split):
                return name
    raise ValueError(f"no name for a tool that looks up {key!r} is of the split {split!r}")


def _about(key: str, noun: str, rng: Random) -> str:
    article = "an" if noun[0] in "aeiou" else "a"
    text = rng.choice(_LOOKUP_TEXTS).format(key=key, a=f"{article} {noun}")
    return text[:1].upper() + text[1:]


def _asked(wordings: Sequence[str], key: str, thing: str, detail: str, rng: Random) -> str:
    """A question that has ``thing`` in it letter for letter, and ``detail`` at its end."""
    while True:
        question = rng.choice(wordings).format(key=key, e=thing)
        question = carelessly(f"{question[:-1]}{detail}{question[-1]}", rng)
        if thing in question:
            return question


def _detail(split: Split, rng: Random) -> tuple[dict[str, str], Callable[[Random], tuple[str, dict[str, Any]]]]:
    """Now and then a lookup takes a second argument: its name, its type, and how it is drawn with how it is said."""
    if rng.random() < 0.75:
        return {}, lambda rng: ("", {})
    part = rng.choice([part for part in _DETAILS if part.names[0] in ("day", "time")])
    called = rng.choice(part.names)

    def draw(rng: Random) -> tuple[str, dict[str, Any]]:
        value = part.draw(rng, split)
        return f" {rng.choice(part.phrases).format(value)}", {called: value}

    return {called: part.type}, draw


def _looked_up(question: str, key: str, thing: str, arguments: dict[str, Any], value: str, rng: Random) -> Use:
    """A tool returns a text or JSON. From a text, the answer is the text; from JSON, what was asked for."""
    said: str | int = int(value) if value.isdigit() and rng.random() < 0.6 else value
    slug = key.replace(" ", "_").replace("-", "_")
    form = rng.random()
    if form < 0.35:
        return Use(question, arguments, value, value)
    if form < 0.45:
        text = f"The {key} of {thing} is {value}."
        return Use(question, arguments, text, text)
    if form < 0.7:
        record = {slug if rng.random() < 0.7 else rng.choice(("result", "value", "answer")): said}
    elif form < 0.94:
        record = {**arguments, slug: said}
    else:
        value = rng.choice(("not found", f"no {key} known", "try again later", "not allowed"))
        record = {"error": value}
    return Use(question, arguments, json.dumps(record, ensure_ascii=False), value)


def _action(split: Split, rng: Random, verb: str, domains: Sequence[Domain]) -> Skill:
    """Something is done to an object, with one or two details, in the order of the request or not."""
    action, target = rng.choice(_ACTIONS), rng.choice(_OBJECTS)
    parts = [target, *rng.sample(_DETAILS, rng.choice((0, 1, 1, 1, 2)))]
    called = [rng.choice(part.names) for part in parts]
    while len(set(called)) < len(called):
        called = [rng.choice(part.names) for part in parts]
    for noun in rng.sample((*target.names, "it", "one", "now"), len(target.names) + 3):
        name = f"{action}_{noun}"
        if belongs(name, split):
            break
    else:
        return _action(split, rng, verb, domains)
    declared = list(zip(called, parts, strict=True))
    if rng.random() < 0.25:
        rng.shuffle(declared)

    def use(rng: Random) -> Use:
        drawn = {key: part.draw(rng, split) for key, part in zip(called, parts, strict=True)}
        said = [rng.choice(part.phrases).format(drawn[key]) for key, part in zip(called, parts, strict=True)]
        request = f"{action} {' '.join(said)}"
        lead = rng.choice(("", "", "", "please ", "can you ", "I want to "))
        question = f"{lead}{request}{'?' if lead.startswith('can') else '.'}"
        result, answer = _done(rng)
        question = carelessly(question[0].upper() + question[1:], rng)
        return Use(question, {key: drawn[key] for key, _ in declared}, result, answer)

    about = rng.choice(
        (f"{action} {target.names[0]}", f"{action} a {target.names[0]}.", f"{action} one {target.names[0]}.", "")
    )
    tool = _tool(name, about[:1].upper() + about[1:], {key: part.type for key, part in declared})
    return Skill(tool, action, use)


def _done(rng: Random) -> tuple[str, str]:
    said = rng.choice(("done", "ok", "confirmed", "accepted", "waiting", "not possible", "failed"))
    number = rng.randint(100, 999)
    return rng.choice(
        (
            (said, said),
            (f"{said}, number {number}", f"{said}, number {number}"),
            (json.dumps({"status": said}), said),
            (json.dumps({"number": number}), str(number)),
            (json.dumps({"message": f"{said}, number {number}"}), f"{said}, number {number}"),
        )
    )


def _sum(split: Split, rng: Random, verb: str, domains: Sequence[Domain]) -> Skill:
    """A calculator for one operation on two numbers, or for any that is written down; none of these is held out."""
    first, second = rng.choice((("a", "b"), ("a", "b"), ("x", "y"), ("first", "second"), ("left", "right")))
    op, called, compute = rng.choice(_OPERATIONS)
    whole = rng.random() < 0.25
    parameter = rng.choice(("expression", "sum", "text"))

    def use(rng: Random) -> Use:
        by, (sign, _, work) = rng.random(), rng.choice(_OPERATIONS) if whole else (op, called, compute)
        a, b = rng.randint(2, 999), rng.randint(2, 99 if by < 0.5 or sign == "*" else 999)
        if sign == "-" and a < b:
            a, b = b, a
        arguments = {parameter: f"{a} {sign} {b}"} if whole else {first: a, second: b}
        result = str(work(a, b))
        text = json.dumps({rng.choice(("result", "value")): work(a, b)}) if rng.random() < 0.3 else result
        return Use(carelessly(rng.choice(_SUMS).format(a=a, op=sign, b=b), rng), arguments, text, result)

    if whole:
        name = rng.choice(("calculate", "compute", "calculator", "evaluate", "eval"))
        return Skill(_tool(name, rng.choice(("Compute a sum.", "Calculator", "")), {parameter: "string"}), "+", use)
    about = rng.choice((f"Compute {first} {op} {second}.", f"{first} {op} {second}", f"Computes {first} {op} {second}"))
    return Skill(_tool(rng.choice(called), about, {first: "integer", second: "integer"}), "+", use)


def _tool(name: str, description: str, parameters: dict[str, str]) -> Tool:
    function: dict[str, Any] = {
        "name": name,
        "description": description,
        "parameters": {
            "type": "object",
            "properties": {key: {"type": kind} for key, kind in parameters.items()},
            "required": list(parameters),
        },
    }
    return {"type": "function", "function": function}


def _town(rng: Random, split: Split) -> str:
    return rng.choice([town for town in _TOWNS if belongs(town, split)])


def _place(rng: Random, split: Split) -> str:
    return _town(rng, split) if rng.random() < 0.5 else names.PLACES.draw(rng, split)
