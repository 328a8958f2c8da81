"""What the tests of the gateway share."""

from pathlib import Path

import pytest

from tests.gateway.fake_worker import write_model_folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fake model: a token a byte."""
    return write_model_folder(tmp_path_factory.mktemp("model") / "fake")
