"""Where is the small chat model that ships with Penstock? Its data, training, evaluation and card are made here too."""

from pathlib import Path

NAME = "penstock-demo"
MODEL_FOLDER = Path(__file__).parent / "model"
"""The shipped model, a folder in Hugging Face format."""
