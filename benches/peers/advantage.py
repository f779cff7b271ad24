"""Peers of `advantage`: groups, GAE as the trainers loop over it, returns by a cumulative sum, whitening of tokens, and the doubly robust estimate."""

import packed
from common import DEVICE, Case, Peer, generator, of_torch, pair, torch

GAE = "gae"
LAMBDA = 0.95
GROUP = 8


def group_norm(rewards):
    """With the rule that rewards which hardly differ have no advantage."""
    advantages = (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-6)
    return (torch.where(differ(rewards), advantages, 0.0),)


def rloo(rewards):
    """The mean of the others is subtracted; the same rule."""
    others = (rewards.sum(-1, keepdim=True) - rewards) / (rewards.shape[-1] - 1)
    return (torch.where(differ(rewards), rewards - others, 0.0),)


def differ(rewards):
    spread = rewards.amax(-1, keepdim=True) - rewards.amin(-1, keepdim=True)
    return spread > 1e-6 * rewards.abs().amax(-1, keepdim=True).clamp(min=1.0)


def doubly_robust(rewards, values, weights):
    advantages = weights * (rewards - values)
    return advantages, values + advantages


def on_last_token(rewards, mask):
    """`[S, L]`: a segment's reward on its last counted token, 0 elsewhere."""
    position = torch.arange(mask.shape[-1], device=mask.device)
    last = torch.where(mask != 0, position, -1).amax(-1, keepdim=True)
    return torch.where(position == last, rewards.unsqueeze(-1), 0.0)


def reward_to_go(rewards, mask):
    return (on_last_token(rewards, mask).flip(-1).cumsum(-1).flip(-1) * mask,)


def whitening(values, mask):
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = (((values - mean) ** 2) * mask).sum() / (count - 1)
    return ((values - mean) * torch.rsqrt(variance + 1e-8) * mask,)


def gae_step(last, reward, value, next_value, mask):
    """One token of every segment. A masked token is skipped: what is behind it stays what follows."""
    step = reward + next_value - value + LAMBDA * last
    return torch.where(mask, step, last), torch.where(mask, value, next_value)


def gae(step, rewards, values, mask):
    # Token after token lies in one piece of memory.
    by_token = values.t().contiguous().unbind(0)
    counts = (mask != 0).t().contiguous().unbind(0)
    rewards = on_last_token(rewards, mask).t().contiguous().unbind(0)
    last, next_value = torch.zeros_like(by_token[0]), torch.zeros_like(by_token[0])
    advantages = []
    for t in reversed(range(len(by_token))):
        last, next_value = step(last, rewards[t], by_token[t], next_value, counts[t])
        advantages.append(last)
    advantages = torch.stack(advantages[::-1], dim=1) * mask
    return advantages, advantages + values * mask


# The function, its inputs in order, and what its results are called.
FUNCTIONS = {
    "group norm": (group_norm, ("rewards",), ("advantages",)),
    "rloo": (rloo, ("rewards",), ("advantages",)),
    "doubly robust": (doubly_robust, ("rewards", "values", "weights"), ("advantages", "estimates")),
    "reward to go": (reward_to_go, ("rewards", "mask"), ("advantages",)),
    "whitening": (whitening, ("values", "mask"), ("advantages",)),
    GAE: (gae, ("rewards", "values", "mask"), ("advantages", "returns")),
}


def cases(full):
    for segments in (1 << 14, 1 << 20) if full else (1 << 11,):
        for size in (GROUP, 64, segments):
            yield Case("advantage", "group norm", f"S={segments} in groups of {size}", "f32", (segments // size, size))
        yield Case("advantage", "rloo", f"S={segments} in groups of {GROUP}", "f32", (segments // GROUP, GROUP))
        yield Case("advantage", "doubly robust", f"S={segments}", "f32", (segments,))
    for shape, sizes in packed.shapes(full):
        for operation in ("reward to go", "whitening", GAE):
            yield Case("advantage", operation, shape, "f32", sizes)


def inputs(case):
    seeded = generator()
    _, names, _ = FUNCTIONS[case.operation]
    # A reward a segment: of tokens, a row each.
    of_reward = case.sizes[:1] if "mask" in names else case.sizes
    makers = {
        "rewards": lambda: torch.randn(of_reward, generator=seeded, device=DEVICE),
        "values": lambda: torch.randn(case.sizes, generator=seeded, device=DEVICE),
        "weights": lambda: torch.rand(case.sizes, generator=seeded, device=DEVICE),
        "mask": lambda: torch.ones(case.sizes, dtype=torch.uint8, device=DEVICE),
    }
    return {name: makers[name]() for name in names}


def torch_peer(is_compiled):
    def prepare(case, arrays):
        function, names, results = FUNCTIONS[case.operation]
        arguments = [arrays[name] for name in names]
        function = of_torch(function, is_compiled)
        return lambda: function(*arguments), lambda found: dict(zip(results, found))

    return prepare


def gae_peer(is_compiled):
    def prepare(case, arrays):
        _, names, results = FUNCTIONS[GAE]
        arguments = [arrays[name] for name in names]
        step = of_torch(gae_step, is_compiled)
        return lambda: gae(step, *arguments), lambda found: dict(zip(results, found))

    return prepare


PEERS = (
    *pair(set(FUNCTIONS) - {GAE}, torch_peer),
    Peer("PyTorch, eager loop", None, frozenset({GAE}), gae_peer(False)),
    Peer("PyTorch, loop over a compiled step", None, frozenset({GAE}), gae_peer(True), is_compiled=True),
)
