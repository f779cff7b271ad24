"""Whether the peers compute what moerl computes: a step file, and what `moerl step` wrote for it."""

import torch
from safetensors.torch import load_file

import logprob


def compare(step, ours, device):
    """A table of largest differences, and whether all are within tolerance. The defaults of `moerl step` are assumed."""
    data = {name: tensor.to(device) for name, tensor in load_file(step).items()}
    mine = {name: tensor.to(device) for name, tensor in load_file(ours).items()}
    rows = list(logprobs(data, mine)) + list(routes(data, mine)) + list(loss(data, mine))
    lines = [f"{name:44} {difference:9.2e}  at most {most:.0e}  {'ok' if difference <= most else 'DIFFERS'}" for name, difference, most in rows]
    return "\n".join(lines), all(difference <= most for _, difference, most in rows)


def largest(a, b):
    return (a.double() - b.double()).abs().max().item()


def logprobs(data, mine):
    chosen, entropy = logprob.statistics(data["logits"], data["tokens"].long())
    # PyTorch's own rounding, of logits near 10 in f32.
    yield "logprobs, PyTorch", largest(chosen, mine["logprobs"]), 5e-6
    yield "entropy, PyTorch", largest(entropy, mine["entropy"]), 2e-5


def routes(data, mine):
    forced = data["routes_rollout"].long().transpose(0, 1)
    x = data["router_logits"].float()
    weights = torch.softmax(x, -1).gather(-1, forced)
    weights = weights / weights.sum(-1, keepdim=True)
    yield "replay weights, PyTorch", largest(weights, mine["replay_topk_weights"]), 2e-6
    native = torch.softmax(x, -1).topk(forced.shape[-1], dim=-1).indices.sort(-1).values
    changed = (native != mine["native_topk_ids"].long().sort(-1).values).any(-1).float().mean().item()
    yield "share of native expert sets that differ", changed, 0.0


def loss(data, mine):
    new = mine["logprobs"].double().requires_grad_()
    old, mask, offsets = data["logp_old"].double(), data["loss_mask"].bool(), data["cu_seqlens"].tolist()
    advantages = data["advantage"].double()
    values = []
    for i, (begin, end) in enumerate(zip(offsets, offsets[1:])):
        counted = mask[begin:end]
        if not counted.any():
            continue
        ratio = torch.exp((new[begin:end] - old[begin:end])[counted].mean())
        a = advantages[i]
        values.append(torch.maximum(-a * ratio, -a * ratio.clamp(1 - 3e-4, 1 + 4e-4)))
    value = torch.stack(values).mean()
    (gradient,) = torch.autograd.grad(value, new)
    yield "GSPO loss, PyTorch in f64", abs(value.item() - mine["loss"].item()), 1e-6
    yield "GSPO gradient, PyTorch in f64", largest(gradient, mine["d_logprobs"]), 1e-8
