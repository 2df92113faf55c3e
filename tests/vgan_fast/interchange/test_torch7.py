import math
import os
import tracemalloc

import numpy as np
import pytest
import torch
from torch7_writer import NAMES, Empty, Function, Obj, Storage, View, Writer, written

from vgan_fast.errors import UserError
from vgan_fast.interchange import torch7
from vgan_fast.interchange.torch7 import TorchObject, read_torch7

ENCODINGS = pytest.mark.parametrize("ascii", [False, True], ids=["binary", "ascii"])


@pytest.fixture
def read(tmp_path):
    def read(content):
        file = tmp_path / "x.t7"
        file.write_bytes(content)
        return read_torch7(file)

    return read


@ENCODINGS
def test_plain_values_and_tables(read, ascii):
    table = {
        "text": "naïve\n 12 \t",
        "": "",
        "digits": "7",
        "raw": b"\xff\x00\n",
        "yes": True,
        "no": False,
        "nothing": None,
        "numbers": [0, -1.5, 1e300, math.inf, -math.inf, 0.1],
        3: {2.5: {}},
    }
    assert read(written(table, ascii)) == {
        **table,
        "raw": b"\xff\x00\n".decode("utf-8", "surrogateescape"),
        "numbers": dict(enumerate(table["numbers"], start=1)),
    }
    assert math.isnan(read(written(math.nan, ascii)))
    assert read(written(None, ascii)) is None
    assert type(read(written([True], ascii))[1]) is bool
    assert type(read(written([1], ascii))[1]) is float


@ENCODINGS
@pytest.mark.parametrize("cuda", [False, True], ids=["cpu", "cuda"])
@pytest.mark.parametrize("dtype", list(NAMES))
def test_tensors_of_every_type(read, dtype, cuda, ascii):
    kind = np.dtype(dtype).kind
    values = np.arange(24) * 5
    values = (values / 8 - 3 if kind == "f" else values - 50 * (kind == "i")).astype(dtype)
    if kind == "f":
        values[1] = np.inf
    elif dtype != "uint8":
        values[1] = np.iinfo(dtype).min
    storage = Storage(values, cuda)
    transposed = View(storage, [3, 2], [2, 7], offset=4)
    made = read(written([storage, View(storage, [2, 3, 4]), transposed], ascii))
    assert [made[i].dtype for i in (1, 2, 3)] == 3 * [getattr(torch, dtype)]
    assert np.array_equal(made[1].numpy(), values)
    assert np.array_equal(made[2].numpy(), values.reshape(2, 3, 4))
    by_hand = [[values[4 + 2 * i + 7 * j] for j in range(2)] for i in range(3)]
    assert np.array_equal(made[3].numpy(), by_hand)


@ENCODINGS
def test_what_is_shared_is_shared(read, ascii):
    storage = Storage(np.arange(10, dtype="f4"))
    table, module = {"name": "one"}, Obj("nn.Identity")
    view = View(storage, [2, 2], offset=5)
    written_twice = [table, table, module, module, view, view, View(storage, [10])]
    module.fields["itself"] = module
    table["itself"] = table
    made = read(written(written_twice, ascii))
    assert made[1] is made[2] and made[1]["itself"] is made[1] and made[1]["name"] == "one"
    assert made[3] is made[4] and made[3].fields["itself"] is made[3]
    assert made[5] is made[6]
    made[7][6] = -7  # of the same memory
    assert made[5].tolist() == [[5, -7], [7, 8]]


@ENCODINGS
def test_tensors_without_elements(read, ascii):
    storage = Storage(np.arange(3, dtype="f8"))
    empty = [Empty("torch.CudaTensor"), View(storage, [], []), Storage(np.empty(0, "i8"))]
    made = read(written(empty, ascii))
    assert [(made[i].numel(), made[i].dtype) for i in (1, 2, 3)] == [
        *((0, torch.float32), (0, torch.float64), (0, torch.int64))
    ]


@ENCODINGS
@pytest.mark.parametrize("tag", [6, 7, 8])
def test_functions_are_passed_over(read, tag, ascii):
    bytecode = b"\x1bLua\n4\n1\n"
    function = Function(bytecode, {1: {"name": "_ENV", "value": "kept from nobody"}}, tag)
    made = read(written(["before", function, function, "after"], ascii))
    assert made[1] == "before" and made[4] == "after"
    assert made[2].name == "function" and made[2].fields == {}
    assert (made[2] is made[3]) == (tag != 6)


@ENCODINGS
def test_classes_before_there_were_versions(read, ascii):
    tree = Obj("nn.Sequential", modules=[Obj("mine.Own", weight=np.arange(3, dtype="f4"))])
    for versions in (True, False):
        made = read(written(tree, ascii, versions))
        assert isinstance(made, TorchObject) and made.name == "nn.Sequential"
        own = made.fields["modules"][1]
        assert own.name == "mine.Own" and own.fields["weight"].tolist() == [0, 1, 2]


@ENCODINGS
def test_entries_of_other_keys_are_left_out(read, ascii):
    node, flag = Obj("nngraph.Node", data={}), Storage(np.arange(3))
    matrix = View(flag, [3])
    table = {True: "a", node: "b", Function(): "c", flag: "d", matrix: "g", 2: node, "e": "f"}
    made = read(written([table, node], ascii))
    assert list(made[1]) == [2, "e"] and made[1][2] is made[2] and made[2].fields == {"data": {}}
    with_itself = {}
    with_itself["again"] = with_itself
    assert read(written({Obj("x"): with_itself, 1: with_itself}, ascii))[1]["again"]


@ENCODINGS
def test_a_tensor_of_more_elements_than_its_storage_is_not_built(read, ascii):
    storage = Storage(np.arange(4, dtype="f4"))
    made = read(written([View(storage, [2**40, 4], [0, 1]), View(storage, [2, 2], [0, 1])], ascii))
    assert made[1].name == "torch.FloatTensor" and made[1].fields == {}
    assert made[2].tolist() == [[0, 1], [0, 1]]


def test_ascii_numbers_across_the_reader_s_windows(read):
    values = np.random.default_rng(0).normal(size=30_000) * 1e-30
    made = read(written([values, "after"], ascii=True))
    assert np.array_equal(made[1].numpy(), values) and made[2] == "after"


def test_depth_is_bounded_and_takes_no_stack(read):
    def nested(depth):
        table = {}
        for _ in range(depth - 1):
            table = [table]
        return written(table)

    assert read(nested(torch7.DEPTH))
    with pytest.raises(UserError, match=f"objects at most {torch7.DEPTH} deep"):
        read(nested(torch7.DEPTH + 1))


def test_the_number_of_values_is_bounded(read, monkeypatch):
    monkeypatch.setattr(torch7, "VALUES", 7)
    assert read(written([1, 2, 3]))  # and three keys, and the table
    with pytest.raises(UserError, match="at most 7 values"):
        read(written([1, 2, 3, 4]))


TREE = Obj(
    "nn.Sequential",
    modules=[
        Obj("nn.View", size=Storage(np.array([2, 3])), f=Function(b"xyz")),
        Obj("nn.X", weight=View(Storage(np.arange(9, dtype="f4")), [2, 2], [3, 1], 1), on=True),
    ],
)


@ENCODINGS
def test_a_file_cut_anywhere_is_refused_by_name_and_place(tmp_path, ascii):
    content = written(TREE, ascii)
    file = tmp_path / "cut.t7"
    # The last line feed of ASCII may be absent.
    for length in range(1, len(content) - ascii):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.t7: byte \d+: expected .*cut short") as refused:
            read_torch7(file)
        assert "\n" not in str(refused.value)


@ENCODINGS
def test_damage_is_refused_or_read_but_never_anything_else(tmp_path, ascii):
    content = written(TREE, ascii)
    file, random, refused = tmp_path / "damaged.t7", np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(len(damaged))] = random.integers(256)
        file.write_bytes(damaged)
        try:
            read_torch7(file)
        except UserError:
            refused += 1
    assert refused > 100


class By(Writer):
    """Items one by one, for files that no program writes."""

    def by(self, name, *values):
        getattr(self, name)(*values)
        return self

    def head(self, name):
        return self.by("ints", 4).by("ints", 1).by("string", "V 1").by("string", name)


def tensor(writer, sizes, strides, first, storage=None):
    """A FloatTensor on a storage of 10 elements."""
    writer.head("torch.FloatTensor").by("ints", len(sizes)).by("longs", *sizes)
    storage = Storage(np.zeros(10, "f4")) if storage is None else storage
    return writer.by("longs", *strides).by("longs", first).write(storage)


BROKEN = {
    "unknown kind": (lambda w: w.by("ints", 9), "kind of an object .* not 9"),
    "negative kind": (lambda w: w.by("ints", 5).by("ints", -1), "a boolean, .* not -1"),
    "a third boolean": (lambda w: w.by("ints", 5).by("ints", 2), "a boolean, .* not 2"),
    "long string": (lambda w: w.by("ints", 2).by("ints", 2**31 - 1), "a string of at most 0"),
    "negative string": (lambda w: w.by("ints", 2).by("ints", -1), "not -1"),
    "long function": (lambda w: w.by("ints", 8).by("ints", 1).by("ints", 99), "a function of at"),
    "long name": (lambda w: w.by("ints", 4).by("ints", 1).by("ints", 99), "class of at most"),
    "wide table": (lambda w: w.by("ints", 3).by("ints", 1).by("ints", 2**30), "not 1073741824"),
    "narrow table": (lambda w: w.by("ints", 3).by("ints", 1).by("ints", -2), "not -2"),
    "nil as key": (lambda w: w.write({None: 1}), "key of a table before this, not None"),
    "NaN as key": (lambda w: w.write({math.nan: 1}), "key of a table before this, not nan"),
    "no name": (lambda w: w.head("nn.\x1b[2J"), "the name of a class before this"),
    "lines as a name": (lambda w: w.head("nn.X\nnn.Y"), "the name of a class before this"),
    "endless name": (lambda w: w.head("n" * 201), "the name of a class before this"),
    "no fields": (lambda w: w.head("nn.X").write(3), "fields of nn.X"),
    "two objects": (lambda w: w.write("one").write("two"), "the end of the file"),
    "many dimensions": (lambda w: tensor(w, 33 * [1], 33 * [1], 1), "at most 32"),
    "negative dimensions": (lambda w: w.head("torch.IntTensor").by("ints", -1), "not -1"),
    "no size": (lambda w: tensor(w, [0, 2], [1, 1], 1), r"not sizes \[0, 2\]"),
    "negative size": (lambda w: tensor(w, [-3], [1], 1), "not sizes"),
    "negative stride": (lambda w: tensor(w, [3], [-1], 5), r"strides \[-1\]"),
    "before its storage": (lambda w: tensor(w, [3], [1], 0), "offset 0"),
    "behind its storage": (lambda w: tensor(w, [3], [1], 9), "10 elements .* up to 11"),
    "wide strides": (lambda w: tensor(w, [2, 2], [2**62, 2**62], 1), "10 elements"),
    "another storage": (lambda w: tensor(w, [2], [1], 1, Storage(np.zeros(9))), "FloatStorage"),
    "cuda storage": (
        lambda w: tensor(w, [2], [1], 1, Storage(np.zeros(9, "f4"), cuda=True)),
        "FloatStorage of a tensor",
    ),
    "a table as storage": (lambda w: tensor(w, [2], [1], 1, {}), "FloatStorage of a tensor"),
    "no storage": (lambda w: tensor(w, [2], [1], 1, False), "FloatStorage of a tensor"),
    "itself as storage": (
        lambda w: (
            w.head("torch.IntTensor").by("ints", 0).by("longs", 1).by("ints", 4).by("ints", 1)
        ),
        "the length of the version of a class",
    ),
    "large storage": (lambda w: w.head("torch.LongStorage").by("longs", 2**60), "elements of a"),
    "large bytes": (lambda w: w.head("torch.ByteStorage").by("longs", 2**60), "elements of a"),
    "negative storage": (lambda w: w.head("torch.ByteStorage").by("longs", -1), "not -1"),
}


@ENCODINGS
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_take_no_memory(tmp_path, name, ascii):
    make, message = BROKEN[name]
    file = tmp_path / "broken.t7"
    file.write_bytes(make(By(ascii)).out)
    tracemalloc.start()
    with pytest.raises(UserError, match=rf"broken\.t7: byte \d+: expected .*{message}"):
        read_torch7(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\n1_0\n", "a number"),
        ("1\nten\n", "a number"),
        (f"1\n{'9' * 41}\n", "a number"),
        (f"1\n{'9' * 100_000}\n", "a number"),
        (f"1{' ' * 100_000}\n", "a number"),
        ("1\n", "a number"),
        ("2\n2.5\nab\n", "the length of a string"),
        ("5\n99999999999\n", "a boolean within int32"),
        ("4\n1\n3\nV 1\n18\ntorch.ShortStorage\n1\n40000\n", "elements .* within int16"),
    ],
)
def test_broken_ascii_numbers(read, text, expected):
    with pytest.raises(UserError, match=f"byte .*expected .*{expected}"):
        read(text.encode())


def test_what_is_no_such_file(tmp_path, read):
    for content in (b"\x89PNG\r\n\x1a\n", b"PK\x03\x04" + bytes(50), b"return {}\n"):
        with pytest.raises(UserError, match="kind of an object"):
            read(content)
    with pytest.raises(UserError, match=r"x\.t7: is empty"):
        read(b"")
    with pytest.raises(UserError, match="is no file"):
        read_torch7(tmp_path)
    with pytest.raises(UserError, match="is no file"):
        read_torch7(tmp_path / "absent.t7")
    os.mkfifo(tmp_path / "pipe.t7")
    with pytest.raises(UserError, match="is no file"):
        read_torch7(tmp_path / "pipe.t7")


def test_a_file_larger_than_memory_costs_nothing(tmp_path):
    file = tmp_path / "sparse.t7"
    with file.open("wb") as opened:
        opened.truncate(2**42)
    with pytest.raises(UserError, match="byte 4: expected the end of the file"):
        read_torch7(file)
