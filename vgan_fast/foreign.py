"""Small files that somebody else may have written: bounded in size, and of the types they claim."""

import json
import os
from pathlib import Path
from typing import TypeVar

import msgspec

LARGEST = 1 << 26  # bytes of a document that is read at once
_SAID = 200  # characters of a reason, which may quote what was read

T = TypeVar("T")


class MalformedError(Exception):
    """What was read is not what it should be; the message says why, in one line."""


def read_json(path: Path, kind: type[T], most: int = LARGEST) -> T:
    """Read a file of JSON as a value of a type.

    Args:
        path: the file.
        kind: dataclass, TypedDict or plain type that the value must be of, to its leaves; of a
            TypedDict only the named keys are kept.
        most: bytes; a larger file is not read.

    Raises:
        OSError: it cannot be read.
        MalformedError: it is larger, no JSON, or of another type.
    """
    return parse_json(read_bytes(path, most), kind)


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """Read a file of up to `most` bytes.

    Raises:
        OSError: it cannot be read.
        MalformedError: it is larger.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size  # reading takes as much memory as is asked for
        if size > most:
            raise MalformedError(f"{size} bytes: over {most}")
        return file.read(size)


def parse_json(content: bytes, kind: type[T]) -> T:
    """Return JSON as a value of a type; see `read_json`.

    Raises:
        MalformedError: it is no JSON, or of another type.
    """
    try:
        value = json.loads(content.decode())
    except UnicodeError:  # which holds the whole content
        raise MalformedError("no text") from None
    except ValueError as error:
        raise MalformedError(str(error)[:_SAID]) from None
    except RecursionError:
        raise MalformedError("nested too deep") from None
    return typed(value, kind)


def typed(value: object, kind: type[T]) -> T:
    """Return a value of JSON as one of a type; see `read_json`.

    Raises:
        MalformedError: it is of another type.
    """
    try:
        return msgspec.convert(value, kind)
    except UnicodeError:  # half of a surrogate pair, where only text is taken
        raise MalformedError("no text") from None
    except msgspec.ValidationError as error:
        raise MalformedError(str(error)[:_SAID]) from None
