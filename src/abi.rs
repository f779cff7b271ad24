//! The contract between host and kernels, generated from `kernels/abi.h` by `cargo xtask bindings`: not edited by hand.
//!
//! What each field means stands in that file.

/// A digest of the `kernels/abi.h` that this was generated from.
pub const ABI_DIGEST: u64 = 0x4d7fb65d9bb58c47;

pub const MOERL_FAULT_ROW_SHIFT: u32 = 24;
pub const MOERL_FAULT_TAG_SHIFT: u32 = 8;
pub const MOERL_TILE: u32 = 1024;
pub const MOERL_TILE_GROUP: u32 = 32;
pub const MOERL_UNIT_SEGMENTS: u32 = 256;
pub const MOERL_TALLY: u32 = 32;
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
pub const MOERL_PPO_CLIP: MoerlVariant = 0;
pub const MOERL_GSPO: MoerlVariant = 1;
pub const MOERL_GSPO_TOKEN: MoerlVariant = 2;
pub type MoerlVariant = ::core::ffi::c_uint;
pub const MOERL_PROPAGATE: MoerlNonFinite = 0;
pub const MOERL_ZERO_WEIGHT: MoerlNonFinite = 1;
pub const MOERL_DROP_SEGMENT: MoerlNonFinite = 2;
pub type MoerlNonFinite = ::core::ffi::c_uint;
pub const MOERL_BY_TOKENS: MoerlDivisor = 1;
pub const MOERL_BY_SEGMENTS: MoerlDivisor = 2;
pub const MOERL_BY_PROMPTS: MoerlDivisor = 4;
pub const MOERL_BY_MAX_LEN: MoerlDivisor = 8;
pub const MOERL_BY_COUNT: MoerlDivisor = 16;
pub const MOERL_BY_SCALE: MoerlDivisor = 32;
pub const MOERL_TIMES_SCALE: MoerlDivisor = 64;
pub type MoerlDivisor = ::core::ffi::c_uint;
pub const MOERL_ABOVE: MoerlSegmentFlag = 1;
pub const MOERL_BELOW: MoerlSegmentFlag = 2;
pub const MOERL_CAPPED: MoerlSegmentFlag = 4;
pub const MOERL_PASS_POSITIVE: MoerlSegmentFlag = 8;
pub const MOERL_PASS_NEGATIVE: MoerlSegmentFlag = 16;
pub const MOERL_NONFINITE: MoerlSegmentFlag = 32;
pub const MOERL_DROPPED: MoerlSegmentFlag = 64;
pub const MOERL_EMPTY: MoerlSegmentFlag = 128;
pub type MoerlSegmentFlag = ::core::ffi::c_uint;
pub const MOERL_SUM_TOKENS: MoerlSum = 0;
pub const MOERL_SUM_NONFINITE: MoerlSum = 1;
pub const MOERL_SUM_POLICY_K1: MoerlSum = 2;
pub const MOERL_SUM_POLICY_K2: MoerlSum = 3;
pub const MOERL_SUM_POLICY_K3: MoerlSum = 4;
pub const MOERL_SUM_RATIO: MoerlSum = 5;
pub const MOERL_SUM_RATIO_SQUARED: MoerlSum = 6;
pub const MOERL_SUM_WEIGHT: MoerlSum = 7;
pub const MOERL_SUM_WEIGHT_SQUARED: MoerlSum = 8;
pub const MOERL_SUM_SATURATED_HIGH: MoerlSum = 9;
pub const MOERL_SUM_SATURATED_LOW: MoerlSum = 10;
pub const MOERL_SUM_CLIPPED_HIGH: MoerlSum = 11;
pub const MOERL_SUM_CLIPPED_LOW: MoerlSum = 12;
pub const MOERL_SUM_CAPPED: MoerlSum = 13;
pub const MOERL_SUM_SEGMENTS: MoerlSum = 14;
pub const MOERL_SUM_EMPTY_SEGMENTS: MoerlSum = 15;
pub const MOERL_SUM_DROPPED_SEGMENTS: MoerlSum = 16;
pub const MOERL_SUM_SEQUENCE_RATIO: MoerlSum = 17;
pub const MOERL_SUM_SEQUENCE_CLIPPED_HIGH: MoerlSum = 18;
pub const MOERL_SUM_SEQUENCE_CLIPPED_LOW: MoerlSum = 19;
pub const MOERL_SUM_SEQUENCE_CAPPED: MoerlSum = 20;
pub const MOERL_MAX_RATIO: MoerlSum = 21;
pub const MOERL_MAX_NEGATIVE_RATIO: MoerlSum = 22;
pub const MOERL_MAX_SEQUENCE_RATIO: MoerlSum = 23;
pub const MOERL_MAX_NEGATIVE_SEQUENCE_RATIO: MoerlSum = 24;
pub type MoerlSum = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlUnit {
    pub token: u64,
    pub segment: u32,
    pub tokens: u16,
    pub segments: u16,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlUnit"][::core::mem::size_of::<MoerlUnit>() - 16usize];
    ["Alignment of MoerlUnit"][::core::mem::align_of::<MoerlUnit>() - 8usize];
    ["Offset of field: MoerlUnit::token"][::core::mem::offset_of!(MoerlUnit, token) - 0usize];
    ["Offset of field: MoerlUnit::segment"][::core::mem::offset_of!(MoerlUnit, segment) - 8usize];
    ["Offset of field: MoerlUnit::tokens"][::core::mem::offset_of!(MoerlUnit, tokens) - 12usize];
    ["Offset of field: MoerlUnit::segments"][::core::mem::offset_of!(MoerlUnit, segments) - 14usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlCoefficient {
    pub ratio: f32,
    pub weight: f32,
    pub gradient: f32,
    pub flags: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlCoefficient"][::core::mem::size_of::<MoerlCoefficient>() - 16usize];
    ["Alignment of MoerlCoefficient"][::core::mem::align_of::<MoerlCoefficient>() - 4usize];
    ["Offset of field: MoerlCoefficient::ratio"][::core::mem::offset_of!(MoerlCoefficient, ratio) - 0usize];
    ["Offset of field: MoerlCoefficient::weight"][::core::mem::offset_of!(MoerlCoefficient, weight) - 4usize];
    ["Offset of field: MoerlCoefficient::gradient"][::core::mem::offset_of!(MoerlCoefficient, gradient) - 8usize];
    ["Offset of field: MoerlCoefficient::flags"][::core::mem::offset_of!(MoerlCoefficient, flags) - 12usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlObjective {
    pub logprobs: *const f32,
    pub old_logprobs: *const f32,
    pub advantages: *const f32,
    pub loss_mask: *const u8,
    pub weights: *const f32,
    pub segment_scale: *const f32,
    pub denominators: *const f64,
    pub offsets: *const i64,
    pub units: *const MoerlUnit,
    pub log_ratio: *mut f64,
    pub count: *mut f64,
    pub positive: *mut f64,
    pub negative: *mut f64,
    pub nonfinite: *mut f64,
    pub coefficients: *mut MoerlCoefficient,
    pub d_logprobs: *mut f32,
    pub ratio: *mut f32,
    pub clipped: *mut u8,
    pub sequence_ratio: *mut f32,
    pub sequence_clipped: *mut u8,
    pub loss: *mut f64,
    pub diagnostics: *mut f64,
    pub errors: *mut u64,
    pub local_counts: *mut u64,
    pub tickets: *mut u32,
    pub group_tickets: *mut u32,
    pub tile_tickets: *mut u32,
    pub tallies: *mut f64,
    pub tile_records: *mut u32,
    pub group_records: *mut f64,
    pub segment_count: u64,
    pub unit_count: u64,
    pub divisor_values: [f64; 4usize],
    pub scale: f64,
    pub log_upper: f64,
    pub log_lower: f64,
    pub log_cap: f64,
    pub upper: f32,
    pub lower: f32,
    pub cap: f32,
    pub saturation_low: f32,
    pub saturation_high: f32,
    pub nonfinite_policy: u32,
    pub divisors: u32,
    pub tag: u32,
    pub is_sequence_level: u8,
    pub advantage_per_token: u8,
    pub aligned: u8,
    pub accumulate: u8,
    pub keep_totals: u8,
    pub count_empty: u8,
    pub reserved: [u8; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlObjective"][::core::mem::size_of::<MoerlObjective>() - 360usize];
    ["Alignment of MoerlObjective"][::core::mem::align_of::<MoerlObjective>() - 8usize];
    ["Offset of field: MoerlObjective::logprobs"][::core::mem::offset_of!(MoerlObjective, logprobs) - 0usize];
    ["Offset of field: MoerlObjective::old_logprobs"][::core::mem::offset_of!(MoerlObjective, old_logprobs) - 8usize];
    ["Offset of field: MoerlObjective::advantages"][::core::mem::offset_of!(MoerlObjective, advantages) - 16usize];
    ["Offset of field: MoerlObjective::loss_mask"][::core::mem::offset_of!(MoerlObjective, loss_mask) - 24usize];
    ["Offset of field: MoerlObjective::weights"][::core::mem::offset_of!(MoerlObjective, weights) - 32usize];
    ["Offset of field: MoerlObjective::segment_scale"]
        [::core::mem::offset_of!(MoerlObjective, segment_scale) - 40usize];
    ["Offset of field: MoerlObjective::denominators"][::core::mem::offset_of!(MoerlObjective, denominators) - 48usize];
    ["Offset of field: MoerlObjective::offsets"][::core::mem::offset_of!(MoerlObjective, offsets) - 56usize];
    ["Offset of field: MoerlObjective::units"][::core::mem::offset_of!(MoerlObjective, units) - 64usize];
    ["Offset of field: MoerlObjective::log_ratio"][::core::mem::offset_of!(MoerlObjective, log_ratio) - 72usize];
    ["Offset of field: MoerlObjective::count"][::core::mem::offset_of!(MoerlObjective, count) - 80usize];
    ["Offset of field: MoerlObjective::positive"][::core::mem::offset_of!(MoerlObjective, positive) - 88usize];
    ["Offset of field: MoerlObjective::negative"][::core::mem::offset_of!(MoerlObjective, negative) - 96usize];
    ["Offset of field: MoerlObjective::nonfinite"][::core::mem::offset_of!(MoerlObjective, nonfinite) - 104usize];
    ["Offset of field: MoerlObjective::coefficients"][::core::mem::offset_of!(MoerlObjective, coefficients) - 112usize];
    ["Offset of field: MoerlObjective::d_logprobs"][::core::mem::offset_of!(MoerlObjective, d_logprobs) - 120usize];
    ["Offset of field: MoerlObjective::ratio"][::core::mem::offset_of!(MoerlObjective, ratio) - 128usize];
    ["Offset of field: MoerlObjective::clipped"][::core::mem::offset_of!(MoerlObjective, clipped) - 136usize];
    ["Offset of field: MoerlObjective::sequence_ratio"]
        [::core::mem::offset_of!(MoerlObjective, sequence_ratio) - 144usize];
    ["Offset of field: MoerlObjective::sequence_clipped"]
        [::core::mem::offset_of!(MoerlObjective, sequence_clipped) - 152usize];
    ["Offset of field: MoerlObjective::loss"][::core::mem::offset_of!(MoerlObjective, loss) - 160usize];
    ["Offset of field: MoerlObjective::diagnostics"][::core::mem::offset_of!(MoerlObjective, diagnostics) - 168usize];
    ["Offset of field: MoerlObjective::errors"][::core::mem::offset_of!(MoerlObjective, errors) - 176usize];
    ["Offset of field: MoerlObjective::local_counts"][::core::mem::offset_of!(MoerlObjective, local_counts) - 184usize];
    ["Offset of field: MoerlObjective::tickets"][::core::mem::offset_of!(MoerlObjective, tickets) - 192usize];
    ["Offset of field: MoerlObjective::group_tickets"]
        [::core::mem::offset_of!(MoerlObjective, group_tickets) - 200usize];
    ["Offset of field: MoerlObjective::tile_tickets"][::core::mem::offset_of!(MoerlObjective, tile_tickets) - 208usize];
    ["Offset of field: MoerlObjective::tallies"][::core::mem::offset_of!(MoerlObjective, tallies) - 216usize];
    ["Offset of field: MoerlObjective::tile_records"][::core::mem::offset_of!(MoerlObjective, tile_records) - 224usize];
    ["Offset of field: MoerlObjective::group_records"]
        [::core::mem::offset_of!(MoerlObjective, group_records) - 232usize];
    ["Offset of field: MoerlObjective::segment_count"]
        [::core::mem::offset_of!(MoerlObjective, segment_count) - 240usize];
    ["Offset of field: MoerlObjective::unit_count"][::core::mem::offset_of!(MoerlObjective, unit_count) - 248usize];
    ["Offset of field: MoerlObjective::divisor_values"]
        [::core::mem::offset_of!(MoerlObjective, divisor_values) - 256usize];
    ["Offset of field: MoerlObjective::scale"][::core::mem::offset_of!(MoerlObjective, scale) - 288usize];
    ["Offset of field: MoerlObjective::log_upper"][::core::mem::offset_of!(MoerlObjective, log_upper) - 296usize];
    ["Offset of field: MoerlObjective::log_lower"][::core::mem::offset_of!(MoerlObjective, log_lower) - 304usize];
    ["Offset of field: MoerlObjective::log_cap"][::core::mem::offset_of!(MoerlObjective, log_cap) - 312usize];
    ["Offset of field: MoerlObjective::upper"][::core::mem::offset_of!(MoerlObjective, upper) - 320usize];
    ["Offset of field: MoerlObjective::lower"][::core::mem::offset_of!(MoerlObjective, lower) - 324usize];
    ["Offset of field: MoerlObjective::cap"][::core::mem::offset_of!(MoerlObjective, cap) - 328usize];
    ["Offset of field: MoerlObjective::saturation_low"]
        [::core::mem::offset_of!(MoerlObjective, saturation_low) - 332usize];
    ["Offset of field: MoerlObjective::saturation_high"]
        [::core::mem::offset_of!(MoerlObjective, saturation_high) - 336usize];
    ["Offset of field: MoerlObjective::nonfinite_policy"]
        [::core::mem::offset_of!(MoerlObjective, nonfinite_policy) - 340usize];
    ["Offset of field: MoerlObjective::divisors"][::core::mem::offset_of!(MoerlObjective, divisors) - 344usize];
    ["Offset of field: MoerlObjective::tag"][::core::mem::offset_of!(MoerlObjective, tag) - 348usize];
    ["Offset of field: MoerlObjective::is_sequence_level"]
        [::core::mem::offset_of!(MoerlObjective, is_sequence_level) - 352usize];
    ["Offset of field: MoerlObjective::advantage_per_token"]
        [::core::mem::offset_of!(MoerlObjective, advantage_per_token) - 353usize];
    ["Offset of field: MoerlObjective::aligned"][::core::mem::offset_of!(MoerlObjective, aligned) - 354usize];
    ["Offset of field: MoerlObjective::accumulate"][::core::mem::offset_of!(MoerlObjective, accumulate) - 355usize];
    ["Offset of field: MoerlObjective::keep_totals"][::core::mem::offset_of!(MoerlObjective, keep_totals) - 356usize];
    ["Offset of field: MoerlObjective::count_empty"][::core::mem::offset_of!(MoerlObjective, count_empty) - 357usize];
    ["Offset of field: MoerlObjective::reserved"][::core::mem::offset_of!(MoerlObjective, reserved) - 358usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGroupAdvantages {
    pub rewards: *const f32,
    pub advantages: *mut f32,
    pub counts: *mut u64,
    pub group_ptr: *const u32,
    pub members: *const u32,
    pub groups: u64,
    pub epsilon: f64,
    pub degenerate_tol: f64,
    pub ddof: u32,
    pub divide: u8,
    pub single_keeps_reward: u8,
    pub reserved: [u8; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGroupAdvantages"][::core::mem::size_of::<MoerlGroupAdvantages>() - 72usize];
    ["Alignment of MoerlGroupAdvantages"][::core::mem::align_of::<MoerlGroupAdvantages>() - 8usize];
    ["Offset of field: MoerlGroupAdvantages::rewards"][::core::mem::offset_of!(MoerlGroupAdvantages, rewards) - 0usize];
    ["Offset of field: MoerlGroupAdvantages::advantages"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, advantages) - 8usize];
    ["Offset of field: MoerlGroupAdvantages::counts"][::core::mem::offset_of!(MoerlGroupAdvantages, counts) - 16usize];
    ["Offset of field: MoerlGroupAdvantages::group_ptr"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, group_ptr) - 24usize];
    ["Offset of field: MoerlGroupAdvantages::members"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, members) - 32usize];
    ["Offset of field: MoerlGroupAdvantages::groups"][::core::mem::offset_of!(MoerlGroupAdvantages, groups) - 40usize];
    ["Offset of field: MoerlGroupAdvantages::epsilon"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, epsilon) - 48usize];
    ["Offset of field: MoerlGroupAdvantages::degenerate_tol"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, degenerate_tol) - 56usize];
    ["Offset of field: MoerlGroupAdvantages::ddof"][::core::mem::offset_of!(MoerlGroupAdvantages, ddof) - 64usize];
    ["Offset of field: MoerlGroupAdvantages::divide"][::core::mem::offset_of!(MoerlGroupAdvantages, divide) - 68usize];
    ["Offset of field: MoerlGroupAdvantages::single_keeps_reward"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, single_keeps_reward) - 69usize];
    ["Offset of field: MoerlGroupAdvantages::reserved"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, reserved) - 70usize];
};
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
