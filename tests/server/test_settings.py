"""Settings: precedence, unknown keys, and which flags are handed on to vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import SettingsError
from server.settings import Settings, explain, flag_help, parse_command_line


def test_command_line_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "onebase.yaml"
    file.write_text("port: 1111\nhost: 0.0.0.0\nmax_waiting: 7\n")
    environ = {"ONEBASE_PORT": "2222", "ONEBASE_MAX_WAITING": "8"}
    loaded = parse_command_line(["--config", str(file), "--port", "3333"], environ)
    assert loaded.settings.port == 3333
    assert loaded.settings.max_waiting == 8
    assert loaded.settings.host == "0.0.0.0"
    assert loaded.settings.max_wait_s == Settings().max_wait_s
    assert loaded.origin["port"] == "command line"
    assert loaded.origin["max_waiting"] == "environment ONEBASE_MAX_WAITING"
    assert loaded.origin["host"] == f"file {file}"
    assert loaded.origin["max_wait_s"] == "default"


def test_what_is_not_ours_goes_to_vllm_unchanged() -> None:
    flags = [
        "some/model",
        "--port",
        "9",
        "--tensor-parallel-size",
        "2",
        "--quantization=awq",
        "--enforce-eager",
    ]
    loaded = parse_command_line(flags, {})
    assert loaded.settings.model == "some/model"
    assert loaded.vllm_flags == ("--tensor-parallel-size", "2", "--quantization=awq", "--enforce-eager")


def test_the_model_may_stand_after_our_flags() -> None:
    assert parse_command_line(["--port", "9", "some/model"], {}).settings.model == "some/model"


def test_keys_come_repeated_or_with_commas() -> None:
    assert parse_command_line(["--api-key", "a", "--api-key", "b"], {}).settings.api_keys == ("a", "b")
    assert parse_command_line([], {"ONEBASE_API_KEYS": "a,b"}).settings.api_keys == ("a", "b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prt: 1", "did you mean `port`"),
        ("port: many", "port = 'many'"),
        ("- 1", "key: value"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_bad_file_names_key_value_and_mend(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "onebase.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r".") as refused:
        parse_command_line(["--config", str(file)], {})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(SettingsError, match="ONEBASE_PROT"):
        parse_command_line([], {"ONEBASE_PROT": "1"})


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        parse_command_line(["--config", "/nowhere/x.yaml"], {})


def test_explain_hides_keys_and_lists_every_setting() -> None:
    rows = explain(parse_command_line(["--api-key", "secret"], {}))
    assert [row[0] for row in rows] == list(Settings.model_fields)
    assert "secret" not in str(rows)
    assert len(flag_help()) == len(Settings.model_fields)


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("argv", [["--api-key", ""], ["--api-key", "secret", "--api-key", " "]])
def test_an_empty_key_is_refused_and_no_key_is_shown(argv: list[str]) -> None:
    with pytest.raises(SettingsError, match="empty key") as refused:
        parse_command_line(argv, {})
    assert "secret" not in str(refused.value)


def test_underscores_in_flags_mean_the_same_setting() -> None:
    loaded = parse_command_line(["--max_model_len=512", "--some_flag", "a_b", "--json.key_one=1"], {})
    assert loaded.settings.max_model_len == 512
    assert loaded.vllm_flags == ("--some-flag", "a_b", "--json.key_one=1")
