"""Tables that follow from a grid alone, computed once and shared by all blocks, models and steps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_P = ParamSpec("_P")
_T = TypeVar("_T")
_GRIDS = 8  # a training run on images of several sizes has about as many


def once_a_grid(make: Callable[_P, _T]) -> Callable[_P, _T]:
    """Remember the results of `make` for the last few arguments, but ordinary tensors only.

    What a tracer, torch.compile, FakeTensorMode, a functorch transform or the capture of a CUDA graph has made belongs
    to that alone; handed out later it would poison every model of the process. Each of them gets tables of its own.
    """
    remembered: OrderedDict[Any, _T] = OrderedDict()

    @wraps(make)
    def get(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_in_torch_dispatch_mode() or _captures():
            return make(*args, **kwargs)
        key = (args, tuple(kwargs.items()))
        if key in remembered:
            return remembered[key]
        with torch.inference_mode(False):  # a later training step may want it too
            made = make(*args, **kwargs)
        if all(map(_is_ordinary, made if isinstance(made, tuple) else (made,))):
            remembered[key] = made
            if len(remembered) > _GRIDS:
                remembered.popitem(last=False)
        return made

    return get


def _captures() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _is_ordinary(value: Any) -> bool:
    return (
        type(value) is Tensor
        and not torch._is_functional_tensor(value)
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )
