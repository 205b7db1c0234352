"""safetensors files read without torch: the header within bounds, the values in chunks.

The header is checked before anything is believed (lengths, offsets, types), so a truncated, garbled or
hostile file ends in one of three errors and never in a large allocation. bfloat16, which numpy lacks, is
handled as bit patterns. Knows nothing of adapters.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

CHUNK = 8 << 20  # bytes of one read; a multiple of every item size
MAX_HEADER = 100_000_000  # the format's own limit

ITEM_SIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

# Bits of the exponent: all of them set means infinity or not-a-number.
_FLOATS: Mapping[str, tuple[npt.DTypeLike, int, int]] = {
    "F16": ("<u2", 0x7C00, 0x7FFF),
    "BF16": ("<u2", 0x7F80, 0x7FFF),
    "F32": ("<u4", 0x7F800000, 0x7FFFFFFF),
}


class TensorFileError(Exception):
    """The file is not what a safetensors file must be."""


class EmptyFile(TensorFileError):
    """It has no bytes at all."""


class TruncatedFile(TensorFileError):
    """It ends before its own header says."""


class MalformedFile(TensorFileError):
    """It is not a safetensors file."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies: `start` and `size` are bytes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: Path, max_header: int = MAX_HEADER) -> TensorFile:
    """The names, types, shapes and places of all tensors; raises a TensorFileError."""
    length = path.stat().st_size
    if length == 0:
        raise EmptyFile("it is empty (0 bytes)")
    with path.open("rb") as file:
        first = file.read(8)
        if len(first) < 8:
            raise TruncatedFile(f"it has only {length} bytes")
        header_size = int.from_bytes(first, "little")
        if header_size > max_header or header_size < 2:
            raise MalformedFile(f"its first 8 bytes announce a header of {header_size} bytes")
        if header_size > length - 8:
            raise TruncatedFile(f"its header should have {header_size} bytes, and {length - 8} are there")
        raw = file.read(header_size)
    header = _parse_header(raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedFile("its `__metadata__` is not a table of texts")
    data_start = 8 + header_size
    tensors = {name: _entry(name, entry, data_start) for name, entry in header.items()}
    _check_layout(tensors, data_start, length)
    return TensorFile(path, tensors, metadata)


def _parse_header(raw: bytes) -> dict[str, Any]:
    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise MalformedFile("its header names something twice")
        return table

    try:
        header = json.loads(raw, object_pairs_hook=no_twins)
    except (ValueError, RecursionError) as error:
        raise MalformedFile(f"its header is not JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise MalformedFile("its header is not a JSON object")
    return header


def _entry(name: str, entry: Any, data_start: int) -> Tensor:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise MalformedFile(f"its entry for `{name}` lacks dtype, shape or data_offsets") from None
    numbers = (*shape, start, end)
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise MalformedFile(f"its entry for `{name}` has an impossible shape or offset")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise MalformedFile(f"its entry for `{name}` has the unknown type {str(dtype)[:40]!r}")
    size = math.prod(shape) * ITEM_SIZE[dtype]
    if end - start != size:
        raise MalformedFile(f"its entry for `{name}` is {end - start} bytes long, and its shape needs {size}")
    return Tensor(name, dtype, shape, data_start + start, size)


def _check_layout(tensors: Mapping[str, Tensor], data_start: int, length: int) -> None:
    """Tensors lie side by side, without gap or overlap, and fill the file (the format's own rule)."""
    position = data_start
    for tensor in sorted(tensors.values(), key=lambda one: (one.start, one.size)):
        if tensor.start != position:
            raise MalformedFile(f"the bytes of `{tensor.name}` overlap others, or leave a gap")
        position += tensor.size
    if position > length:
        raise TruncatedFile(f"its tensors need {position} bytes, and the file has {length}")
    if position < length:
        raise MalformedFile(f"it has {length - position} bytes after its last tensor")


def chunks(file: BinaryIO, tensor: Tensor, size: int = CHUNK) -> Iterator[bytes]:
    """The tensor's bytes, at most `size` at a time."""
    file.seek(tensor.start)
    left = tensor.size
    while left:
        chunk = file.read(min(size, left))
        if not chunk:
            raise TruncatedFile(f"`{tensor.name}` ends {left} bytes too early")
        left -= len(chunk)
        yield chunk


@dataclass(frozen=True, slots=True)
class Values:
    """What a look at every value of a tensor told."""

    finite: bool
    zero: bool


def look_at(file: BinaryIO, tensor: Tensor) -> Values:
    """Are all values finite, are all zero? Only for F16, BF16 and F32."""
    kind, exponent, magnitude = _FLOATS[tensor.dtype]
    zero = True
    for chunk in chunks(file, tensor):
        bits = np.frombuffer(chunk, dtype=kind) & np.asarray(magnitude, dtype=kind)
        if bool((bits >= exponent).any()):
            return Values(finite=False, zero=False)
        zero = zero and not bool(bits.any())
    return Values(finite=True, zero=zero)


def same_values(first: TensorFile, one: Tensor, second: TensorFile, other: Tensor) -> bool:
    """Do two tensors hold the same numbers? A copy rounded to `one`'s narrower type counts as same."""
    if one.shape != other.shape:
        return False
    if one.dtype not in _FLOATS or other.dtype not in _FLOATS:
        return False
    items = CHUNK // 4
    with first.path.open("rb") as left, second.path.open("rb") as right:
        pairs = zip(
            chunks(left, one, items * ITEM_SIZE[one.dtype]),
            chunks(right, other, items * ITEM_SIZE[other.dtype]),
            strict=True,
        )
        for mine, theirs in pairs:
            if one.dtype == other.dtype:
                if mine != theirs:
                    return False
            elif not np.array_equal(
                _widen(mine, one.dtype), _round(_widen(theirs, other.dtype), one.dtype), equal_nan=True
            ):
                return False
    return True


def _widen(raw: bytes, dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":
        return (np.frombuffer(raw, dtype="<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(raw, dtype="<f2" if dtype == "F16" else "<f4").astype(np.float32)


def _round(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.float32]:
    """Round to nearest even in `dtype`, and come back."""
    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


def rewrite(source: TensorFile, target: Path, names: Mapping[str, str]) -> None:
    """Copy the tensors `names` (old name -> new name) to a new file; equal input gives equal bytes."""
    order = sorted(names, key=lambda old: (-ITEM_SIZE[source.tensors[old].dtype], names[old]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for old in order:
        tensor = source.tensors[old]
        header[names[old]] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.size],
        }
        position += tensor.size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with source.path.open("rb") as reader, target.open("wb") as writer:
        writer.write(len(raw).to_bytes(8, "little") + raw)
        for old in order:
            for chunk in chunks(reader, source.tensors[old]):
                writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
