"""Peers of `correction`: importance weights against the rollout, and which tokens are kept, on a batch without padding."""

import math

import packed
from common import DEVICE, Case, generator, of_torch, pair, torch

GROUP = 8
CAP, SATURATION = 2.0, 20.0
BAND = (0.5, 5.0)
VETO = (math.log(1e-4), math.log(1e4))


def of_tokens(old, rollout, mask):
    weight = torch.exp(torch.clamp(old - rollout, -SATURATION, SATURATION)).clamp(max=CAP)
    return torch.where(mask != 0, weight, 0.0), mask != 0


def band_of_tokens(old, rollout, mask):
    ratio = torch.exp(torch.clamp(old - rollout, -SATURATION, SATURATION))
    is_inside = (mask != 0) & (ratio >= BAND[0]) & (ratio <= BAND[1])
    return torch.where(is_inside, ratio, 0.0), mask != 0


def of_tokens_with_veto(old, rollout, mask):
    weight, counted = of_tokens(old, rollout, mask)
    log_ratio = old - rollout
    is_outside = counted & ((log_ratio < VETO[0]) | (log_ratio > VETO[1]))
    return weight, counted & ~is_outside.any(-1, keepdim=True)


def sums(old, rollout, mask):
    return torch.where(mask != 0, old - rollout, 0.0).sum(-1, keepdim=True)


def of_sequences(old, rollout, mask):
    weight = torch.exp(torch.clamp(sums(old, rollout, mask), -SATURATION, SATURATION)).clamp(max=CAP)
    return torch.where(mask != 0, weight, 0.0), mask != 0


def geometric(old, rollout, mask):
    mean = sums(old, rollout, mask) / mask.sum(-1, keepdim=True)
    weight = torch.exp(torch.clamp(mean, -SATURATION, SATURATION)).clamp(max=CAP)
    return torch.where(mask != 0, weight, 0.0), mask != 0


def self_normalised(old, rollout, mask):
    """The weights of a group have the mean 1."""
    mean = (sums(old, rollout, mask) / mask.sum(-1, keepdim=True)).view(-1, min(GROUP, len(mask)))
    weight = (torch.softmax(mean, -1) * mean.shape[-1]).view(-1, 1)
    return torch.where(mask != 0, weight, 0.0), mask != 0


FUNCTIONS = {
    "tis of tokens": of_tokens,
    "band of tokens": band_of_tokens,
    "tis of tokens, veto": of_tokens_with_veto,
    "tis of sequences": of_sequences,
    "tis of sequences, geometric": geometric,
    "self-normalised, geometric": self_normalised,
}


def cases(full):
    for shape, sizes in packed.shapes(full):
        for operation, function in FUNCTIONS.items():
            groups = f", groups of {GROUP}" if function is self_normalised else ""
            yield Case("correction", operation, shape + groups, "f32", sizes)


def inputs(case):
    seeded = generator()
    old = -5.0 * torch.rand(case.sizes, generator=seeded, device=DEVICE)
    rollout = old - 0.1 * torch.rand(case.sizes, generator=seeded, device=DEVICE)
    return {"old": old, "rollout": rollout, "mask": torch.ones(case.sizes, dtype=torch.uint8, device=DEVICE)}


def torch_peer(is_compiled):
    def prepare(case, arrays):
        function = of_torch(FUNCTIONS[case.operation], is_compiled)
        old, rollout, mask = arrays["old"], arrays["rollout"], arrays["mask"]
        return lambda: function(old, rollout, mask), lambda found: {"weights": found[0], "keep": found[1]}

    return prepare


PEERS = pair(FUNCTIONS, torch_peer)
