"""What a case and a peer are."""

import dataclasses
from collections.abc import Callable

try:
    import torch
except ImportError as error:  # every row then says so
    torch, NO_TORCH = None, f"torch: {type(error).__name__}: {error}"

ELEMENTS = {"bf16": "bfloat16", "f32": "float32"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A line of `moerl bench`, by the same names."""

    noun: str
    operation: str
    shape: str
    element: str
    sizes: tuple

    @property
    def dtype(self):
        return getattr(torch, ELEMENTS[self.element])

    def __str__(self):
        return f"{self.noun} {self.operation} {self.shape} {self.element}"


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another implementation: `prepare(case, device)` makes the arrays and returns the call that is timed."""

    name: str
    module: str | None  # what must be importable; None: torch itself
    operations: frozenset
    prepare: Callable


def compiled(function, device):
    """torch.compile, on a device: on the CPU its compiler would take longer than the rest of the program."""
    if device != "cuda":
        raise NotImplementedError("is compiled on a device alone")
    # What was compiled for other shapes counts against a limit, past which the eager function would run under this name.
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)
