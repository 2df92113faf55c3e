"""Torch7's `.t7` files, read into tensors, plain values and tables; nothing in them is run.

The format (torch7's File.lua, THDiskFile.c, generic/Storage.c and generic/Tensor.c): an object is
an int naming its kind, then its value. Tables, torch objects and functions carry an index first,
and only the index where the same one comes again. Two encodings:

- binary: little endian, int of 32 bits, long of 64 bits, number a double;
- ASCII: the same items as decimal text, each call's followed by a line feed; characters and bytes
  stand as they are.

Files of machines whose long has 32 bits (Windows, 32-bit systems) are of the same kind but for it,
and are refused; `torch.save` them again on a 64-bit system, or in ASCII.
"""

import abc
import math
import mmap
import re
import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vgan_fast.errors import UserError

DEPTH = 256  # most objects inside each other; each layer of a network's tree takes three
VALUES = 1_000_000  # most objects, plain values included; a network of VGAN has some thousands
DIMENSIONS = 32

_NIL, _NUMBER, _STRING, _TABLE, _TORCH, _BOOLEAN, _FUNCTION = range(7)
_RECURSIVE_FUNCTIONS = 7, 8  # the older's upvalues are stored bare; neither is looked into
_KINDS = "the kind of an object (0 to 8)"

_ELEMENTS = {
    "Double": np.dtype("<f8"),
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
}
# By class without "Storage" or "Tensor"; floats on a GPU have no type in their name.
_TYPES = {f"torch.{name}": dtype for name, dtype in _ELEMENTS.items()} | {
    f"torch.Cuda{name if name != 'Float' else ''}": dtype for name, dtype in _ELEMENTS.items()
}
_TOKEN = re.compile(rb"\s*(\S+)")
_LONGEST = 40  # characters of a number; Torch7 writes up to 24
_LONGEST_NAME = 200  # characters of a class's name


@dataclass(eq=False, repr=False)  # Its fields may lead back to it.
class TorchObject:
    """An object of a torch class, or something that is not looked into.

    Attributes:
        name: its class, for instance "nn.Sequential"; "function" for a function of Lua.
        fields: what it holds, as a table; empty for what is not looked into.
    """

    name: str
    fields: dict[str | float, Any]


def read_torch7(path: Path) -> Any:
    """What a `.t7` file holds.

    None, bool, float, str (undecodable bytes as surrogates), dict (tables, by float or str),
    `torch.Tensor` (tensors, and storages as tensors of one dimension; those of a GPU on the CPU)
    and `TorchObject`. What is shared in the file is shared here: tensors are views into their
    storage, not necessarily contiguous, never of more elements than it. Functions, and tensors
    that repeat their storage (an `nn.Replicate`'s output), are empty `TorchObject`s; entries of a
    table whose key is no number and no string are left out. Cycles are possible.

    Memory: the elements of the storages, and some hundred bytes for each other value, of which
    there may be `VALUES`. Each size is checked against what is left of the file beforehand.

    Raises:
        UserError: when the file cannot be read, or is no such file, or more than one object; with
            the place and what was expected there.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: is no file")
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise UserError(f"{path}: is empty")
            # Mapped, so that a file larger than memory costs nothing before it is refused.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Objects(path, data).read()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path}: cannot be read ({reason})") from error
    except MemoryError as error:
        raise UserError(f"{path}: holds more than there is memory for") from error


class _Items(abc.ABC):
    """The items that both encodings consist of, one after the other."""

    def __init__(self, path: Path, data: mmap.mmap):
        self._path, self._data = path, data
        self.position = 0

    def error(self, expected: str) -> UserError:
        return UserError(
            f"{self._path}: byte {self.position}: expected {expected}; the file is cut short, "
            "damaged or no .t7 file"
        )

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return len(self._data) - self.position

    def text(self, what: str) -> str:
        """A string, its length before it."""
        return self._raw(self._length(what)).decode("utf-8", "surrogateescape")

    def skip(self, what: str) -> None:
        """Pass over a string."""
        self._pass(self._length(what))

    @abc.abstractmethod
    def integer(self, what: str) -> int:
        """An int."""

    def longs(self, count: int, what: str) -> list[int]:
        """Some long integers."""
        return self.elements(_ELEMENTS["Long"], count, what).tolist()

    def number(self) -> float:
        """A double."""
        return float(self.elements(_ELEMENTS["Double"], 1, "a number")[0])

    @abc.abstractmethod
    def elements(self, dtype: np.dtype, count: int, what: str) -> np.ndarray:
        """A copy of `count` elements of a storage."""

    def finish(self) -> None:
        """Refuse what comes after the end."""
        if self.left:
            raise self.error("the end of the file")

    def _length(self, what: str) -> int:
        length = self.integer(f"the length of {what}")
        if not 0 <= length <= self.left:
            raise self.error(f"{what} of at most {self.left} bytes, not {length}")
        return length

    def _raw(self, length: int) -> bytes:
        start = self.position
        self._pass(length)
        return self._data[start : start + length]

    def _pass(self, length: int) -> None:
        self.position += length


class _Binary(_Items):
    def integer(self, what: str) -> int:
        if self.left < 4:
            raise self.error(what)
        (value,) = struct.unpack_from("<i", self._data, self.position)
        self.position += 4
        return value

    def elements(self, dtype: np.dtype, count: int, what: str) -> np.ndarray:
        if count > self.left // dtype.itemsize:
            raise self.error(f"{what}: {count * dtype.itemsize} bytes, and {self.left} are left")
        values = np.frombuffer(self._data, dtype, count, self.position).copy()
        self.position += values.nbytes
        return values


class _Ascii(_Items):
    def integer(self, what: str) -> int:
        return int(self.elements(_ELEMENTS["Int"], 1, what)[0])

    def elements(self, dtype: np.dtype, count: int, what: str) -> np.ndarray:
        # Each takes a character and the space before the next.
        most = self.left if dtype.itemsize == 1 else (self.left + 1) // 2
        if count > most:
            raise self.error(f"{what}: {count} of them, and {self.left} bytes are left")
        if dtype.itemsize == 1:  # Characters and bytes stand as they are.
            return np.frombuffer(self._raw(count), dtype).copy()
        convert = int if dtype.kind == "i" else float
        tokens = self._tokens(count, convert, what)
        try:
            with np.errstate(over="ignore"):
                values = np.fromiter(tokens, dtype, count)
        except OverflowError as error:
            raise self.error(f"{what} within {dtype}") from error
        self._line_feed()
        return values

    def finish(self) -> None:
        while self.left:
            if not self._data[self.position : self.position + 1].isspace():
                super().finish()
            self.position += 1

    def _pass(self, length: int) -> None:
        super()._pass(length)
        self._line_feed()

    def _line_feed(self) -> None:
        if self._data[self.position : self.position + 1] == b"\n":
            self.position += 1

    def _tokens(self, count: int, convert: Callable, what: str) -> Iterator[int | float]:
        size = min(64 * count, 1 << 16)
        while count:
            window = self._data[self.position : self.position + size]
            last, start = len(window) == self.left, self.position
            for match in _TOKEN.finditer(window):
                if match.end() == len(window) and not last:
                    break  # It may go on behind the window.
                token = match[1]
                try:
                    if len(token) > _LONGEST or b"_" in token:  # which Python would accept
                        raise ValueError
                    value = convert(token)
                except ValueError as error:
                    raise self.error(what) from error
                self.position = start + match.end()
                yield value  # The last is not asked to go on.
                count -= 1
                if not count:
                    return
            if self.position == start:
                raise self.error(what)


@dataclass(frozen=True)
class _Storage:
    type: str
    values: Tensor


# Steps of reading an object; yields the steps of an object in it, and is sent what they made.
_Steps = Generator["_Steps", Any, Any]


class _Objects:
    """Objects out of items."""

    def __init__(self, path: Path, data: mmap.mmap):
        ascii_digits = b"0" <= data[:1] <= b"9"  # in binary the first byte is a kind, 0 to 8
        self._items = (_Ascii if ascii_digits else _Binary)(path, data)
        self._known: dict[int, Any] = {}
        self._count = 0

    def read(self) -> Any:
        """The one object of the file."""
        # Not by functions that call themselves: a file could lead them to any depth.
        stack, made = [self._object()], None
        while stack:
            try:
                stack.append(stack[-1].send(made))
                made = None
            except StopIteration as finished:
                stack.pop()
                made = finished.value
            if len(stack) > DEPTH:
                raise self._items.error(f"objects at most {DEPTH} deep")
        self._items.finish()
        return _plain(made)

    def _object(self) -> _Steps:
        items = self._items
        self._count += 1
        if self._count > VALUES:
            raise items.error(f"at most {VALUES} values")
        kind = items.integer(_KINDS)
        if kind == _NIL:
            return None
        if kind == _NUMBER:
            return items.number()
        if kind == _STRING:
            return items.text("a string")
        if kind == _BOOLEAN:
            value = items.integer("a boolean")
            if value not in (0, 1):
                raise items.error(f"a boolean, 0 or 1, before this, not {value}")
            return bool(value)
        if kind == _FUNCTION:
            return (yield from self._function())
        if kind not in (_TABLE, _TORCH, *_RECURSIVE_FUNCTIONS):
            raise items.error(f"{_KINDS} before this, not {kind}")
        index = items.integer("the index of an object")
        if index in self._known:
            return self._known[index]
        if kind == _TABLE:
            return (yield from self._table(index))
        if kind == _TORCH:
            return (yield from self._torch(index))
        return (yield from self._function(index))

    def _table(self, index: int) -> _Steps:
        items = self._items
        size = items.integer("the size of a table")
        # The shortest entry: a number of one digit and nil in ASCII, three items of a line each.
        if not 0 <= size <= (items.left + 1) // 6:
            raise items.error(f"a table that fits into {items.left} bytes, not {size} entries")
        table = self._known[index] = {}
        for _ in range(size):
            key = yield self._object()
            if key is None or (isinstance(key, float) and math.isnan(key)):
                raise items.error(f"a key of a table before this, not {key}")
            value = yield self._object()
            # What has other keys is no part of a network, and Python would take True for 1.
            if isinstance(key, str | float) and not isinstance(key, bool):
                table[key] = _plain(value)
        return table

    def _torch(self, index: int) -> _Steps:
        items = self._items
        name = items.text("the version of a class")
        if re.match(r"V -?\d", name):  # Old files have no version, and the class here.
            name = items.text("the name of a class")
        # It is shown in messages, of one line.
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise items.error("the name of a class before this")
        if name.removesuffix("Storage") in _TYPES and name.endswith("Storage"):
            made = self._storage(name.removesuffix("Storage"))
            self._known[index] = made
            return made
        if name.removesuffix("Tensor") in _TYPES and name.endswith("Tensor"):
            made = yield from self._tensor(name.removesuffix("Tensor"))
            self._known[index] = made
            return made
        made = self._known[index] = TorchObject(name, {})
        fields = yield self._object()
        if not isinstance(fields, dict):
            raise items.error(f"a table of the fields of {name} before this")
        made.fields = fields
        return made

    def _storage(self, type: str) -> _Storage:
        (count,) = self._items.longs(1, f"the size of a {type}Storage")
        if count < 0:
            raise self._items.error(f"the size of a {type}Storage before this, not {count}")
        values = self._items.elements(_TYPES[type], count, f"the elements of a {type}Storage")
        return _Storage(type, torch.from_numpy(values))

    def _tensor(self, type: str) -> _Steps:
        items, what = self._items, f"a {type}Tensor"
        count = items.integer(f"the number of dimensions of {what}")
        if not 0 <= count <= DIMENSIONS:
            raise items.error(f"{what} of at most {DIMENSIONS} dimensions, not {count}")
        sizes = items.longs(count, f"the sizes of {what}")
        strides = items.longs(count, f"the strides of {what}")
        (first,) = items.longs(1, f"the offset of {what}")
        storage = yield self._object()
        if storage is None:
            storage = _Storage(type, torch.from_numpy(np.empty(0, _TYPES[type])))
        if not isinstance(storage, _Storage) or storage.type != type:
            raise items.error(f"the {type}Storage of a tensor before this")
        if not count:
            return storage.values[:0]
        if min(sizes) < 1 or min(strides) < 0 or first < 1:
            raise items.error(
                f"{what} before this, not sizes {sizes}, strides {strides}, offset {first}"
            )
        there = len(storage.values)
        last = first + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if last > there:
            raise items.error(f"{what} within its {there} elements before this, not up to {last}")
        if math.prod(sizes) > there:
            return TorchObject(f"{type}Tensor", {})
        return storage.values.as_strided(sizes, strides, first - 1)

    def _function(self, index: int | None = None) -> _Steps:
        made = TorchObject("function", {})
        if index is not None:
            self._known[index] = made
        self._items.skip("a function")
        yield self._object()  # its upvalues
        return made


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, _Storage) else value
