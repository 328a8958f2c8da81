"""How fast is Penstock's engine, driven as its worker drives it, without sockets?"""

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from bench.sides import main
from engine.engine import Engine
from engine.job import Job
from engine.link import Sampling
from engine.options import WorkerOptions


class Penstock:
    """The engine with the worker's default options; the variant is ``none`` or ``int8``."""

    def __init__(self, folder: Path, variant: str) -> None:
        self.versions = {"penstock": version("penstock"), "torch": version("torch"), "numba": version("numba")}
        self._options = WorkerOptions(
            listen="unix:unused",
            model=str(folder),
            dtype="bfloat16",
            quantization="int8" if variant == "int8" else "none",
        )
        self._engine = Engine.build(self._options, lambda stage, done, total: None)
        self._next_uid = 0

    def generate(self, prompts: Sequence[Sequence[int]], output: int) -> list[int]:
        engine, options = self._engine, self._options
        sampling = Sampling(max_tokens=output, temperature=0.0, ignore_eos=True)
        arrival = time.monotonic()
        jobs = [
            Job(
                uid=self._next_uid + i,
                tokens=list(prompt),
                sampling=sampling,
                seed=i,
                max_tokens=output,
                max_len=engine.max_model_len,
                stop_ids=engine.stop_ids(sampling),
                min_tokens=0,
                arrival=arrival,
                ttft=options.ttft,
                tpot=options.tpot,
            )
            for i, prompt in enumerate(prompts)
        ]
        self._next_uid += len(jobs)
        for job in jobs:
            engine.add(job)
        while engine.busy:
            engine.step()
        return [job.generated for job in jobs]


if __name__ == "__main__":
    main(Penstock)
