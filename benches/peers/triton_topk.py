"""The straightforward Triton kernel: a program a row, k rounds of argmax over the row, softmax over the chosen."""

import torch
import triton
import triton.language as tl


@triton.jit
def topk_softmax_kernel(logits, ids, weights, experts, k: tl.constexpr, SLOTS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns, slots = tl.arange(0, WIDTH), tl.arange(0, SLOTS)
    x = tl.load(logits + row * experts + columns, mask=columns < experts, other=float("-inf")).to(tl.float32)
    chosen = tl.full((SLOTS,), float("-inf"), tl.float32)
    names = tl.zeros((SLOTS,), tl.int32)
    for slot in tl.static_range(k):
        best = tl.argmax(x, 0)
        chosen = tl.where(slots == slot, tl.max(x, 0), chosen)
        names = tl.where(slots == slot, best, names)
        x = tl.where(columns == best, float("-inf"), x)
    e = tl.exp(chosen - tl.max(chosen, 0))
    tl.store(ids + row * k + slots, names, mask=slots < k)
    tl.store(weights + row * k + slots, e / tl.sum(e, 0), mask=slots < k)


def topk_softmax(logits, k):
    rows, experts = logits.shape
    ids = torch.empty(rows, k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(rows, k, dtype=torch.float32, device=logits.device)
    width, slots = triton.next_power_of_2(experts), triton.next_power_of_2(k)
    topk_softmax_kernel[(rows,)](logits, ids, weights, experts, k, slots, width, num_warps=1 if width <= 256 else 4)
    return ids, weights
