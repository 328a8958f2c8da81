"""What are the demo model's fact sheets about?

A domain says which facts its sheets state about a place, which columns they give for each of its things, and how
people ask for them. `TRAINED` domains make up the training data. The two `UNTRAINED` ones never do, nor does their
vocabulary: they are what an unfamiliar subject looks like to this model, with answers that are known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from engine.demo import names
from engine.demo.names import Names, Split

Draw = Callable[[Random, Split], str]


@dataclass(frozen=True, slots=True)
class Field:
    """One attribute: what it is called, how its value is drawn, and ways to ask for it beside the general ones.

    ``asks`` are templates; in a column's, ``{e}`` is the thing that is asked about.
    """

    key: str
    draw: Draw
    asks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Domain:
    """One subject: sheets are headed ``title.format(place)``, state ``facts`` and list things with ``columns``."""

    name: str
    title: str
    places: Names
    noun: str
    things: Names
    facts: tuple[Field, ...]
    columns: tuple[Field, ...]


def _one_of(words: str) -> Draw:
    choices = words.split(", ")
    return lambda rng, split: rng.choice(choices)


def _number(low: int, high: int, form: str = "{}", step: int = 1) -> Draw:
    return lambda rng, split: form.format(rng.randrange(low, high + 1, step))


def _decimal(low: int, high: int, form: str = "{}") -> Draw:
    return lambda rng, split: form.format(f"{rng.randint(low, high)}.{rng.randint(0, 9)}")


def _time(low: int, high: int) -> Draw:
    return lambda rng, split: f"{rng.randint(low, high)}:{rng.randrange(0, 60, 15):02d}"


def _hours(rng: Random, split: Split) -> str:
    start = rng.randint(7, 14)
    return f"{start}:00 to {start + rng.randint(2, 5)}:00"


def _name(pool: Names) -> Draw:
    return pool.draw


def _shelf(rng: Random, split: Split) -> str:
    return f"{rng.choice('ABCDEFGH')}{rng.randint(1, 40)}"


HOTEL = Domain(
    "hotel",
    "Hotel {}",
    names.PLACES,
    "room",
    names.ROOMS,
    (
        Field("check-in time", _time(12, 18), ("When can I check in?", "From when is check-in?")),
        Field("check-out time", _time(8, 12), ("When must I check out?", "Until when is check-out?")),
        Field("breakfast time", _time(6, 9), ("When is breakfast?", "At what time is breakfast served?")),
        Field("parking fee", _number(4, 30, "{} euros"), ("How much is parking?", "What does parking cost?")),
        Field("wifi password", _number(100, 999, "guest{}"), ("How do I get on the wifi?",)),
        Field("receptionist", _name(names.PEOPLE), ("Who is at the reception?",)),
    ),
    (
        Field("price", _number(40, 320, "{} euros"), ("How much is {e}?", "What does {e} cost?")),
        Field("beds", _number(1, 6), ("How many beds does {e} have?", "How many beds are in {e}?")),
        Field(
            "view",
            _one_of("sea, garden, street, courtyard, park, harbour, mountain, pool"),
            ("What do I see from {e}?",),
        ),
        Field("floor", _number(1, 12), ("On which floor is {e}?",)),
        Field("bath", _one_of("shower, tub, shared, sauna"), ("What kind of bath does {e} have?",)),
    ),
)
LIBRARY = Domain(
    "library",
    "{} Library",
    names.PLACES,
    "book",
    names.TITLES,
    (
        Field("opening time", _time(7, 11), ("When does it open?", "From when is it open?")),
        Field("closing time", _time(16, 22), ("When does it close?", "Until when is it open?")),
        Field("loan period", _number(7, 60, "{} days"), ("How long may I keep a book?",)),
        Field("late fee", _number(5, 95, "{} cents", 5), ("What do I pay for a late book?",)),
        Field("librarian", _name(names.PEOPLE), ("Who is the librarian?",)),
    ),
    (
        Field("author", _name(names.PEOPLE), ("Who wrote {e}?", "By whom is {e}?")),
        Field("shelf", _shelf, ("Where do I find {e}?", "On which shelf is {e}?")),
        Field("year", _number(1960, 2024), ("When was {e} published?", "From which year is {e}?")),
        Field("pages", _number(60, 980), ("How many pages does {e} have?", "How long is {e}?")),
        Field(
            "language",
            _one_of("English, French, German, Spanish, Italian, Polish, Danish, Greek"),
            ("In which language is {e}?",),
        ),
    ),
)
RAILWAY = Domain(
    "railway",
    "{} Station",
    names.PLACES,
    "train",
    names.TRAINS,
    (
        Field("ticket office", _hours, ("When is the ticket office open?",)),
        Field(
            "waiting room",
            _one_of("north hall, south hall, main hall, upper level, lower level"),
            ("Where is the waiting room?",),
        ),
        Field("locker fee", _number(2, 9, "{} euros"), ("How much is a locker?", "What does a locker cost?")),
        Field("last bus", _time(20, 23), ("When does the last bus leave?",)),
        Field("station master", _name(names.PEOPLE), ("Who is the station master?",)),
    ),
    (
        Field("destination", _name(names.PLACES), ("Where does {e} go?", "Where is {e} going?")),
        Field("departure", _time(5, 23), ("When does {e} leave?", "At what time does {e} depart?")),
        Field("platform", _number(1, 24), ("From which platform does {e} leave?", "Which platform is {e} on?")),
        Field("delay", _number(2, 59, "{} minutes"), ("How late is {e}?",)),
        Field("carriages", _number(3, 16), ("How many carriages does {e} have?",)),
    ),
)
SHOP = Domain(
    "shop",
    "{} Store",
    names.PLACES,
    "product",
    names.GOODS,
    (
        Field("opening time", _time(7, 11), ("When does it open?", "From when is it open?")),
        Field("closing time", _time(16, 22), ("When does it close?", "Until when is it open?")),
        Field("delivery fee", _number(2, 25, "{} euros"), ("How much is delivery?", "What does delivery cost?")),
        Field("return period", _number(7, 90, "{} days"), ("How long can I return things?",)),
        Field("manager", _name(names.PEOPLE), ("Who is the manager?",)),
    ),
    (
        Field("price", _number(2, 240, "{} euros"), ("How much is the {e}?", "What does the {e} cost?")),
        Field("stock", _number(0, 150), ("How many of the {e} are left?", "How many of the {e} are in stock?")),
        Field(
            "colour",
            _one_of("red, blue, green, black, white, yellow, brown, grey, orange, pink"),
            ("Which colour is the {e}?",),
        ),
        Field("aisle", _number(1, 30), ("In which aisle is the {e}?",)),
        Field("size", _one_of("small, medium, large, tiny, huge"), ("How big is the {e}?",)),
    ),
)
CLINIC = Domain(
    "clinic",
    "{} Clinic",
    names.PLACES,
    "doctor",
    names.DOCTORS,
    (
        Field("reception hours", _hours, ("When is the reception open?",)),
        Field("emergency number", _number(100, 999, "ext. {}"), ("Whom do I call in an emergency?",)),
        Field(
            "pharmacy",
            _one_of("ground floor, first floor, east wing, west wing, next door"),
            ("Where is the pharmacy?",),
        ),
        Field("visiting time", _hours, ("When can I visit somebody?",)),
        Field("director", _name(names.PEOPLE), ("Who is the director?",)),
    ),
    (
        Field(
            "specialty",
            _one_of("eyes, skin, heart, teeth, ears, children, bones, allergies, sleep"),
            ("What does {e} treat?",),
        ),
        Field("office", _number(1, 60), ("In which office is {e}?", "Where do I find {e}?")),
        Field("day", _one_of("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday"), ("On which day is {e} here?",)),
        Field("hours", _hours, ("When does {e} see patients?",)),
        Field("phone", _number(100, 999, "ext. {}"), ("How do I reach {e}?",)),
    ),
)
ZOO = Domain(
    "zoo",
    "{} Zoo",
    names.PLACES,
    "animal",
    names.ANIMALS,
    (
        Field("opening time", _time(7, 11), ("When does it open?", "From when is it open?")),
        Field("adult ticket", _number(8, 40, "{} euros"), ("How much is a ticket for an adult?",)),
        Field("child ticket", _number(2, 20, "{} euros"), ("How much is a ticket for a child?",)),
        Field("feeding show", _time(10, 17), ("When is the feeding show?",)),
        Field("vet", _name(names.PEOPLE), ("Who is the vet?",)),
    ),
    (
        Field(
            "species",
            _one_of("otter, lion, tiger, bear, camel, zebra, parrot, lynx, monkey, penguin, seal, wolf, giraffe, goat"),
            ("What kind of animal is {e}?", "What is {e}?"),
        ),
        Field("age", _number(1, 45), ("How old is {e}?",)),
        Field("food", _one_of("fish, hay, fruit, meat, seeds, leaves, nuts, insects"), ("What does {e} eat?",)),
        Field("keeper", _name(names.PEOPLE), ("Who looks after {e}?",)),
        Field("weight", _number(2, 900, "{} kg"), ("How heavy is {e}?", "How much does {e} weigh?")),
    ),
)
OBSERVATORY = Domain(
    "observatory",
    "{} Observatory",
    names.PEAKS,
    "telescope",
    names.TELESCOPES,
    (
        Field("seeing", _decimal(0, 2, "{} arcsec"), ("How steady is the sky?",)),
        Field("humidity", _number(5, 95, "{} percent"), ("How damp is the air?",)),
        Field("moonrise", _time(17, 23), ("When does the moon rise?",)),
        Field("dome shutter", _one_of("sealed, half ajar, fully retracted"), ("Is the dome shutter retracted?",)),
        Field("astronomer", _name(names.TELESCOPES), ("Which astronomer is on duty?",)),
    ),
    (
        Field("aperture", _decimal(0, 9, "{} m"), ("How wide does {e} gape?",)),
        Field("magnitude", _decimal(9, 27), ("How faint can {e} detect?",)),
        Field(
            "filter",
            _one_of("H-alpha, O-III, S-II, ultraviolet, infrared, luminance"),
            ("Through which filter does {e} observe?",),
        ),
        Field("exposure", _number(10, 1800, "{} s", 10), ("For how many seconds does {e} expose?",)),
        Field("azimuth", _number(0, 359, "{} degrees"), ("Which way does {e} point?",)),
    ),
)
VINEYARD = Domain(
    "vineyard",
    "{} Vineyard",
    names.ESTATES,
    "wine",
    names.CUVEES,
    (
        Field("soil", _one_of("slate, chalk, loess, gravel, basalt, limestone"), ("What do the vines grow in?",)),
        Field(
            "harvest",
            _one_of("late August, early September, mid October, first frost"),
            ("When are the grapes picked?",),
        ),
        Field("tasting charge", _number(5, 60, "{} francs"), ("What must I spend on a tasting?",)),
        Field("cellar temperature", _number(6, 15, "{} C"), ("How cool is the cellar?",)),
        Field("winemaker", _name(names.ESTATES), ("Which winemaker is responsible?",)),
    ),
    (
        Field(
            "grape",
            _one_of("Riesling, Syrah, Merlot, Malbec, Grenache, Silvaner, Nebbiolo"),
            ("From which grape is {e} pressed?",),
        ),
        Field("vintage", _number(1961, 2023), ("How mature is {e}?",)),
        Field("acidity", _decimal(3, 9, "{} g/l"), ("How sour does {e} taste?",)),
        Field(
            "barrel", _one_of("barrique, tonneau, foudre, clay jar, stainless"), ("In which barrel does {e} ripen?",)
        ),
        Field("alcohol", _decimal(9, 15, "{} vol"), ("How strong is {e}?",)),
    ),
)

TRAINED: tuple[Domain, ...] = (HOTEL, LIBRARY, RAILWAY, SHOP, CLINIC, ZOO)
UNTRAINED: tuple[Domain, ...] = (OBSERVATORY, VINEYARD)


def find(name: str) -> Domain:
    """The domain called ``name``.

    Raises:
        KeyError: there is none; the message lists those there are.
    """
    by_name = {domain.name: domain for domain in (*TRAINED, *UNTRAINED)}
    if name not in by_name:
        raise KeyError(f"no domain {name!r}: there are {', '.join(by_name)}")
    return by_name[name]


def vocabulary(domains: Sequence[Domain]) -> frozenset[str]:
    """The lower-case words by which ``domains`` are known: nouns, headings, keys and the parts of their names."""
    texts: list[str] = []
    for domain in domains:
        texts += [domain.name, domain.noun, *domain.things.first, *domain.things.second, *domain.places.first]
        texts += [*domain.places.second, *(field.key for field in (*domain.facts, *domain.columns))]
    return frozenset(word for text in texts for word in text.lower().split())
