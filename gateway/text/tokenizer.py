"""How does a model's text become token ids, and back? The tokenizer of a Hugging Face folder, without torch."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers

from gateway.text.convert import ConversionError, convert
from gateway.text.detokenizer import Detokenizer, DetokenizerFactory, detokenizer_factory, token_bytes
from gateway.text.token_cache import TokenCache

LONG_TEXT: Final = 4096
"""Characters from which on `Tokenizer.encode_async` works in a thread: about 1 ms of tokenisation."""

SPECIAL_TOKENS: Final[tuple[str, ...]] = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class TokenizerError(Exception):
    """A folder's tokenizer can't be used; the message names the file."""


class Tokenizer:
    """Encodes and decodes text. Safe to use from several threads.

    ``size`` is one more than the highest token id; ``added_ids`` are the tokens that are matched as they are, by their
    text, and ``special_ids`` those of them that are no text, such as the end of a turn.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self.size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.added_ids = {content.content: token for token, content in added.items()}
        self.special_ids = frozenset(token for token, content in added.items() if content.special)
        self._factories: dict[frozenset[int], DetokenizerFactory] = {}
        self._bytes: dict[int, bytes] = {}
        self._cache = TokenCache.of(backend)

    @classmethod
    def load(cls, folder: str | Path, vocab_size: int | None = None) -> "Tokenizer":
        """The tokenizer in ``folder``: tokenizer.json, or else tokenizer.model, with tokenizer_config.json.

        ``vocab_size`` is how many tokens the model has embeddings for. What tokenizer.json adds to a text (BOS, EOS)
        is what counts, whatever ``add_bos_token`` says: so does transformers.

        Raises:
            TokenizerError: there is none, a file is broken, or it has tokens that the model doesn't have.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        config = read_config(folder)
        if path.is_file():
            try:
                backend = tokenizers.Tokenizer.from_file(str(path))
            except Exception as error:  # the Rust side raises bare Exception
                raise TokenizerError(f"{path}: not a tokenizer: {error}") from error
            _mark_special(backend, config)
        elif (path := folder / "tokenizer.model").is_file():
            try:
                backend = convert(folder)
            except ConversionError as error:
                raise TokenizerError(f"{path}: transformers could not convert it: {error}") from error
        else:
            raise TokenizerError(f"{folder}: no tokenizer.json and no tokenizer.model in this folder")
        tokenizer = cls(backend)
        if vocab_size is not None and tokenizer.size > vocab_size:
            raise TokenizerError(
                f"{path}: the tokenizer does not fit the model: its highest token id is {tokenizer.size - 1}, but the "
                f"model's vocab_size is {vocab_size} (ids 0 to {vocab_size - 1}); is it another model's tokenizer?"
            )
        return tokenizer

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of ``text``, with BOS and the like if ``add_special_tokens``. Frees the GIL while it works.

        A rendered chat template brings its own special tokens: encode it without. What it has in common with chats
        that were encoded before is not encoded again.
        """
        if self._cache is not None and not add_special_tokens:
            return self._cache.encode(text)
        # `encode` holds the GIL and works out offsets too: 0.22 s for 880,000 characters, against 0.14 s.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    async def encode_async(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """`encode`, in a thread when ``text`` is long enough to hold up the event loop."""
        if len(text) < LONG_TEXT:
            return self.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self.encode, text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``. Ids that the tokenizer doesn't have, as padded vocabularies allow, have no text."""
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def detokenizer(self, *, skip_special_tokens: bool = True, kept: frozenset[int] = frozenset()) -> Detokenizer:
        """A detokenizer for one answer. ``kept`` are special tokens that have a text all the same."""
        skipped = self.special_ids - kept if skip_special_tokens else frozenset()
        factory = self._factories.get(skipped)
        if factory is None:
            factory = self._factories[skipped] = detokenizer_factory(self._backend, skipped)
        return factory()

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to a text in its middle; those of a special token are its name's.

        Not the bytes of a character where the token has only some of them; none where the vocabulary has no such token.
        """
        found = self._bytes.get(id)
        if found is None:
            found = self._bytes[id] = token_bytes(self._backend, id)
        return found

    def word_tokens(self, word: str) -> list[list[int]]:
        """The ways in which ``word`` can stand in a text, as token ids: at its beginning, and after a space."""
        bare = word.lstrip()
        ways = [self.encode(prefix + bare, add_special_tokens=False) for prefix in ("", " ")]
        space = self.encode(" ", add_special_tokens=False)
        # Where the space is a token of its own, the word alone says it all.
        return [way for index, way in enumerate(ways) if way and (index == 0 or way != [*space, *ways[0]])]

    def token(self, id: int) -> str | None:
        """The vocabulary's own name of a token, such as ``Ġthe``."""
        name: str | None = self._backend.id_to_token(id)
        return name


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the special tokens that only special_tokens_map.json names.

    Each special token is given as its text or, as both files have it too, an object with ``content``; here all of
    `SPECIAL_TOKENS` that are set are texts. Empty if ``folder`` has neither file.

    Raises:
        TokenizerError: a file is no JSON object.
    """
    config = _read_object(folder / "tokenizer_config.json")
    for name, value in _read_object(folder / "special_tokens_map.json").items():
        config.setdefault(name, value)
    for name in SPECIAL_TOKENS:
        text = _content(config.get(name))
        if text is None:
            config.pop(name, None)
        else:
            config[name] = text
    return config


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise TokenizerError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected a JSON object, but found {type(value).__name__}")
    return value


def _content(token: object) -> str | None:
    """The text of a special token, given as a text or as an object with ``content``."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _mark_special(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Make the tokens that tokenizer_config.json calls special so, where tokenizer.json does not say it.

    Tokens that the vocabulary lacks are left out: the model would have no embedding for them.
    """
    known = {token.content: token.special for token in backend.get_added_tokens_decoder().values()}
    named = {config.get(name) for name in SPECIAL_TOKENS}
    for field in ("additional_special_tokens", "extra_special_tokens"):
        extra = config.get(field) or ()
        named.update(_content(token) for token in (extra.values() if isinstance(extra, dict) else extra))
    decoder = config.get("added_tokens_decoder") or {}
    named.update(_content(token) for token in decoder.values() if token.get("special"))
    tokens = [
        tokenizers.AddedToken(text, special=True, normalized=False)
        for text in sorted(text for text in named if text)
        if not known.get(text) and backend.token_to_id(text) is not None
    ]
    if tokens:
        backend.add_special_tokens(tokens)
