"""Pickles read as data: a small machine for pickle's opcodes that can't run anything.

`pickle.Unpickler` runs methods of what is on its stack even when `find_class` is overridden (`__setstate__`
of tensors and functions, `__hash__` of keys of any depth), and its memo takes any amount of memory. This
machine calls the functions that it was handed, which are ours, and nothing else: every other class or
function becomes a `Reference`, calling one makes a `Placeholder`, and no module is ever imported. Names of
code that could only be there to be run are refused, so that the user hears about it. Memory stays in
proportion to the pickle's size. What was read may be nested or shared to any depth, so nothing here or in
unpickle.py recurses into it, not even with repr.
"""

from __future__ import annotations

import pickletools
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from zoo.errors import CorruptWeightsError, UnsafeCheckpointError

# A training checkpoint of a large model has some 10^5 opcodes; an opcode makes at most a few hundred bytes.
_MAX_OPCODES = 5_000_000
# Functions copy what they are handed, and a pickle can hand over one large thing many times. An honest one has each
# thing copied about once, so that all copies together have some elements more than the pickle has bytes.
_COPIES = 100_000
_MAX_NAME = 256  # characters of a global's name

# Modules whose functions run code, reach the system or reach into objects; an honest checkpoint names none of
# them. A module covers its submodules. The list is for the message: nothing that isn't on it is run either.
_DANGEROUS_MODULES = frozenset(
    """
    os posix nt posixpath ntpath subprocess _posixsubprocess sys shutil socket _socket importlib imp
    _frozen_importlib _imp zipimport pkgutil runpy pty ctypes _ctypes cffi mmap webbrowser operator _operator
    code codeop pickle _pickle cPickle dill cloudpickle joblib marshal shelve inspect atexit pdb bdb timeit
    profile cProfile pydoc doctest asyncio multiprocessing.util http urllib urllib2 requests httpx httpx2
    aiohttp smtplib ftplib telnetlib xmlrpc ensurepip pip platform popen2 linecache idlelib lib2to3 IPython
    torch.hub torch.jit torch.package torch.serialization torch.utils.cpp_extension torch.utils.collect_env
    torch._dynamo torch._inductor torch.distributed.rpc torch.ops numpy.testing numpy.f2py numpy.distutils
    numpy.ctypeslib
    """.split()  # noqa: SIM905 - one name a line would fill two pages
)
_DANGEROUS_NAMES = frozenset(
    """
    types.CodeType types.FunctionType types.LambdaType types.MethodType types.BuiltinFunctionType
    types.ModuleType logging.config.dictConfig logging.config.listen functools.reduce io.open io.FileIO
    io.open_code _io.open _io.FileIO _io.open_code tempfile.mkstemp torch.load torch.save numpy.load numpy.save
    numpy.fromfile numpy.memmap pandas.read_pickle
    """.split()  # noqa: SIM905 - one name a line would fill two pages
)
# Everything else in builtins is a function, and none of them belongs into a checkpoint.
_PLAIN_BUILTINS = frozenset(
    """
    bool bytearray bytes complex dict float frozenset int list object range set slice str tuple type
    NoneType Ellipsis NotImplemented
    """.split()  # noqa: SIM905 - one name a line would fill two pages
)

# Opcodes whose decoded argument is the value itself.
_LITERALS = frozenset(
    """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE
    SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    """.split()  # noqa: SIM905 - one name a line would fill two pages
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclass(frozen=True)
class Reference:
    """A class or function that a pickle names by "module.name"; it is neither looked up nor imported."""

    name: str


class Placeholder:
    """What stands for an object of a class that isn't known here: its data, without behavior.

    `vars(placeholder)` are the attributes that the object was saved with, so an `argparse.Namespace` can be
    read by name. The rest of what was saved is in `placeholder_of` (the class, "module.name"),
    `placeholder_args` (arguments of its construction), `placeholder_items` (what was appended or set as
    items) and `placeholder_state` (a saved state that isn't a dictionary of attributes).
    """

    # Slots keep these apart from the object's own attributes in __dict__.
    __slots__ = ("__dict__", "placeholder_args", "placeholder_items", "placeholder_of", "placeholder_state")

    def __init__(self, of: str, args: tuple[Any, ...] = ()) -> None:
        self.placeholder_of = of
        self.placeholder_args = args
        self.placeholder_items: list[Any] = []
        self.placeholder_state: Any = None

    def __repr__(self) -> str:
        return f"<{self.placeholder_of}: data only>"

    def restore(self, state: Any) -> None:
        """Take over a saved state: a dictionary of attributes, or a pair of such (slots), or anything."""
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, dict) and all(isinstance(key, str) for key in part):
                vars(self).update(part)
            elif part is not None:
                self.placeholder_state = state


def read_pickle(
    stream: BinaryIO,
    *,
    file: str,
    functions: Mapping[str, Callable[..., Any]],
    values: Mapping[str, Any],
    persistent: Callable[[Any], Any],
) -> Any:
    """The object of the pickle that starts at the stream's position; the stream is left behind its end.

    file: name for messages. functions: what may be called, by "module.name". values: globals that stand for a
    value. persistent: gives the object of a persistent id.

    Raises UnsafeCheckpointError for a pickle that names code to be run, CorruptWeightsError for a damaged
    one.
    """
    machine = _Machine(file, functions, values, persistent)
    try:
        return machine.run(stream)
    except UnsafeCheckpointError:  # a ValueError too
        raise
    # RuntimeError: torch's, about a tensor where none belongs.
    except (
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
        struct.error,
    ) as error:
        raise CorruptWeightsError(
            f"{file} is damaged: its pickle can't be decoded ({type(error).__name__}: {error}). Get the file again."
        ) from error


class _Machine:
    """Stack, marks and memo of one pickle, as the opcodes' documentation in pickletools describes them."""

    def __init__(
        self,
        file: str,
        functions: Mapping[str, Callable[..., Any]],
        values: Mapping[str, Any],
        persistent: Callable[[Any], Any],
    ) -> None:
        self.file = file
        self.functions = functions
        self.values = values
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.size = 0  # bytes read so far
        self.copied = 0  # characters, items and so on that were copied so far

    def run(self, stream: BinaryIO) -> Any:
        start = stream.tell()
        for count, (opcode, arg, position) in enumerate(pickletools.genops(stream)):
            self.size = (position or 0) - start
            if count >= _MAX_OPCODES:
                raise UnsafeCheckpointError(
                    f"{self.file} holds a pickle of more than {_MAX_OPCODES} operations, which no checkpoint "
                    "needs. Don't use this file."
                )
            if opcode.name == "STOP":
                break
            self.step(opcode.name, arg)
        return self.stack.pop()

    def step(self, opcode: str, arg: Any) -> None:
        stack = self.stack
        if opcode in _LITERALS:
            stack.append(arg)
            return
        if opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
            return
        match opcode:
            case "PROTO" | "FRAME":
                pass
            # memo
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[arg])
            # the stack itself
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.pop_mark()
            case "DUP":
                stack.append(stack[-1])
            # containers
            case "TUPLE":
                self.push(tuple(self.pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode[-1])
                if len(stack) < size:
                    raise IndexError("stack underflow")
                stack[-size:] = [tuple(stack[-size:])]
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                self.push(self.pop_mark())
            case "APPEND":
                item = stack.pop()
                self.extend(stack[-1], [item])
            case "APPENDS":
                items = self.pop_mark()
                self.extend(self.stack[-1], items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = self.pop_mark()
                self.push({})
                self.set_items(self.stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = self.pop_mark()
                self.set_items(self.stack[-1], items)
            case "EMPTY_SET":
                stack.append(set())
            case "ADDITEMS":
                items = self.pop_mark()
                self.extend(self.stack[-1], items)
            case "FROZENSET":
                self.push(frozenset(_key(item) for item in self.pop_mark()))
            # what would run code elsewhere
            case "GLOBAL":
                module, _, name = arg.partition(" ")
                self.push(self.resolve(module, name))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                self.push(self.resolve(module, name))
            case "REDUCE" | "NEWOBJ":
                args, callee = stack.pop(), stack.pop()
                self.push(self.call(callee, args))
            case "NEWOBJ_EX":
                keywords, args, callee = stack.pop(), stack.pop(), stack.pop()
                made = self.call(callee, args)
                self.push(made)
                self.build(made, keywords)
            case "INST":
                module, _, name = arg.partition(" ")
                args = tuple(self.pop_mark())
                self.push(self.call(self.resolve(module, name), args))
            case "OBJ":
                callee, *rest = self.pop_mark()
                self.push(self.call(callee, tuple(rest)))
            case "BUILD":
                state = stack.pop()
                self.build(stack[-1], state)
            case "BINPERSID":
                self.push(self.persistent(stack.pop()))
            case _:  # PERSID, the extension registry (EXT*), out-of-band buffers
                raise UnsafeCheckpointError(
                    f"{self.file} holds a pickle with the operation {opcode}, which torch.save never writes. "
                    "Don't use this file."
                )

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def extend(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(_key(item) for item in items)
        elif isinstance(target, Placeholder):
            target.placeholder_items.extend(items)
        else:
            raise TypeError(f"items for a {type(target).__name__}")

    def set_items(self, target: Any, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("a key without a value")
        pairs = zip(items[::2], items[1::2])
        if isinstance(target, dict):
            target.update((_key(key), value) for key, value in pairs)
        elif isinstance(target, Placeholder):
            target.placeholder_items.extend(pairs)
        else:
            raise TypeError(f"items for a {type(target).__name__}")

    def resolve(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > _MAX_NAME:
            raise TypeError("a global whose name is no text, or a long one")
        # Protocols up to 2, torch's default among them, write many names as Python 2 had them.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full in self.values:
            return self.values[full]
        if full not in self.functions and _is_dangerous(full):
            raise UnsafeCheckpointError(
                f"{self.file} tries to run code: its pickle names {full}. Nothing was run; don't use this file."
            )
        return Reference(full)

    def call(self, callee: Any, args: Any) -> Any:
        if not isinstance(callee, Reference):
            raise UnsafeCheckpointError(
                f"{self.file} tries to run code: its pickle calls {_describe(callee)}. "
                "Nothing was run; don't use this file."
            )
        if not isinstance(args, tuple):
            raise TypeError("arguments that are no tuple")
        function = self.functions.get(callee.name)
        if function is None:
            return Placeholder(callee.name, args)
        self.spend(args)
        return function(*args)

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, Placeholder):
            self.spend(state if isinstance(state, tuple) else (state,))
            target.restore(state)
        elif not isinstance(target, dict):  # an OrderedDict's attributes (_metadata of a state dict) aren't needed
            raise UnsafeCheckpointError(
                f"{self.file} tries to run code: its pickle sets the state of {_describe(target)}. "
                "Nothing was run; don't use this file."
            )

    def spend(self, values: tuple[Any, ...]) -> None:
        """Account for copies of `values` that are about to be made."""
        self.copied += sum(len(value) for value in values if isinstance(value, _SIZED))
        if self.copied > self.size + _COPIES:
            raise UnsafeCheckpointError(
                f"{self.file} holds a pickle that would fill the memory with copies. Don't use this file."
            )


_SIZED = (str, bytes, bytearray, tuple, list, dict, set, frozenset)


def _is_dangerous(full: str) -> bool:
    module, _, name = full.partition(".")
    if module == "builtins":
        return name not in _PLAIN_BUILTINS and not name.endswith(("Error", "Exception", "Warning"))
    parts = full.split(".")
    prefixes = (".".join(parts[:size]) for size in range(1, len(parts) + 1))
    return full in _DANGEROUS_NAMES or any(prefix in _DANGEROUS_MODULES for prefix in prefixes)


def _describe(value: Any) -> str:
    if isinstance(value, Placeholder):
        return f"an object of {value.placeholder_of}"
    return value.name if isinstance(value, Reference) else f"an object of type {type(value).__name__}"


def _key(value: Any) -> Any:
    """`value`, if it is quick to hash: nested tuples can be built that take forever."""
    scalars = (str, int, float, complex, bytes, type(None), Reference, Placeholder)
    if isinstance(value, scalars) or (isinstance(value, tuple) and all(isinstance(item, scalars) for item in value)):
        return value
    raise TypeError(f"a key of type {type(value).__name__}")
