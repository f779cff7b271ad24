"""Peers of `ema`: PyTorch's step for a list of tensors, and the same compiled."""

from common import DEVICE, Case, Missing, Peer, of_torch, torch

STEP, WITH_COPY = OPERATIONS = ("step", "step with a bf16 copy")
WEIGHT = 0.001
# Tensors of one graph: a graph of hundreds takes minutes to compile.
MOST_COMPILED = 64


def cases(full):
    for count, length in ((1, 1 << 26), (12, 1 << 22), (512, 1 << 14)) if full else ((1, 1 << 14), (3, 1003), (64, 128)):
        for element in ("bf16", "f32"):
            for operation in OPERATIONS:
                yield Case("ema", operation, f"{count} × {length}", element, (count, length))


def inputs(case):
    count, length = case.sizes
    arrays = {}
    for index in range(count):
        arrays[f"parameters {index}"] = torch.zeros(length, dtype=case.dtype, device=DEVICE)
        arrays[f"state {index}"] = torch.zeros(length, device=DEVICE)
    return arrays


def step(states, parameters, copies, scratch):
    """The state is f32, and lerp takes tensors of one type: bf16 parameters are converted into `scratch` first."""
    if scratch:
        torch._foreach_copy_(scratch, parameters)
        parameters = scratch
    torch._foreach_lerp_(states, parameters, WEIGHT)
    if copies:
        torch._foreach_copy_(copies, states)


def step_in_one(states, parameters, copies):
    """For a compiler, which makes one kernel of it and needs no scratch."""
    torch._foreach_lerp_(states, [parameter.float() for parameter in parameters], WEIGHT)
    if copies:
        torch._foreach_copy_(copies, states)


def torch_peer(is_compiled):
    def prepare(case, arrays):
        count = len(arrays) // 2
        if is_compiled and count > MOST_COMPILED:
            raise Missing(f"a graph of {count} tensors takes minutes to compile")
        states = [arrays[f"state {index}"] for index in range(count)]
        parameters = [arrays[f"parameters {index}"] for index in range(count)]
        copies = [torch.empty_like(state, dtype=torch.bfloat16) for state in states] if case.operation == WITH_COPY else []
        if is_compiled:
            function, arguments = of_torch(step_in_one, True), (states, parameters, copies)
        else:
            is_wide = parameters[0].dtype == torch.float32
            scratch = [] if is_wide else [torch.empty_like(state) for state in states]
            function, arguments = step, (states, parameters, copies, scratch)

        def named(_):
            results = {f"state {index}": state for index, state in enumerate(states)}
            return results | {f"copy {index}": copy for index, copy in enumerate(copies)}

        return lambda: function(*arguments), named

    return prepare


PEERS = (
    Peer("PyTorch, foreach", None, frozenset(OPERATIONS), torch_peer(False)),
    Peer("PyTorch, foreach compiled", None, frozenset(OPERATIONS), torch_peer(True), is_compiled=True),
)
