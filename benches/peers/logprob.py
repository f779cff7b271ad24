"""Peers of `logprob`: log-probability of a token and the entropy of its distribution, and the gradient of the logits."""

from common import Case, Peer, compiled, torch

BACKWARD = tuple(f"backward, {share} % of the rows without a gradient" for share in (0, 90, 100))
OPERATIONS = ("forward", *BACKWARD)


def cases(full):
    shapes = [(8192, v) for v in (32000, 50257, 128256, 151936, 262144)] if full else [(10, 32000), (10, 50257)]
    for rows, vocabulary in shapes:
        for element in ("bf16", "f32"):
            for operation in OPERATIONS:
                yield Case("logprob", operation, f"N={rows} V={vocabulary}", element, (rows, vocabulary))
    for rows in (1, 16, 128) if full else (1,):
        yield Case("logprob", "forward", f"N={rows} V=151936", "bf16", (rows, 151936))


def arrays(case, device):
    rows, vocabulary = case.sizes
    generator = torch.Generator(device).manual_seed(0)
    row = 3.0 * torch.randn(vocabulary, generator=generator, device=device)
    logits = row.to(case.dtype).expand(rows, vocabulary).contiguous()
    tokens = torch.arange(rows, device=device) * 31 % vocabulary
    return logits, tokens


def upstream(case, device):
    share = 0 if case.operation == "forward" else int(case.operation.split()[1])
    return (torch.arange(case.sizes[0], device=device) * 61 % 100 >= share).float()


def statistics(logits, tokens):
    """As a trainer writes it, in f32: the whole distribution exists."""
    logp = torch.log_softmax(logits.float(), -1)
    return logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(-1)


def torch_peer(compile_it):
    def prepare(case, device):
        logits, tokens = arrays(case, device)
        function = compiled(statistics, device) if compile_it else statistics
        if case.operation == "forward":
            def forward():
                with torch.no_grad():
                    return function(logits, tokens)

            return forward
        logits.requires_grad_()
        outputs = function(logits, tokens)
        up = upstream(case, device)
        return lambda: torch.autograd.grad(outputs, logits, (up, up), retain_graph=True)

    return prepare


def gradient_of_loss(loss, logits, case, device):
    """The call that is timed for a peer with a loss a row: forward or backward."""
    if case.operation == "forward":
        return loss
    logits.requires_grad_()
    value = loss()
    up = upstream(case, device)
    return lambda: torch.autograd.grad(value, logits, up, retain_graph=True)


def liger_peer(case, device):
    from liger_kernel.ops.grpo_loss import fused_selective_log_softmax

    logits, tokens = arrays(case, device)
    rows = logits.shape[0]
    # Its kernel leaves the last position out.
    padded = logits.new_empty(1, rows + 1, logits.shape[1])
    padded[0, :rows] = logits
    return lambda: fused_selective_log_softmax(padded, tokens.unsqueeze(0), 1.0, mask=None)


def flash_attn_peer(case, device):
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    logits, tokens = arrays(case, device)
    return gradient_of_loss(lambda: cross_entropy_loss(logits, tokens)[0], logits, case, device)


def quack_peer(case, device):
    from quack.cross_entropy import cross_entropy

    logits, tokens = arrays(case, device)
    return gradient_of_loss(lambda: cross_entropy(logits, tokens, reduction="none"), logits, case, device)


EVERYTHING = frozenset(OPERATIONS)
PEERS = (
    Peer("PyTorch, eager", None, EVERYTHING, torch_peer(False)),
    Peer("PyTorch, compiled", None, EVERYTHING, torch_peer(True)),
    Peer("Liger (log-probability alone)", "liger_kernel", frozenset({"forward"}), liger_peer),
    Peer("flash-attn (cross entropy alone)", "flash_attn", EVERYTHING, flash_attn_peer),
    Peer("Quack (cross entropy alone)", "quack", EVERYTHING, quack_peer),
)
