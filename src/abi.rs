//! The contract between host and kernels, generated from `kernels/abi.h` by `cargo xtask bindings`: not edited by hand.
//!
//! What each field means stands in that file.

/// A digest of the `kernels/abi.h` that this was generated from.
pub const ABI_DIGEST: u64 = 0xfc3dd69dd7901ea4;

pub const MOERL_FAULT_ROW_SHIFT: u32 = 24;
pub const MOERL_FAULT_TAG_SHIFT: u32 = 8;
pub const MOERL_BF16: MoerlElement = 0;
pub const MOERL_F16: MoerlElement = 1;
pub const MOERL_F32: MoerlElement = 2;
pub const MOERL_U8: MoerlElement = 3;
pub const MOERL_U16: MoerlElement = 4;
pub const MOERL_I16: MoerlElement = 5;
pub const MOERL_I32: MoerlElement = 6;
pub const MOERL_I64: MoerlElement = 7;
pub type MoerlElement = ::core::ffi::c_uint;
pub const MOERL_NO_FAULT: u64 = 18446744073709551615;
pub const MOERL_FAULT_DUPLICATE: MoerlFault = 1;
pub const MOERL_FAULT_RANGE: MoerlFault = 2;
pub const MOERL_FAULT_PARTIAL: MoerlFault = 3;
pub const MOERL_FAULT_MISSING: MoerlFault = 4;
pub const MOERL_FAULT_ROW_MODE: MoerlFault = 5;
pub const MOERL_FAULT_NAN_LOGIT: MoerlFault = 6;
pub const MOERL_FAULT_NONFINITE_WEIGHT: MoerlFault = 7;
pub const MOERL_FAULT_NAN_BIAS: MoerlFault = 8;
pub const MOERL_FAULT_ROW_INDEX: MoerlFault = 9;
pub const MOERL_FAULT_ROW_COUNT: MoerlFault = 10;
pub const MOERL_FAULT_TARGET: MoerlFault = 32;
pub const MOERL_FAULT_TEMPERATURE: MoerlFault = 33;
pub const MOERL_FAULT_EMPTY_ROW: MoerlFault = 34;
pub const MOERL_FAULT_NONFINITE_LOGIT: MoerlFault = 35;
pub const MOERL_FAULT_NONFINITE_INPUT: MoerlFault = 64;
pub const MOERL_FAULT_POSITIVE_LOGPROB: MoerlFault = 65;
pub const MOERL_FAULT_MASK: MoerlFault = 66;
pub const MOERL_FAULT_ZERO_DENOMINATOR: MoerlFault = 67;
pub type MoerlFault = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlEcho {
    pub input: *const ::core::ffi::c_void,
    pub output: *mut f32,
    pub count: u64,
    pub stride: i64,
    pub real64: f64,
    pub number: u32,
    pub offset: i32,
    pub real32: f32,
    pub small: u16,
    pub flag: u8,
    pub last: u8,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlEcho"][::core::mem::size_of::<MoerlEcho>() - 56usize];
    ["Alignment of MoerlEcho"][::core::mem::align_of::<MoerlEcho>() - 8usize];
    ["Offset of field: MoerlEcho::input"][::core::mem::offset_of!(MoerlEcho, input) - 0usize];
    ["Offset of field: MoerlEcho::output"][::core::mem::offset_of!(MoerlEcho, output) - 8usize];
    ["Offset of field: MoerlEcho::count"][::core::mem::offset_of!(MoerlEcho, count) - 16usize];
    ["Offset of field: MoerlEcho::stride"][::core::mem::offset_of!(MoerlEcho, stride) - 24usize];
    ["Offset of field: MoerlEcho::real64"][::core::mem::offset_of!(MoerlEcho, real64) - 32usize];
    ["Offset of field: MoerlEcho::number"][::core::mem::offset_of!(MoerlEcho, number) - 40usize];
    ["Offset of field: MoerlEcho::offset"][::core::mem::offset_of!(MoerlEcho, offset) - 44usize];
    ["Offset of field: MoerlEcho::real32"][::core::mem::offset_of!(MoerlEcho, real32) - 48usize];
    ["Offset of field: MoerlEcho::small"][::core::mem::offset_of!(MoerlEcho, small) - 52usize];
    ["Offset of field: MoerlEcho::flag"][::core::mem::offset_of!(MoerlEcho, flag) - 54usize];
    ["Offset of field: MoerlEcho::last"][::core::mem::offset_of!(MoerlEcho, last) - 55usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlEchoCall {
    pub copy: *mut MoerlEcho,
    pub layout: *mut u64,
    pub sent: MoerlEcho,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlEchoCall"][::core::mem::size_of::<MoerlEchoCall>() - 72usize];
    ["Alignment of MoerlEchoCall"][::core::mem::align_of::<MoerlEchoCall>() - 8usize];
    ["Offset of field: MoerlEchoCall::copy"][::core::mem::offset_of!(MoerlEchoCall, copy) - 0usize];
    ["Offset of field: MoerlEchoCall::layout"][::core::mem::offset_of!(MoerlEchoCall, layout) - 8usize];
    ["Offset of field: MoerlEchoCall::sent"][::core::mem::offset_of!(MoerlEchoCall, sent) - 16usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlPartial {
    pub max_logit: f32,
    pub sum: f32,
    pub weighted: f32,
    pub label: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlPartial"][::core::mem::size_of::<MoerlPartial>() - 16usize];
    ["Alignment of MoerlPartial"][::core::mem::align_of::<MoerlPartial>() - 4usize];
    ["Offset of field: MoerlPartial::max_logit"][::core::mem::offset_of!(MoerlPartial, max_logit) - 0usize];
    ["Offset of field: MoerlPartial::sum"][::core::mem::offset_of!(MoerlPartial, sum) - 4usize];
    ["Offset of field: MoerlPartial::weighted"][::core::mem::offset_of!(MoerlPartial, weighted) - 8usize];
    ["Offset of field: MoerlPartial::label"][::core::mem::offset_of!(MoerlPartial, label) - 12usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlLogprobForward {
    pub logits: *const ::core::ffi::c_void,
    pub tokens: *const ::core::ffi::c_void,
    pub temperature: *const f32,
    pub loss_mask: *const u8,
    pub logprobs: *mut f32,
    pub entropy: *mut f32,
    pub max: *mut f32,
    pub log_sum: *mut f32,
    pub lse: *mut f32,
    pub sum_p2: *mut f32,
    pub saved: *mut MoerlPartial,
    pub sum_sq: *mut f32,
    pub records: *mut MoerlPartial,
    pub labels: *mut f32,
    pub errors: *mut u64,
    pub rows: u64,
    pub groups: u64,
    pub logits_stride: i64,
    pub tokens_stride: i64,
    pub ignore_index: i64,
    pub tokens_element: u32,
    pub vocabulary: u32,
    pub tag: u32,
    pub uniform_temperature: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlLogprobForward"][::core::mem::size_of::<MoerlLogprobForward>() - 176usize];
    ["Alignment of MoerlLogprobForward"][::core::mem::align_of::<MoerlLogprobForward>() - 8usize];
    ["Offset of field: MoerlLogprobForward::logits"][::core::mem::offset_of!(MoerlLogprobForward, logits) - 0usize];
    ["Offset of field: MoerlLogprobForward::tokens"][::core::mem::offset_of!(MoerlLogprobForward, tokens) - 8usize];
    ["Offset of field: MoerlLogprobForward::temperature"]
        [::core::mem::offset_of!(MoerlLogprobForward, temperature) - 16usize];
    ["Offset of field: MoerlLogprobForward::loss_mask"]
        [::core::mem::offset_of!(MoerlLogprobForward, loss_mask) - 24usize];
    ["Offset of field: MoerlLogprobForward::logprobs"]
        [::core::mem::offset_of!(MoerlLogprobForward, logprobs) - 32usize];
    ["Offset of field: MoerlLogprobForward::entropy"][::core::mem::offset_of!(MoerlLogprobForward, entropy) - 40usize];
    ["Offset of field: MoerlLogprobForward::max"][::core::mem::offset_of!(MoerlLogprobForward, max) - 48usize];
    ["Offset of field: MoerlLogprobForward::log_sum"][::core::mem::offset_of!(MoerlLogprobForward, log_sum) - 56usize];
    ["Offset of field: MoerlLogprobForward::lse"][::core::mem::offset_of!(MoerlLogprobForward, lse) - 64usize];
    ["Offset of field: MoerlLogprobForward::sum_p2"][::core::mem::offset_of!(MoerlLogprobForward, sum_p2) - 72usize];
    ["Offset of field: MoerlLogprobForward::saved"][::core::mem::offset_of!(MoerlLogprobForward, saved) - 80usize];
    ["Offset of field: MoerlLogprobForward::sum_sq"][::core::mem::offset_of!(MoerlLogprobForward, sum_sq) - 88usize];
    ["Offset of field: MoerlLogprobForward::records"][::core::mem::offset_of!(MoerlLogprobForward, records) - 96usize];
    ["Offset of field: MoerlLogprobForward::labels"][::core::mem::offset_of!(MoerlLogprobForward, labels) - 104usize];
    ["Offset of field: MoerlLogprobForward::errors"][::core::mem::offset_of!(MoerlLogprobForward, errors) - 112usize];
    ["Offset of field: MoerlLogprobForward::rows"][::core::mem::offset_of!(MoerlLogprobForward, rows) - 120usize];
    ["Offset of field: MoerlLogprobForward::groups"][::core::mem::offset_of!(MoerlLogprobForward, groups) - 128usize];
    ["Offset of field: MoerlLogprobForward::logits_stride"]
        [::core::mem::offset_of!(MoerlLogprobForward, logits_stride) - 136usize];
    ["Offset of field: MoerlLogprobForward::tokens_stride"]
        [::core::mem::offset_of!(MoerlLogprobForward, tokens_stride) - 144usize];
    ["Offset of field: MoerlLogprobForward::ignore_index"]
        [::core::mem::offset_of!(MoerlLogprobForward, ignore_index) - 152usize];
    ["Offset of field: MoerlLogprobForward::tokens_element"]
        [::core::mem::offset_of!(MoerlLogprobForward, tokens_element) - 160usize];
    ["Offset of field: MoerlLogprobForward::vocabulary"]
        [::core::mem::offset_of!(MoerlLogprobForward, vocabulary) - 164usize];
    ["Offset of field: MoerlLogprobForward::tag"][::core::mem::offset_of!(MoerlLogprobForward, tag) - 168usize];
    ["Offset of field: MoerlLogprobForward::uniform_temperature"]
        [::core::mem::offset_of!(MoerlLogprobForward, uniform_temperature) - 172usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlLogprobBackward {
    pub logits: *const ::core::ffi::c_void,
    pub d_logits: *mut ::core::ffi::c_void,
    pub tokens: *const ::core::ffi::c_void,
    pub temperature: *const f32,
    pub loss_mask: *const u8,
    pub saved: *const MoerlPartial,
    pub d_logprobs: *const f32,
    pub d_entropy: *const f32,
    pub d_lse: *const f32,
    pub rows: u64,
    pub groups: u64,
    pub logits_stride: i64,
    pub d_logits_stride: i64,
    pub tokens_stride: i64,
    pub ignore_index: i64,
    pub tokens_element: u32,
    pub vocabulary: u32,
    pub columns: u32,
    pub panels: u32,
    pub shares: u32,
    pub uniform_temperature: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlLogprobBackward"][::core::mem::size_of::<MoerlLogprobBackward>() - 144usize];
    ["Alignment of MoerlLogprobBackward"][::core::mem::align_of::<MoerlLogprobBackward>() - 8usize];
    ["Offset of field: MoerlLogprobBackward::logits"][::core::mem::offset_of!(MoerlLogprobBackward, logits) - 0usize];
    ["Offset of field: MoerlLogprobBackward::d_logits"]
        [::core::mem::offset_of!(MoerlLogprobBackward, d_logits) - 8usize];
    ["Offset of field: MoerlLogprobBackward::tokens"][::core::mem::offset_of!(MoerlLogprobBackward, tokens) - 16usize];
    ["Offset of field: MoerlLogprobBackward::temperature"]
        [::core::mem::offset_of!(MoerlLogprobBackward, temperature) - 24usize];
    ["Offset of field: MoerlLogprobBackward::loss_mask"]
        [::core::mem::offset_of!(MoerlLogprobBackward, loss_mask) - 32usize];
    ["Offset of field: MoerlLogprobBackward::saved"][::core::mem::offset_of!(MoerlLogprobBackward, saved) - 40usize];
    ["Offset of field: MoerlLogprobBackward::d_logprobs"]
        [::core::mem::offset_of!(MoerlLogprobBackward, d_logprobs) - 48usize];
    ["Offset of field: MoerlLogprobBackward::d_entropy"]
        [::core::mem::offset_of!(MoerlLogprobBackward, d_entropy) - 56usize];
    ["Offset of field: MoerlLogprobBackward::d_lse"][::core::mem::offset_of!(MoerlLogprobBackward, d_lse) - 64usize];
    ["Offset of field: MoerlLogprobBackward::rows"][::core::mem::offset_of!(MoerlLogprobBackward, rows) - 72usize];
    ["Offset of field: MoerlLogprobBackward::groups"][::core::mem::offset_of!(MoerlLogprobBackward, groups) - 80usize];
    ["Offset of field: MoerlLogprobBackward::logits_stride"]
        [::core::mem::offset_of!(MoerlLogprobBackward, logits_stride) - 88usize];
    ["Offset of field: MoerlLogprobBackward::d_logits_stride"]
        [::core::mem::offset_of!(MoerlLogprobBackward, d_logits_stride) - 96usize];
    ["Offset of field: MoerlLogprobBackward::tokens_stride"]
        [::core::mem::offset_of!(MoerlLogprobBackward, tokens_stride) - 104usize];
    ["Offset of field: MoerlLogprobBackward::ignore_index"]
        [::core::mem::offset_of!(MoerlLogprobBackward, ignore_index) - 112usize];
    ["Offset of field: MoerlLogprobBackward::tokens_element"]
        [::core::mem::offset_of!(MoerlLogprobBackward, tokens_element) - 120usize];
    ["Offset of field: MoerlLogprobBackward::vocabulary"]
        [::core::mem::offset_of!(MoerlLogprobBackward, vocabulary) - 124usize];
    ["Offset of field: MoerlLogprobBackward::columns"]
        [::core::mem::offset_of!(MoerlLogprobBackward, columns) - 128usize];
    ["Offset of field: MoerlLogprobBackward::panels"][::core::mem::offset_of!(MoerlLogprobBackward, panels) - 132usize];
    ["Offset of field: MoerlLogprobBackward::shares"][::core::mem::offset_of!(MoerlLogprobBackward, shares) - 136usize];
    ["Offset of field: MoerlLogprobBackward::uniform_temperature"]
        [::core::mem::offset_of!(MoerlLogprobBackward, uniform_temperature) - 140usize];
};
