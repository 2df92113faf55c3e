"""Torch7's serialisation, written from the format: what `torch.save` of Lua does.

Values are None, bool, int and float (numbers), str, dict (a table), list (a table from 1 up),
NumPy arrays (tensors of their own), and the classes below. What is given twice is written once,
then referred to by its index, as in Torch7.
"""

import struct

import numpy as np

NAMES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
}


class Obj:
    """An object of a torch class whose fields are written as one table."""

    def __init__(self, name, version=1, **fields):
        self.name, self.version, self.fields = name, version, fields


class Storage:
    """Elements in memory; on a GPU where `cuda`."""

    def __init__(self, values, cuda=False):
        self.values, self.cuda = np.ascontiguousarray(values).reshape(-1), cuda

    @property
    def type(self):
        name = NAMES[self.values.dtype.name]
        if self.cuda:
            return "torch.Cuda" + ("" if name == "Float" else name)
        return "torch." + name


class View:
    """A tensor: part of a storage, by sizes, strides and an offset counted from 0."""

    def __init__(self, storage, sizes, strides=None, offset=0):
        self.storage, self.sizes, self.offset = storage, list(sizes), offset
        if strides is None:
            strides = [int(np.prod(self.sizes[i + 1 :])) for i in range(len(self.sizes))]
        self.strides = list(strides)


class Empty:
    """A tensor without elements or storage, as `clearState` leaves them."""

    def __init__(self, type="torch.FloatTensor"):
        self.type = type


class Function:
    """A function of Lua: bytecode and upvalues; tag 8, 7 (older) or 6 (oldest, no index)."""

    def __init__(self, bytecode=b"\x1bLua", upvalues=None, tag=8):
        self.bytecode, self.upvalues, self.tag = bytecode, upvalues or {}, tag


class Writer:
    """Bytes of one object.

    Args:
        ascii: text in place of binary.
        versions: without, as before classes had versions: only their names.
    """

    def __init__(self, ascii=False, versions=True):
        self.ascii, self.versions = ascii, versions
        self.out = bytearray()
        self.indices = {}
        self.kept = []  # so that no id is given twice

    def ints(self, *values):
        self._numbers("i", "%d", values)

    def longs(self, *values):
        self._numbers("q", "%d", values)

    def doubles(self, *values):
        self._numbers("d", "%.17g", values)

    def _numbers(self, code, text, values):
        if self.ascii:
            if values:
                self.out += (" ".join(text % v for v in values) + "\n").encode()
        else:
            self.out += struct.pack(f"<{len(values)}{code}", *values)

    def chars(self, data):
        self.out += data
        if self.ascii and data:
            self.out += b"\n"

    def string(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        self.ints(len(data))
        self.chars(data)

    def write(self, value):
        if value is None:
            self.ints(0)
        elif isinstance(value, bool):
            self.ints(5)
            self.ints(int(value))
        elif isinstance(value, int | float):
            self.ints(1)
            self.doubles(float(value))
        elif isinstance(value, str | bytes):
            self.ints(2)
            self.string(value)
        elif isinstance(value, Function) and value.tag == 6:
            self.ints(6)
            self.string(value.bytecode)
            self.write(value.upvalues)
        else:
            self._referred(value)
        return self

    def _referred(self, value):
        kind = 3 if isinstance(value, dict | list) else 4
        kind = value.tag if isinstance(value, Function) else kind
        if id(value) in self.indices:
            self.ints(kind)
            self.ints(self.indices[id(value)])
            return
        self.indices[id(value)] = len(self.indices) + 1
        self.kept.append(value)
        self.ints(kind)
        self.ints(self.indices[id(value)])
        if isinstance(value, Function):
            self.string(value.bytecode)
            self.write(value.upvalues)
        elif kind == 3:
            self._table(value)
        else:
            self._torch(value)

    def _table(self, value):
        if isinstance(value, list):
            value = {i: item for i, item in enumerate(value, start=1)}
        self.ints(len(value))
        for key, item in value.items():
            self.write(key)
            self.write(item)

    def _class(self, name, version=1):
        if self.versions:
            self.string(f"V {version}")
        self.string(name)

    def _torch(self, value):
        if isinstance(value, Obj):
            self._class(value.name, value.version)
            self.write(value.fields)
        elif isinstance(value, Storage):
            self._class(value.type + "Storage")
            self.longs(len(value.values))
            self._elements(value.values)
        elif isinstance(value, Empty):
            self._class(value.type)
            self.ints(0)
            self.longs(1)
            self.write(None)
        else:
            if isinstance(value, np.ndarray):
                value = View(Storage(value), value.shape)
            self._class(value.storage.type + "Tensor")
            self.ints(len(value.sizes))
            self.longs(*value.sizes)
            self.longs(*value.strides)
            self.longs(value.offset + 1)
            self.write(value.storage)

    def _elements(self, values):
        if not self.ascii:
            self.out += values.astype(values.dtype.newbyteorder("<")).tobytes()
        elif values.dtype.itemsize == 1:
            self.chars(values.tobytes())
        else:
            text = {"f8": "%.17g", "f4": "%.9g", "f2": "%.9g"}.get(values.dtype.str[1:], "%d")
            if len(values):
                self.out += (" ".join(text % v for v in values.tolist()) + "\n").encode()


def written(value, ascii=False, versions=True):
    """The bytes of a file that holds `value`."""
    return bytes(Writer(ascii, versions).write(value).out)
