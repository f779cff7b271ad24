"""Peers of `correction`: truncated importance weights of tokens and of sequences, elementwise on a batch without padding."""

import packed
from common import Case, Peer, compiled, torch

OPERATIONS = ("tis of tokens", "tis of sequences", "tis of sequences, geometric")


def cases(full):
    for shape, sizes in packed.shapes(full):
        for operation in OPERATIONS:
            yield Case("correction", operation, shape, "f32", sizes)


def arrays(case, device):
    generator = torch.Generator(device).manual_seed(0)
    old = -5.0 * torch.rand(case.sizes, generator=generator, device=device)
    rollout = old - 0.1 * torch.rand(case.sizes, generator=generator, device=device)
    return old, rollout, torch.ones(case.sizes, dtype=torch.uint8, device=device)


def of_tokens(old, rollout, mask):
    ratio = torch.exp(torch.clamp(old - rollout, -20.0, 20.0))
    return torch.where(mask != 0, ratio.clamp(max=2.0), 0.0), mask != 0


def of_sequences(old, rollout, mask):
    log_ratio = torch.where(mask != 0, old - rollout, 0.0).sum(-1, keepdim=True)
    weight = torch.exp(torch.clamp(log_ratio, -20.0, 20.0)).clamp(max=2.0)
    return torch.where(mask != 0, weight, 0.0), mask != 0


def geometric(old, rollout, mask):
    log_ratio = torch.where(mask != 0, old - rollout, 0.0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    weight = torch.exp(torch.clamp(log_ratio, -20.0, 20.0)).clamp(max=2.0)
    return torch.where(mask != 0, weight, 0.0), mask != 0


def torch_peer(compile_it):
    def prepare(case, device):
        function = dict(zip(OPERATIONS, (of_tokens, of_sequences, geometric)))[case.operation]
        function = compiled(function, device) if compile_it else function
        inputs = arrays(case, device)
        return lambda: function(*inputs)

    return prepare


PEERS = (
    Peer("PyTorch, eager", None, frozenset(OPERATIONS), torch_peer(False)),
    Peer("PyTorch, compiled", None, frozenset(OPERATIONS), torch_peer(True)),
)
