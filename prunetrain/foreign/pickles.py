"""Interpret the pickle inside a file by torch.save without running it: return the values, with tensors as positions in their storages.

Only the opcodes that torch.save writes for tensors and plain values are allowed. torch's own reader of such pickles
(`torch.load(weights_only=True)`) runs no code either, but trusts every size, shape and stride.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, Final

from prunetrain.foreign.refusal import RefusedFileError, quoted
from prunetrain.foreign.torch_globals import DTYPES, FUNCTIONS, ITEM_BYTES, GlobalName, Ordered, Storage, whole_number

MAX_BYTES: Final = 2**26
MAX_OPCODES: Final = 4_000_000
MAX_DEPTH: Final = 50  # of nested containers
_LARGEST_KEY: Final = 2**31
_REPEATS: Final = 4  # how often each value may be referred to again, on average; see `_check_size`


def read_pickle(data: bytes, parts: Mapping[str, int]) -> object:
    """Return what a pickle builds: plain values, with a `StoredTensor` for each tensor.

    Args:
        data: the pickle.
        parts: the number of bytes of every storage in the archive, by key.

    Raises:
        RefusedFileError: for a pickle that is damaged, too large or too deep, that names anything but tensors and plain containers, or that
            has tensors that reach beyond their storage or whose elements share places in it.
    """
    if len(data) > MAX_BYTES:
        raise RefusedFileError(f"its data.pkl is longer than {MAX_BYTES:,} bytes")
    machine = _Machine(parts)
    count = end = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            count, end = count + 1, position or 0
            if count > MAX_OPCODES:
                raise RefusedFileError(f"its data.pkl has more than {MAX_OPCODES:,} instructions")
            if opcode.name not in _OPCODES:
                raise RefusedFileError(f"its data.pkl has the instruction {opcode.name}, which torch.save does not write")
            _OPCODES[opcode.name](machine, argument)
        [value] = machine.stack
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError):
        raise RefusedFileError("its data.pkl is damaged") from None
    if end + 1 != len(data) or machine.below:
        raise RefusedFileError("its data.pkl is damaged")
    _check_size([value, *machine.attributes], most=_REPEATS * count + 1000)
    return value


class _Machine:
    """The stack, marks and memo of an unpickler."""

    def __init__(self, parts: Mapping[str, int]) -> None:
        self.parts = parts
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.attributes: list[object] = []
        self.storages: dict[str, Storage] = {}

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def push_tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise ValueError
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, Ordered):
            raise ValueError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < _LARGEST_KEY)):
                raise RefusedFileError(f"it has {quoted(_plain(key))} as a key: only strings and integers can be keys")
            target[key] = value

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        known = (module, name) in FUNCTIONS or (module == "torch" and (name in DTYPES or name in ITEM_BYTES))
        if not known:
            raise RefusedFileError(f"it holds more than tensors and plain values: {quoted(f'{module}.{name}')}")
        self.stack.append(GlobalName(module, name))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, GlobalName) or not isinstance(arguments, tuple):
            raise ValueError
        self.stack.append(FUNCTIONS[function.module, function.name](*arguments))

    def build(self) -> None:
        """Accept `_metadata`, which state dicts carry; any other attribute could hide a method of the dictionary."""
        state = self.stack.pop()
        if type(self.stack[-1]) is not Ordered or type(state) not in (dict, Ordered) or set(state) - {"_metadata"}:
            raise RefusedFileError("it holds an object with attributes of its own")
        self.attributes.append(state)

    def storage(self) -> None:
        kind, storage_class, key, location, length = self.stack.pop()
        if kind != "storage" or not isinstance(storage_class, GlobalName) or not isinstance(key, str) or not isinstance(location, str):
            raise ValueError
        found = Storage(whole_number(length), ITEM_BYTES[storage_class.name])
        if self.parts.get(key) != found.length * found.item_bytes:
            raise RefusedFileError(f"its storage {quoted(key)} should have {found.length * found.item_bytes:,} bytes and does not")
        if self.storages.setdefault(key, found) != found:
            raise RefusedFileError(f"its storage {quoted(key)} is used as two kinds of numbers")
        self.stack.append(found)


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _constant(make: Callable[[], object]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _memorize(machine: _Machine, argument: int) -> None:
    if argument > MAX_OPCODES:
        raise ValueError
    machine.memo[argument] = machine.stack[-1]


def _protocol(machine: _Machine, argument: int) -> None:
    if machine.stack:
        raise RefusedFileError("its data.pkl declares its protocol after its start, which torch.save does not do")
    if argument != 2:
        raise RefusedFileError(f"its data.pkl is of protocol {argument}, and torch.save writes 2")


_OPCODES: Final[Mapping[str, Callable[[_Machine, Any], None]]] = {
    "PROTO": _protocol,
    "STOP": lambda machine, _: None,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), _push),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _memorize),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, argument: _push(machine, machine.memo[argument])),
    "GLOBAL": lambda machine, argument: machine.name(argument),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.storage(),
}


def _plain(value: object) -> object:
    """Return a value that can be printed; one that may be huge or contain itself is replaced by its type."""
    return value if isinstance(value, int | float | str | None) else type(value).__name__


def _check_size(roots: list[object], most: int) -> None:
    """Check the depth of containers, and that the values are not many more than the file's own instructions.

    A pickle may refer to a value again and again: ten lists that each hold the previous one ten times take a hundred bytes, but are ten
    billion values to whoever prints or copies them. A list that holds itself has no end.

    Raises:
        RefusedFileError: if values are nested too deeply or repeated too often.
    """
    waiting = [(value, 0) for value in roots]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > most:
            raise RefusedFileError("its values are nested too deeply, or repeated too often")
        if isinstance(value, Storage) or (isinstance(value, GlobalName) and value.name not in DTYPES):
            raise RefusedFileError("it holds a class or a storage as a value")
        if isinstance(value, dict):
            waiting.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list | tuple):
            waiting.extend((item, depth + 1) for item in value)
