from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from training.config import Source
from training.errors import DataError, DataNotFound, EmptyData, MalformedData
from training.records import Rows, read_rows


def read(folder: Path, source: dict[str, Any], data_root: Path | None = None) -> Rows:
    return read_rows(Source(**source), param="data.train", data_root=data_root, config_folder=folder)


def test_json_lines_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"x": 1}\n\n{"x": "a\u2028b"}\n')
    rows = read(tmp_path, {"file": "a.jsonl"}).rows
    assert [row.fields["x"] for row in rows] == [1, "a\u2028b"]
    assert str(rows[1].place) == f"{tmp_path}/a.jsonl:3"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"x": 1}\n{"x": \n', ":2: not a JSON object"),
        (b'{"x": 1}\n[1]\n', ":2: a JSON object is expected on each line, not a list"),
        (b'{"x": 1}\n\n{"x": "\xff"}\n', ":3: not UTF-8 text"),
    ],
)
def test_malformed_lines_name_file_and_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(MalformedData) as caught:
        read(tmp_path, {"file": "a.jsonl"})
    assert f"a.jsonl{says}" in str(caught.value)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(EmptyData, match="no rows are left"):
        read(tmp_path, {"file": "a.jsonl"})


def test_skip_and_limit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"x": {i}}}\n' for i in range(9)))
    rows = read(tmp_path, {"file": "a.jsonl", "skip": 2, "limit": 3})
    assert [row.fields["x"] for row in rows.rows] == [2, 3, 4]
    with pytest.raises(EmptyData, match="skip 9"):
        read(tmp_path, {"file": "a.jsonl", "skip": 9})


def test_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n'))
    assert read(tmp_path, {"file": "a.jsonl.gz"}).rows[0].fields == {"x": 1}


def test_document_with_records_shares_its_own_keys(tmp_path: Path) -> None:
    document = {"Definition": ["Say it."], "train": [{"input": "a", "output": ["b"]}], "test": []}
    (tmp_path / "a.json").write_text(json.dumps(document))
    row = read(tmp_path, {"file": "a.json", "records": "train"}).rows[0]
    assert row.fields["Definition"] == ["Say it."]
    assert row.fields["input"] == "a"
    assert str(row.place).endswith("a.json train[0]")


@pytest.mark.parametrize(
    ("content", "records", "says"),
    [
        ({"a": []}, "train", "there is no list under 'train', which data.train.records names; there is: a"),
        ({"a": []}, None, "name that in data.train.records"),
        ([1], None, "row[0]: a JSON object is expected, not a int"),
    ],
)
def test_documents_that_do_not_fit(tmp_path: Path, content: Any, records: str | None, says: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(MalformedData) as caught:
        read(tmp_path, {"file": "a.json", "records": records})
    assert says in str(caught.value)


def test_json_lines_under_a_json_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1}\n{"x": 2}\n')
    assert len(read(tmp_path, {"file": "a.json"}).rows) == 2
    (tmp_path / "b.json").write_text('[{"x": 1},\n{"x": }]')
    with pytest.raises(MalformedData, match=r"b\.json:2: not a JSON document"):
        read(tmp_path, {"file": "b.json"})


def test_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="use --data FOLDER"):
        read(tmp_path, {"file": "a.jsonl"})
    with pytest.raises(DataNotFound, match="looked for in the folder of --data"):
        read(tmp_path, {"file": "a.jsonl"}, data_root=tmp_path / "data")


def test_a_data_root_takes_the_place_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    source = {"dataset": "org/set", "revision": "abc", "subset": "main", "split": "train", "file": "a.jsonl"}
    rows = read(tmp_path / "elsewhere", source, data_root=tmp_path)
    assert rows.source == "org/set@abc/main/train"
    assert rows.lineage()["rows"] == 1


def fake_hub(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    module, exceptions = ModuleType("datasets"), ModuleType("datasets.exceptions")
    module.load_dataset = load  # type: ignore[attr-defined]
    exceptions.DatasetNotFoundError = type("DatasetNotFoundError", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)


def test_hub_rows_equal_those_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*args: Any, **options: Any) -> list[dict[str, int]]:
        asked.append(SimpleNamespace(args=args, options=options))
        return [{"x": 1}, {"x": 2}]

    fake_hub(monkeypatch, load)
    source = {"dataset": "org/set", "revision": "abc", "split": "train"}
    from_hub = read(tmp_path, source)
    assert asked[0].options == {"split": "train", "revision": "abc"}
    assert str(from_hub.rows[1].place) == "org/set@abc/train row 1"
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x": 2}\n')
    assert read(tmp_path, {"file": "a.jsonl"}).sha256 == from_hub.sha256


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("unknown split")])
def test_hub_failures_name_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error

    fake_hub(monkeypatch, load)
    with pytest.raises(DataError, match=f"data.train: .*org/set/x.*{error}"):
        read(tmp_path, {"dataset": "org/set", "split": "x"})
