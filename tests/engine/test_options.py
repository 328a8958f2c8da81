import argparse

import pytest

from engine.options import WorkerOptions, add_arguments, from_args, parse_size, run


def parse(*words: str) -> WorkerOptions:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_args(parser.parse_args(words))


def test_defaults_are_those_of_the_struct() -> None:
    assert parse("--listen", "unix:/tmp/x") == WorkerOptions(listen="unix:/tmp/x")


def test_everything_given() -> None:
    words = (
        "./m --listen unix:/x --adapter ./a --name n --device cpu --dtype float32 --max-model-len 100 --max-running 3 "
        "--kv-memory 2MiB --kv-dtype fp8 --gpu-memory 0.5 --block-size 8 "
        "--threads 2 --ttft 0.5 --tpot 0.1 --kv-events tcp://127.0.0.1:1 "
        "--kv-replay tcp://127.0.0.1:2 --parent-pid 7"
    )
    assert parse(*words.split()) == WorkerOptions(
        listen="unix:/x", model="./m", adapter="./a", name="n", device="cpu", dtype="float32",
        max_model_len=100, max_running=3, kv_memory=2 * 2**20, kv_dtype="fp8", gpu_memory=0.5, block_size=8, threads=2,
        ttft=0.5, tpot=0.1, kv_events="tcp://127.0.0.1:1", kv_replay="tcp://127.0.0.1:2", parent_pid=7,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--listen nowhere", "expected unix:"),
        ("--listen unix:/x --kv-memory lots", "'lots' is no size"),
        ("--listen unix:/x --gpu-memory 2", "'2' is no share"),
        ("--listen unix:/x --gpu-memory much", "'much' is no share"),
        ("--listen unix:/x --max-running 0", "'0' is no whole number above 0"),
        ("--listen unix:/x --max-running x", "'x' is no whole number above 0"),
        ("--listen unix:/x --ttft nan", "'nan' is no number of seconds above 0"),
        ("--listen unix:/x --tpot x", "'x' is no number of seconds above 0"),
    ],
)
def test_nonsense_is_named(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*words.split())
    assert said in capsys.readouterr().err


def test_vllm_gets_its_adapters_another_way(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["--listen", "unix:/x", "--engine", "vllm", "--adapter", "./a"])) == 2
    assert "--adapter is for Penstock's own engine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("17", 17), ("2GiB", 2 << 30), ("1.5G", 1_500_000_000), ("500MB", 500_000_000), ("4 KiB", 4096)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
