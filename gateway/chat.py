"""How does one talk to a running endpoint from a terminal? ``penstock chat``.

On a terminal it is a conversation: answers stream, ctrl-C stops an answer by closing its connection (upon which the
server stops computing it), ctrl-D leaves. With input from a pipe each line is a question, answers go to the output and
everything else to the error output, so that it can stand in a script.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TextIO

if TYPE_CHECKING:
    import httpx2

DEFAULT_URL: Final = "http://127.0.0.1:8000"
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

HELP: Final = """\
/help           this list
/clear          forget the conversation (the system message stays)
/system TEXT    begin a new conversation with this system message; without TEXT, show the one in force
/exit           leave, as ctrl-D does
ctrl-C          stop the answer"""

EPILOG: Final = """\
examples:
  penstock chat                                         the demo or whatever `penstock serve` serves
  penstock chat --system "Answer in one word."          with a system message
  penstock chat --url https://host --api-key-env KEY    another endpoint; its key is in the variable KEY
  echo "What is 2 + 3?" | penstock chat --temperature 0 one question from a script

in the conversation:
  """ + HELP.replace("\n", "\n  ")


class ChatError(Exception):
    """No answer, or only a part of one; the message is for the person at the terminal."""


class Endpoint(NamedTuple):
    """Where questions go, and how they are to be answered. ``options`` are further fields of each request."""

    url: str
    model: str
    options: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``penstock chat`` takes to ``parser``."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--url", default=DEFAULT_URL, help="the endpoint, with or without /v1 (default: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="which of its models to ask (default: the first it lists)")
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="0: always the likeliest token; 1: as the model has it"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="cut an answer off after N tokens")
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="the environment variable that holds the endpoint's API key"
    )
    parser.add_argument("--history", metavar="FILE", help="keep typed lines in FILE, for the arrow keys to recall")


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends; the exit status: 0, 1 if the endpoint failed, 2 if the arguments make no sense."""
    import httpx2

    headers: dict[str, str] = {}
    if args.api_key_env:
        key = os.environ.get(args.api_key_env)
        if not key:
            _say(f"penstock chat: the environment variable {args.api_key_env} is not set")
            return 2
        headers["authorization"] = f"Bearer {key}"
    url = args.url.rstrip("/").removesuffix("/v1")
    options = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    try:
        host = httpx2.URL(url).host
        # A proxy for the outside world must not get requests to this machine.
        with httpx2.Client(
            headers=headers, timeout=httpx2.Timeout(None, connect=10.0), trust_env=host not in LOOPBACK
        ) as client:
            model = args.model or first_model(client, url)
            endpoint = Endpoint(url, model, {name: value for name, value in options.items() if value is not None})
            conversation = Conversation(client, endpoint, args.system)
            if sys.stdin.isatty() and sys.stdout.isatty():
                return talk(conversation, args.history)
            return answer_lines(conversation, sys.stdin)
    except (ChatError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        _say(f"penstock chat: {error}")
        return 1


def first_model(client: "httpx2.Client", url: str) -> str:
    """The first model that the endpoint lists.

    Raises:
        ChatError: nobody answers, or the answer is no list with a model in it.
    """
    import httpx2

    try:
        response = client.get(f"{url}/v1/models")
    except httpx2.TransportError as error:
        _unreachable(url, error)
    if response.status_code != 200:
        raise ChatError(_refusal(response))
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise ChatError(f"{url} lists no model at /v1/models: is it an OpenAI-compatible endpoint?") from None


class Conversation:
    """The messages so far, and the way to the next answer."""

    def __init__(self, client: "httpx2.Client", endpoint: Endpoint, system: str | None) -> None:
        self._client = client
        self.endpoint = endpoint
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.clear()

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, question: str) -> Generator[str, None, None]:
        """The answer, piece by piece as it comes.

        What has come is remembered, also when the answer is stopped halfway by closing the iterator or by an
        exception such as KeyboardInterrupt; a question without any answer is forgotten.

        Raises:
            ChatError: the endpoint refuses, fails, or can't be reached.
        """
        self.messages.append({"role": "user", "content": question})
        pieces: list[str] = []
        try:
            for piece in self._stream():
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
            else:
                del self.messages[-1]

    def _stream(self) -> Iterator[str]:
        import httpx2

        url, model, options = self.endpoint
        body = {"model": model, "messages": self.messages, "stream": True, **options}
        try:
            with self._client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise ChatError(_refusal(response))
                yield from _texts(httpx2.EventSource(response))
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            _unreachable(url, error)
        except httpx2.TransportError as error:
            raise ChatError(f"the connection to {url} broke: {error}") from error


def _texts(events: "httpx2.EventSource") -> Iterator[str]:
    """The texts of a streamed answer, up to ``[DONE]``."""
    for event in events:
        if event.data == "[DONE]":
            return
        try:
            chunk = json.loads(event.data)
        except ValueError:
            raise ChatError(f"the endpoint sent an event that is no JSON: {event.data[:80]!r}") from None
        if "error" in chunk:
            raise ChatError(f"the answer broke off: {chunk['error'].get('message')}")
        for choice in chunk.get("choices", ()):
            if text := choice.get("delta", {}).get("content"):
                yield text
            if choice.get("finish_reason") == "length":
                _say("\n(cut off: the answer reached the limit of tokens)")
    raise ChatError("the answer broke off: the endpoint closed the connection before its end")


def _refusal(response: "httpx2.Response") -> str:
    """Why the endpoint refused, from OpenAI's error object if it sent one."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = " ".join(response.text.split())[:200] or "no reason given"
    return f"{response.url} answers {response.status_code}: {message}"


def _unreachable(url: str, error: Exception) -> NoReturn:
    raise ChatError(f"no server answers at {url} ({error}); start one with: penstock serve") from error


def _say(text: str) -> None:
    """Something that is no answer."""
    print(text, file=sys.stderr, flush=True)


def answer_lines(conversation: Conversation, lines: TextIO) -> int:
    """Answer each line that isn't empty, one after the other; the exit status.

    Raises:
        ChatError: an answer failed; the lines after it are left.
    """
    for line in lines:
        question = line.strip()
        if not question:
            continue
        if command := _command(question):
            if not obey(conversation, *command):
                break
            continue
        with closing(conversation.ask(question)) as answer:
            for piece in answer:
                print(piece, end="", flush=True)
        print(flush=True)
    return 0


def talk(conversation: Conversation, history: str | None) -> int:
    """A conversation on a terminal; the exit status."""
    read = _line_reader(history)
    url, model, _ = conversation.endpoint
    print(f"{model} at {url}. Ctrl-C stops an answer, ctrl-D leaves, /help shows more.\n")
    while True:
        try:
            question = read().strip()
            if command := _command(question):
                if not obey(conversation, *command):
                    return 0
            elif question:
                with closing(conversation.ask(question)) as answer:
                    for piece in answer:
                        print(_harmless(piece), end="", flush=True)
                print("\n")
        except EOFError:
            return 0
        except KeyboardInterrupt:
            _say("\n(stopped; ctrl-D leaves)\n")
        except ChatError as error:
            _say(f"\n{error}\n")


def _line_reader(history: str | None) -> Callable[[], str]:
    """Reads a question with line editing. Pasted text may have several lines; Alt-Enter begins a new one."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    path = Path(history).expanduser() if history else None
    session: PromptSession[str] = PromptSession(key_bindings=bindings, history=FileHistory(str(path)) if path else None)
    return lambda: session.prompt("> ")


_COMMAND: Final = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


def _command(line: str) -> tuple[str, str] | None:
    """The command in ``line`` and what follows it. ``/etc/hosts`` is none."""
    found = _COMMAND.fullmatch(line)
    return (found[1], (found[2] or "").strip()) if found else None


def obey(conversation: Conversation, command: str, argument: str) -> bool:
    """Do what a ``/command`` asks; False if that is to leave."""
    if command in ("exit", "quit"):
        return False
    if command == "clear":
        conversation.clear()
        _say("(a new conversation)\n")
    elif command == "system":
        if argument:
            conversation.system = argument
            conversation.clear()
            _say("(a new conversation)\n")
        else:
            _say(f"{conversation.system or '(no system message)'}\n")
    elif command == "help":
        _say(f"{HELP}\n")
    else:
        _say(f"/{command} is no command here; /help lists them\n")
    return True


_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _harmless(text: str) -> str:
    """``text`` without control characters, by which a model could command the terminal."""
    return _CONTROL.sub("", text)
