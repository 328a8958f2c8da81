"""What is asked, when, and by whom? Workloads out of arrivals, lengths, traces and prompts, and their options.

A workload is first an *outline*: when a request comes, how long it is, and what it has in common with others. That is
all that a simulator needs. `asks` writes the prompts for it.
"""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice, repeat
from pathlib import Path
from random import Random
from typing import Any, Final, cast

import msgspec

from bench.load import arrivals as arrivals_
from bench.load import lengths as lengths_
from bench.load.arrivals import Arrivals, ClosedLoop, OpenLoop, WorkloadError, parse_arrivals, parse_time
from bench.load.lengths import Distribution, parse_distribution
from bench.load.prompts import UNKNOWN, Form, Prompts, Wording, load_wording
from bench.load.records import Ask
from bench.load.traces import BLOCK_TOKENS, Window, kind_of, read_trace

REQUESTS: Final = 200
ARRIVALS: Final = "poisson:4"
INPUT: Final = "512"
OUTPUT: Final = "128"


class Outline(msgspec.Struct, frozen=True):
    """A request without its text.

    The prompt's first tokens are those of ``blocks``, ``block_tokens`` each: equal ids, equal tokens. It may end in
    one; what goes on after the last is no other prompt's. ``at`` is in seconds from the run's beginning; None in a
    closed loop and for the later turns of a conversation, which come ``after`` seconds after the answer to the turn
    before. A later turn's ``input_tokens`` are the new ones only: what was said before comes in front of them.
    """

    index: int
    at: float | None
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = BLOCK_TOKENS
    session: int | None = None
    turn: int = 0
    after: float = 0.0
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Load(ABC):
    """What all workloads have. ``requests`` and ``duration`` (seconds) bound them; None is no bound.

    With ``wording`` the tokens of the endpoint's tokenizer are known; ``form`` is what prompts are.
    """

    seed: int = 0
    requests: int | None = None
    duration: float | None = None
    form: Form = "chat"
    wording: Wording = UNKNOWN
    arrivals: Arrivals | None

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, in a few words."""

    @abstractmethod
    def outlines(self) -> Iterator[Outline]:
        """The requests; a conversation's later turns follow its first at once."""

    @property
    def concurrency(self) -> int | None:
        """Requests (or conversations) at a time in a closed loop; None in an open one."""
        return self.arrivals.concurrency if isinstance(self.arrivals, ClosedLoop) else None

    def asks(self) -> Iterator[Ask]:
        """The outlines with their prompts."""
        prompts = Prompts(self.wording, self.form, self.seed)
        for one in self.outlines():
            prompt, tokens = prompts.make(one.index, one.input_tokens, one.blocks, one.block_tokens, one.turn)
            yield Ask(
                index=one.index,
                prompt=prompt,
                prompt_tokens=tokens,
                output_tokens=one.output_tokens,
                at=one.at,
                session=one.session,
                turn=one.turn,
                after=one.after,
                group=one.group,
            )

    def _times(self) -> Iterator[float | None]:
        """When requests, or conversations, begin; without end in a closed loop."""
        if isinstance(self.arrivals, OpenLoop):
            return self.arrivals.times(self.seed, duration=self.duration)
        return repeat(None)


@dataclass(frozen=True, kw_only=True)
class _Drawn(Load):
    """Whatever has lengths drawn from distributions, behind ``shared`` tokens that a group has in common.

    The ``groups`` are each as likely.
    """

    arrivals: Arrivals
    input: Distribution
    output: Distribution
    shared: int = 0
    groups: int = 1

    def _grouping(self) -> Callable[[Outline], Outline]:
        """What puts the shared tokens of a group, drawn anew each time, in front of a request."""
        if not self.shared:
            return lambda one: one
        choose = Random(f"{self.seed}:group")
        return lambda one: _behind(one, choose.randrange(self.groups), self.shared)


@dataclass(frozen=True, kw_only=True)
class Synthetic(_Drawn):
    """Requests with lengths drawn from distributions.

    ``shared`` tokens come in front of the input in all requests of a group, which are ``groups``, each as likely.
    """

    @property
    def title(self) -> str:
        parts = [self.arrivals.title, f"input {self.input.title}", f"output {self.output.title}"]
        if self.shared:
            parts.append(f"{self.groups} shared prefix{'es' if self.groups > 1 else ''} of {self.shared}")
        return ", ".join(parts)

    def outlines(self) -> Iterator[Outline]:
        inputs, outputs = self.input.counts(self.seed, "input"), self.output.counts(self.seed, "output")
        grouped = self._grouping()
        for index, at in enumerate(islice(self._times(), self.requests)):
            yield grouped(Outline(index, at, inputs(), outputs()))


@dataclass(frozen=True, kw_only=True)
class Conversations(_Drawn):
    """Conversations, which begin by ``arrivals``; each turn's question has ``input`` new tokens.

    ``think`` is the seconds between an answer's end and the next question. ``requests`` counts turns; the last
    conversation is cut there. ``shared`` tokens, of one of ``groups`` texts, begin each conversation.
    """

    turns: Distribution
    think: Distribution

    @property
    def title(self) -> str:
        parts = [f"conversations of {self.turns.title} turns", self.arrivals.title, f"input {self.input.title}"]
        return ", ".join([*parts, f"output {self.output.title}", f"think time {self.think.title} s"])

    def outlines(self) -> Iterator[Outline]:
        return islice(self._all(), self.requests)

    def _all(self) -> Iterator[Outline]:
        inputs, outputs = self.input.counts(self.seed, "input"), self.output.counts(self.seed, "output")
        turns, think = self.turns.counts(self.seed, "turns"), self.think.sampler(self.seed, "think")
        grouped = self._grouping()
        indices = count()
        for session, at in enumerate(self._times()):
            first = Outline(next(indices), at, inputs(), outputs(), session=session)
            yield grouped(first)
            for turn in range(1, turns()):
                after = think()
                yield Outline(next(indices), None, inputs(), outputs(), session=session, turn=turn, after=after)


@dataclass(frozen=True, kw_only=True)
class Trace(Load):
    """The requests of a trace, at its own times unless ``arrivals`` are given: then its lengths and blocks only.

    ``start``, ``speed``, ``spread``, ``most_input`` and ``most_output`` are those of `traces.Window`.
    """

    arrivals: Arrivals | None = None
    path: Path
    start: float = 0.0
    speed: float = 1.0
    spread: bool = False
    most_input: int | None = None
    most_output: int | None = None

    @property
    def title(self) -> str:
        name = f"{self.path.name} ({kind_of(self.path)})"
        if self.most_input or self.most_output:
            name += f", at most {self.most_input or 'all'} in, {self.most_output or 'all'} out"
        if self.arrivals is not None:
            return f"{name}, {self.arrivals.title}"
        return name if self.speed == 1 else f"{name} x {self.speed:g}"

    def outlines(self) -> Iterator[Outline]:
        duration = self.duration if self.arrivals is None else None
        window = Window(self.start, duration, self.speed, self.requests, self.spread, self.most_input, self.most_output)
        rows = read_trace(self.path, window)
        if self.arrivals is None:
            for index, row in enumerate(rows):
                yield Outline(index, row.at, row.input_tokens, row.output_tokens, row.blocks)
        else:
            for index, (at, row) in enumerate(zip(self._times(), rows, strict=False)):
                yield Outline(index, at, row.input_tokens, row.output_tokens, row.blocks)


def _behind(one: Outline, group: int, shared: int) -> Outline:
    tokens = shared + one.input_tokens
    return msgspec.structs.replace(
        one, input_tokens=tokens, blocks=(group,), block_tokens=shared, group=f"prefix-{group}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what is asked; `from_args` reads them. Texts stay texts, so that they can be noted."""
    group = parser.add_argument_group("what is asked")
    add = group.add_argument
    add(
        "--arrivals",
        type=_checked(parse_arrivals),
        metavar="FORM",
        help=f"when requests are sent, in requests per second: {arrivals_.FORMS}. Burstiness 1 is poisson, less comes "
        f"in bursts; closed keeps so many requests running and waits for answers. Default: {ARRIVALS}, or the "
        "trace's own times",
    )
    add(
        "--requests",
        "--limit",
        type=_whole(1),
        metavar="N",
        help=f"most requests; default: {REQUESTS} if nothing else ends the run, or the whole trace",
    )
    add(
        "--duration",
        type=_checked(parse_time),
        metavar="TIME",
        help="requests are sent for so long, such as 90s or 5m; default: no limit",
    )
    add(
        "--input",
        type=_checked(parse_distribution),
        metavar="TOKENS",
        help=f"a prompt's tokens: {lengths_.FORMS}; default: {INPUT}",
    )
    add(
        "--output",
        type=_checked(parse_distribution),
        metavar="TOKENS",
        help=f"an answer's tokens, in the same forms; default: {OUTPUT}",
    )
    add(
        "--shared-prefix",
        type=_whole(1),
        metavar="TOKENS",
        help="so many tokens, the same for all requests of a group, come in front of the prompt; default: none",
    )
    add("--groups", type=_whole(1), metavar="N", help="how many shared prefixes there are; default: 1")
    add(
        "--turns",
        type=_checked(parse_distribution),
        metavar="N",
        help="ask in conversations of so many turns, in the forms of --input: --arrivals says when they begin, --input "
        "how long each new question is, and answers stay in the prompt; default: single requests",
    )
    add(
        "--think",
        type=_checked(parse_distribution),
        metavar="SECONDS",
        help="from an answer's end to the conversation's next question, in the forms of --input; default: 0",
    )
    trace = parser.add_argument_group("what is asked: a trace instead")
    trace.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="ask what a trace asked, at its times: Mooncake JSONL, Azure LLM CSV, BurstGPT CSV or the file of a run's "
        "requests; with --arrivals only its lengths and common prefixes count",
    )
    trace.add_argument("--speed", type=_factor, metavar="FACTOR", help="play the trace so much faster; default: 1")
    trace.add_argument(
        "--trace-start", type=_checked(parse_time), metavar="TIME", help="leave out so much of the trace; default: 0"
    )
    trace.add_argument(
        "--spread",
        action="store_true",
        help="space requests evenly between a trace's times where these are coarse, as Mooncake's: 3 s apart",
    )
    trace.add_argument(
        "--most-input",
        type=_whole(1),
        metavar="TOKENS",
        help="cut longer prompts of the trace to so many tokens, for a model whose context is shorter; default: no cut",
    )
    trace.add_argument(
        "--most-output", type=_whole(1), metavar="TOKENS", help="cut longer answers of the trace; default: no cut"
    )
    text = parser.add_argument_group("what is asked: the text")
    text.add_argument(
        "--tokenizer",
        metavar="MODEL",
        help="the model's tokenizer, for exact lengths: a folder, a tokenizer.json or a hub id; default: English words "
        "that are one token each for most models",
    )
    text.add_argument(
        "--prompt-form",
        choices=("chat", "text", "tokens"),
        default="chat",
        help="chat asks /v1/chat/completions; text and tokens (ids) ask /v1/completions; default: chat",
    )
    text.add_argument(
        "--seed",
        type=_whole(0),
        default=0,
        metavar="N",
        help="the same seed asks the same, at the same times; default: 0",
    )


def from_args(args: argparse.Namespace, *, prompts: bool = True) -> Load:
    """The workload that the options of `add_arguments` describe. Without ``prompts`` no tokenizer is loaded.

    Raises:
        WorkloadError: options don't go together, or a file can't be read.
    """
    _check_together(args)
    form = cast(Form, args.prompt_form)
    common: dict[str, Any] = {
        "seed": args.seed,
        "requests": args.requests,
        "duration": None if args.duration is None else parse_time(args.duration),
        "form": form,
    }
    if prompts and args.tokenizer is not None:
        common["wording"] = load_wording(args.tokenizer, form)
    if args.trace is not None:
        kind_of(args.trace)
        return Trace(
            **common,
            arrivals=None if args.arrivals is None else parse_arrivals(args.arrivals),
            path=args.trace,
            start=0.0 if args.trace_start is None else parse_time(args.trace_start),
            speed=args.speed or 1.0,
            spread=args.spread,
            most_input=args.most_input,
            most_output=args.most_output,
        )
    arrivals = parse_arrivals(args.arrivals or ARRIVALS)
    endless = isinstance(arrivals, ClosedLoop) or arrivals.seconds == float("inf")
    if endless and args.requests is None and args.duration is None:
        common["requests"] = REQUESTS
    common |= {
        "arrivals": arrivals,
        "input": parse_distribution(args.input or INPUT, "input"),
        "output": parse_distribution(args.output or OUTPUT, "output"),
        "shared": args.shared_prefix or 0,
        "groups": args.groups or 1,
    }
    if args.turns is None:
        return Synthetic(**common)
    return Conversations(**common, turns=parse_distribution(args.turns), think=parse_distribution(args.think or "0"))


def _check_together(args: argparse.Namespace) -> None:
    if args.trace is None:
        alone = {
            "--speed": args.speed,
            "--trace-start": args.trace_start,
            "--spread": args.spread or None,
            "--most-input": args.most_input,
            "--most-output": args.most_output,
        }
        wanted = "--trace FILE"
    else:
        named = ("input", "output", "shared_prefix", "groups", "turns", "think")
        alone = {f"--{name.replace('_', '-')}": getattr(args, name) for name in named}
        wanted = "requests without --trace, which has its own lengths"
    given = [option for option, value in alone.items() if value is not None]
    if given:
        raise WorkloadError(f"{given[0]} is for {wanted}")
    if args.groups is not None and args.shared_prefix is None:
        raise WorkloadError("--groups says how many prefixes there are: say with --shared-prefix how long they are")
    if args.think is not None and args.turns is None:
        raise WorkloadError("--think is the time between a conversation's turns: say with --turns how many there are")
    if args.trace is not None and args.arrivals is not None and args.speed is not None:
        raise WorkloadError("--speed changes a trace's own times, and --arrivals takes their place: give one of them")


def _checked(parse: Callable[[str], Any]) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            parse(text)
        except WorkloadError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return check


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return int(text)

    return parse


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no factor above 0: write 2 for twice as fast")
    return value
