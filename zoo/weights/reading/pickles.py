"""Pickles read as data: a small machine for pickle's opcodes that can't run anything.

`pickle.Unpickler` runs methods of what is on its stack even when `find_class` is overridden (`__setstate__`
of tensors and functions, `__hash__` of keys of any depth), and its memo takes any amount of memory. This
machine calls the functions that it was handed, which are ours, and nothing else: every other class or
function becomes a `Reference`, calling one makes a `Placeholder`, and no module is ever imported. Names of
code that could only be there to be run are refused, so that the user hears about it.

What was read may be nested or shared to any depth and of any size. So nothing here or in unpickle.py hashes,
compares or prints it, or recurses into it, before its type is known; and each operation has a price, paid from
a budget (see zoo/weights/reading/tape.py), so that time and memory stay in proportion to the file.
"""

from __future__ import annotations

import mmap
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.errors import CorruptWeightsError, UnsafeCheckpointError, printable
from zoo.weights.collector import paused_collector
from zoo.weights.reading.tape import LITERALS, Budget, OverBudgetError, Tape

_MAX_NAME = 256  # characters of a global's name
_MAX_KEY = 4096  # characters of a dictionary's key: equal ones are compared each time
# Numbers as keys of dictionaries, of all in a file. Python's numbers hash to themselves, so that somebody can choose
# ones that all want the same place; an optimizer's state has a thousand.
_MAX_NUMBER_KEYS = 10_000
_GAP = 1000  # how far ahead of the others a pickle may number what it remembers; Python counts by one

# What operations cost, in bytes. A training checkpoint of a large model has some 10^5 of them.
_PRICE = 50  # of any, for its place on the stack and its time
_DEARER = {"]": 72, "}": 80, "\x8f": 250, "(": 130, "\x91": 250, "q": 60, "r": 60}
_DEARER |= {"c": 2000, "\x93": 2000, "i": 2000}  # names of classes: a checkpoint has some dozens, each of them once
_PRICE_OF_ITEM = 40  # in a list, tuple or placeholder
_PRICE_OF_KEY = 120  # in a dictionary or set
_PRICE_OF_CALL = 450  # and of the placeholder that it makes
_PRICE_OF_STORAGE = 700

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
        return f"<{printable(self.placeholder_of)}: data only>"

    def restore(self, state: Any) -> None:
        """Take over a saved state: a dictionary of attributes, or a pair of such (slots), or anything."""
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if type(part) is dict and all(type(key) is str for key in part):
                vars(self).update(part)
            elif part is not None:
                self.placeholder_state = state


@dataclass(frozen=True)
class Grammar:
    """What may stand in the pickles of a file.

    file: its name for messages. functions: what may be called, by "module.name". prices: what such calls cost in
    bytes of memory, where that is much. values: globals that stand for a value. persistent: gives the object of a
    persistent id.
    """

    file: str
    functions: Mapping[str, Callable[..., Any]]
    prices: Mapping[str, int]
    values: Mapping[str, Any]
    persistent: Callable[[Any], Any]


def read_pickle(buffer: mmap.mmap, start: int, end: int, grammar: Grammar, budget: Budget) -> tuple[Any, int]:
    """The object of the pickle that starts at `start`, and where it ends: at `end` at the latest.

    budget: what the file's pickles may still cost, all together.

    Raises UnsafeCheckpointError for a pickle that names code to be run or that costs too much, CorruptWeightsError
    for a damaged one.
    """
    tape = Tape(buffer, start, end, budget)
    file = grammar.file
    try:
        with paused_collector():
            return _Machine(tape, grammar).run(), tape.position
    except OverBudgetError:
        raise UnsafeCheckpointError(
            f"{file} holds a pickle that would take more time or memory than any checkpoint of its size. "
            "Don't use this file."
        ) from None
    except UnsafeCheckpointError:  # a ValueError too
        raise
    # RuntimeError: torch's, about a tensor where none belongs. None of them holds anything of the file.
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = "its stack or memo is empty" if isinstance(error, LookupError) else printable(str(error))
        if "positional argument" in reason:  # Python's words for what one of our functions was handed
            reason = "a function with more or fewer arguments than it has"
        raise CorruptWeightsError(
            f"{file} is damaged: its pickle can't be decoded ({reason}). Get the file again."
        ) from error


_NOTHING = object()  # a number under which the memo has nothing


class _Machine:
    """Stack, marks and memo of one pickle, as the opcodes' documentation in pickletools describes them."""

    def __init__(self, tape: Tape, grammar: Grammar) -> None:
        self.tape = tape
        self.budget = tape.budget
        self.grammar = grammar
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []
        self.numbers = 0  # that became keys

    def run(self) -> Any:
        tape, budget = self.tape, self.budget
        while True:
            code = tape.byte()
            budget.left -= _PRICES[code]
            if budget.left < 0:
                raise OverBudgetError
            if code in LITERALS:
                self.stack.append(LITERALS[code](tape))
            elif code == _STOP:
                return self.stack.pop()
            elif code in _OPERATIONS:
                _OPERATIONS[code](self)
            else:  # the extension registry (EXT*), out-of-band buffers, PERSID, and what is no operation
                raise UnsafeCheckpointError(
                    f"{self.grammar.file} holds a pickle with the operation 0x{code:02x}, which torch.save never "
                    "writes. Don't use this file."
                )

    # --------------------------------------------------------------------- operations, as pickletools calls them

    def proto(self) -> None:
        self.tape.byte()

    def frame(self) -> None:
        self.tape.number(8)

    def put(self) -> None:
        self.remember(int(self.tape.line()))

    def binput(self) -> None:
        self.remember(self.tape.byte())

    def long_binput(self) -> None:
        self.remember(self.tape.number(4))

    def memoize(self) -> None:
        self.memo.append(self.stack[-1])

    def get(self) -> None:
        self.recall(int(self.tape.line()))

    def binget(self) -> None:
        self.recall(self.tape.byte())

    def long_binget(self) -> None:
        self.recall(self.tape.number(4))

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        self.stack.pop()

    def dup(self) -> None:
        self.stack.append(self.stack[-1])

    def new_tuple(self) -> None:
        self.push(tuple(self.pop_mark()))

    def tuple1(self) -> None:
        self.stack[-1] = (self.stack[-1],)

    def tuple2(self) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def tuple3(self) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def new_list(self) -> None:
        self.push(self.pop_mark())

    def append(self) -> None:
        item = self.stack.pop()
        self.extend(self.stack[-1], [item])

    def appends(self) -> None:
        items = self.pop_mark()
        self.extend(self.stack[-1], items)

    def new_dict(self) -> None:
        items = self.pop_mark()
        self.push({})
        self.set_items(self.stack[-1], items)

    def setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [key, value])

    def setitems(self) -> None:
        items = self.pop_mark()
        self.set_items(self.stack[-1], items)

    def new_frozenset(self) -> None:
        items = self.pop_mark()
        self.push(frozenset(map(self.key, items)))

    def global_(self) -> None:
        module, name = self.tape.line(_MAX_NAME), self.tape.line(_MAX_NAME)
        self.push(self.resolve(str(module, "utf-8"), str(name, "utf-8")))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(self.resolve(module, name))

    def reduce(self) -> None:
        args, callee = self.stack.pop(), self.stack.pop()
        self.push(self.call(callee, args))

    def newobj_ex(self) -> None:
        keywords, args, callee = self.stack.pop(), self.stack.pop(), self.stack.pop()
        made = self.call(callee, args)
        self.push(made)
        self.set_state(made, keywords)

    def inst(self) -> None:
        self.global_()
        callee = self.stack.pop()
        self.push(self.call(callee, tuple(self.pop_mark())))

    def obj(self) -> None:
        callee, *rest = self.pop_mark()
        self.push(self.call(callee, tuple(rest)))

    def build(self) -> None:
        state = self.stack.pop()
        self.set_state(self.stack[-1], state)

    def binpersid(self) -> None:
        self.budget.spend(_PRICE_OF_STORAGE)
        self.push(self.grammar.persistent(self.stack.pop()))

    # ------------------------------------------------------------------------------------ what they come to

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        self.budget.spend(_PRICE_OF_ITEM * len(items))
        return items

    def remember(self, number: int) -> None:
        size = len(self.memo)
        if number == size:
            self.memo.append(self.stack[-1])
        elif number < size:  # some writers use a number again
            self.memo[number] = self.stack[-1]
        elif number <= size + _GAP:
            self.budget.spend(8 * (number - size))
            self.memo += [_NOTHING] * (number - size) + [self.stack[-1]]
        else:
            raise ValueError("a memo with gaps")

    def recall(self, number: int) -> None:
        if number < 0 or self.memo[number] is _NOTHING:
            raise LookupError
        self.stack.append(self.memo[number])

    def key(self, value: Any) -> Any:
        """What stands for `value` in a dictionary or set: itself, or a placeholder if hashing it could take long.

        Texts and bytes of one process hash unpredictably, and only once each; numbers to themselves, and tuples of
        them so that anybody can make millions that collide.
        """
        self.budget.spend(_PRICE_OF_KEY)
        kind = type(value)
        if kind is str or kind is bytes:
            if len(value) > _MAX_KEY:
                raise ValueError("a dictionary's key of very many characters")
            return value
        if kind is Reference or kind is Placeholder or value is None:
            return value
        if kind is bool or kind is float or (kind is int and abs(value) < 1 << 60):
            self.numbers += 1
            if self.numbers <= _MAX_NUMBER_KEYS:
                return value
        self.budget.spend(_PRICE_OF_CALL)
        return Placeholder(f"builtins.{kind.__name__}", (value,))

    def extend(self, target: Any, items: list[Any]) -> None:
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(map(self.key, items))
        elif type(target) is Placeholder:
            target.placeholder_items.extend(items)
        else:
            raise TypeError(f"items for a {type(target).__name__}")

    def set_items(self, target: Any, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("a key without a value")
        pairs = zip(items[::2], items[1::2])
        if type(target) is dict:
            target.update((self.key(key), value) for key, value in pairs)
        elif type(target) is Placeholder:
            self.budget.spend(_PRICE_OF_ITEM * len(items))
            target.placeholder_items.extend(pairs)
        else:
            raise TypeError(f"items for a {type(target).__name__}")

    def resolve(self, module: Any, name: Any) -> Any:
        if type(module) is not str or type(name) is not str or len(module) + len(name) > _MAX_NAME:
            raise TypeError("a global whose name is no text, or a long one")
        # Protocols up to 2, torch's default among them, write many names as Python 2 had them.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full in self.grammar.values:
            return self.grammar.values[full]
        if full not in self.grammar.functions and full not in _CONTAINERS and _is_dangerous(full):
            raise UnsafeCheckpointError(
                f"{self.grammar.file} tries to run code: its pickle names {printable(full)}. Nothing was run; don't "
                "use this file."
            )
        return Reference(full)

    def call(self, callee: Any, args: Any) -> Any:
        if type(callee) is not Reference:
            raise UnsafeCheckpointError(
                f"{self.grammar.file} tries to run code: its pickle calls {_describe(callee)}. "
                "Nothing was run; don't use this file."
            )
        if type(args) is not tuple:
            raise TypeError("arguments that are no tuple")
        if callee.name in _CONTAINERS:
            return _CONTAINERS[callee.name](self, *args)
        function = self.grammar.functions.get(callee.name)
        self.budget.spend(self.grammar.prices.get(callee.name, _PRICE_OF_CALL))
        if function is None:
            return Placeholder(callee.name, args)
        self.pay_for_copies(args)
        return function(*args)

    def mapping(self, entries: Any = ()) -> dict[Any, Any]:
        """An OrderedDict with entries of its own in protocol 0 and 1 (later ones set them afterwards)."""
        if type(entries) not in (list, tuple) or any(type(pair) is not list or len(pair) != 2 for pair in entries):
            raise TypeError("a dictionary that isn't made from pairs")
        made: dict[Any, Any] = {}
        for key, value in entries:
            made[self.key(key)] = value
        return made

    def elements(self, entries: Any = ()) -> set[Any]:
        if type(entries) not in (list, tuple, set, frozenset):
            raise TypeError("a set that isn't made from a list")
        return set(map(self.key, entries))

    def set_state(self, target: Any, state: Any) -> None:
        if type(target) is Placeholder:
            self.pay_for_copies(state if type(state) is tuple else (state,))
            target.restore(state)
        elif type(target) is not dict:  # an OrderedDict's attributes (_metadata of a state dict) aren't needed
            raise UnsafeCheckpointError(
                f"{self.grammar.file} tries to run code: its pickle sets the state of {_describe(target)}. "
                "Nothing was run; don't use this file."
            )

    def pay_for_copies(self, values: tuple[Any, ...]) -> None:
        """Functions copy what they are handed, and a pickle can hand over one large thing many times."""
        for value in values:
            if type(value) in (str, bytes, bytearray):
                self.budget.spend(len(value))
            elif type(value) in (tuple, list, dict, set, frozenset):
                self.budget.spend(_PRICE_OF_KEY * len(value))


_CONTAINERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Machine.mapping,
    "builtins.set": _Machine.elements,
    "builtins.frozenset": lambda machine, entries=(): frozenset(machine.elements(entries)),
}
_STOP = ord(".")
_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.proto,
    0x95: _Machine.frame,
    # memo
    ord("p"): _Machine.put,
    ord("q"): _Machine.binput,
    ord("r"): _Machine.long_binput,
    0x94: _Machine.memoize,
    ord("g"): _Machine.get,
    ord("h"): _Machine.binget,
    ord("j"): _Machine.long_binget,
    # the stack itself
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
    ord("1"): lambda machine: machine.pop_mark().clear(),
    ord("2"): _Machine.dup,
    # containers
    ord("t"): _Machine.new_tuple,
    0x85: _Machine.tuple1,
    0x86: _Machine.tuple2,
    0x87: _Machine.tuple3,
    ord("l"): _Machine.new_list,
    ord("a"): _Machine.append,
    ord("e"): _Machine.appends,
    ord("d"): _Machine.new_dict,
    ord("s"): _Machine.setitem,
    ord("u"): _Machine.setitems,
    0x90: _Machine.appends,  # ADDITEMS
    0x91: _Machine.new_frozenset,
    # what would run code elsewhere
    ord("c"): _Machine.global_,
    0x93: _Machine.stack_global,
    ord("R"): _Machine.reduce,
    0x81: _Machine.reduce,  # NEWOBJ
    0x92: _Machine.newobj_ex,
    ord("i"): _Machine.inst,
    ord("o"): _Machine.obj,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.binpersid,
}
_PRICES = [_DEARER.get(chr(code), _PRICE) for code in range(256)]


def _is_dangerous(full: str) -> bool:
    module, _, name = full.partition(".")
    if module == "builtins":
        return name not in _PLAIN_BUILTINS and not name.endswith(("Error", "Exception", "Warning"))
    parts = full.split(".")
    prefixes = (".".join(parts[:size]) for size in range(1, len(parts) + 1))
    return full in _DANGEROUS_NAMES or any(prefix in _DANGEROUS_MODULES for prefix in prefixes)


def _describe(value: Any) -> str:
    if type(value) is Placeholder:
        return f"an object of {printable(value.placeholder_of)}"
    return printable(value.name) if type(value) is Reference else f"an object of type {type(value).__name__}"
