"""What a case and a peer are."""

import dataclasses
import importlib
import os
from collections.abc import Callable

try:
    import torch
except ImportError as error:  # every row then says so
    torch, NO_TORCH = None, f"torch: {type(error).__name__}: {error}"

DEVICE = "cuda" if torch and torch.cuda.is_available() else "cpu"
ELEMENTS = {"bf16": "bfloat16", "f32": "float32"}


class Missing(Exception):
    """Why a peer does not run a case; no fault of anyone's."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A line of `moerl bench`, by the same names."""

    noun: str
    operation: str
    shape: str
    element: str
    sizes: tuple = ()  # what inputs are made of, where they do not come from a file

    @property
    def dtype(self):
        return getattr(torch, ELEMENTS[self.element])

    def __str__(self):
        return f"{self.noun} {self.operation} {self.shape} {self.element}"


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another implementation. `prepare(case, inputs)` returns the call that is timed, and what puts our names to its results."""

    name: str
    module: str | None  # what must be importable, and then needs a GPU; None: torch itself
    operations: frozenset
    prepare: Callable
    is_compiled: bool = False


class Rule:
    """Which cases are compiled: all of them or, where compiling takes longer than all the rest, a peer's first of each operation."""

    def __init__(self, takes_all):
        self.takes_all = takes_all
        self.seen = set()

    def admit(self, peer, case):
        key = (peer.name, case.noun, case.operation)
        if not self.takes_all and key in self.seen:
            raise Missing("compiled for the first case of an operation alone")
        self.seen.add(key)


def ready(peer, case, inputs, rule):
    """The call of a peer, and what names its results. `inputs()` makes its arrays, which may be large."""
    if peer.is_compiled:
        rule.admit(peer, case)
    if peer.module is not None:
        try:
            importlib.import_module(peer.module)
        except ModuleNotFoundError as error:
            raise Missing("not installed" if error.name == peer.module else f"not installed: {error.name}") from error
        except Exception as error:  # a broken installation is as good as none
            raise Missing(f"{peer.module} does not load: {type(error).__name__}: {error}".splitlines()[0]) from error
        # Triton's interpreter runs its kernels on the CPU, to compare what they compute.
        if DEVICE != "cuda" and not os.environ.get("TRITON_INTERPRET"):
            raise Missing("needs a GPU")
    return peer.prepare(case, inputs())


def generator(seed=0):
    return torch.Generator(DEVICE).manual_seed(seed)


def of_torch(function, is_compiled):
    if not is_compiled:
        return function
    # What was compiled for other shapes counts against a limit, past which the eager function would run under this name.
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def pair(operations, prepare):
    """PyTorch's peers: `prepare(is_compiled)` makes the preparation."""
    operations = frozenset(operations)
    return (
        Peer("PyTorch, eager", None, operations, prepare(False)),
        Peer("PyTorch, compiled", None, operations, prepare(True), is_compiled=True),
    )
