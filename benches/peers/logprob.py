"""Peers of `logprob`: log-probability of a token and the entropy of its distribution, and the gradient of the logits."""

from common import DEVICE, Case, Peer, generator, of_torch, pair, torch

BACKWARD = tuple(f"backward, {share} % of the rows without a gradient" for share in (0, 90, 100))
FORWARD = "forward"
OPERATIONS = (FORWARD, *BACKWARD)


def cases(full):
    shapes = [(8192, v) for v in (32000, 50257, 128256, 151936, 262144)] if full else [(10, 32000), (10, 50257)]
    for rows, vocabulary in shapes:
        for element in ("bf16", "f32"):
            for operation in OPERATIONS:
                yield Case("logprob", operation, f"N={rows} V={vocabulary}", element, (rows, vocabulary))
    for rows in (1, 16, 128) if full else (1,):
        yield Case("logprob", FORWARD, f"N={rows} V=151936", "bf16", (rows, 151936))


def inputs(case):
    rows, vocabulary = case.sizes
    row = 3.0 * torch.randn(vocabulary, generator=generator(), device=DEVICE)
    position = torch.arange(rows, device=DEVICE)
    arrays = {"logits": row.to(case.dtype).expand(rows, vocabulary).contiguous(), "tokens": position * 31 % vocabulary}
    if case.operation != FORWARD:
        share = int(case.operation.split()[1])
        arrays["d_logprobs"] = arrays["d_entropy"] = (position * 61 % 100 >= share).float()
    return arrays


def statistics(logits, tokens):
    """As a trainer writes it, in f32: the whole distribution exists."""
    logp = torch.log_softmax(logits, -1, dtype=torch.float32)
    return logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(-1)


def torch_peer(is_compiled):
    def prepare(case, arrays):
        logits, tokens = arrays["logits"], arrays["tokens"].long()
        function = of_torch(statistics, is_compiled)
        if case.operation == FORWARD:
            return lambda: function(logits, tokens), lambda found: {"logprobs": found[0], "entropy": found[1]}
        logits.requires_grad_()
        outputs = function(logits, tokens)
        upstream = (arrays["d_logprobs"], arrays["d_entropy"])
        return (
            lambda: torch.autograd.grad(outputs, logits, upstream, retain_graph=True),
            lambda grads: {"d_logits": grads[0]},
        )

    return prepare


def of_loss(cross_entropy, case, arrays):
    """A peer with a loss a row, which is the negative log-probability; without entropy."""
    logits, tokens = arrays["logits"], arrays["tokens"].long()
    if case.operation == FORWARD:
        return lambda: cross_entropy(logits, tokens), lambda loss: {"logprobs": -loss}
    logits.requires_grad_()
    loss, upstream = cross_entropy(logits, tokens), -arrays["d_logprobs"]
    return (
        lambda: torch.autograd.grad(loss, logits, upstream, retain_graph=True),
        lambda grads: {"d_logits of logprobs": grads[0]},
    )


def liger_peer(case, arrays):
    from liger_kernel.ops.grpo_loss import fused_selective_log_softmax

    logits, tokens = arrays["logits"], arrays["tokens"].long().unsqueeze(0)
    rows, vocabulary = logits.shape
    # Its kernel leaves the last position out.
    padded = logits.new_empty(1, rows + 1, vocabulary)
    padded[0, :rows] = logits
    return lambda: fused_selective_log_softmax(padded, tokens, 1.0, mask=None), lambda found: {"logprobs": found[0]}


def flash_attn_peer(case, arrays):
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return of_loss(lambda logits, tokens: cross_entropy_loss(logits, tokens)[0], case, arrays)


def quack_peer(case, arrays):
    from quack.cross_entropy import cross_entropy

    return of_loss(lambda logits, tokens: cross_entropy(logits, tokens, reduction="none"), case, arrays)


PEERS = (
    *pair(OPERATIONS, torch_peer),
    Peer("Liger (log-probability alone)", "liger_kernel", frozenset({FORWARD}), liger_peer),
    Peer("flash-attn (cross entropy alone)", "flash_attn", frozenset(OPERATIONS), flash_attn_peer),
    Peer("Quack (cross entropy alone)", "quack", frozenset(OPERATIONS), quack_peer),
)
