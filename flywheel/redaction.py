"""What in a text says who somebody is, or lets one in somewhere? It is replaced by what it was: ``[EMAIL]``.

First it is asked where anything could be: at an ``@``, at seven digits that are near each other, at sixteen letters and
digits without a space. That is looked for in a copy in which all digits, all capitals and all other letters are the
same, by searches that leap, and takes a tenth of what it takes to try regular expressions everywhere. These come only
where something could be, and what has a checksum or a grammar is held against it: cards against Luhn (ISO/IEC 7812-1),
IBANs against their remainder modulo 97 (ISO 13616), addresses against the standard library. All repetitions are
bounded, or can't begin anew at each place, so that no text makes them slow.
"""

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgspec

# Texts of the same length in which searches can leap: digits are 0, capitals A, other letters a; then words are x.
_CLASSES: Final = bytes(
    ord("0" if chr(one).isdigit() else "A" if chr(one).isupper() else "a" if chr(one).islower() else chr(one))
    if one < 128
    else ord("?")
    for one in range(256)
)
_WORDS: Final = bytes(ord("x" if chr(one).isalnum() or one in b"_-" else " ") for one in range(128)) + b" " * 128


# Characters that stand for one of ASCII's: digits of other scripts, full-width ones, other spaces and hyphens. What
# can't be seen is taken for a space.
_ZEROS: Final = (
    *(0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6, 0xE50, 0xED0, 0xF20),
    *(0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0),
    *(0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6),
)
_SPACES: Final = (0xA0, 0xAD, 0x1680, *range(0x2000, 0x2010), 0x202F, *range(0x205F, 0x2065), 0x3000, 0xFEFF)
_HYPHENS: Final = (*range(0x2010, 0x2016), 0x2212)
_PLAIN: Final = {
    **{zero + digit: str(digit) for zero in _ZEROS for digit in range(10)},
    **{0xFF01 + place: chr(0x21 + place) for place in range(94)},
    **dict.fromkeys(_SPACES, " "),
    **dict.fromkeys(_HYPHENS, "-"),
}
_ODD: Final = re.compile(f"[{''.join(map(chr, _PLAIN))}]")

_NUMBER: Final = re.compile(rb"0[0 ().\-/]{5,}0")
_IBAN_BEGINS: Final = b"AA00"
_LONG_WORD: Final = b"x" * 16
_LONGEST_SECRET: Final = 300  # what is longer is something else, but may begin with one
_IPV6_INSIDE: Final = re.compile(r":[0-9A-Fa-f]{0,4}:")

_LOCAL: Final = re.compile(r"[\w.+%'-]{1,64}\Z")
_DOMAIN: Final = re.compile(r"@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_CARD: Final = re.compile(r"\d(?<![\w.,+-]\d)(?:[ -]?\d){12,18}(?![\w-]|[.,]\d)")
_IBAN: Final = re.compile(r"[A-Z](?<!\w[A-Z])[A-Z]\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_IPV4: Final = re.compile(r"\d(?<![\w.-]\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
_IPV6: Final = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{2,39}(?:\.\d{1,3}){0,3}(?![\w:])")
_HEXADECIMAL: Final = frozenset("0123456789abcdefABCDEF:")
_VERSION: Final = re.compile(r"(?:\bv|\bversion|\brelease|\bbuild|==|>=)[ .:]{0,2}$", re.IGNORECASE)
_PHONE: Final = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ ./-]?\d{2,4}){1,5}"  # +44 20 7946 0958
    r"|(?:1[ .-])?\(\d{3}\) ?\d{3}[ .-]\d{4}"  # (212) 555-0187
    r"|(?:1[.-])?\d{3}([.-])\d{3}\1\d{4}"  # 212-555-0187
    r"|0\d{1,4}[ /]\d{3,8}(?:[ -]\d{2,5}){0,3}"  # 030 901820
    r"|0\d(?:[ .]\d{2}){4}"  # 01 23 45 67 89
    r")(?![\w/]|[.,-]\d)"
)
_TOKEN: Final = re.compile(
    r"(?<![\w-])(?:sk|pk|rk|ps|xox[abeoprs]|glpat|pypi|dop_v1)[-_][\w-]{16,}"
    r"|(?<!\w)(?:gh[opsur]|github_pat|hf|npm|shpat|sq0\w{3})_\w{16,}"
    r"|(?<!\w)(?:AKIA|ASIA)[0-9A-Z]{16}(?!\w)"
    r"|(?<!\w)AIza[\w-]{35}"
)
_WEB_TOKEN: Final = re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}")
_BEARER: Final = re.compile(r"(?<!\w)[Bb]earer +(?P<secret>(?=[\w.~+/-]{0,200}\d)[\w.~+/-]{16,}={0,2})")
_KEY_BEGINS: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_KEY_ENDS: Final = "-----END "
_KEY_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,30}-----")
_KEY_BROKE_OFF: Final = re.compile(r"(?:\s{1,4}[A-Za-z0-9+/=]{16,80}){1,200}")
_LONGEST_KEY: Final = 10_000
_STEMS: Final = ("key", "secret", "token", "pass")
_NAMES_OF_SECRETS: Final = (
    r"(?:(?:(?<=api)|(?<=api[_-])|(?<=access)|(?<=access[_-]))key|secret|token|password|passwd|passphrase)\w{0,4}"
)
_A_SECRET: Final = r"(?P<secret>(?=[^\s\"',;]{0,200}\d)[^\s\"',;<>(){}$]{8,200})"
_NAMED: Final = re.compile(
    rf"{_NAMES_OF_SECRETS}(?:\\?[\"'])?\s{{0,3}}[:=]\s{{0,3}}(?:\\?[\"'])?{_A_SECRET}", re.IGNORECASE
)
_NAME_OF_A_SECRET: Final = re.compile(rf"{_NAMES_OF_SECRETS}\Z", re.IGNORECASE)
_ONLY_A_SECRET: Final = re.compile(_A_SECRET)

_ENCODED: Final = re.compile(r"data:[\w/+.-]{0,80}(?:;[\w=.-]{0,40}){0,3};base64,[A-Za-z0-9+/=_%-]*")
_LONG: Final = 512  # characters without any space, of nothing but base64's letters, are a file
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_LINE_BREAK: Final = re.compile(r"\\[nrt]")
_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|([nrtbf\"\\/]))")
_BEGINS: Final = frozenset("{[ \t\r\n")
_ENDS: Final = frozenset("}]")
_SMALL: Final = 10**12  # a number up to this is no card
_IN_PIECES: Final = frozenset({"logprobs", "prompt_logprobs", "token_ids", "prompt_token_ids"})
_PIECES: Final = tuple(f'"{name}"'.encode() for name in _IN_PIECES)
_MAY_BE_TOKENS: Final = ("prompt", "input")


class Finding(NamedTuple):
    """From where to where in a text, and what it is.

    ``kind``: ``EMAIL``, ``PHONE``, ``CARD``, ``IBAN``, ``IP``, ``SECRET``, or ``DATA`` for a file.
    """

    begin: int
    end: int
    kind: str


def find(text: str) -> list[Finding]:
    """What would be replaced, in order; no two overlap."""
    found: list[Finding] = []
    taken = bytearray()
    for finding in _candidates(text):
        if not taken:
            taken = bytearray(len(text))
        if not any(taken[finding.begin : finding.end]):
            taken[finding.begin : finding.end] = b"\1" * (finding.end - finding.begin)
            found.append(finding)
    return sorted(found)


def redact(text: str) -> str:
    """``text`` without what `find` finds in it."""
    pieces, place = [], 0
    for begin, end, kind in find(text):
        pieces += [text[place:begin], f"[{kind}]"]
        place = end
    return "".join([*pieces, text[place:]]) if pieces else text


def redact_json(body: bytes) -> bytes:
    """JSON without what `find` finds in its strings and names, and without the files in it.

    It is read and written anew, because in its source a number may stand behind the ``n`` of a ``\\n``; so are strings
    that are JSON themselves, such as the arguments of calls. Whole numbers that are cards go as well, and what repeats
    a text in pieces: its tokens, and their probabilities. What isn't JSON is taken as a text.
    """
    try:
        return msgspec.json.encode(_without(msgspec.json.decode(body)))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        if any(name in body for name in _PIECES):
            return b'"[DATA]"'
        return redact(_unescaped(body.decode("utf-8", "replace"))).encode("utf-8", "replace")


def _unescaped(text: str) -> str:
    """The source of something that is nearly JSON, as it would be read."""

    def letter(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else {"n": "\n", "r": "\r", "t": "\t"}.get(match[2], match[2])

    return _ESCAPE.sub(letter, text)


# JSON: all its strings are searched at once, because to search a short one takes longer than to find nothing in it


class _Strings:
    """All strings in a JSON value, those within strings that are JSON as well.

    ``wanting``: there is something to be taken out whatever is found in them.
    """

    def __init__(self, value: Any) -> None:
        self.texts: list[str] = []
        self.wanting = False
        self._add(value)

    def _add(self, value: Any) -> None:
        if isinstance(value, str):
            self._add_text(value)
        elif isinstance(value, dict):
            self.texts += value
            for name, one in value.items():
                self._add(one)
                if name in _IN_PIECES or (isinstance(one, str) and _is_secret(name, one)):
                    self.wanting = True
        elif isinstance(value, list):
            for one in value:
                self._add(one)
        elif type(value) is int and value > _SMALL:
            self.wanting = True

    def _add_text(self, text: str) -> None:
        if _is_file(text):
            self.wanting = True
            return
        self.texts.append(text)
        inner = _inner(text)
        if inner is not None:
            self.wanting |= "\\u" in text
            self._add(inner)

    def dirty(self) -> set[str]:
        """Those in which something is found."""
        texts = self.texts
        found = find("\n".join(texts))
        if not found:
            return set()
        begins = list(accumulate((len(text) + 1 for text in texts), initial=0))
        dirty: set[str] = set()
        for begin, end, _ in found:
            dirty.update(texts[bisect_right(begins, begin) - 1 : bisect_right(begins, end - 1)])
        return dirty


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        for name in _MAY_BE_TOKENS:
            if _is_tokens(value.get(name)):
                value[name] = "[TOKENS]"
    strings = _Strings(value)
    dirty = strings.dirty()
    return _walk(value, dirty) if dirty or strings.wanting else value


def _walk(value: Any, dirty: set[str]) -> Any:
    """``value`` without what is to go; in strings that are in ``dirty`` there is something."""
    if isinstance(value, str):
        return _walk_text(value, dirty)
    if isinstance(value, list):
        return [_walk(one, dirty) for one in value]
    if isinstance(value, dict):
        return {_name(name, dirty): _member(name, one, dirty) for name, one in value.items()}
    return "[CARD]" if type(value) is int and value > _SMALL and _is_card(str(value)) else value


def _walk_text(text: str, dirty: set[str]) -> str:
    if _is_file(text):
        return "[DATA]"
    inner = _inner(text)
    if inner is None:
        return redact(text) if text in dirty else text
    changed = _walk(inner, dirty)
    if changed == inner and text not in dirty and "\\u" not in text:
        return text
    return msgspec.json.encode(changed).decode()


def _name(name: str, dirty: set[str]) -> str:
    return redact(name) if name in dirty else name


def _member(name: str, value: Any, dirty: set[str]) -> Any:
    if name in _IN_PIECES:
        return None
    if isinstance(value, str) and _is_secret(name, value):
        return "[SECRET]"
    return _walk(value, dirty)


def _is_secret(name: str, value: str) -> bool:
    return _names_a_secret(name) and _ONLY_A_SECRET.fullmatch(value) is not None


@lru_cache(1000)
def _names_a_secret(name: str) -> bool:
    return _NAME_OF_A_SECRET.search(name) is not None


def _inner(text: str) -> Any:
    """What a string that is JSON holds, if that is more than a value; else None."""
    if text[:1] not in _BEGINS or text.rstrip()[-1:] not in _ENDS:
        return None
    try:
        inner = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError):
        return None
    return inner if isinstance(inner, dict | list) else None


def _is_file(text: str) -> bool:
    if text.startswith("data:"):
        return True
    return len(text) >= _LONG and _BASE64.match(text, 0, 100) is not None and _BASE64.fullmatch(text) is not None


def _is_tokens(value: Any) -> bool:
    """Whether it is a prompt, or several, by the numbers of its tokens."""
    if not isinstance(value, list) or not value:
        return False
    return all(type(one) is int for one in value) or all(isinstance(one, list) and _is_tokens(one) for one in value)


# Texts


def _candidates(text: str) -> Iterator[Finding]:
    """All that is something; what comes first is right where two overlap."""
    if not text.isascii() and _ODD.search(text) is not None:
        text = text.translate(_PLAIN)
    if "\\" in text:  # source: the n of a \n is no letter before a number
        text = _LINE_BREAK.sub("  ", text)
    classes = text.encode("ascii", "replace").translate(_CLASSES)
    if ";base64," in text:
        for match in _ENCODED.finditer(text):
            yield Finding(*match.span(), "DATA")
    yield from _keys(text)
    yield from _tokens(text, classes)
    yield from _named_secrets(text)
    yield from _emails(text)
    yield from _ipv6(text)
    yield from _ibans(text, classes)
    yield from _numbers(text, classes)


def _keys(text: str) -> Iterator[Finding]:
    """Private keys, and what follows ``Bearer``."""
    place = 0
    while (begins := _KEY_BEGINS.search(text, place)) is not None:
        place = begins.end()
        end = text.find(_KEY_ENDS, place, place + _LONGEST_KEY)
        ends = _KEY_END.match(text, end) if end >= 0 else _KEY_BROKE_OFF.match(text, place)
        if ends is not None:
            place = ends.end()
            yield Finding(begins.start(), place, "SECRET")
    if "earer " in text:
        for match in _BEARER.finditer(text):
            yield Finding(*match.span("secret"), "SECRET")


def _tokens(text: str, classes: bytes) -> Iterator[Finding]:
    """Words that are keys or tokens, by what they begin with."""
    words = classes.translate(_WORDS)
    place = words.find(_LONG_WORD)
    while place >= 0:
        end = words.find(b" ", place)
        end = end if end >= 0 else len(words)
        match = _WEB_TOKEN.match(text, place) or _TOKEN.search(text, place, min(end, place + _LONGEST_SECRET))
        if match is not None:
            end = max(end, match.end()) if match.end() == place + _LONGEST_SECRET else match.end()
            yield Finding(match.start(), end, "SECRET")
        place = words.find(_LONG_WORD, end)


def _named_secrets(text: str) -> Iterator[Finding]:
    """What follows the name of a secret: ``api_key = …``."""
    lower = text.lower()
    if len(lower) != len(text):  # a letter that is two in lower case; then places would not be the same
        lower = text
    for stem in _STEMS:
        place = lower.find(stem)
        while place >= 0:
            match = _NAMED.match(text, place)
            if match is not None:
                yield Finding(*match.span("secret"), "SECRET")
            place = lower.find(stem, place + len(stem))


def _emails(text: str) -> Iterator[Finding]:
    end = 0
    place = text.find("@")
    while place >= 0:
        domain = _DOMAIN.match(text, place)
        local = None if domain is None else _LOCAL.search(text, max(end, place - 64), place)
        if local is not None and domain is not None and ".." not in local[0]:
            end = domain.end()
            begin = place - len(local[0].lstrip("'."))  # neither a quote nor a full stop is its beginning
            if begin < place:
                yield Finding(begin, end, "EMAIL")
        place = text.find("@", place + 1)


def _ipv6(text: str) -> Iterator[Finding]:
    end = 0
    for hint in _IPV6_INSIDE.finditer(text):
        if hint.start() < end:
            continue
        begin = hint.start()
        while begin > end and hint.start() - begin < 39 and text[begin - 1] in _HEXADECIMAL:
            begin -= 1
        match = _IPV6.match(text, begin)
        end = hint.end() if match is None else match.end()
        if match is not None and _is_ipv6(match):
            yield Finding(*match.span(), "IP")


def _ibans(text: str, classes: bytes) -> Iterator[Finding]:
    place = classes.find(_IBAN_BEGINS)
    while place >= 0:
        match = _IBAN.match(text, place)
        if match is not None and _is_iban(match[0]):
            yield Finding(*match.span(), "IBAN")
        place = classes.find(_IBAN_BEGINS, place + 1)


def _numbers(text: str, classes: bytes) -> Iterator[Finding]:
    """Cards, addresses and phone numbers: all within digits and what is between them."""
    for cluster in _NUMBER.finditer(classes):
        begin, end = cluster.span()
        digits = classes.count(b"0", begin, end)
        around = end + 2  # what follows is looked at
        if digits >= 13:
            for match in _CARD.finditer(text, begin, around):
                if _is_card(match[0]):
                    yield Finding(*match.span(), "CARD")
        if b"." in cluster[0]:
            for match in _IPV4.finditer(text, begin, around):
                if _is_ipv4(match):
                    yield Finding(*match.span(), "IP")
        if digits >= 8:
            for match in _PHONE.finditer(text, max(0, begin - 2), around):
                if _is_phone(match[0]):
                    yield Finding(*match.span(), "PHONE")


def _is_card(text: str) -> bool:
    digits = [int(one) for one in text if one.isdecimal()]
    if digits[0] not in (2, 3, 4, 5, 6) or len(set(digits)) < 2 or not 13 <= len(digits) <= 19:
        return False
    doubled = [digit if place % 2 == 0 else digit * 2 - 9 * (digit > 4) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    joined = text.replace(" ", "")
    if not 15 <= len(joined) <= 34:
        return False
    return int("".join(str(int(one, 36)) for one in joined[4:] + joined[:4])) % 97 == 1


def _is_ipv4(match: re.Match[str]) -> bool:
    if _VERSION.search(match.string, max(0, match.start() - 12), match.start()):
        return False
    try:
        address = ipaddress.IPv4Address(match[0])
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _is_ipv6(match: re.Match[str]) -> bool:
    text = match[0].rstrip(":") if not match[0].endswith("::") else match[0]
    if text.count(":") < 2 or sum(one.isalnum() for one in text) < 4 or not any(one.isdigit() for one in text):
        return False
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _is_phone(text: str) -> bool:
    return 8 <= sum(one.isdecimal() for one in text) <= 15
