"""What does it take to answer for a model that clients can name? Its workers, its limits, and its tools for text."""

import asyncio
import contextlib
import copy
import time
from pathlib import Path

from engine.link import Hello
from gateway.fleet.fleet import Fleet
from gateway.text.dialect import Dialect
from gateway.text.grammar_check import GrammarChecker
from gateway.text.template import ChatTemplate, TemplateError
from gateway.text.tokenizer import Tokenizer


class ServedModel:
    """A model by the name that clients send. The limits are those that its workers stated.

    ``parent`` is the name of the model that this one is an adapter of; empty where it is none. ``target`` is what the
    configuration calls those who serve it.
    """

    def __init__(
        self, hello: Hello, fleet: Fleet, tokenizer: Tokenizer, template: ChatTemplate, dialect: Dialect
    ) -> None:
        self.name = hello.model
        self.created = int(time.time())
        self.vocab_size = hello.vocab_size
        self.embedding_size = hello.embedding_size
        self.defaults = hello.defaults
        self.parent = self.target = ""
        self.fleet = fleet
        self.tokenizer = tokenizer
        self.template = template
        self.dialect = dialect
        self.grammars = GrammarChecker(Path(hello.folder) / "tokenizer.json", hello.vocab_size, hello.eos_token_ids)

    @classmethod
    async def load(
        cls, hello: Hello, fleet: Fleet, *, tool_parser: str = "auto", reasoning_parser: str = "auto"
    ) -> "ServedModel":
        """Load tokenizer and chat template from the folder that the worker named.

        The parsers are those of `Dialect.detect`.

        Raises:
            TokenizerError: the folder has no tokenizer, or one that doesn't fit the model.
            TemplateError: the folder has a chat template that can't be read.
        """
        folder = Path(hello.folder)
        tokenizer = await asyncio.to_thread(Tokenizer.load, folder, hello.vocab_size)
        template = await asyncio.to_thread(ChatTemplate.load, folder)
        await asyncio.to_thread(_warm_up, template)
        dialect = Dialect.detect(
            template.source(with_tools=True),
            tokenizer.added_ids,
            tokenizer.special_ids,
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
        )
        return cls(hello, fleet, tokenizer, template, dialect)

    def named(self, name: str) -> "ServedModel":
        """The same model by another name."""
        if name == self.name:
            return self
        other = copy.copy(self)
        other.name = name
        return other

    def adapted(self, adapter: str, name: str) -> "ServedModel":
        """The same model with an ``adapter`` that its workers have loaded, by a name of its own."""
        other = copy.copy(self)
        other.name, other.parent = name, self.name
        other.fleet = self.fleet.adapted(adapter)
        other.embedding_size = 0
        return other

    @property
    def max_model_len(self) -> int:
        """Most tokens of a request, prompt plus answer."""
        return self.fleet.max_model_len

    def close(self) -> None:
        """Let go of the threads that check grammars."""
        self.grammars.close()


def _warm_up(template: ChatTemplate) -> None:
    """Render once, so that no request waits for the imports and the compilation of the first time."""
    with contextlib.suppress(TemplateError):  # a template may well refuse this, or be missing
        template.render([{"role": "user", "content": "Hello"}])
