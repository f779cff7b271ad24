"""Peers of `gate`: ids and weights of the chosen experts, natively or of given ids, and the gradient of the logits from that of the weights."""

from common import DEVICE, Case, Missing, Peer, generator, of_torch, pair, torch

# Experts, k, score, groups of which the best are admitted, scale. `chosen`: softmax over the chosen experts; `all`: over all of them.
ROUTERS = {
    "qwen3": (128, 8, "chosen", None, 1.0),
    "qwen3_5": (256, 8, "chosen", None, 1.0),
    "deepseek_v3": (256, 8, "sigmoid", (8, 4), 2.5),
    "glm5": (256, 8, "sigmoid", None, 2.5),
    "kimi_k2": (384, 8, "sigmoid", None, 2.827),
    "qwen3_next": (512, 10, "chosen", None, 1.0),
    "softmax": (128, 8, "all", None, 1.0),
}
NATIVE, REPLAY, BACKWARD = OPERATIONS = ("forward, native", "forward, replay", "backward")


def cases(full):
    # First what the time should be spent on, if not all of it can be compiled.
    for tokens in (16384, 65536, 4096, 64, 1) if full else (64, 4):
        for router, (experts, k, *_) in ROUTERS.items():
            for element in ("bf16", "f32"):
                for operation in OPERATIONS:
                    yield Case("gate", operation, f"{router} T={tokens} E={experts} k={k}", element, (tokens, experts, k))


def inputs(case):
    tokens, experts, k = case.sizes
    seeded = generator()
    arrays = {"logits": torch.randn(tokens, experts, generator=seeded, device=DEVICE).to(case.dtype)}
    if case.operation != NATIVE:
        arrays["ids"] = torch.rand(tokens, experts, generator=seeded, device=DEVICE).topk(k, dim=-1).indices
    if case.operation == BACKWARD:
        arrays["d_weights"] = torch.randn(tokens, k, generator=seeded, device=DEVICE)
    if router_of(case)[2] == "sigmoid":
        arrays["bias"] = 0.1 * torch.randn(experts, generator=seeded, device=DEVICE)
    return arrays


def router_of(case):
    return ROUTERS[case.shape.split()[0]]


def dense(ids, weights, experts):
    """`[T, E]`: the weights at their experts. In which order a peer has its slots does not matter then."""
    return weights.float().new_zeros(len(ids), experts).scatter_(-1, ids.long(), weights.float())


def expected(arrays, results):
    if "weights" in results:
        return {"weights": dense(results["ids"], results["weights"], arrays["logits"].shape[-1])}
    return results


def admitted(scores, groups):
    """Scores with those of the groups that are not among the best at -inf."""
    count, best = groups
    by_group = scores.unflatten(-1, (count, -1))
    strength = by_group.topk(2, dim=-1).values.sum(-1)
    chosen = torch.zeros_like(strength, dtype=torch.bool).scatter_(-1, strength.topk(best, dim=-1).indices, True)
    return by_group.masked_fill(~chosen.unsqueeze(-1), float("-inf")).flatten(-2)


def route(logits, bias, forced, router):
    """Ids and weights as a trainer writes them in PyTorch, in f32."""
    _, k, score, groups, scale = router
    scores = torch.sigmoid(logits.float()) if score == "sigmoid" else torch.softmax(logits, -1, dtype=torch.float32)
    if forced is None:
        ranked = scores.detach() + bias if score == "sigmoid" else scores
        ids = (admitted(ranked, groups) if groups else ranked).topk(k, dim=-1).indices
    else:
        ids = forced
    weights = scores.gather(-1, ids)
    if score != "all":
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids, weights * scale if scale != 1.0 else weights


def torch_peer(is_compiled):
    def prepare(case, arrays):
        logits, bias = arrays["logits"], arrays.get("bias")
        forced = arrays["ids"].long() if case.operation != NATIVE else None
        router = router_of(case)
        function = of_torch(route, is_compiled)
        if case.operation != BACKWARD:
            return lambda: function(logits, bias, forced, router), lambda routed: {"weights": dense(*routed, router[0])}
        return gradient(lambda: function(logits, bias, forced, router)[1], logits, arrays["d_weights"])

    return prepare


def gradient(weights, logits, upstream):
    """Backward alone: what forward saves is there before the clock starts, as with us."""
    logits.requires_grad_()
    weights = weights()
    return lambda: torch.autograd.grad(weights, logits, upstream, retain_graph=True), lambda grads: {"d_logits": grads[0]}



def vllm_peer(case, arrays):
    from vllm import _custom_ops as ops

    logits, (experts, k, score, groups, scale) = arrays["logits"], router_of(case)
    tokens = len(logits)
    if score == "sigmoid":
        count, best = groups or (1, 1)
        of_logits = 1  # the kernel takes the sigmoid too
        return (
            lambda: ops.grouped_topk(logits, count, best, k, True, scale, arrays["bias"], of_logits),
            lambda routed: {"weights": dense(routed[1], routed[0], experts)},
        )
    weights = torch.empty(tokens, k, device=DEVICE)
    ids, rows = (torch.empty(tokens, k, dtype=torch.int32, device=DEVICE) for _ in range(2))
    renormalize = score == "chosen"
    return lambda: ops.topk_softmax(weights, ids, rows, logits, renormalize), lambda _: {"weights": dense(ids, weights, experts)}


def sglang_peer(case, arrays):
    import sgl_kernel

    logits, (experts, k, score, groups, scale) = arrays["logits"], router_of(case)
    weights = torch.empty(len(logits), k, device=DEVICE)
    ids = torch.empty(len(logits), k, dtype=torch.int32, device=DEVICE)
    filled = lambda _: {"weights": dense(ids, weights, experts)}
    returned = lambda routed: {"weights": dense(routed[1], routed[0], experts)}
    if score != "sigmoid":
        renormalize = score == "chosen"
        return lambda: sgl_kernel.topk_softmax(weights, ids, logits, renormalize), filled
    bias, scaled = arrays["bias"], {"routed_scaling_factor": scale, "apply_routed_scaling_factor_on_output": True}
    # Its kernels of sigmoids take f32; SGLang converts before every call, and so it is timed here.
    if groups:
        return lambda: sgl_kernel.moe_fused_gate(logits.float(), bias, *groups, k, **scaled), returned
    if experts == 384:
        return lambda: sgl_kernel.kimi_k2_moe_fused_gate(logits.float(), bias, topk=k, renormalize=True, **scaled), returned
    # Without the scale, which SGLang leaves to whoever adds up the experts.
    return (
        lambda: sgl_kernel.topk_sigmoid(weights, ids, logits.float(), renormalize=True, correction_bias=bias),
        lambda _: {"weights": scale * dense(ids, weights, experts)},
    )


def transformer_engine_peer(case, arrays):
    from transformer_engine.pytorch.router import fused_topk_with_score_function

    logits, (experts, k, score, groups, scale) = arrays["logits"], router_of(case)
    count, best = groups or (None, None)

    def forward():
        return fused_topk_with_score_function(
            logits=logits, topk=k, use_pre_softmax=score == "all", num_groups=count, group_topk=best,
            scaling_factor=None if scale == 1.0 else scale, score_function="sigmoid" if score == "sigmoid" else "softmax",
            expert_bias=arrays.get("bias"),
        )

    if case.operation != BACKWARD:
        return forward, lambda routed: {"weights": routed[0]}
    # Of its own choice, which is that of our gradient's ids where these come from a file.
    upstream = dense(arrays["ids"], arrays["d_weights"], experts).to(logits.dtype)
    return gradient(lambda: forward()[0], logits, upstream)


def triton_peer(case, arrays):
    from triton_topk import topk_softmax

    experts, k, score, *_ = router_of(case)
    if score != "chosen":
        raise Missing("written for the softmax over the chosen")
    return lambda: topk_softmax(arrays["logits"], k), lambda routed: {"weights": dense(*routed, experts)}


PEERS = (
    *pair(OPERATIONS, torch_peer),
    Peer("Triton, one program a row", "triton", frozenset({NATIVE}), triton_peer),
    Peer("Transformer Engine", "transformer_engine", frozenset({NATIVE, BACKWARD}), transformer_engine_peer),
    Peer("vLLM", "vllm", frozenset({NATIVE}), vllm_peer),
    Peer("SGLang", "sgl_kernel", frozenset({NATIVE}), sglang_peer),
)
