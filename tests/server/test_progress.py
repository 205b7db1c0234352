"""What a person sees at start, and that its record can never be in the way."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from server.progress import StartProgress


def quiet() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=100)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_elsewhere_than_on_a_terminal_it_is_one_line_a_phase(tmp_path: Path) -> None:
    console = quiet()
    with StartProgress(tmp_path / "start.json", console=console) as progress:
        for name in ("base model", "engine"):
            with progress.phase(name):
                pass
    assert text(console).splitlines() == ["base model: about 2 s", "engine: about 28 s"]


def test_the_next_start_knows_how_long_it_takes(tmp_path: Path) -> None:
    record = tmp_path / "deep" / "start.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"engine": 7.4}))
    console = quiet()
    with StartProgress(record, console=console) as progress, progress.phase("engine"):
        pass
    assert text(console) == "engine: about 7 s\n"
    assert json.loads(record.read_text())["engine"] < 1


def test_on_a_terminal_a_bar_moves_and_leaves_nothing(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with StartProgress(tmp_path / "start.json", console=console) as progress, progress.phase("engine"):
        pass
    assert "about" not in text(console)
    assert "engine" in json.loads((tmp_path / "start.json").read_text())


def test_a_start_that_fails_or_was_cut_short_teaches_nothing(tmp_path: Path) -> None:
    record = tmp_path / "start.json"

    def fail() -> None:
        with StartProgress(record, console=quiet()) as progress, progress.phase("engine"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not record.exists()
    with StartProgress(record, console=quiet()) as progress:
        with progress.phase("engine"):
            pass
        progress.forget("engine")
    assert not record.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b'{"engine": "x"}', b'{"engine": null}', b'{"engine": []}', b"\xff\xfe"],
)
def test_a_broken_record_is_ignored(tmp_path: Path, content: bytes) -> None:
    record = tmp_path / "start.json"
    record.write_bytes(content)
    console = quiet()
    with StartProgress(record, console=console) as progress, progress.phase("engine"):
        pass
    assert text(console) == "engine: about 28 s\n"


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        StartProgress(tmp_path / "file" / "start.json", console=quiet()) as progress,
        progress.phase("engine"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "in the way"
