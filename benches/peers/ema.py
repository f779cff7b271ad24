"""Peers of `ema`: PyTorch's own step for a list of tensors, and the same compiled."""

from common import Case, Peer, compiled, torch

OPERATIONS = ("step", "step with a bf16 copy")


def cases(full):
    for count, length in ((1, 1 << 26), (12, 1 << 22), (512, 1 << 14)) if full else ((1, 1 << 14), (3, 1003), (64, 128)):
        for element in ("bf16", "f32"):
            for operation in OPERATIONS:
                yield Case("ema", operation, f"{count} × {length}", element, (count, length))


def step(states, parameters):
    """The state is f32; lerp takes tensors of one type."""
    torch._foreach_lerp_(states, [parameter.float() for parameter in parameters], 0.001)


def step_and_copy(states, parameters, copies):
    step(states, parameters)
    torch._foreach_copy_(copies, states)


def torch_peer(compile_it):
    def prepare(case, device):
        count, length = case.sizes
        if compile_it and count > 64:
            raise NotImplementedError(f"a graph of {count} tensors takes minutes to compile")

        def tensors(dtype):
            return [torch.zeros(length, dtype=dtype, device=device) for _ in range(count)]

        inputs = [tensors(torch.float32), tensors(case.dtype)]
        function = step
        if case.operation != "step":
            function = step_and_copy
            inputs.append(tensors(torch.bfloat16))
        function = compiled(function, device) if compile_it else function

        def call():
            with torch.no_grad():
                function(*inputs)

        return call

    return prepare


PEERS = (
    Peer("PyTorch, foreach", None, frozenset(OPERATIONS), torch_peer(False)),
    Peer("PyTorch, foreach compiled", None, frozenset(OPERATIONS), torch_peer(True)),
)
