from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from adapters import tensors
from adapters.tensors import MalformedFile, TensorFileError, TruncatedFile
from tests.bad_adapters import serialise


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    save_file({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}, tmp_path / "x", {"k": "v"})
    file = tensors.read_header(tmp_path / "x")
    assert {name: (one.dtype, one.shape) for name, one in file.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F16", (4,)),
    }
    assert file.metadata == {"k": "v"}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", tensors.EmptyFile),
        (b"1234", TruncatedFile),
        (b"\xff" * 8, MalformedFile),
        (b"\0" * 8, MalformedFile),
        (raw(b"not json"), MalformedFile),
        (raw(b"[" * 100_000), MalformedFile),
        (raw([1]), MalformedFile),
        (raw({"a": 1}), MalformedFile),
        (raw({"a": {"dtype": "F32", "shape": [1]}}), MalformedFile),
        (raw({"a": entry(0, 4, [1], "F31")}, b"1234"), MalformedFile),
        (raw({"a": entry(0, 4, [-1])}, b"1234"), MalformedFile),
        (raw({"a": entry(0, 4, [2])}, b"1234"), MalformedFile),
        (raw({"a": entry(0, 4, [True])}, b"1234"), MalformedFile),
        (raw({"a": entry(4, 8, [1])}, b"12345678"), MalformedFile),
        (raw({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, b"1234"), MalformedFile),
        (raw({"a": entry(0, 4, [1])}, b"123"), TruncatedFile),
        (raw({"a": entry(0, 4, [1])}, b"12345"), MalformedFile),
        (raw({"a": entry(0, 1 << 60, [1 << 58])}, b"1234"), TruncatedFile),
        (raw({"__metadata__": {"k": 1}}), MalformedFile),
        (raw(b'{"a": 1, "a": 1}'), MalformedFile),
    ],
)
def test_refuses_what_is_not_one(content: bytes, kind: type[TensorFileError], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(kind):
        tensors.read_header(tmp_path / "x")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_an_error_or_harmless(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(serialise({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    (tmp_path / "x").write_bytes(content)
    try:
        file = tensors.read_header(tmp_path / "x")
    except TensorFileError:
        return
    assert sum(one.size for one in file.tensors.values()) < len(content)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", None])
def test_finite(dtype: str, value: str | None, tmp_path: Path) -> None:
    numbers = np.linspace(-1, 1, 1000, dtype=np.float32)
    if value is not None:
        numbers[777] = float(value)
    stored: Any = numbers.astype(np.float16) if dtype == "float16" else numbers
    if dtype == "bfloat16":
        stored = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    (tmp_path / "x").write_bytes(serialise({"a": stored}))
    file = tensors.read_header(tmp_path / "x")
    with file.path.open("rb") as handle:
        found = tensors.look_at(handle, file.tensors["a"])
    assert found.finite == (value is None)
    assert not found.zero


def test_the_largest_and_smallest_numbers_are_finite(tmp_path: Path) -> None:
    limits = np.finfo(np.float32)
    (tmp_path / "x").write_bytes(serialise({"a": np.array([limits.max, limits.smallest_subnormal])}))
    file = tensors.read_header(tmp_path / "x")
    with file.path.open("rb") as handle:
        assert tensors.look_at(handle, file.tensors["a"]) == tensors.Values(finite=True, zero=False)


def test_long_tensors_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.zeros(1000, np.float32)
    numbers[-1] = np.nan
    save_file({"a": numbers}, tmp_path / "x")
    file = tensors.read_header(tmp_path / "x")
    with file.path.open("rb") as handle:
        assert max(len(chunk) for chunk in tensors.chunks(handle, file.tensors["a"], 64)) == 64
        assert not tensors.look_at(handle, file.tensors["a"]).finite


def test_rewriting_gives_equal_bytes(tmp_path: Path) -> None:
    save_file({"b": np.ones(3, np.float16), "a": np.arange(6, dtype=np.float32)}, tmp_path / "x")
    file = tensors.read_header(tmp_path / "x")
    tensors.rewrite(file, tmp_path / "one", {"a": "new.a", "b": "b"})
    tensors.rewrite(file, tmp_path / "two", {"b": "b", "a": "new.a"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert np.array_equal(load_file(tmp_path / "one")["new.a"], np.arange(6, dtype=np.float32))
