import subprocess
import sys

import pytest

import penstock


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        penstock.main(["--help"])
    assert ended.value.code == 0
    page = capsys.readouterr().out
    assert all(f"    {name} " in page for name in penstock.COMMANDS)


@pytest.mark.parametrize("name", penstock.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        penstock.main([name, "--help"])
    assert ended.value.code == 0
    assert penstock.COMMANDS[name].description.split()[0] in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        penstock.main(["sreve"])
    assert ended.value.code == 2
    assert "invalid choice: 'sreve'" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        penstock.main(["--version"])
    assert capsys.readouterr().out.startswith("penstock 0.")


def test_asking_for_help_imports_neither_torch_nor_transformers() -> None:
    script = (
        "import sys, penstock\n"
        "penstock.build_parser()\n"
        "heavy = {'torch', 'transformers', 'numba'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
