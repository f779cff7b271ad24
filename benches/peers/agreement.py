"""Whether the peers compute what moerl computes: every call that `moerl bench --export` wrote, or a step file and what `moerl step` wrote for it."""

import logprob
from common import DEVICE, Case, Missing, ready, torch

# The largest difference that rounding explains, as a share of the largest result: f32 sums in another order, or the last place of bf16. What is
# kept is the same or not.
ROUNDING = {"torch.float32": 5e-6, "torch.bfloat16": 2**-7}


def load(path):
    from safetensors.torch import load_file

    return {name: tensor.to(DEVICE) for name, tensor in load_file(path).items()}


def largest(a, b):
    return (a.double() - b.double()).abs().max().item()


def calls(path):
    """Cases of the file, each with its inputs and results."""
    found = {}
    for name, tensor in load(path).items():
        *case, side, array = name.split("/")
        found.setdefault(tuple(case), {"in": {}, "out": {}})[side][array] = tensor
    for case, arrays in found.items():
        yield Case(*case), arrays["in"], arrays["out"]


def compare_calls(path, nouns, rule):
    """A table of largest differences, and whether all are within tolerance. What is timed is what is compared here: the same `prepare`."""
    lines, agreed = [], True
    for case, inputs, results in calls(path):
        noun = nouns[case.noun]
        expected = noun.expected(inputs, results) if hasattr(noun, "expected") else results
        for peer in noun.PEERS:
            if case.operation in peer.operations:
                line, is_fine = compare_call(peer, case, inputs, expected, rule)
                lines.append(line)
                agreed &= is_fine
    return aligned(lines), agreed


def compare_call(peer, case, inputs, expected, rule):
    heading = (f"{case.noun} {case.operation}, {case.shape}", case.element, peer.name)
    try:
        # A call may write into what it is given.
        call, named = ready(peer, case, lambda: {name: tensor.clone() for name, tensor in inputs.items()}, rule)
        results = named(call())
    except Missing as reason:
        return (*heading, str(reason)), True
    except Exception as error:  # the others are still worth comparing
        return (*heading, f"{type(error).__name__}: {error}".splitlines()[0][:200], "FAILED"), False
    # Of lists of tensors, the worst.
    worst = {}
    for name, result in results.items():
        ours = expected[name]
        scale = max(ours.double().abs().max().item(), 1e-30)
        most = max(ROUNDING.get(str(array.dtype), 0.0) for array in (result, ours))
        difference = largest(result, ours) / scale
        kind = name.rstrip(" 0123456789")
        if not difference <= worst.get(kind, (-1.0, most))[0]:  # NaN counts as larger
            worst[kind] = (difference, most)
    text = ", ".join(f"{kind} {difference:.1e} of at most {most:.0e}" for kind, (difference, most) in worst.items())
    is_fine = all(difference <= most for difference, most in worst.values())
    return (*heading, text, "ok" if is_fine else "DIFFERS"), is_fine


def aligned(lines):
    lines = [(*line, "")[:5] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def compare_step(step, ours):
    """The same for a real update. The defaults of `moerl step` are assumed."""
    data, mine = load(step), load(ours)
    rows = list(logprobs(data, mine)) + list(routes(data, mine)) + list(loss(data, mine))
    lines = [f"{name:44} {difference:9.2e}  at most {most:.0e}  {'ok' if difference <= most else 'DIFFERS'}" for name, difference, most in rows]
    return "\n".join(lines), all(difference <= most for _, difference, most in rows)


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
