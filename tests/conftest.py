"""What must be settled before anything is imported: without a GPU, Triton kernels are interpreted. And no property is
held to a time: the machine may be busy."""

import os
import shutil

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
