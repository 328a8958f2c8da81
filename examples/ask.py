"""Asks a model small sums, several at a time, each as one of many users, until it is told to stop.

python examples/ask.py [URL] [--model chat] [--at-once 4] [--requests N]
"""

import argparse
import asyncio
import collections
import itertools
import random

import openai

_PATIENCE = 8  # questions that nobody is there to answer


async def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a model small sums, and count who answered, and how well.")
    parser.add_argument(
        "url", nargs="?", default="http://127.0.0.1:8000", metavar="URL", help="the server (%(default)s)"
    )
    parser.add_argument("--model", default="chat", help="the model's name (%(default)s)")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="requests at the same time (%(default)s)")
    parser.add_argument("--requests", type=int, metavar="N", help="how many altogether (no end)")
    args = parser.parse_args()
    client = openai.AsyncOpenAI(base_url=f"{args.url.removesuffix('/v1')}/v1", api_key="none", max_retries=0)
    asked = iter(range(args.requests)) if args.requests else itertools.count()
    counts: collections.Counter[str] = collections.Counter()

    async def ask() -> None:
        for number in asked:
            one, other = random.randint(0, 12), random.randint(0, 12)
            try:
                answer = await client.chat.completions.with_raw_response.create(
                    model=args.model,
                    messages=[{"role": "user", "content": f"What is {one} + {other}?"}],
                    user=f"user-{number}",
                )
                right = answer.parse().choices[0].message.content == str(one + other)
                counts[f"{answer.headers['x-penstock-variant']} {'right' if right else 'wrong'}"] += 1
            except openai.APIStatusError as error:
                counts[f"{error.response.headers.get('x-penstock-variant', 'nobody')} {error.status_code}"] += 1
            except openai.APIConnectionError:
                counts["nobody"] += 1
                if counts["nobody"] >= _PATIENCE:
                    return
                await asyncio.sleep(0.5)
            if counts.total() % 100 == 0:
                print(dict(sorted(counts.items())), flush=True)

    await asyncio.gather(*(ask() for _ in range(args.at_once)))
    print(dict(sorted(counts.items())))


if __name__ == "__main__":
    asyncio.run(main())
