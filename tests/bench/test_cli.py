import pytest

import penstock
from bench.cli import PARTS


def test_help_names_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        penstock.main(["bench", "--help"])
    assert ended.value.code == 0
    page = capsys.readouterr().out
    assert all(f"    {name} " in page for name in PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        penstock.main(["bench", name, "--help"])
    assert ended.value.code == 0
    assert PARTS[name].description.split()[0] in capsys.readouterr().out


def test_a_part_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        penstock.main(["bench"])
    assert ended.value.code == 2
    assert "PART" in capsys.readouterr().err
