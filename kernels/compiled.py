"""Where are compiled kernels kept between two starts?

Numba keys its disk cache by the one file that a kernel is in, so a change in a module that the kernel inlines (such as
`kernels.simd`) would silently leave the old code in use. Here the folder's name is a digest of all kernel sources: any
change compiles anew, and processes of two versions never meet.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import numba


def keep_compiled_kernels() -> None:
    """Tell Numba where to keep what it compiles, unless ``NUMBA_CACHE_DIR`` does already.

    Beside the sources; where those are read-only, in the user's cache; at worst in a new private folder, for this start
    alone. Never in a shared place under a name that others can guess: what is kept there is loaded as code.
    """
    if numba.config.CACHE_DIR:
        return
    sources = Path(__file__).parent
    name = f"penstock-kernels-{_digest(sources)}"
    home = Path(os.path.expanduser("~"))
    for parent in (sources / "__pycache__", home / ".cache"):
        folder = parent / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            numba.config.CACHE_DIR = str(folder)
            return
    numba.config.CACHE_DIR = tempfile.mkdtemp(prefix=f"{name}-")


def _digest(sources: Path) -> str:
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=8)
    for path in sorted(sources.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
