"""Copies a model and spoils its weights, so that there is a bad canary to try a rollout with.

python examples/break_model.py FOLDER [--noise 0.5] [--of MODEL]
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from engine.demo import MODEL_FOLDER


def main() -> None:
    parser = argparse.ArgumentParser(description="Copy a model and add noise to its weights.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the copy goes")
    parser.add_argument("--of", type=Path, default=MODEL_FOLDER, metavar="MODEL", help="a model's folder (the demo's)")
    parser.add_argument("--noise", type=float, default=0.5, help="in standard deviations of each matrix (%(default)s)")
    args = parser.parse_args()
    shutil.copytree(args.of, args.folder, dirs_exist_ok=True)
    random = torch.Generator().manual_seed(1)
    for file in args.folder.glob("*.safetensors"):
        weights = load_file(file)
        for name, values in weights.items():
            if values.ndim == 2:
                noise = torch.randn(values.shape, generator=random) * values.float().std() * args.noise
                weights[name] = (values.float() + noise).to(values.dtype)
        save_file(weights, file, metadata={"format": "pt"})
    print(f"{args.folder}: a copy of {args.of.name} with {args.noise:g} standard deviations of noise")


if __name__ == "__main__":
    main()
