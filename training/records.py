"""Rows out of files and hub data sets, each with the place it came from. Knows nothing of tokens or
templates.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import DataConfig, Source
from training.errors import DataNotFound, EmptyData, MalformedData, Place


@dataclass(frozen=True, slots=True)
class Row:
    fields: dict[str, Any]
    place: Place


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one source. `sha256` is over their contents in order: the same for hub and file."""

    rows: list[Row]
    source: str
    sha256: str

    def lineage(self) -> dict[str, Any]:
        return {"source": self.source, "rows": len(self.rows), "sha256": self.sha256}


def read_rows(source: Source, *, param: str, data_root: Path | None, config_folder: Path) -> Rows:
    """The rows of a source, after `skip` and `limit`. With a data root, its file takes the hub's place."""
    if source.file is not None and (data_root is not None or source.dataset is None):
        path = (data_root or config_folder) / source.file
        if not path.is_file():
            raise DataNotFound(
                f"{path}: no such file; {param}.file is {source.file!r}, looked for in "
                + ("the folder of --data" if data_root else "the folder of the YAML (use --data FOLDER)"),
                param=f"{param}.file",
            )
        found = _read_file(path, source.records, param)
    else:
        found = _read_hub(source, param)
    end = None if source.limit is None else source.skip + source.limit
    rows = found[source.skip : end]
    name = _name(source)
    if not rows:
        raise EmptyData(
            f"{name}: no rows are left ({len(found)} in the file, skip {source.skip}); "
            f"look at {param}.skip and at the file",
            param=param,
        )
    return Rows(rows, name, digest_rows(rows))


def check_files(data: DataConfig, *, data_root: Path | None, config_folder: Path) -> None:
    """Read the files of a config, so that what is wrong with them is said before a base is fetched and torch
    imported. Hub data sets are left for the run.
    """
    for source, param in ((data.train, "data.train"), (data.eval, "data.eval")):
        if (
            source is not None
            and source.file is not None
            and (data_root is not None or source.dataset is None)
        ):
            read_rows(source, param=param, data_root=data_root, config_folder=config_folder)


def digest_rows(rows: list[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        text = json.dumps(row.fields, sort_keys=True, ensure_ascii=False, default=str)
        digest.update(text.encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def _name(source: Source) -> str:
    """The public name of a source: never a path of this machine, since it goes into lineage records."""
    if source.dataset is None:
        return Path(str(source.file)).name if Path(str(source.file)).is_absolute() else str(source.file)
    revision = f"@{source.revision}" if source.revision else ""
    return "/".join(filter(None, (source.dataset + revision, source.subset, source.split)))


def _read_file(path: Path, records: str | None, param: str) -> list[Row]:
    text = _text(path)
    if records is not None or path.suffix == ".json":
        document = _document(path, text, records, param)
        if document is not None:
            return document
    return list(_json_lines(path, text))


def _text(path: Path) -> str:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise MalformedData("not UTF-8 text; save the file as UTF-8", place=Place(str(path), line)) from None


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines(): JSON strings may hold U+2028 and its like, which end a line only for Python.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = Place(str(path), number)
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise MalformedData(
                f"not a JSON object ({error.msg} at column {error.colno}); mend or remove the line",
                place=place,
            ) from None
        if not isinstance(fields, dict):
            kind = type(fields).__name__
            raise MalformedData(f"a JSON object is expected on each line, not a {kind}", place=place)
        yield Row(fields, place)


def _document(path: Path, text: str, records: str | None, param: str) -> list[Row] | None:
    """The rows of one JSON document, or None where the file turns out to hold JSON lines."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if records is None and error.msg == "Extra data":
            return None
        raise MalformedData(
            f"not a JSON document ({error.msg})", place=Place(str(path), error.lineno)
        ) from None
    shared: dict[str, Any] = {}
    if records is not None:
        if not isinstance(document, dict) or not isinstance(document.get(records), list):
            keys = ", ".join(document) if isinstance(document, dict) else type(document).__name__
            raise MalformedData(
                f"there is no list under {records!r}, which {param}.records names; there is: {keys}",
                place=Place(str(path)),
                param=f"{param}.records",
            )
        shared = {key: value for key, value in document.items() if key != records}
        document = document[records]
    if not isinstance(document, list):
        raise MalformedData(
            f"a list of rows is expected; where it lies under a key, name that in {param}.records",
            place=Place(str(path)),
            param=f"{param}.records",
        )
    rows = []
    for index, fields in enumerate(document):
        place = Place(str(path), record=f"{records or 'row'}[{index}]")
        if not isinstance(fields, dict):
            raise MalformedData(f"a JSON object is expected, not a {type(fields).__name__}", place=place)
        rows.append(Row({**shared, **fields}, place))
    return rows


def _read_hub(source: Source, param: str) -> list[Row]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    name = _name(source)
    try:
        table = datasets.load_dataset(
            source.dataset, source.subset, split=source.split, revision=source.revision
        )
    except (DatasetNotFoundError, ConnectionError, OSError) as error:
        local = f", or --data FOLDER with {source.file} in it" if source.file else ""
        raise DataNotFound(
            f"{param}: the data set {name} could not be had from the Hugging Face hub ("
            f"{_first_line(error)}); check the name and the network{local}",
            param=f"{param}.dataset",
        ) from error
    except ValueError as error:  # an unknown subset, split or revision
        raise DataNotFound(f"{param}: {name}: {_first_line(error)}", param=f"{param}.split") from error
    return [Row(dict(fields), Place(name, record=f"row {index}")) for index, fields in enumerate(table)]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
