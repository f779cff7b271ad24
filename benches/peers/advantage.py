"""Peers of `advantage`: GAE as the trainers loop over it, whitening of tokens, and advantages of groups."""

import packed
from common import Case, Peer, compiled, torch

OF_TOKENS = ("gae", "whitening")
GROUP_NORM = "group norm"


def cases(full):
    for segments in (1 << 14, 1 << 20) if full else (1 << 11,):
        for size in (8, 64, segments):
            yield Case("advantage", GROUP_NORM, f"S={segments} in groups of {size}", "f32", (segments // size, size))
    for shape, sizes in packed.shapes(full):
        for operation in OF_TOKENS:
            yield Case("advantage", operation, shape, "f32", sizes)


def normals(case, device):
    return torch.randn(case.sizes, generator=torch.Generator(device).manual_seed(0), device=device)


def gae_step(last, reward, value, next_value, mask):
    """One token of every segment. A masked token is skipped: what is behind it stays what follows."""
    delta = reward + next_value - value
    step = delta + 0.95 * last
    return torch.where(mask, step, last), torch.where(mask, value, next_value)


def gae(step, rewards, values, mask):
    rows, length = values.shape
    # Token after token lies in one piece of memory.
    by_token, counts = values.t().contiguous().unbind(0), mask.t().contiguous().unbind(0)
    last, next_value = values.new_zeros(rows), values.new_zeros(rows)
    nothing = values.new_zeros(rows)
    advantages = []
    for t in reversed(range(length)):
        last, next_value = step(last, rewards if t == length - 1 else nothing, by_token[t], next_value, counts[t])
        advantages.append(last)
    advantages = torch.stack(advantages[::-1], dim=1)
    return advantages, advantages + values


def gae_peer(compile_it):
    def prepare(case, device):
        step = compiled(gae_step, device) if compile_it else gae_step
        values = normals(case, device)
        rewards = values[:, 0].contiguous()
        mask = torch.ones(case.sizes, dtype=torch.bool, device=device)
        return lambda: gae(step, rewards, values, mask)

    return prepare


def whitening(values, mask):
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = (((values - mean) ** 2) * mask).sum() / (count - 1)
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def whitening_peer(compile_it):
    def prepare(case, device):
        function = compiled(whitening, device) if compile_it else whitening
        values = normals(case, device)
        mask = torch.ones(case.sizes, device=device)
        return lambda: function(values, mask)

    return prepare


def group_norm(rewards):
    """With the rule that rewards which hardly differ have no advantage."""
    advantages = (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-6)
    spread = rewards.amax(-1, keepdim=True) - rewards.amin(-1, keepdim=True)
    return torch.where(spread > 1e-6 * rewards.abs().amax(-1, keepdim=True).clamp(min=1.0), advantages, 0.0)


def group_norm_peer(compile_it):
    def prepare(case, device):
        function = compiled(group_norm, device) if compile_it else group_norm
        rewards = normals(case, device)
        return lambda: function(rewards)

    return prepare


PEERS = (
    Peer("PyTorch, eager loop", None, frozenset({"gae"}), gae_peer(False)),
    Peer("PyTorch, loop over a compiled step", None, frozenset({"gae"}), gae_peer(True)),
    Peer("PyTorch, eager", None, frozenset({"whitening"}), whitening_peer(False)),
    Peer("PyTorch, compiled", None, frozenset({"whitening"}), whitening_peer(True)),
    Peer("PyTorch, eager", None, frozenset({GROUP_NORM}), group_norm_peer(False)),
    Peer("PyTorch, compiled", None, frozenset({GROUP_NORM}), group_norm_peer(True)),
)
