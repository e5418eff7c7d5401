"""An array that is as strict as CuPy's about what may touch it, in host memory.

It goes through NumPy's dispatch as cupy.ndarray does: a NumPy function works on it if CuPy has one of that name which
takes the arguments, never together with a NumPy array, and never by an implicit copy to the host.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import cupy
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


class DeviceArray(NDArrayOperatorsMixin):
    # What cupy.ndarray has, and the judge uses. Nothing else exists here.
    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self.host = host

    shape = property(lambda self: self.host.shape)
    strides = property(lambda self: self.host.strides)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    T = property(lambda self: DeviceArray(self.host.T))

    def __array__(self, *_: object, **__: object) -> None:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or not hasattr(cupy, ufunc.__name__):
            return NotImplemented
        for value in inputs:
            if isinstance(value, np.ndarray):
                raise TypeError(f"Unsupported type {type(value)}")
        result = ufunc(*map(_host, inputs))
        if kwargs:  # an operator in place, which is cupy.ndarray's own
            assert kwargs == {"out": (inputs[0],)}
            self.host[...] = result
            return self
        return _wrapped(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        module = functools.reduce(getattr, func.__module__.split(".")[1:], cupy)
        theirs = getattr(module, func.__name__)  # AttributeError: CuPy has no such function
        inspect.signature(theirs).bind(*args, **kwargs)
        if not all(issubclass(t, DeviceArray) for t in types):
            return NotImplemented
        return _wrapped(func(*map(_host, args), **{k: _host(v) for k, v in kwargs.items()}))

    def __getitem__(self, key: Any) -> DeviceArray:
        return DeviceArray(np.asarray(self.host[_index(key)]))

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise TypeError("non-scalar numpy.ndarray cannot be used for fill")
        self.host[_index(key)] = _host(value)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def astype(self, dtype: Any) -> DeviceArray:
        return DeviceArray(self.host.astype(dtype))

    def view(self, dtype: Any) -> DeviceArray:
        return DeviceArray(self.host.view(dtype))

    def copy(self) -> DeviceArray:
        return DeviceArray(self.host.copy())

    def fill(self, value: int | float) -> None:
        self.host.fill(value)

    def sum(self, axis: int | None = None) -> DeviceArray:
        return DeviceArray(np.asarray(self.host.sum(axis=axis)))

    def max(self) -> DeviceArray:
        return DeviceArray(np.asarray(self.host.max()))

    def all(self) -> DeviceArray:
        return DeviceArray(np.asarray(self.host.all()))


class DeviceModule:
    """The part of the module `cupy` that CuPy really has, on device arrays."""

    def __getattr__(self, name: str) -> Any:
        theirs, ours = getattr(cupy, name), getattr(np, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not isinstance(theirs, cupy.ufunc):
                inspect.signature(theirs).bind(*args, **kwargs)
            if name != "asarray" and any(isinstance(value, np.ndarray) for value in args):
                raise TypeError("Unsupported type numpy.ndarray")
            return _wrapped(ours(*map(_host, args), **kwargs))

        return call


def _host(value: Any) -> Any:
    return value.host if isinstance(value, DeviceArray) else value


def _wrapped(value: Any) -> DeviceArray:
    return DeviceArray(np.asarray(value))


def _index(key: Any) -> Any:
    return tuple(map(_host, key)) if isinstance(key, tuple) else _host(key)
