"""What can the demo model do without a fact sheet?

Small sums, sorting, copying, extraction to JSON, and a little small talk, so that "hello" gets a sensible reply.
"""

import json
from collections.abc import Iterator, Sequence
from random import Random

from engine.demo import names
from engine.demo.domains import TRAINED, Domain
from engine.demo.names import Split, belongs
from engine.demo.sheets import TASKS as SHEET_TASKS
from engine.demo.sheets import Item, ask, draw_sheet

TASKS: dict[str, int] = {"arithmetic": 34, "sort": 20, "copy": 12, "extract": 14, "chat": 12, "no_sheet": 8}
"""The kinds of task without a sheet, and how often each is set in a hundred."""

NO_SHEET = "There is no sheet yet. Paste one, then ask."
OFF_TOPIC = "I don't know that. I only answer from a fact sheet that you give me."
EXAMPLE = "Hotel Alder\nRoom 12: price 80 euros\nRoom 27: price 65 euros\n\nWhat is the price of Room 12?"

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SUM = ("What is {a} {op} {b}?", "{a} {op} {b}", "{a} {op} {b} =", "How much is {a} {op} {b}?", "Compute {a} {op} {b}.")
_SORT = ("Sort these numbers: {}", "Sort {}", "Put these numbers in order: {}", "Sort from small to large: {}")
_COPY = ("Repeat this: {}", "Copy this: {}", "Say this again: {}", "Repeat after me: {}")
EXTRACT_WORDINGS = ("Extract as JSON: {}", "Write this as JSON: {}", "Turn this into JSON: {}")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SMALL_TALK: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Hello! Give me a fact sheet and ask me about it, or try a small sum.",
        (
            "hello",
            "hi",
            "hey",
            "good morning",
            "good evening",
            "hello there",
            "hi there",
            "hello, how are you?",
            "hey there",
            "yo",
        ),
    ),
    (
        "I am the Penstock demo model, a very small one. I answer questions about a fact sheet that you give me.",
        (
            "who are you?",
            "what are you?",
            "what is your name?",
            "are you a model?",
            "which model are you?",
            "tell me about yourself",
            "what is Penstock?",
            "introduce yourself",
            "are you a human?",
        ),
    ),
    (
        "I answer questions about a fact sheet, add and subtract small numbers, sort numbers, "
        "copy text and write JSON.",
        (
            "what can you do?",
            "help",
            "help me",
            "what do you know?",
            "what can I ask you?",
            "how do you work?",
            "what are you good at?",
            "can you help me?",
            "how can you help me?",
        ),
    ),
    (
        "Paste a sheet with a question, like this:\n" + EXAMPLE,
        (
            "show me an example",
            "give me an example",
            "example",
            "example please",
            "what is a sheet?",
            "what does a sheet look like?",
            "what is a fact sheet?",
        ),
    ),
    (
        "You're welcome!",
        (
            "thanks",
            "thank you",
            "thanks a lot",
            "thank you very much",
            "great, thanks",
            "cool",
            "nice",
            "great",
            "good",
            "ok",
            "okay",
            "perfect",
            "well done",
        ),
    ),
    ("Goodbye!", ("bye", "goodbye", "see you", "good night", "see you later", "exit", "quit")),
    (
        "I'm fine, thank you. What would you like to know?",
        ("how are you?", "how are you doing?", "how is it going?", "what's up?", "are you well?"),
    ),
    ("Ready.", ("test", "testing", "ping", "are you there?", "can you hear me?", "is this working?")),
)
_TOPICS = (
    "France",
    "Germany",
    "Paris",
    "London",
    "the moon",
    "the sun",
    "cats",
    "dogs",
    "music",
    "football",
    "Einstein",
    "Shakespeare",
    "love",
    "life",
    "water",
    "gravity",
    "the weather",
    "history",
    "Python",
    "computers",
    "Africa",
    "China",
    "Japan",
    "the internet",
    "money",
    "time",
    "space",
    "light",
    "DNA",
    "physics",
    "chess",
    "cooking",
    "bread",
    "coffee",
    "tea",
    "war",
    "peace",
    "art",
    "poetry",
    "mathematics",
    "the ocean",
    "Rome",
    "politics",
    "the president",
    "cars",
    "AI",
)
_ASK_TOPIC = (
    "What is the capital of {}?",
    "What is {}?",
    "Tell me about {}.",
    "Tell me a joke about {}.",
    "Write a poem about {}.",
    "Write a story about {}.",
    "Tell me a story about {}.",
    "Who invented {}?",
    "Explain {}.",
    "Explain {} to me.",
    "Why is {} so important?",
    "How does {} work?",
    "What do you think about {}?",
    "Do you like {}?",
    "Where is {}?",
    "Who is {}?",
    "Translate {} to French.",
    "Tell me a joke.",
    "Write some code.",
    "What day is it today?",
    "How is the weather?",
    "What is the meaning of life?",
    "Can you write a program about {}?",
    "Write a haiku about {}.",
    "Count to ten.",
    "Summarize {} in one sentence.",
)


def set_task(task: str, split: Split, rng: Random) -> Item:
    """One item of the kind ``task``, one of `TASKS`.

    Raises:
        KeyError: ``task`` is none of them.
    """
    question, answer, answerable = _SET[task](split, rng)
    return Item("general", task, "", question, answer, answerable)


def tasks(split: Split, seed: int, *, kinds: Sequence[str] = tuple(TASKS)) -> Iterator[Item]:
    """Endless items without a sheet; the kinds take turns."""
    rng = Random(f"tasks/{split}/{seed}")
    while True:
        for kind in kinds:
            yield set_task(kind, split, rng)


def _arithmetic(split: Split, rng: Random) -> tuple[str, str, bool]:
    """Sums and differences of numbers up to 12, never below zero. There are 260 of them, and none is held out."""
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    op = rng.choice("+-")
    if op == "-" and a < b:
        a, b = b, a
    text = rng.choice(_SUM).format(a=a, op=op, b=b)
    if text[0].isdigit() and rng.random() < 0.4:
        text = text.replace(" ", "")
    return text, str(a + b if op == "+" else a - b), True


def _sort(split: Split, rng: Random) -> tuple[str, str, bool]:
    """Three or four different digits; one set in eight is held out."""
    while True:
        digits = rng.sample(range(1, 10), rng.randint(3, 4))
        if belongs(str(sorted(digits)), split):
            break
    return rng.choice(_SORT).format(", ".join(map(str, digits))), ", ".join(map(str, sorted(digits))), True


def _copy(split: Split, rng: Random) -> tuple[str, str, bool]:
    """Two to seven words that mean nothing, from letters, numbers and names."""
    words = [_word(split, rng) for _ in range(rng.randint(2, 7))]
    text = " ".join(words)
    return rng.choice(_COPY).format(text), text, True


def _word(split: Split, rng: Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return "".join(rng.choices(_LETTERS, k=rng.randint(2, 7)))
    if kind < 0.65:
        return str(rng.randint(0, 999))
    return rng.choice((names.ANIMALS, names.PEOPLE, names.PLACES, names.GOODS)).draw(rng, split)


def _extract(split: Split, rng: Random) -> tuple[str, str, bool]:
    text, record = draw_sentence(split, rng)
    return rng.choice(EXTRACT_WORDINGS).format(text), json.dumps(record), True


def draw_sentence(split: Split, rng: Random) -> tuple[str, dict[str, str | int]]:
    """One sentence with three or four things to find, and these."""
    name, place = names.PEOPLE.draw(rng, split), names.PLACES.draw(rng, split)
    goods, day, count = names.GOODS.draw(rng, split), rng.choice(_DAYS), rng.randint(2, 90)
    sentences: tuple[tuple[str, dict[str, str | int]], ...] = (
        (
            f"{name} ordered {count} {goods}s on {day}.",
            {"name": name, "count": count, "item": f"{goods}s", "day": day},
        ),
        (f"On {day}, {name} goes to {place}.", {"name": name, "day": day, "place": place}),
        (
            f"{name} from {place} paid {count} euros for the {goods}.",
            {"name": name, "place": place, "price": count, "item": goods},
        ),
        (f"{name} lives in {place} and is {count} years old.", {"name": name, "place": place, "age": count}),
    )
    return rng.choice(sentences)


def _chat(split: Split, rng: Random) -> tuple[str, str, bool]:
    """Small talk, and questions that this model can't answer."""
    if rng.random() < 0.4:
        return _casually(rng.choice(_ASK_TOPIC).format(rng.choice(_TOPICS)), rng), OFF_TOPIC, False
    reply, openings = rng.choice(_SMALL_TALK)
    return _casually(rng.choice(openings), rng), reply, True


def _casually(text: str, rng: Random) -> str:
    if rng.random() < 0.4:
        text = text.rstrip("?.")
    text = text + rng.choice("!.") if text[-1] not in "?.!" and rng.random() < 0.3 else text
    return rng.choice((text, text[0].upper() + text[1:], text[0].lower() + text[1:]))


def _no_sheet(split: Split, rng: Random) -> tuple[str, str, bool]:
    """A question about a sheet that nobody has given."""
    domain: Domain = rng.choice(TRAINED)
    kind = rng.choice([kind for kind in SHEET_TASKS if kind != "unknown"])
    return ask(draw_sheet(domain, split, rng), kind, split, rng).text, NO_SHEET, False


_SET = {
    "arithmetic": _arithmetic,
    "sort": _sort,
    "copy": _copy,
    "extract": _extract,
    "chat": _chat,
    "no_sheet": _no_sheet,
}
