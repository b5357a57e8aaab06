"""A second device that is only pretended: it finds tensors that a lesson forgot to move, on a machine without a GPU.

Every tensor carries a mark: *moved* (by ``.to(device)``, as lessons write it), *left* (made without a device) or none. The
mark goes from the inputs of an operation to its outputs. An operation on a moved and a left tensor raises the error that a
GPU would raise.

What it does not see: tensors made with ``device=...`` have no mark, because the name of the pretended device is that of the
real one; and operations inside compiled code are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

MIXING_IS_ALLOWED = {"__getitem__", "__setitem__", "copy_"}  # an index may stay on the CPU
MOVERS, RETURNERS = ("Tensor.to", "Tensor.cuda"), ("Tensor.cpu", "Tensor.numpy", "Tensor.tolist")


class LeftBehind(RuntimeError):
    """An operation on tensors of both devices."""


class SecondDevice(TorchFunctionMode):
    """Follows the marks through all operations that Python calls."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = resolve_name(function) or getattr(function, "__name__", "")
        inputs = list(tensors([args, kwargs]))
        marks = {mark for tensor in inputs if tensor.dim() > 0 and (mark := getattr(tensor, "_moved", None)) is not None}
        if len(marks) == 2 and name.rpartition(".")[2] not in MIXING_IS_ALLOWED:
            shapes = [(tuple(t.shape), "moved" if t._moved else "left") for t in inputs if hasattr(t, "_moved")]
            raise LeftBehind(f"Expected all tensors to be on the same device: {name} got {shapes}; move them with .to(DEVICE).")
        result = function(*args, **kwargs)
        mark = self.mark_of(name, args, kwargs, marks, bool(inputs))
        for tensor in tensors(result):
            if mark is not None:
                tensor._moved = mark
        return result

    @staticmethod
    def mark_of(name: str, args: Any, kwargs: Any, marks: set[bool], has_inputs: bool) -> bool | None:
        """The mark of what an operation returns."""
        if name.endswith(MOVERS):
            named = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, (torch.device, str))]
            if named:
                return isinstance(named[0], torch.device)
            others = [value for value in args[1:] if isinstance(value, torch.Tensor)]
            return getattr(others[0], "_moved", None) if others else next(iter(marks), None)
        if name.endswith(RETURNERS):
            return False
        if not has_inputs:  # a new tensor: left where it was made, unless a device was named
            return None if kwargs.get("device") is not None else False
        return True if True in marks else next(iter(marks), None)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)


def install() -> None:
    """Pretend from now on, in this thread: models that are moved get the mark on their parameters and buffers."""
    plain = torch.nn.Module.to

    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        moved = plain(self, *args, **kwargs)
        named = [value for value in (*args, *kwargs.values()) if isinstance(value, (torch.device, str))]
        if named:
            for tensor in (*moved.parameters(), *moved.buffers()):
                tensor._moved = isinstance(named[0], torch.device)  # type: ignore[attr-defined]
        return moved

    from_numpy = torch.from_numpy  # not an operation that the mode sees

    def left(array: Any) -> torch.Tensor:
        made = from_numpy(array)
        made._moved = False  # type: ignore[attr-defined]
        return made

    torch.nn.Module.to = to  # type: ignore[method-assign]
    torch.from_numpy = left
    SecondDevice().__enter__()
