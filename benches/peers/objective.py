"""Peers of `objective`: the same losses in the padded style of the trainers, forward and backward in one call."""

import packed
from common import Case, Peer, compiled, torch

OPERATIONS = ("ppo_clip", "gspo")


def cases(full):
    # A row of 16k holds 8k valid tokens: what a padded batch of long answers looks like.
    for shape, sizes in packed.shapes(full):
        for operation in OPERATIONS:
            yield Case("objective", operation, shape, "f32", sizes)


def arrays(case, device):
    rows, length = case.sizes
    generator = torch.Generator(device).manual_seed(0)
    old = -5.0 * torch.rand(rows, 2 * length, generator=generator, device=device)
    new = old - 0.1 * torch.rand(rows, 2 * length, generator=generator, device=device)
    mask = (torch.arange(2 * length, device=device) < length).float().expand(rows, -1).contiguous()
    advantages = torch.randn(rows, 1, generator=generator, device=device)
    return new, old, advantages, mask


def ppo_clip(new, old, advantages, mask):
    ratio = torch.exp(torch.clamp(new - old, -20.0, 20.0))
    loss = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.28))
    return ((loss * mask).sum(-1) / mask.sum(-1)).mean()


def gspo(new, old, advantages, mask):
    log_ratio = ((new - old) * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    ratio = torch.exp(log_ratio)
    loss = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - 3e-4, 1 + 4e-4))
    return loss.mean()


def torch_peer(compile_it):
    def prepare(case, device):
        function = ppo_clip if case.operation == "ppo_clip" else gspo
        function = compiled(function, device) if compile_it else function
        new, *others = arrays(case, device)
        new.requires_grad_()
        return lambda: torch.autograd.grad(function(new, *others), new)

    return prepare


PEERS = (
    Peer("PyTorch, eager, padded", None, frozenset(OPERATIONS), torch_peer(False)),
    Peer("PyTorch, compiled, padded", None, frozenset(OPERATIONS), torch_peer(True)),
)
