"""Peers of `gate`: softmax over the chosen experts (Qwen3) and sigmoid with a bias (DeepSeek-V3, GLM-5, Kimi-K2)."""

from common import Case, Peer, compiled, torch

ROUTERS = {
    "qwen3": (128, 8, "softmax", None),
    "qwen3_5": (256, 8, "softmax", None),
    "deepseek_v3": (256, 8, "sigmoid", (8, 4)),
    "glm5": (256, 8, "sigmoid", None),
    "kimi_k2": (384, 8, "sigmoid", None),
    "qwen3_next": (512, 10, "softmax", None),
}
OPERATIONS = ("forward, native", "forward, replay", "backward")


def cases(full):
    for preset, (experts, k, *_) in ROUTERS.items():
        for tokens in (1, 64, 4096, 16384, 65536) if full else (4, 64):
            for element in ("bf16", "f32"):
                for operation in OPERATIONS:
                    yield Case("gate", operation, f"{preset} T={tokens} E={experts} k={k}", element, (preset, tokens, experts, k))


def arrays(case, device):
    _, tokens, experts, k = case.sizes
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(tokens, experts, generator=generator, device=device).to(case.dtype)
    forced = torch.rand(tokens, experts, generator=generator, device=device).topk(k, dim=-1).indices
    bias = 0.1 * torch.randn(experts, generator=generator, device=device)
    return logits, forced, bias


def admitted(scores, groups):
    """Scores with those of the groups that are not among the best at -inf."""
    count, best = groups
    by_group = scores.unflatten(-1, (count, -1))
    strength = by_group.topk(2, dim=-1).values.sum(-1)
    chosen = torch.zeros_like(strength, dtype=torch.bool).scatter_(-1, strength.topk(best, dim=-1).indices, True)
    return by_group.masked_fill(~chosen.unsqueeze(-1), float("-inf")).flatten(-2)


def route(logits, bias, forced, preset, k):
    """Ids and weights as a trainer writes them in PyTorch, in f32."""
    _, _, score, groups = ROUTERS[preset]
    x = logits.float()
    scores = torch.softmax(x, -1) if score == "softmax" else torch.sigmoid(x)
    if forced is None:
        ranked = scores if score == "softmax" else scores.detach() + bias
        ids = (admitted(ranked, groups) if groups else ranked).topk(k, dim=-1).indices
    else:
        ids = forced
    weights = scores.gather(-1, ids)
    return ids, weights / (weights.sum(-1, keepdim=True) + 1e-20)


def torch_peer(compile_it):
    def prepare(case, device):
        preset, _, _, k = case.sizes
        logits, forced, bias = arrays(case, device)
        forced = None if case.operation == "forward, native" else forced
        function = compiled(route, device) if compile_it else route
        if case.operation != "backward":
            return lambda: function(logits, bias, forced, preset, k)
        logits.requires_grad_()
        weights = function(logits, bias, forced, preset, k)[1]
        upstream = torch.ones_like(weights)
        return lambda: torch.autograd.grad(weights, logits, upstream, retain_graph=True)

    return prepare


def vllm_peer(case, device):
    from vllm import _custom_ops as ops

    preset, tokens, experts, k = case.sizes
    if ROUTERS[preset][2] != "softmax":
        raise NotImplementedError("its plain kernel is the softmax")
    logits, _, _ = arrays(case, device)
    logits = logits.float()
    weights = torch.empty(tokens, k, device=device)
    ids, rows = torch.empty(tokens, k, dtype=torch.int32, device=device), torch.empty(tokens, k, dtype=torch.int32, device=device)
    return lambda: ops.topk_softmax(weights, ids, rows, logits, True)


def sglang_peer(case, device):
    import sgl_kernel

    preset, tokens, experts, k = case.sizes
    logits, _, bias = arrays(case, device)
    if ROUTERS[preset][2] == "softmax":
        weights = torch.empty(tokens, k, device=device)
        ids = torch.empty(tokens, k, dtype=torch.int32, device=device)
        return lambda: sgl_kernel.topk_softmax(weights, ids, logits, True)
    groups, best = ROUTERS[preset][3] or (1, 1)
    return lambda: sgl_kernel.moe_fused_gate(logits.float(), bias, groups, best, k)


def transformer_engine_peer(case, device):
    from transformer_engine.pytorch.router import fused_topk_with_score_function

    preset, _, _, k = case.sizes
    _, _, score, groups = ROUTERS[preset]
    logits, _, bias = arrays(case, device)
    count, best = groups or (None, None)
    logits.requires_grad_(case.operation == "backward")

    def forward():
        return fused_topk_with_score_function(
            logits=logits, topk=k, use_pre_softmax=False, num_groups=count, group_topk=best, scaling_factor=None,
            score_function=score, expert_bias=bias if score == "sigmoid" else None,
        )

    if case.operation != "backward":
        return forward
    probabilities = forward()[0]
    upstream = torch.ones_like(probabilities)
    return lambda: torch.autograd.grad(probabilities, logits, upstream, retain_graph=True)


def triton_peer(case, device):
    from triton_topk import topk_softmax

    preset, _, _, k = case.sizes
    if ROUTERS[preset][2] != "softmax":
        raise NotImplementedError("written for the softmax")
    logits, _, _ = arrays(case, device)
    return lambda: topk_softmax(logits, k)


EVERYTHING, NATIVE = frozenset(OPERATIONS), frozenset({"forward, native"})
PEERS = (
    Peer("PyTorch, eager", None, EVERYTHING, torch_peer(False)),
    Peer("PyTorch, compiled", None, EVERYTHING, torch_peer(True)),
    Peer("Triton, one program a row", "triton", NATIVE, triton_peer),
    Peer("Transformer Engine", "transformer_engine", frozenset({"forward, native", "backward"}), transformer_engine_peer),
    Peer("vLLM", "vllm", NATIVE, vllm_peer),
    Peer("SGLang", "sgl_kernel", NATIVE, sglang_peer),
)
