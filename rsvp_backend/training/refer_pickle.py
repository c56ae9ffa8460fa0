"""Pickles of plain values, read without running anything in them.

The REFER data sets come as pickles, and `pickle.load` calls whatever a pickle names. Their files hold lists, dicts,
strings and numbers only, which need no name at all: so every name is refused, and with them all calls.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from rsvp_backend.training.referring import DataError

# What a damaged pickle makes the unpickler raise, besides its own error.
_DAMAGE = (
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)


class _NamedError(Exception):
    """The pickle names a class or function."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise _NamedError(f"{module}.{name}")


def load_plain(path: Path) -> Any:
    """What is in the pickle ``path``, if that is None, bool, int, float, str, bytes, list, tuple, dict and set only.

    Strings of Python 2 are read as UTF-8. Raises `DataError`.
    """
    try:
        with path.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="utf-8", errors="replace").load()
    except _NamedError as error:
        raise DataError(
            f"{path} names {error}, which would be run: it is refused. Lists, dicts, texts and numbers are expected; "
            "get the file from the data set's own source"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (pickle.UnpicklingError, *_DAMAGE) as error:
        raise DataError(f"{path} is no readable pickle ({type(error).__name__}: {error}): download it again") from None
