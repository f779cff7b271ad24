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
