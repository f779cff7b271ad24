// Generated from abi.h by `cargo xtask bindings`: the sizes and offsets that the host uses.
#pragma once

#include <stddef.h>

#include "abi.h"

static_assert(sizeof(MoerlEcho) == 56, "MoerlEcho");
static_assert(offsetof(MoerlEcho, input) == 0, "MoerlEcho.input");
static_assert(offsetof(MoerlEcho, output) == 8, "MoerlEcho.output");
static_assert(offsetof(MoerlEcho, count) == 16, "MoerlEcho.count");
static_assert(offsetof(MoerlEcho, stride) == 24, "MoerlEcho.stride");
static_assert(offsetof(MoerlEcho, real64) == 32, "MoerlEcho.real64");
static_assert(offsetof(MoerlEcho, number) == 40, "MoerlEcho.number");
static_assert(offsetof(MoerlEcho, offset) == 44, "MoerlEcho.offset");
static_assert(offsetof(MoerlEcho, real32) == 48, "MoerlEcho.real32");
static_assert(offsetof(MoerlEcho, small) == 52, "MoerlEcho.small");
static_assert(offsetof(MoerlEcho, flag) == 54, "MoerlEcho.flag");
static_assert(offsetof(MoerlEcho, last) == 55, "MoerlEcho.last");
static_assert(sizeof(MoerlEchoCall) == 72, "MoerlEchoCall");
static_assert(offsetof(MoerlEchoCall, copy) == 0, "MoerlEchoCall.copy");
static_assert(offsetof(MoerlEchoCall, layout) == 8, "MoerlEchoCall.layout");
static_assert(offsetof(MoerlEchoCall, sent) == 16, "MoerlEchoCall.sent");
static_assert(sizeof(MoerlPartial) == 16, "MoerlPartial");
static_assert(offsetof(MoerlPartial, max_logit) == 0, "MoerlPartial.max_logit");
static_assert(offsetof(MoerlPartial, sum) == 4, "MoerlPartial.sum");
static_assert(offsetof(MoerlPartial, weighted) == 8, "MoerlPartial.weighted");
static_assert(offsetof(MoerlPartial, label) == 12, "MoerlPartial.label");
static_assert(sizeof(MoerlLogprobForward) == 176, "MoerlLogprobForward");
static_assert(offsetof(MoerlLogprobForward, logits) == 0, "MoerlLogprobForward.logits");
static_assert(offsetof(MoerlLogprobForward, tokens) == 8, "MoerlLogprobForward.tokens");
static_assert(offsetof(MoerlLogprobForward, temperature) == 16, "MoerlLogprobForward.temperature");
static_assert(offsetof(MoerlLogprobForward, loss_mask) == 24, "MoerlLogprobForward.loss_mask");
static_assert(offsetof(MoerlLogprobForward, logprobs) == 32, "MoerlLogprobForward.logprobs");
static_assert(offsetof(MoerlLogprobForward, entropy) == 40, "MoerlLogprobForward.entropy");
static_assert(offsetof(MoerlLogprobForward, max) == 48, "MoerlLogprobForward.max");
static_assert(offsetof(MoerlLogprobForward, log_sum) == 56, "MoerlLogprobForward.log_sum");
static_assert(offsetof(MoerlLogprobForward, lse) == 64, "MoerlLogprobForward.lse");
static_assert(offsetof(MoerlLogprobForward, sum_p2) == 72, "MoerlLogprobForward.sum_p2");
static_assert(offsetof(MoerlLogprobForward, saved) == 80, "MoerlLogprobForward.saved");
static_assert(offsetof(MoerlLogprobForward, sum_sq) == 88, "MoerlLogprobForward.sum_sq");
static_assert(offsetof(MoerlLogprobForward, records) == 96, "MoerlLogprobForward.records");
static_assert(offsetof(MoerlLogprobForward, labels) == 104, "MoerlLogprobForward.labels");
static_assert(offsetof(MoerlLogprobForward, errors) == 112, "MoerlLogprobForward.errors");
static_assert(offsetof(MoerlLogprobForward, rows) == 120, "MoerlLogprobForward.rows");
static_assert(offsetof(MoerlLogprobForward, groups) == 128, "MoerlLogprobForward.groups");
static_assert(offsetof(MoerlLogprobForward, logits_stride) == 136, "MoerlLogprobForward.logits_stride");
static_assert(offsetof(MoerlLogprobForward, tokens_stride) == 144, "MoerlLogprobForward.tokens_stride");
static_assert(offsetof(MoerlLogprobForward, ignore_index) == 152, "MoerlLogprobForward.ignore_index");
static_assert(offsetof(MoerlLogprobForward, tokens_element) == 160, "MoerlLogprobForward.tokens_element");
static_assert(offsetof(MoerlLogprobForward, vocabulary) == 164, "MoerlLogprobForward.vocabulary");
static_assert(offsetof(MoerlLogprobForward, tag) == 168, "MoerlLogprobForward.tag");
static_assert(offsetof(MoerlLogprobForward, uniform_temperature) == 172, "MoerlLogprobForward.uniform_temperature");
static_assert(sizeof(MoerlLogprobBackward) == 144, "MoerlLogprobBackward");
static_assert(offsetof(MoerlLogprobBackward, logits) == 0, "MoerlLogprobBackward.logits");
static_assert(offsetof(MoerlLogprobBackward, d_logits) == 8, "MoerlLogprobBackward.d_logits");
static_assert(offsetof(MoerlLogprobBackward, tokens) == 16, "MoerlLogprobBackward.tokens");
static_assert(offsetof(MoerlLogprobBackward, temperature) == 24, "MoerlLogprobBackward.temperature");
static_assert(offsetof(MoerlLogprobBackward, loss_mask) == 32, "MoerlLogprobBackward.loss_mask");
static_assert(offsetof(MoerlLogprobBackward, saved) == 40, "MoerlLogprobBackward.saved");
static_assert(offsetof(MoerlLogprobBackward, d_logprobs) == 48, "MoerlLogprobBackward.d_logprobs");
static_assert(offsetof(MoerlLogprobBackward, d_entropy) == 56, "MoerlLogprobBackward.d_entropy");
static_assert(offsetof(MoerlLogprobBackward, d_lse) == 64, "MoerlLogprobBackward.d_lse");
static_assert(offsetof(MoerlLogprobBackward, rows) == 72, "MoerlLogprobBackward.rows");
static_assert(offsetof(MoerlLogprobBackward, groups) == 80, "MoerlLogprobBackward.groups");
static_assert(offsetof(MoerlLogprobBackward, logits_stride) == 88, "MoerlLogprobBackward.logits_stride");
static_assert(offsetof(MoerlLogprobBackward, d_logits_stride) == 96, "MoerlLogprobBackward.d_logits_stride");
static_assert(offsetof(MoerlLogprobBackward, tokens_stride) == 104, "MoerlLogprobBackward.tokens_stride");
static_assert(offsetof(MoerlLogprobBackward, ignore_index) == 112, "MoerlLogprobBackward.ignore_index");
static_assert(offsetof(MoerlLogprobBackward, tokens_element) == 120, "MoerlLogprobBackward.tokens_element");
static_assert(offsetof(MoerlLogprobBackward, vocabulary) == 124, "MoerlLogprobBackward.vocabulary");
static_assert(offsetof(MoerlLogprobBackward, columns) == 128, "MoerlLogprobBackward.columns");
static_assert(offsetof(MoerlLogprobBackward, panels) == 132, "MoerlLogprobBackward.panels");
static_assert(offsetof(MoerlLogprobBackward, shares) == 136, "MoerlLogprobBackward.shares");
static_assert(offsetof(MoerlLogprobBackward, uniform_temperature) == 140, "MoerlLogprobBackward.uniform_temperature");
