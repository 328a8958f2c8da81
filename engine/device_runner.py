"""How is a planned step executed on a GPU?

What a step needs of its requests stays on the device (`kernels.step_inputs`): the host sends one small message, which
row goes on from where and the tokens it knows, and launches two graphs. The *body* makes the step's inputs and runs the
layers; the *tail* has the head and the sampler, and leaves each token where the next step finds it. So step N+1 is
launched while N runs, and the host never waits for more than the results of the step before.

A tail can't be launched at once if the host must still say what may be drawn (grammars, penalties, bans): it needs the
tokens of the step before for that. Then `draw` does its work, without a graph, while the body runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import numpy as np
import torch

from engine.constraints import Masks
from engine.device_queue import DeviceQueue, queue_for
from engine.graphs import Shape, decode_shapes, fit, mixed_shapes
from engine.job import Job
from engine.models.decoder import Decoder, StepInputs
from engine.rows import Rows, Updates
from engine.runner import ProgressCallback, Runner, StepResult, Top, draws, show_readers, tops_of, with_embeddings
from engine.sampler import sampling_batch
from engine.sketch import Sketcher, asking, keep
from kernels.kv_cache import allocate
from kernels.paged_attention import AttentionMetadata, plan
from kernels.sample import Samples, SamplingBatch, sample
from kernels.step_inputs import PARAMETERS, RequestState, StepBuffers, StepRequest, prepare, update
from kernels.warm_up import warm_up as warm_up_kernels
from scheduler.batch import Plan, Slice

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# The likeliest tokens that a graph reports beside each; OpenAI's most. Who wants more is drawn without a graph.
TOP: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimits:
    """What the runner's memory is laid out for, and its switches.

    Foreground and background requests together are at most twice ``max_running``; one step takes ``max_running`` of
    them and ``max_batch_tokens``. ``graphs``: small steps are captured. ``ahead``: steps are planned while one runs.
    """

    max_running: int
    max_batch_tokens: int
    max_model_len: int
    graphs: bool = True
    ahead: bool = True


@dataclass(slots=True)
class _Step:
    """A step under way. ``rows`` [S, hidden] are its sequences' last hidden states, until another step is launched.

    ``results`` gives what was drawn for the sequences ``drawing``, once that is on its way, and ``sketches`` those of
    the prompts of the jobs ``sketched``.
    """

    slices: Sequence[Slice[Job]]
    drawing: list[int]
    rows: torch.Tensor
    results: Callable[[], torch.Tensor] | None = None
    sketched: Sequence[Job] = ()
    sketches: Callable[[], torch.Tensor] | None = None


@dataclass(slots=True)
class _Graphs:
    """What was captured: bodies by shape, tails by their number of sequences."""

    shapes: list[Shape] = field(default_factory=list)
    bodies: dict[Shape, Callable[[], None]] = field(default_factory=dict)
    tails: dict[int, Callable[[], torch.Tensor]] = field(default_factory=dict)


class DeviceRunner(Runner):
    """Executes steps of one model, with a pool of ``num_blocks`` KV blocks of ``block_size`` tokens each.

    ``queue`` is how the model's device is spoken to. The cache has ``kv_dtype``, the model's unless it is told.
    """

    def __init__(
        self,
        model: Decoder,
        num_blocks: int,
        block_size: int,
        limits: DeviceLimits,
        *,
        kv_dtype: torch.dtype | None = None,
        queue: DeviceQueue | None = None,
    ) -> None:
        config, device = model.config, model.device
        self.ahead = limits.ahead
        self._limits = limits
        self._model = model
        self._queue = queue or queue_for(device)
        self._masks = Masks(config.vocab_size)
        self._sketcher = Sketcher(model)
        self._windows = sorted(set(config.windows))
        most = limits.max_running
        longest = limits.max_model_len
        self._shapes = sorted(decode_shapes(most) + mixed_shapes(most, longest)) if limits.graphs else []
        self._graphs = _Graphs()
        # Padding writes to a block of its own, and has a table of nothing else.
        self._caches = [
            allocate(num_blocks + 1, config.num_kv_heads, config.head_dim, block_size, kv_dtype or model.dtype, device)
            for _ in range(config.num_layers)
        ]
        width = -(-longest // block_size)
        self._rows = Rows(2 * most + 1, width)
        state = torch.zeros(self._rows.padding + 1, PARAMETERS + width, dtype=torch.int32, device=device)
        state[self._rows.padding, PARAMETERS:] = num_blocks
        self._state = RequestState(state, torch.zeros(len(state), dtype=torch.int64, device=device), block_size)
        tokens = max([limits.max_batch_tokens, *(shape.tokens for shape in self._shapes)])
        self._buffers = StepBuffers.empty(most + 1, tokens, width, device)
        self._inbox = torch.zeros(_length(Shape(tokens, most + 1)), dtype=torch.int32, device=device)
        self._last_rows = torch.zeros(most + 1, config.hidden_size, dtype=model.dtype, device=device)
        self._nothing = _no_edits(most + 1, config.vocab_size, device)

    def launch(self, plan: Plan[Job]) -> _Step:
        step, shape = self._launch(plan.slices)
        if step.drawing and _is_plain(step):
            with torch.inference_mode():
                tail = self._graphs.tails.get(shape.sequences)
                results = tail() if tail else self._tail(shape.sequences, _width(step))
                step.results = self._queue.fetch(results[: len(step.slices)])
        self._sketch(step)
        return step

    def draw(self, step: _Step) -> None:
        if step.results is not None or not step.drawing:
            return
        jobs = [step.slices[place].request for place in step.drawing]
        mask = self._masks.finish(jobs, self._masks.begin(jobs))
        put = self._queue.put
        with torch.inference_mode():
            places = put(np.array(step.drawing, np.int64))
            logits = self._model.logits(step.rows[places])
            samples = sample(logits, sampling_batch(jobs, mask, put))
            self._state.last[self._buffers.owners[places]] = samples.tokens
            step.results = self._queue.fetch(_packed(samples))

    def land(self, step: _Step) -> StepResult:
        result = StepResult([], [], [], [], [])
        if step.results is not None:
            table = step.results()
            if len(table) > len(step.drawing):
                table = table[step.drawing]
            result = _result([step.slices[place].request for place in step.drawing], table)
        if step.sketches is not None:
            keep(step.sketched, step.sketches())
        return with_embeddings(step.slices, result)

    def logits(self, slices: Sequence[Slice[Job]]) -> torch.Tensor:
        step, _ = self._launch(slices)
        with torch.inference_mode():
            return self._model.logits(step.rows[step.drawing])

    def warm_up(self, progress: ProgressCallback = lambda stage, done, total: None) -> None:
        warm_up_kernels(self._model.device, self._model.dtype, progress)
        # The largest first: what a smaller graph needs of memory is then there already.
        shapes = sorted(self._shapes, reverse=True)
        for done, shape in enumerate(shapes):
            progress("graphs", done, len(shapes))
            with torch.inference_mode():
                self._capture(shape)
        if shapes:
            progress("graphs", len(shapes), len(shapes))
        else:
            self.rehearse()
        self._graphs.shapes = self._shapes
        with torch.inference_mode():
            self._sketcher.sketch(self._last_rows[:1])

    def rehearse(self) -> None:
        """Run the largest step there can be, over nothing but padding."""
        limits, count = self._limits, self._limits.max_running + 1
        share = min(-(-limits.max_batch_tokens // count), limits.max_model_len)
        shape = Shape(min(limits.max_batch_tokens, share * count), count)
        message = np.zeros(_length(shape), np.int32)
        rows, _, query_starts, _ = _parts(message, shape)
        rows[:] = self._rows.padding
        query_starts[:] = np.minimum(np.arange(shape.sequences + 1) * share, shape.tokens)
        with torch.inference_mode():
            self._queue.put(message, self._inbox[: len(message)])
            self._body(shape)
            self._tail(shape.sequences, TOP)

    def _capture(self, shape: Shape) -> None:
        """Capture a body, and a tail unless there is one for as many sequences, on a step of nothing but padding."""
        nothing = np.empty(0, np.int32)
        self._send([], [], shape, Updates(nothing, nothing))

        def body() -> None:
            self._body(shape)

        self._graphs.bodies[shape] = self._queue.capture(body)
        if shape.sequences not in self._graphs.tails:
            self._graphs.tails[shape.sequences] = self._queue.capture(lambda: self._tail(shape.sequences, TOP))

    def _launch(self, slices: Sequence[Slice[Job]]) -> tuple[_Step, Shape]:
        """Run the layers over the slices; the step, and the shape that it was padded to."""
        exact = Shape(sum([piece.count for piece in slices]), len(slices))
        reading = any(piece.request.reader is not None and not piece.request.reader.done for piece in slices)
        captured = None if reading else fit(exact, self._graphs.shapes)
        shape = captured or exact
        rows, updates = self._rows.place(slices)
        with torch.inference_mode():
            starts = self._send(slices, rows, shape, updates)
            if captured:
                self._graphs.bodies[shape]()
            else:
                hidden = self._body(shape)
                if reading:
                    show_readers(self._model, slices, starts, hidden)
        drawing = [place for place, piece in enumerate(slices) if draws(piece)]
        return _Step(slices, drawing, self._last_rows[: shape.sequences]), shape

    def _sketch(self, step: _Step) -> None:
        """Have the sketches made that are due, of the last hidden states as they are now."""
        asked = asking([step.slices[place] for place in step.drawing])
        if asked:
            places = [step.drawing[place] for place in asked]
            step.sketched = [step.slices[place].request for place in places]
            with torch.inference_mode():
                sketches = self._sketcher.sketch(step.rows[self._queue.put(np.array(places, np.int64))])
                step.sketches = self._queue.fetch(sketches)

    def _send(self, slices: Sequence[Slice[Job]], rows: Sequence[int], shape: Shape, updates: Updates) -> np.ndarray:
        """Tell the device what the step consists of; where each of its sequences begins."""
        message = np.zeros(_length(shape), np.int32)
        own_rows, starts, query_starts, token_ids = _parts(message, shape)
        real = len(slices)
        own_rows[:real] = rows
        own_rows[real:] = self._rows.padding
        starts[:real] = [piece.start for piece in slices]
        if shape.decodes_only:
            query_starts[:] = np.arange(shape.sequences + 1)
            token_ids[:real] = [piece.request.tokens[piece.start] for piece in slices]
        else:
            np.cumsum([piece.count for piece in slices], dtype=np.int32, out=query_starts[1 : real + 1])
            query_starts[real + 1 :] = shape.tokens
            begin = 0
            for piece in slices:
                token_ids[begin : begin + piece.count] = piece.request.tokens[piece.start : piece.start + piece.count]
                begin += piece.count
        if len(updates.places):
            update(self._state, self._queue.put(updates.places), self._queue.put(updates.values))
        self._queue.put(message, self._inbox[: len(message)])
        return query_starts

    def _body(self, shape: Shape) -> torch.Tensor:
        """Make the step's inputs and run the layers, over what was sent last: all hidden states [T, hidden]."""
        parts = _parts(self._inbox[: _length(shape)], shape)
        request = StepRequest(*parts)
        buffers = self._buffers.first(shape.sequences, shape.tokens)
        prepare(self._state, request, buffers)
        attention = AttentionMetadata(
            query_starts=request.query_starts,
            context_lengths=buffers.context_lengths,
            block_tables=buffers.block_tables,
            decodes_only=shape.decodes_only,
        )
        attention = plan(attention, self._windows)
        step = StepInputs(buffers.token_ids, buffers.positions, buffers.slots, attention)
        hidden = self._model.hidden_states(step, self._caches)
        torch.index_select(hidden, 0, buffers.sampled, out=self._last_rows[: shape.sequences])
        return hidden

    def _tail(self, sequences: int, width: int) -> torch.Tensor:
        """Draw a token for each sequence: a table as `_packed` makes it."""
        own = self._buffers.first(sequences, 0)
        batch = replace(
            self._nothing,
            temperature=own.temperature,
            top_k=own.top_k,
            top_p=own.top_p,
            min_p=own.min_p,
            seed=own.seed,
            position=own.position,
            edit_starts=self._nothing.edit_starts[: sequences + 1],
            mask_row=self._nothing.mask_row[:sequences],
            top=own.top,
            width=width,
        )
        samples = sample(self._model.logits(self._last_rows[:sequences]), batch)
        self._state.last.index_copy_(0, own.owners, samples.tokens)
        return _packed(samples)


def step_bytes(model: Decoder, block_size: int, limits: DeviceLimits) -> int:
    """What the largest step takes of a GPU's memory beside weights and KV cache: measured, by running one."""
    device = model.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    DeviceRunner(model, 1, block_size, replace(limits, graphs=False)).rehearse()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return peak


def _length(shape: Shape) -> int:
    """Of a step's message, which has the `_parts`."""
    return 3 * shape.sequences + 1 + shape.tokens


def _parts(message: Array, shape: Shape) -> list[Array]:
    """A step's message as rows, starts, query starts and token ids."""
    count = shape.sequences
    ends: list[int] = [count, 2 * count, 3 * count + 1, _length(shape)]
    return [message[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _no_edits(rows: int, vocabulary: int, device: torch.device) -> SamplingBatch:
    """What a batch has where nothing is edited or masked; the other fields are empty."""

    def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    unused = empty(torch.float32, 0)
    return SamplingBatch(
        temperature=unused,
        top_k=unused,
        top_p=unused,
        min_p=unused,
        seed=unused,
        position=unused,
        edited=empty(torch.int32, 0),
        edit_starts=empty(torch.int32, rows + 1),
        edit_scale=empty(torch.float32, 0),
        edit_offset=empty(torch.float32, 0),
        mask=empty(torch.int32, 0, (vocabulary + 31) // 32),
        mask_row=empty(torch.int32, rows) - 1,
        top=unused,
        width=0,
    )


def _is_plain(step: _Step) -> bool:
    """Whether nothing that the host has to say decides what may be drawn."""
    jobs = [step.slices[place].request for place in step.drawing]
    return all(job.edits is None and job.constraint is None and job.sampling.top_logprobs <= TOP for job in jobs)


def _width(step: _Step) -> int:
    """The most likeliest tokens that a sequence of the step asks for."""
    return max(step.slices[place].request.sampling.top_logprobs for place in step.drawing)


def _packed(samples: Samples) -> torch.Tensor:
    """[R, 4 + 2 K] int32, to travel in one piece: a column for each field of `Samples`, or K for the likeliest."""
    columns = (
        samples.tokens.int()[:, None],
        samples.logprobs.view(torch.int32)[:, None],
        samples.entropies.view(torch.int32)[:, None],
        samples.low_margins[:, None],
        samples.top_tokens,
        samples.top_logprobs.view(torch.int32),
    )
    return torch.cat(columns, dim=1)


def _result(jobs: Sequence[Job], table: torch.Tensor) -> StepResult:
    """What `_packed` packed, for ``jobs``."""
    values = table.view(torch.float32)
    width = (table.shape[1] - 4) // 2
    tops: list[Top | None] = [None] * len(jobs)
    counts = [job.sampling.top_logprobs for job in jobs]
    if any(counts):
        tops = tops_of(counts, table[:, 4 : 4 + width].tolist(), values[:, 4 + width :].tolist())
    return StepResult(table[:, 0].tolist(), values[:, 1].tolist(), values[:, 2].tolist(), table[:, 3].tolist(), tops)
