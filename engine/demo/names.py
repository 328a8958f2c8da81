"""Which names may occur in which split of the demo model's data?

Every name is put together from two parts, and a hash of the whole name says whether it belongs to ``train`` or to
``test``. So a held-out sheet is about rooms, people and places that no training sheet has ever named.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["train", "test"]

_TEST_SHARE = 8


def belongs(name: str, split: Split) -> bool:
    """Whether ``name`` may be used in ``split``; one name in eight is kept for ``test``."""
    held_out = hashlib.blake2b(name.lower().encode(), digest_size=8).digest()[0] % _TEST_SHARE == 0
    return held_out == (split == "test")


@dataclass(frozen=True, slots=True)
class Names:
    """All the names ``form.format(first, second)`` over two lists of parts."""

    form: str
    first: Sequence[str]
    second: Sequence[str]

    def draw(self, rng: Random, split: Split) -> str:
        """One name of ``split``, uniformly."""
        while True:
            name = self.form.format(rng.choice(self.first), rng.choice(self.second))
            if belongs(name, split):
                return name

    def sample(self, rng: Random, split: Split, count: int) -> list[str]:
        """``count`` names of ``split``, no two of which have a part in common."""
        names: list[str] = []
        while len(names) < count:
            name = self.draw(rng, split)
            if not self.alike(name, names):
                names.append(name)
        return names

    def alike(self, name: str, others: Iterable[str]) -> bool:
        """Whether ``name`` shares one of its parts with one of ``others``."""
        parts = self._parts(name)
        return any(parts & self._parts(other) for other in others)

    def _parts(self, name: str) -> set[str]:
        common = set(self.form.replace("{}", " ").split())
        return {word for word in name.split() if word not in common}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _numbers(start: int, stop: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(start, stop))


PLACES = Names(
    "{} {}",
    _words(
        "Alder Ash Birch Bell Corn Dun East Elm Fair Fox Glen Gold Hart High Kings Lake Maple North Oak Pine Red Rock"
        " Salt Silver South Stone Swan Thorn West White"
    ),
    _words("Bay Bend Bridge Corner Creek Cross Dale Falls Field Ford Gate Grove Haven Heath Hill Moor Park Port Wood"),
)
PEOPLE = Names(
    "{} {}",
    _words(
        "Alma Anna Boris Carla Clara David Emil Emma Felix Greta Hugo Ida Ivan Jonas Julia Karl Lena Leo Marta Nina"
        " Nora Oscar Paula Peter Rosa Simon Sofia Tom Vera Viktor"
    ),
    _words(
        "Adler Bauer Berger Carter Cole Dunn Ebner Fischer Fuchs Graf Hansen Hoffman Jansen Keller Lang Lopez Marsh"
        " Meyer Novak Olsen Perez Quinn Reed Sander Silva Tanaka Urban Vogel Weber Young"
    ),
)
ANIMALS = Names(
    "{} {}",
    _words(
        "Big Brave Clever Crazy Fast Gentle Happy Hungry Lazy Little Loud Lucky Old Proud Quiet Shy Sleepy Sweet Wild"
    ),
    _words("Balu Bruno Coco Dodo Fritz Gigi Jumbo Kiki Lola Luna Momo Nala Otto Paco Pepe Rufus Sammy Tiko Toto Zora"),
)
TITLES = Names(
    "The {} {}",
    _words(
        "Amber Bitter Broken Crimson Distant Empty First Frozen Golden Hidden Hollow Last Lonely Lost Seventh Silent"
        " Sleeping Stolen Winter Wooden"
    ),
    _words(
        "Castle Clock Door Emperor Forest Garden Harbour Island Journey Key Lantern Letter Mirror Mountain Orchard"
        " Painter Promise River Road Shadow Sister Storm Tower Violin Whale"
    ),
)
GOODS = Names(
    "{} {}",
    _words(
        "bamboo canvas ceramic copper cork cotton felt glass iron leather linen marble oak paper plastic steel tin"
        " velvet walnut wicker wool"
    ),
    _words(
        "apron bag basket belt blanket bowl box brush candle chair clock cup curtain cushion hat kettle ladder lamp mat"
        " mug plate rug scarf shelf stool table tray vase"
    ),
)
ROOMS = Names("Room {}{}", _numbers(1, 10), tuple(f"{number:02d}" for number in range(100)))
TRAINS = Names("Train {}{}", ROOMS.first, ROOMS.second)
DOCTORS = Names("Dr. {} {}", PEOPLE.first, PEOPLE.second)

# The untrained domains have names of their own, from parts that occur nowhere else.
PEAKS = Names(
    "{} {}",
    _words("Cerro Kitt Mauna Monte Pic Roque Sierra Teide"),
    _words("Blanco Calar Hopkins Kea Negro Pachon Paranal Siding Tololo Wendel"),
)
TELESCOPES = Names(
    "{} {}",
    _words("Altair Antares Bessel Cassini Deneb Hipparch Huygens Kepler Lyra Messier Orion Rigel Spica Vega"),
    _numbers(1, 41),
)
ESTATES = Names(
    "{} {}",
    _words("Chateau Clos Domaine Quinta Tenuta Villa Weingut"),
    _words("Aubrac Bellini Duval Ferrand Lorca Moreau Noval Pichler Renard Sauvet Tesoro Vidal"),
)
CUVEES = Names(
    "{} {}",
    _words(
        "Albarone Beaumont Cuvee Delacour Excellence Fontaine Grand Heritage Magnum Noblesse Petit Prestige Reserva"
        " Selection Tradition Vieux"
    ),
    _words(
        "Amphora Bacchus Cassis Dionys Epicure Florale Granat Hommage Imperial Jubilee Kirsche Lumiere Minerve Olympe"
        " Pantheon Sirius"
    ),
)
