"""How does a SentencePiece model become a tokenizer.json? transformers converts it, in a process of its own.

``python -m gateway.text.convert FOLDER OUT`` writes ``OUT``. A process of its own because transformers' tokenizer
classes import torch where it is installed, which the gateway must not.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import tokenizers


class ConversionError(Exception):
    """The folder's tokenizer could not be converted."""


def convert(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of ``folder``, which has no tokenizer.json. Takes some seconds.

    Raises:
        ConversionError: with the last line of what transformers said.
    """
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
