"""What must be settled before anything is imported: without a GPU, Triton kernels are interpreted."""

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
