"""Peers of `objective`: loss and gradient in one call, as the trainers write them: over a batch padded to twice its length, and over the same batch
without padding, which only segments of one length allow."""

import packed
from common import DEVICE, Case, Peer, generator, of_torch, torch

OPERATIONS = ("ppo_clip", "gspo")


def cases(full):
    for shape, sizes in packed.shapes(full):
        for operation in OPERATIONS:
            yield Case("objective", operation, shape, "f32", sizes)


def inputs(case):
    seeded = generator()
    old = -5.0 * torch.rand(case.sizes, generator=seeded, device=DEVICE)
    return {
        "old": old,
        "new": old - 0.1 * torch.rand(case.sizes, generator=seeded, device=DEVICE),
        "mask": torch.ones(case.sizes, dtype=torch.uint8, device=DEVICE),
        "advantages": torch.randn(case.sizes[0], generator=seeded, device=DEVICE),
    }


def ppo_clip(new, old, advantages, mask):
    """Mean over tokens, then over segments; the ratio saturates at e^±20."""
    ratio = torch.exp(torch.clamp(new - old, -20.0, 20.0))
    loss = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.28))
    return ((loss * mask).sum(-1) / mask.sum(-1)).mean()


def gspo(new, old, advantages, mask):
    log_ratio = ((new - old) * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    ratio = torch.exp(log_ratio)
    loss = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - 3e-4, 1 + 4e-4))
    return loss.mean()


def torch_peer(is_compiled, is_padded):
    def prepare(case, arrays):
        length = arrays["new"].shape[-1]
        added = length if is_padded else 0
        function = of_torch(ppo_clip if case.operation == "ppo_clip" else gspo, is_compiled)
        new, old, mask = (torch.nn.functional.pad(arrays[name], (0, added)) for name in ("new", "old", "mask"))
        advantages, mask = arrays["advantages"].unsqueeze(-1), mask.float()
        new.requires_grad_()

        def call():
            loss = function(new, old, advantages, mask)
            return loss.detach(), *torch.autograd.grad(loss, new)

        return call, lambda found: {"loss": found[0].reshape(1), "d_logprobs": found[1][:, :length]}

    return prepare


PEERS = tuple(
    Peer(
        f"PyTorch, {'compiled' if is_compiled else 'eager'}, {'padded' if is_padded else 'no padding'}",
        None, frozenset(OPERATIONS), torch_peer(is_compiled, is_padded), is_compiled,
    )
    for is_padded in (True, False)
    for is_compiled in (False, True)
)
