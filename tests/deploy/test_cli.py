"""The command line itself: help, usage errors, the one line an error becomes, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.errors import UnknownAdapter
from deploy import cli, local
from deploy.exits import Exit

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("serve", "config", "train", "base", "demo", "adapters")
ADAPTER_COMMANDS = (
    "publish",
    "list",
    "show",
    "check",
    "merge",
    "alias",
    "rollback",
    "history",
    "retire",
    "restore",
)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, home: Path) -> Callable[[BaseException], None]:
    """Makes `onebase adapters list` end with an error."""

    def arrange(error: BaseException) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(local, "registry", fail)

    monkeypatch.delenv("ONEBASE_DEBUG", raising=False)
    return arrange


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    assert [name for name in COMMANDS if f"  {name} " not in result.stdout] == []
    assert "..." not in result.stdout.partition("Commands:")[2], "a summary that is cut off"
    result = CliRunner().invoke(cli.app, ["adapters", "--help"])
    assert [name for name in ADAPTER_COMMANDS if f"  {name} " not in result.stdout] == []
    assert "..." not in result.stdout.partition("Commands:")[2], "a summary that is cut off"


@pytest.mark.parametrize("command", [*COMMANDS, *(f"adapters {name}" for name in ADAPTER_COMMANDS)])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*command.split(), "--help"]) == 0
    assert capsys.readouterr().out.startswith("Usage: onebase ")


def test_help_is_fast_because_nothing_heavy_is_imported() -> None:
    heavy = ["torch", "transformers", "vllm", "datasets", "peft", "numpy", "pydantic", "fastapi", "yaml"]
    code = (
        "import sys; from deploy import cli; code = cli.run(['--help']);"
        f"print([name for name in {heavy!r} if name in sys.modules]); sys.exit(code)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - started < 5, "0.2 s on a quiet machine"


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("onebase 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "No such command 'nope'"),
        (["adapters"], "Missing command"),
        (["adapters", "list", "--nope"], "No such option: --nope"),
        (["adapters", "alias", "a", "b", "x"], "Invalid value for 'version'"),
        (["adapters", "merge", "a"], "Missing option '--out'"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_its_help(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == Exit.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert "--help` shows what there is" in captured.err
    assert captured.err.count("\n") == 1


def test_an_error_is_one_line_and_its_exit_code(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(UnknownAdapter("suport", ["support"]))
    assert cli.run(["adapters", "list"]) == Exit.NOT_FOUND
    assert capsys.readouterr().err == "error: There is no adapter named `suport`. Did you mean `support`?\n"


def test_a_defect_is_one_line_too_and_says_so(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(ZeroDivisionError("division by zero"))
    assert cli.run(["adapters", "list"]) == Exit.INTERNAL
    said = capsys.readouterr().err
    assert said.startswith("error: internal error, ZeroDivisionError: division by zero")
    assert said.count("\n") == 1


@pytest.mark.parametrize("by", ["option", "environment"])
def test_debug_shows_the_stack_trace(
    by: str,
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(UnknownAdapter("x"))
    if by == "environment":
        monkeypatch.setenv("ONEBASE_DEBUG", "1")
    arguments = ["--debug"] if by == "option" else []
    assert cli.run([*arguments, "adapters", "list"]) == Exit.NOT_FOUND
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "error: There is no adapter" in said


def test_ctrl_c_is_one_line(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(KeyboardInterrupt())
    assert cli.run(["adapters", "list"]) == Exit.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_left_is_no_error(home: Path) -> None:
    """`onebase ... | head -1`: the pipe closes before everything is written."""
    code = "import sys; from deploy import cli; sys.exit(cli.run(['config']))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert done.returncode == Exit.CUT_OFF
    assert done.stderr == b""


def test_config_tells_the_origin_of_every_setting(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("max_loras: 4\nmax_waiting: 9\n", encoding="utf-8")
    monkeypatch.setenv("ONEBASE_MAX_WAITING", "10")
    arguments = [
        "config",
        "some/model",
        "--json",
        "--config",
        str(file),
        "--port",
        "9",
        "--enforce-eager",
        "-tp=2",
    ]
    assert cli.run(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    settings = {row["key"]: (row["value"], row["from"]) for row in shown["settings"]}
    assert settings["model"] == ("some/model", "command line")
    assert settings["port"] == ("9", "command line")
    assert settings["max_waiting"] == ("10", "environment ONEBASE_MAX_WAITING")
    assert settings["max_loras"] == ("4", f"file {file}")
    assert settings["host"] == ("127.0.0.1", "default")
    assert shown["vllm_flags"] == ["--enforce-eager", "-tp=2"]


def test_the_default_home_is_in_this_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not a folder called `~` in the current one: defaults are expanded as well (validate_default)."""
    monkeypatch.delenv("ONEBASE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local.settings().home == tmp_path / ".onebase"


def test_config_as_a_table(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", "--enable-prefix-caching"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["setting", "value", "from", "what", "it", "is"]
    assert lines[-1] == "handed to vLLM: --enable-prefix-caching"


def test_an_unknown_setting_in_the_environment_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONEBASE_MAX_LORA", "3")
    assert cli.run(["adapters", "list"]) == Exit.USAGE
    assert "max_loras" in capsys.readouterr().err


def test_serve_hands_every_other_flag_to_vllm_unchanged(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    seen = []
    fake = types.ModuleType("server.app")
    fake.main = lambda loaded: seen.append(loaded) or 3  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, "server.app", fake)
    flags = ["--tensor-parallel-size", "2", "-O3", "--compilation-config.pass.x=1", "--override", '{"a": 1}']
    assert cli.run(["serve", "org/model@rev", "--max-loras", "8", *flags]) == 3
    (loaded,) = seen
    assert loaded.settings.model == "org/model@rev"
    assert loaded.settings.max_loras == 8
    assert list(loaded.vllm_flags) == flags
