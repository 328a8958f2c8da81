"""How does a SentencePiece model become a tokenizer.json? transformers converts it, in a process of its own.

``python -m gateway.text.convert FOLDER OUT`` writes ``OUT``. A process of its own because transformers' tokenizer
classes import torch where it is installed, which the gateway must not.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import tokenizers

PACKAGES: Final = {"google.protobuf": "protobuf", "sentencepiece": "sentencepiece"}
"""What transformers reads SentencePiece models with: module and package."""


class ConversionError(Exception):
    """The folder's tokenizer could not be converted."""


def convert(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of ``folder``, which has no tokenizer.json. Takes some seconds.

    Raises:
        ConversionError: a package is missing that transformers needs for it, or with the last line of what it said.
    """
    if missing := [package for module, package in PACKAGES.items() if not _installed(module)]:
        raise ConversionError(f"that takes packages which are missing: pip install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="penstock-") as scratch:
        out = Path(scratch) / "tokenizer.json"
        done = subprocess.run(
            [sys.executable, "-m", "gateway.text.convert", str(folder), str(out)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise ConversionError(lines[-1])
        return tokenizers.Tokenizer.from_file(str(out))


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def main(folder: str, out: str) -> int:
    """Write the tokenizer of ``folder`` to the file ``out``; the exit status."""
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
        backend.save(out)
    except Exception as error:  # whatever transformers makes of a broken file
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
