//! The contract between host and kernels, generated from `kernels/abi.h` by `cargo xtask bindings`: not edited by hand.
//!
//! What each field means stands in that file.

/// A digest of the `kernels/abi.h` that this was generated from.
pub const ABI_DIGEST: u64 = 0xd72ab1500d32ee36;

pub const MOERL_FAULT_ROW_SHIFT: u32 = 24;
pub const MOERL_FAULT_TAG_SHIFT: u32 = 8;
pub const MOERL_TILE: u32 = 1024;
pub const MOERL_TILE_GROUP: u32 = 32;
pub const MOERL_UNIT_SEGMENTS: u32 = 256;
pub const MOERL_TALLY: u32 = 32;
pub const MOERL_GROUP_CHUNK: u32 = 1024;
pub const MOERL_MOMENTS_TILE: u32 = 4096;
pub const MOERL_RETURN_BLOCK: u32 = 32;
pub const MOERL_BASELINE_TILE: u32 = 128;
pub const MOERL_EMA_CHUNK: u32 = 8192;
pub const MOERL_EMA_TENSORS: u32 = 512;
pub const MOERL_LEDGER_PANEL: u32 = 256;
pub const MOERL_NORM_PANEL: u32 = 8192;
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
    pub token_log_upper: f32,
    pub token_log_lower: f32,
    pub token_log_cap: f32,
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
    pub reserved: [u8; 6usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlObjective"][::core::mem::size_of::<MoerlObjective>() - 376usize];
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
    ["Offset of field: MoerlObjective::token_log_upper"]
        [::core::mem::offset_of!(MoerlObjective, token_log_upper) - 320usize];
    ["Offset of field: MoerlObjective::token_log_lower"]
        [::core::mem::offset_of!(MoerlObjective, token_log_lower) - 324usize];
    ["Offset of field: MoerlObjective::token_log_cap"]
        [::core::mem::offset_of!(MoerlObjective, token_log_cap) - 328usize];
    ["Offset of field: MoerlObjective::upper"][::core::mem::offset_of!(MoerlObjective, upper) - 332usize];
    ["Offset of field: MoerlObjective::lower"][::core::mem::offset_of!(MoerlObjective, lower) - 336usize];
    ["Offset of field: MoerlObjective::cap"][::core::mem::offset_of!(MoerlObjective, cap) - 340usize];
    ["Offset of field: MoerlObjective::saturation_low"]
        [::core::mem::offset_of!(MoerlObjective, saturation_low) - 344usize];
    ["Offset of field: MoerlObjective::saturation_high"]
        [::core::mem::offset_of!(MoerlObjective, saturation_high) - 348usize];
    ["Offset of field: MoerlObjective::nonfinite_policy"]
        [::core::mem::offset_of!(MoerlObjective, nonfinite_policy) - 352usize];
    ["Offset of field: MoerlObjective::divisors"][::core::mem::offset_of!(MoerlObjective, divisors) - 356usize];
    ["Offset of field: MoerlObjective::tag"][::core::mem::offset_of!(MoerlObjective, tag) - 360usize];
    ["Offset of field: MoerlObjective::is_sequence_level"]
        [::core::mem::offset_of!(MoerlObjective, is_sequence_level) - 364usize];
    ["Offset of field: MoerlObjective::advantage_per_token"]
        [::core::mem::offset_of!(MoerlObjective, advantage_per_token) - 365usize];
    ["Offset of field: MoerlObjective::aligned"][::core::mem::offset_of!(MoerlObjective, aligned) - 366usize];
    ["Offset of field: MoerlObjective::accumulate"][::core::mem::offset_of!(MoerlObjective, accumulate) - 367usize];
    ["Offset of field: MoerlObjective::keep_totals"][::core::mem::offset_of!(MoerlObjective, keep_totals) - 368usize];
    ["Offset of field: MoerlObjective::count_empty"][::core::mem::offset_of!(MoerlObjective, count_empty) - 369usize];
    ["Offset of field: MoerlObjective::reserved"][::core::mem::offset_of!(MoerlObjective, reserved) - 370usize];
};
pub const MOERL_BASELINE_MEAN: MoerlBaseline = 0;
pub const MOERL_BASELINE_LEAVE_ONE_OUT: MoerlBaseline = 1;
pub const MOERL_BASELINE_LENGTH_WEIGHTED: MoerlBaseline = 2;
pub type MoerlBaseline = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGroupPiece {
    pub group: u32,
    pub index: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGroupPiece"][::core::mem::size_of::<MoerlGroupPiece>() - 8usize];
    ["Alignment of MoerlGroupPiece"][::core::mem::align_of::<MoerlGroupPiece>() - 4usize];
    ["Offset of field: MoerlGroupPiece::group"][::core::mem::offset_of!(MoerlGroupPiece, group) - 0usize];
    ["Offset of field: MoerlGroupPiece::index"][::core::mem::offset_of!(MoerlGroupPiece, index) - 4usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGroupSums {
    pub count: f64,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub weight: f64,
    pub weighted: f64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGroupSums"][::core::mem::size_of::<MoerlGroupSums>() - 48usize];
    ["Alignment of MoerlGroupSums"][::core::mem::align_of::<MoerlGroupSums>() - 8usize];
    ["Offset of field: MoerlGroupSums::count"][::core::mem::offset_of!(MoerlGroupSums, count) - 0usize];
    ["Offset of field: MoerlGroupSums::sum"][::core::mem::offset_of!(MoerlGroupSums, sum) - 8usize];
    ["Offset of field: MoerlGroupSums::min"][::core::mem::offset_of!(MoerlGroupSums, min) - 16usize];
    ["Offset of field: MoerlGroupSums::max"][::core::mem::offset_of!(MoerlGroupSums, max) - 24usize];
    ["Offset of field: MoerlGroupSums::weight"][::core::mem::offset_of!(MoerlGroupSums, weight) - 32usize];
    ["Offset of field: MoerlGroupSums::weighted"][::core::mem::offset_of!(MoerlGroupSums, weighted) - 40usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGroupScale {
    pub mean: f64,
    pub shift: f64,
    pub factor: f64,
    pub count: u32,
    pub is_flat: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGroupScale"][::core::mem::size_of::<MoerlGroupScale>() - 32usize];
    ["Alignment of MoerlGroupScale"][::core::mem::align_of::<MoerlGroupScale>() - 8usize];
    ["Offset of field: MoerlGroupScale::mean"][::core::mem::offset_of!(MoerlGroupScale, mean) - 0usize];
    ["Offset of field: MoerlGroupScale::shift"][::core::mem::offset_of!(MoerlGroupScale, shift) - 8usize];
    ["Offset of field: MoerlGroupScale::factor"][::core::mem::offset_of!(MoerlGroupScale, factor) - 16usize];
    ["Offset of field: MoerlGroupScale::count"][::core::mem::offset_of!(MoerlGroupScale, count) - 24usize];
    ["Offset of field: MoerlGroupScale::is_flat"][::core::mem::offset_of!(MoerlGroupScale, is_flat) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGroupAdvantages {
    pub rewards: *const f32,
    pub lengths: *const u32,
    pub advantages: *mut f32,
    pub counts: *mut u64,
    pub group_ptr: *const u32,
    pub members: *const u32,
    pub chunks: *const MoerlGroupPiece,
    pub sums: *mut MoerlGroupSums,
    pub squares: *mut f64,
    pub scales: *mut MoerlGroupScale,
    pub tickets: *mut u32,
    pub groups: u64,
    pub epsilon: f64,
    pub degenerate_tol: f64,
    pub ddof: u32,
    pub baseline: u32,
    pub divide: u8,
    pub single_keeps_reward: u8,
    pub reserved: [u8; 6usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGroupAdvantages"][::core::mem::size_of::<MoerlGroupAdvantages>() - 128usize];
    ["Alignment of MoerlGroupAdvantages"][::core::mem::align_of::<MoerlGroupAdvantages>() - 8usize];
    ["Offset of field: MoerlGroupAdvantages::rewards"][::core::mem::offset_of!(MoerlGroupAdvantages, rewards) - 0usize];
    ["Offset of field: MoerlGroupAdvantages::lengths"][::core::mem::offset_of!(MoerlGroupAdvantages, lengths) - 8usize];
    ["Offset of field: MoerlGroupAdvantages::advantages"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, advantages) - 16usize];
    ["Offset of field: MoerlGroupAdvantages::counts"][::core::mem::offset_of!(MoerlGroupAdvantages, counts) - 24usize];
    ["Offset of field: MoerlGroupAdvantages::group_ptr"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, group_ptr) - 32usize];
    ["Offset of field: MoerlGroupAdvantages::members"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, members) - 40usize];
    ["Offset of field: MoerlGroupAdvantages::chunks"][::core::mem::offset_of!(MoerlGroupAdvantages, chunks) - 48usize];
    ["Offset of field: MoerlGroupAdvantages::sums"][::core::mem::offset_of!(MoerlGroupAdvantages, sums) - 56usize];
    ["Offset of field: MoerlGroupAdvantages::squares"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, squares) - 64usize];
    ["Offset of field: MoerlGroupAdvantages::scales"][::core::mem::offset_of!(MoerlGroupAdvantages, scales) - 72usize];
    ["Offset of field: MoerlGroupAdvantages::tickets"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, tickets) - 80usize];
    ["Offset of field: MoerlGroupAdvantages::groups"][::core::mem::offset_of!(MoerlGroupAdvantages, groups) - 88usize];
    ["Offset of field: MoerlGroupAdvantages::epsilon"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, epsilon) - 96usize];
    ["Offset of field: MoerlGroupAdvantages::degenerate_tol"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, degenerate_tol) - 104usize];
    ["Offset of field: MoerlGroupAdvantages::ddof"][::core::mem::offset_of!(MoerlGroupAdvantages, ddof) - 112usize];
    ["Offset of field: MoerlGroupAdvantages::baseline"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, baseline) - 116usize];
    ["Offset of field: MoerlGroupAdvantages::divide"][::core::mem::offset_of!(MoerlGroupAdvantages, divide) - 120usize];
    ["Offset of field: MoerlGroupAdvantages::single_keeps_reward"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, single_keeps_reward) - 121usize];
    ["Offset of field: MoerlGroupAdvantages::reserved"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, reserved) - 122usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlMoments {
    pub values: *const f32,
    pub mask: *const u8,
    pub weights: *const u32,
    pub moments: *mut f64,
    pub records: *mut f64,
    pub ticket: *mut u32,
    pub length: u64,
    pub squares: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlMoments"][::core::mem::size_of::<MoerlMoments>() - 64usize];
    ["Alignment of MoerlMoments"][::core::mem::align_of::<MoerlMoments>() - 8usize];
    ["Offset of field: MoerlMoments::values"][::core::mem::offset_of!(MoerlMoments, values) - 0usize];
    ["Offset of field: MoerlMoments::mask"][::core::mem::offset_of!(MoerlMoments, mask) - 8usize];
    ["Offset of field: MoerlMoments::weights"][::core::mem::offset_of!(MoerlMoments, weights) - 16usize];
    ["Offset of field: MoerlMoments::moments"][::core::mem::offset_of!(MoerlMoments, moments) - 24usize];
    ["Offset of field: MoerlMoments::records"][::core::mem::offset_of!(MoerlMoments, records) - 32usize];
    ["Offset of field: MoerlMoments::ticket"][::core::mem::offset_of!(MoerlMoments, ticket) - 40usize];
    ["Offset of field: MoerlMoments::length"][::core::mem::offset_of!(MoerlMoments, length) - 48usize];
    ["Offset of field: MoerlMoments::squares"][::core::mem::offset_of!(MoerlMoments, squares) - 56usize];
    ["Offset of field: MoerlMoments::reserved"][::core::mem::offset_of!(MoerlMoments, reserved) - 60usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlWhiten {
    pub values: *mut f32,
    pub mask: *const u8,
    pub moments: *const f64,
    pub length: u64,
    pub epsilon: f64,
    pub ddof: u32,
    pub centre: u8,
    pub epsilon_in_root: u8,
    pub reserved: [u8; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlWhiten"][::core::mem::size_of::<MoerlWhiten>() - 48usize];
    ["Alignment of MoerlWhiten"][::core::mem::align_of::<MoerlWhiten>() - 8usize];
    ["Offset of field: MoerlWhiten::values"][::core::mem::offset_of!(MoerlWhiten, values) - 0usize];
    ["Offset of field: MoerlWhiten::mask"][::core::mem::offset_of!(MoerlWhiten, mask) - 8usize];
    ["Offset of field: MoerlWhiten::moments"][::core::mem::offset_of!(MoerlWhiten, moments) - 16usize];
    ["Offset of field: MoerlWhiten::length"][::core::mem::offset_of!(MoerlWhiten, length) - 24usize];
    ["Offset of field: MoerlWhiten::epsilon"][::core::mem::offset_of!(MoerlWhiten, epsilon) - 32usize];
    ["Offset of field: MoerlWhiten::ddof"][::core::mem::offset_of!(MoerlWhiten, ddof) - 40usize];
    ["Offset of field: MoerlWhiten::centre"][::core::mem::offset_of!(MoerlWhiten, centre) - 44usize];
    ["Offset of field: MoerlWhiten::epsilon_in_root"][::core::mem::offset_of!(MoerlWhiten, epsilon_in_root) - 45usize];
    ["Offset of field: MoerlWhiten::reserved"][::core::mem::offset_of!(MoerlWhiten, reserved) - 46usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlDoublyRobust {
    pub rewards: *const f32,
    pub values: *const f32,
    pub weights: *const f32,
    pub advantages: *mut f32,
    pub estimates: *mut f32,
    pub nonfinite: *mut u64,
    pub segments: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlDoublyRobust"][::core::mem::size_of::<MoerlDoublyRobust>() - 56usize];
    ["Alignment of MoerlDoublyRobust"][::core::mem::align_of::<MoerlDoublyRobust>() - 8usize];
    ["Offset of field: MoerlDoublyRobust::rewards"][::core::mem::offset_of!(MoerlDoublyRobust, rewards) - 0usize];
    ["Offset of field: MoerlDoublyRobust::values"][::core::mem::offset_of!(MoerlDoublyRobust, values) - 8usize];
    ["Offset of field: MoerlDoublyRobust::weights"][::core::mem::offset_of!(MoerlDoublyRobust, weights) - 16usize];
    ["Offset of field: MoerlDoublyRobust::advantages"]
        [::core::mem::offset_of!(MoerlDoublyRobust, advantages) - 24usize];
    ["Offset of field: MoerlDoublyRobust::estimates"][::core::mem::offset_of!(MoerlDoublyRobust, estimates) - 32usize];
    ["Offset of field: MoerlDoublyRobust::nonfinite"][::core::mem::offset_of!(MoerlDoublyRobust, nonfinite) - 40usize];
    ["Offset of field: MoerlDoublyRobust::segments"][::core::mem::offset_of!(MoerlDoublyRobust, segments) - 48usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlCountTokens {
    pub loss_mask: *const u8,
    pub offsets: *const i64,
    pub units: *const MoerlUnit,
    pub counts: *mut u32,
    pub unit_count: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlCountTokens"][::core::mem::size_of::<MoerlCountTokens>() - 40usize];
    ["Alignment of MoerlCountTokens"][::core::mem::align_of::<MoerlCountTokens>() - 8usize];
    ["Offset of field: MoerlCountTokens::loss_mask"][::core::mem::offset_of!(MoerlCountTokens, loss_mask) - 0usize];
    ["Offset of field: MoerlCountTokens::offsets"][::core::mem::offset_of!(MoerlCountTokens, offsets) - 8usize];
    ["Offset of field: MoerlCountTokens::units"][::core::mem::offset_of!(MoerlCountTokens, units) - 16usize];
    ["Offset of field: MoerlCountTokens::counts"][::core::mem::offset_of!(MoerlCountTokens, counts) - 24usize];
    ["Offset of field: MoerlCountTokens::unit_count"][::core::mem::offset_of!(MoerlCountTokens, unit_count) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlReturnMap {
    pub value: f64,
    pub b: f64,
    pub h: f64,
    pub a: f64,
    pub counts: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlReturnMap"][::core::mem::size_of::<MoerlReturnMap>() - 40usize];
    ["Alignment of MoerlReturnMap"][::core::mem::align_of::<MoerlReturnMap>() - 8usize];
    ["Offset of field: MoerlReturnMap::value"][::core::mem::offset_of!(MoerlReturnMap, value) - 0usize];
    ["Offset of field: MoerlReturnMap::b"][::core::mem::offset_of!(MoerlReturnMap, b) - 8usize];
    ["Offset of field: MoerlReturnMap::h"][::core::mem::offset_of!(MoerlReturnMap, h) - 16usize];
    ["Offset of field: MoerlReturnMap::a"][::core::mem::offset_of!(MoerlReturnMap, a) - 24usize];
    ["Offset of field: MoerlReturnMap::counts"][::core::mem::offset_of!(MoerlReturnMap, counts) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlReturnState {
    pub value: f64,
    pub y: f64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlReturnState"][::core::mem::size_of::<MoerlReturnState>() - 16usize];
    ["Alignment of MoerlReturnState"][::core::mem::align_of::<MoerlReturnState>() - 8usize];
    ["Offset of field: MoerlReturnState::value"][::core::mem::offset_of!(MoerlReturnState, value) - 0usize];
    ["Offset of field: MoerlReturnState::y"][::core::mem::offset_of!(MoerlReturnState, y) - 8usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlTokenAdvantages {
    pub token_rewards: *const f32,
    pub segment_rewards: *const f32,
    pub values: *const f32,
    pub bootstrap: *const f32,
    pub ratio: *const f32,
    pub loss_mask: *const u8,
    pub offsets: *const i64,
    pub units: *const MoerlUnit,
    pub advantages: *mut f32,
    pub returns: *mut f32,
    pub policy_weights: *mut f32,
    pub nonfinite: *mut u64,
    pub errors: *mut u64,
    pub maps: *mut MoerlReturnMap,
    pub carries: *mut MoerlReturnState,
    pub tickets: *mut u32,
    pub unit_count: u64,
    pub gamma: f64,
    pub decay: f64,
    pub ratio_bar: f64,
    pub trace_bar: f64,
    pub tag: u32,
    pub one_step: u8,
    pub reserved: [u8; 3usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlTokenAdvantages"][::core::mem::size_of::<MoerlTokenAdvantages>() - 176usize];
    ["Alignment of MoerlTokenAdvantages"][::core::mem::align_of::<MoerlTokenAdvantages>() - 8usize];
    ["Offset of field: MoerlTokenAdvantages::token_rewards"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, token_rewards) - 0usize];
    ["Offset of field: MoerlTokenAdvantages::segment_rewards"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, segment_rewards) - 8usize];
    ["Offset of field: MoerlTokenAdvantages::values"][::core::mem::offset_of!(MoerlTokenAdvantages, values) - 16usize];
    ["Offset of field: MoerlTokenAdvantages::bootstrap"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, bootstrap) - 24usize];
    ["Offset of field: MoerlTokenAdvantages::ratio"][::core::mem::offset_of!(MoerlTokenAdvantages, ratio) - 32usize];
    ["Offset of field: MoerlTokenAdvantages::loss_mask"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, loss_mask) - 40usize];
    ["Offset of field: MoerlTokenAdvantages::offsets"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, offsets) - 48usize];
    ["Offset of field: MoerlTokenAdvantages::units"][::core::mem::offset_of!(MoerlTokenAdvantages, units) - 56usize];
    ["Offset of field: MoerlTokenAdvantages::advantages"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, advantages) - 64usize];
    ["Offset of field: MoerlTokenAdvantages::returns"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, returns) - 72usize];
    ["Offset of field: MoerlTokenAdvantages::policy_weights"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, policy_weights) - 80usize];
    ["Offset of field: MoerlTokenAdvantages::nonfinite"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, nonfinite) - 88usize];
    ["Offset of field: MoerlTokenAdvantages::errors"][::core::mem::offset_of!(MoerlTokenAdvantages, errors) - 96usize];
    ["Offset of field: MoerlTokenAdvantages::maps"][::core::mem::offset_of!(MoerlTokenAdvantages, maps) - 104usize];
    ["Offset of field: MoerlTokenAdvantages::carries"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, carries) - 112usize];
    ["Offset of field: MoerlTokenAdvantages::tickets"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, tickets) - 120usize];
    ["Offset of field: MoerlTokenAdvantages::unit_count"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, unit_count) - 128usize];
    ["Offset of field: MoerlTokenAdvantages::gamma"][::core::mem::offset_of!(MoerlTokenAdvantages, gamma) - 136usize];
    ["Offset of field: MoerlTokenAdvantages::decay"][::core::mem::offset_of!(MoerlTokenAdvantages, decay) - 144usize];
    ["Offset of field: MoerlTokenAdvantages::ratio_bar"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, ratio_bar) - 152usize];
    ["Offset of field: MoerlTokenAdvantages::trace_bar"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, trace_bar) - 160usize];
    ["Offset of field: MoerlTokenAdvantages::tag"][::core::mem::offset_of!(MoerlTokenAdvantages, tag) - 168usize];
    ["Offset of field: MoerlTokenAdvantages::one_step"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, one_step) - 172usize];
    ["Offset of field: MoerlTokenAdvantages::reserved"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, reserved) - 173usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlEnergy {
    pub energy: f64,
    pub tokens: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlEnergy"][::core::mem::size_of::<MoerlEnergy>() - 16usize];
    ["Alignment of MoerlEnergy"][::core::mem::align_of::<MoerlEnergy>() - 8usize];
    ["Offset of field: MoerlEnergy::energy"][::core::mem::offset_of!(MoerlEnergy, energy) - 0usize];
    ["Offset of field: MoerlEnergy::tokens"][::core::mem::offset_of!(MoerlEnergy, tokens) - 8usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlTokenBaseline {
    pub returns: *const f32,
    pub logprobs: *const f32,
    pub sum_p2: *const f32,
    pub weights: *const f32,
    pub loss_mask: *const u8,
    pub offsets: *const i64,
    pub units: *const MoerlUnit,
    pub group_ptr: *const u32,
    pub members: *const u32,
    pub pieces: *const MoerlGroupPiece,
    pub advantages: *mut f32,
    pub nonfinite: *mut u64,
    pub errors: *mut u64,
    pub energies: *mut MoerlEnergy,
    pub tickets: *mut u32,
    pub cumulative: *mut f64,
    pub positions: *mut u32,
    pub counts: *mut u32,
    pub unit_count: u64,
    pub epsilon: f64,
    pub tag: u32,
    pub zero_tail: u8,
    pub reserved: [u8; 3usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlTokenBaseline"][::core::mem::size_of::<MoerlTokenBaseline>() - 168usize];
    ["Alignment of MoerlTokenBaseline"][::core::mem::align_of::<MoerlTokenBaseline>() - 8usize];
    ["Offset of field: MoerlTokenBaseline::returns"][::core::mem::offset_of!(MoerlTokenBaseline, returns) - 0usize];
    ["Offset of field: MoerlTokenBaseline::logprobs"][::core::mem::offset_of!(MoerlTokenBaseline, logprobs) - 8usize];
    ["Offset of field: MoerlTokenBaseline::sum_p2"][::core::mem::offset_of!(MoerlTokenBaseline, sum_p2) - 16usize];
    ["Offset of field: MoerlTokenBaseline::weights"][::core::mem::offset_of!(MoerlTokenBaseline, weights) - 24usize];
    ["Offset of field: MoerlTokenBaseline::loss_mask"]
        [::core::mem::offset_of!(MoerlTokenBaseline, loss_mask) - 32usize];
    ["Offset of field: MoerlTokenBaseline::offsets"][::core::mem::offset_of!(MoerlTokenBaseline, offsets) - 40usize];
    ["Offset of field: MoerlTokenBaseline::units"][::core::mem::offset_of!(MoerlTokenBaseline, units) - 48usize];
    ["Offset of field: MoerlTokenBaseline::group_ptr"]
        [::core::mem::offset_of!(MoerlTokenBaseline, group_ptr) - 56usize];
    ["Offset of field: MoerlTokenBaseline::members"][::core::mem::offset_of!(MoerlTokenBaseline, members) - 64usize];
    ["Offset of field: MoerlTokenBaseline::pieces"][::core::mem::offset_of!(MoerlTokenBaseline, pieces) - 72usize];
    ["Offset of field: MoerlTokenBaseline::advantages"]
        [::core::mem::offset_of!(MoerlTokenBaseline, advantages) - 80usize];
    ["Offset of field: MoerlTokenBaseline::nonfinite"]
        [::core::mem::offset_of!(MoerlTokenBaseline, nonfinite) - 88usize];
    ["Offset of field: MoerlTokenBaseline::errors"][::core::mem::offset_of!(MoerlTokenBaseline, errors) - 96usize];
    ["Offset of field: MoerlTokenBaseline::energies"][::core::mem::offset_of!(MoerlTokenBaseline, energies) - 104usize];
    ["Offset of field: MoerlTokenBaseline::tickets"][::core::mem::offset_of!(MoerlTokenBaseline, tickets) - 112usize];
    ["Offset of field: MoerlTokenBaseline::cumulative"]
        [::core::mem::offset_of!(MoerlTokenBaseline, cumulative) - 120usize];
    ["Offset of field: MoerlTokenBaseline::positions"]
        [::core::mem::offset_of!(MoerlTokenBaseline, positions) - 128usize];
    ["Offset of field: MoerlTokenBaseline::counts"][::core::mem::offset_of!(MoerlTokenBaseline, counts) - 136usize];
    ["Offset of field: MoerlTokenBaseline::unit_count"]
        [::core::mem::offset_of!(MoerlTokenBaseline, unit_count) - 144usize];
    ["Offset of field: MoerlTokenBaseline::epsilon"][::core::mem::offset_of!(MoerlTokenBaseline, epsilon) - 152usize];
    ["Offset of field: MoerlTokenBaseline::tag"][::core::mem::offset_of!(MoerlTokenBaseline, tag) - 160usize];
    ["Offset of field: MoerlTokenBaseline::zero_tail"]
        [::core::mem::offset_of!(MoerlTokenBaseline, zero_tail) - 164usize];
    ["Offset of field: MoerlTokenBaseline::reserved"][::core::mem::offset_of!(MoerlTokenBaseline, reserved) - 165usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlEmaTensor {
    pub parameters: *const ::core::ffi::c_void,
    pub initial: *const ::core::ffi::c_void,
    pub state: *mut f32,
    pub copy: *mut ::core::ffi::c_void,
    pub length: u64,
    pub first_block: u32,
    pub element: u8,
    pub aligned: u8,
    pub reserved: [u8; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlEmaTensor"][::core::mem::size_of::<MoerlEmaTensor>() - 48usize];
    ["Alignment of MoerlEmaTensor"][::core::mem::align_of::<MoerlEmaTensor>() - 8usize];
    ["Offset of field: MoerlEmaTensor::parameters"][::core::mem::offset_of!(MoerlEmaTensor, parameters) - 0usize];
    ["Offset of field: MoerlEmaTensor::initial"][::core::mem::offset_of!(MoerlEmaTensor, initial) - 8usize];
    ["Offset of field: MoerlEmaTensor::state"][::core::mem::offset_of!(MoerlEmaTensor, state) - 16usize];
    ["Offset of field: MoerlEmaTensor::copy"][::core::mem::offset_of!(MoerlEmaTensor, copy) - 24usize];
    ["Offset of field: MoerlEmaTensor::length"][::core::mem::offset_of!(MoerlEmaTensor, length) - 32usize];
    ["Offset of field: MoerlEmaTensor::first_block"][::core::mem::offset_of!(MoerlEmaTensor, first_block) - 40usize];
    ["Offset of field: MoerlEmaTensor::element"][::core::mem::offset_of!(MoerlEmaTensor, element) - 44usize];
    ["Offset of field: MoerlEmaTensor::aligned"][::core::mem::offset_of!(MoerlEmaTensor, aligned) - 45usize];
    ["Offset of field: MoerlEmaTensor::reserved"][::core::mem::offset_of!(MoerlEmaTensor, reserved) - 46usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlEma {
    pub nonfinite: *mut u64,
    pub tensor_count: u32,
    pub weight: f32,
    pub scale: f32,
    pub bias: f32,
    pub tensors: [MoerlEmaTensor; 512usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlEma"][::core::mem::size_of::<MoerlEma>() - 24600usize];
    ["Alignment of MoerlEma"][::core::mem::align_of::<MoerlEma>() - 8usize];
    ["Offset of field: MoerlEma::nonfinite"][::core::mem::offset_of!(MoerlEma, nonfinite) - 0usize];
    ["Offset of field: MoerlEma::tensor_count"][::core::mem::offset_of!(MoerlEma, tensor_count) - 8usize];
    ["Offset of field: MoerlEma::weight"][::core::mem::offset_of!(MoerlEma, weight) - 12usize];
    ["Offset of field: MoerlEma::scale"][::core::mem::offset_of!(MoerlEma, scale) - 16usize];
    ["Offset of field: MoerlEma::bias"][::core::mem::offset_of!(MoerlEma, bias) - 20usize];
    ["Offset of field: MoerlEma::tensors"][::core::mem::offset_of!(MoerlEma, tensors) - 24usize];
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
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlBandwidth {
    pub input: *const ::core::ffi::c_void,
    pub output: *mut ::core::ffi::c_void,
    pub packs: u64,
    pub word: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlBandwidth"][::core::mem::size_of::<MoerlBandwidth>() - 32usize];
    ["Alignment of MoerlBandwidth"][::core::mem::align_of::<MoerlBandwidth>() - 8usize];
    ["Offset of field: MoerlBandwidth::input"][::core::mem::offset_of!(MoerlBandwidth, input) - 0usize];
    ["Offset of field: MoerlBandwidth::output"][::core::mem::offset_of!(MoerlBandwidth, output) - 8usize];
    ["Offset of field: MoerlBandwidth::packs"][::core::mem::offset_of!(MoerlBandwidth, packs) - 16usize];
    ["Offset of field: MoerlBandwidth::word"][::core::mem::offset_of!(MoerlBandwidth, word) - 24usize];
    ["Offset of field: MoerlBandwidth::reserved"][::core::mem::offset_of!(MoerlBandwidth, reserved) - 28usize];
};
pub const MOERL_GATE_SOFTMAX: MoerlGateScore = 0;
pub const MOERL_GATE_SOFTMAX_SELECTED: MoerlGateScore = 1;
pub const MOERL_GATE_SIGMOID: MoerlGateScore = 2;
pub const MOERL_GATE_SQRT_SOFTPLUS: MoerlGateScore = 3;
pub const MOERL_GATE_RAW: MoerlGateScore = 4;
pub type MoerlGateScore = ::core::ffi::c_uint;
pub const MOERL_GATE_RENORMALIZE_NONE: MoerlGateRenormalize = 0;
pub const MOERL_GATE_RENORMALIZE_ADD_EPS: MoerlGateRenormalize = 1;
pub const MOERL_GATE_RENORMALIZE_FLOOR: MoerlGateRenormalize = 2;
pub const MOERL_GATE_RENORMALIZE_GUARD: MoerlGateRenormalize = 3;
pub const MOERL_GATE_RENORMALIZE_EXACT: MoerlGateRenormalize = 4;
pub type MoerlGateRenormalize = ::core::ffi::c_uint;
pub const MOERL_GATE_POLICY_NATIVE: MoerlGatePolicy = 0;
pub const MOERL_GATE_POLICY_ZERO_WEIGHT: MoerlGatePolicy = 1;
pub const MOERL_GATE_POLICY_SPREAD: MoerlGatePolicy = 2;
pub type MoerlGatePolicy = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGateRouter {
    pub experts: u32,
    pub top_k: u32,
    pub score: u32,
    pub renormalize: u32,
    pub renormalize_by: f32,
    pub scaling_factor: f32,
    pub softcap: f32,
    pub propagate: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGateRouter"][::core::mem::size_of::<MoerlGateRouter>() - 32usize];
    ["Alignment of MoerlGateRouter"][::core::mem::align_of::<MoerlGateRouter>() - 4usize];
    ["Offset of field: MoerlGateRouter::experts"][::core::mem::offset_of!(MoerlGateRouter, experts) - 0usize];
    ["Offset of field: MoerlGateRouter::top_k"][::core::mem::offset_of!(MoerlGateRouter, top_k) - 4usize];
    ["Offset of field: MoerlGateRouter::score"][::core::mem::offset_of!(MoerlGateRouter, score) - 8usize];
    ["Offset of field: MoerlGateRouter::renormalize"][::core::mem::offset_of!(MoerlGateRouter, renormalize) - 12usize];
    ["Offset of field: MoerlGateRouter::renormalize_by"]
        [::core::mem::offset_of!(MoerlGateRouter, renormalize_by) - 16usize];
    ["Offset of field: MoerlGateRouter::scaling_factor"]
        [::core::mem::offset_of!(MoerlGateRouter, scaling_factor) - 20usize];
    ["Offset of field: MoerlGateRouter::softcap"][::core::mem::offset_of!(MoerlGateRouter, softcap) - 24usize];
    ["Offset of field: MoerlGateRouter::propagate"][::core::mem::offset_of!(MoerlGateRouter, propagate) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGateForward {
    pub router_logits: *const ::core::ffi::c_void,
    pub forced_ids: *const ::core::ffi::c_void,
    pub row_index: *const i32,
    pub row_mode: *const u8,
    pub selection_bias: *const f32,
    pub token_mask: *const u8,
    pub row_count: *const i32,
    pub topk_ids: *mut i32,
    pub topk_weights: *mut ::core::ffi::c_void,
    pub selected_logits: *mut f32,
    pub lse: *mut f32,
    pub errors: *mut u64,
    pub expert_scale: *const f32,
    pub record_ids: *mut ::core::ffi::c_void,
    pub cutoff: *mut f32,
    pub rows: u64,
    pub forced_rows: u64,
    pub router_logits_stride: i64,
    pub forced_ids_stride: i64,
    pub topk_weights_stride: i64,
    pub record_ids_stride: i64,
    pub router: MoerlGateRouter,
    pub forced_ids_element: u32,
    pub topk_weights_element: u32,
    pub record_ids_element: u32,
    pub sentinel: i32,
    pub missing: u32,
    pub bad: u32,
    pub group_size: u32,
    pub admitted_groups: u32,
    pub group_top: u32,
    pub stage_bytes: u32,
    pub tag: u32,
    pub has_sentinel: u8,
    pub zeros_are_missing: u8,
    pub missing_is_fault: u8,
    pub sentinel_filler: u8,
    pub scored: u8,
    pub wide_stores: u8,
    pub reserved: [u8; 6usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGateForward"][::core::mem::size_of::<MoerlGateForward>() - 256usize];
    ["Alignment of MoerlGateForward"][::core::mem::align_of::<MoerlGateForward>() - 8usize];
    ["Offset of field: MoerlGateForward::router_logits"]
        [::core::mem::offset_of!(MoerlGateForward, router_logits) - 0usize];
    ["Offset of field: MoerlGateForward::forced_ids"][::core::mem::offset_of!(MoerlGateForward, forced_ids) - 8usize];
    ["Offset of field: MoerlGateForward::row_index"][::core::mem::offset_of!(MoerlGateForward, row_index) - 16usize];
    ["Offset of field: MoerlGateForward::row_mode"][::core::mem::offset_of!(MoerlGateForward, row_mode) - 24usize];
    ["Offset of field: MoerlGateForward::selection_bias"]
        [::core::mem::offset_of!(MoerlGateForward, selection_bias) - 32usize];
    ["Offset of field: MoerlGateForward::token_mask"][::core::mem::offset_of!(MoerlGateForward, token_mask) - 40usize];
    ["Offset of field: MoerlGateForward::row_count"][::core::mem::offset_of!(MoerlGateForward, row_count) - 48usize];
    ["Offset of field: MoerlGateForward::topk_ids"][::core::mem::offset_of!(MoerlGateForward, topk_ids) - 56usize];
    ["Offset of field: MoerlGateForward::topk_weights"]
        [::core::mem::offset_of!(MoerlGateForward, topk_weights) - 64usize];
    ["Offset of field: MoerlGateForward::selected_logits"]
        [::core::mem::offset_of!(MoerlGateForward, selected_logits) - 72usize];
    ["Offset of field: MoerlGateForward::lse"][::core::mem::offset_of!(MoerlGateForward, lse) - 80usize];
    ["Offset of field: MoerlGateForward::errors"][::core::mem::offset_of!(MoerlGateForward, errors) - 88usize];
    ["Offset of field: MoerlGateForward::expert_scale"]
        [::core::mem::offset_of!(MoerlGateForward, expert_scale) - 96usize];
    ["Offset of field: MoerlGateForward::record_ids"][::core::mem::offset_of!(MoerlGateForward, record_ids) - 104usize];
    ["Offset of field: MoerlGateForward::cutoff"][::core::mem::offset_of!(MoerlGateForward, cutoff) - 112usize];
    ["Offset of field: MoerlGateForward::rows"][::core::mem::offset_of!(MoerlGateForward, rows) - 120usize];
    ["Offset of field: MoerlGateForward::forced_rows"]
        [::core::mem::offset_of!(MoerlGateForward, forced_rows) - 128usize];
    ["Offset of field: MoerlGateForward::router_logits_stride"]
        [::core::mem::offset_of!(MoerlGateForward, router_logits_stride) - 136usize];
    ["Offset of field: MoerlGateForward::forced_ids_stride"]
        [::core::mem::offset_of!(MoerlGateForward, forced_ids_stride) - 144usize];
    ["Offset of field: MoerlGateForward::topk_weights_stride"]
        [::core::mem::offset_of!(MoerlGateForward, topk_weights_stride) - 152usize];
    ["Offset of field: MoerlGateForward::record_ids_stride"]
        [::core::mem::offset_of!(MoerlGateForward, record_ids_stride) - 160usize];
    ["Offset of field: MoerlGateForward::router"][::core::mem::offset_of!(MoerlGateForward, router) - 168usize];
    ["Offset of field: MoerlGateForward::forced_ids_element"]
        [::core::mem::offset_of!(MoerlGateForward, forced_ids_element) - 200usize];
    ["Offset of field: MoerlGateForward::topk_weights_element"]
        [::core::mem::offset_of!(MoerlGateForward, topk_weights_element) - 204usize];
    ["Offset of field: MoerlGateForward::record_ids_element"]
        [::core::mem::offset_of!(MoerlGateForward, record_ids_element) - 208usize];
    ["Offset of field: MoerlGateForward::sentinel"][::core::mem::offset_of!(MoerlGateForward, sentinel) - 212usize];
    ["Offset of field: MoerlGateForward::missing"][::core::mem::offset_of!(MoerlGateForward, missing) - 216usize];
    ["Offset of field: MoerlGateForward::bad"][::core::mem::offset_of!(MoerlGateForward, bad) - 220usize];
    ["Offset of field: MoerlGateForward::group_size"][::core::mem::offset_of!(MoerlGateForward, group_size) - 224usize];
    ["Offset of field: MoerlGateForward::admitted_groups"]
        [::core::mem::offset_of!(MoerlGateForward, admitted_groups) - 228usize];
    ["Offset of field: MoerlGateForward::group_top"][::core::mem::offset_of!(MoerlGateForward, group_top) - 232usize];
    ["Offset of field: MoerlGateForward::stage_bytes"]
        [::core::mem::offset_of!(MoerlGateForward, stage_bytes) - 236usize];
    ["Offset of field: MoerlGateForward::tag"][::core::mem::offset_of!(MoerlGateForward, tag) - 240usize];
    ["Offset of field: MoerlGateForward::has_sentinel"]
        [::core::mem::offset_of!(MoerlGateForward, has_sentinel) - 244usize];
    ["Offset of field: MoerlGateForward::zeros_are_missing"]
        [::core::mem::offset_of!(MoerlGateForward, zeros_are_missing) - 245usize];
    ["Offset of field: MoerlGateForward::missing_is_fault"]
        [::core::mem::offset_of!(MoerlGateForward, missing_is_fault) - 246usize];
    ["Offset of field: MoerlGateForward::sentinel_filler"]
        [::core::mem::offset_of!(MoerlGateForward, sentinel_filler) - 247usize];
    ["Offset of field: MoerlGateForward::scored"][::core::mem::offset_of!(MoerlGateForward, scored) - 248usize];
    ["Offset of field: MoerlGateForward::wide_stores"]
        [::core::mem::offset_of!(MoerlGateForward, wide_stores) - 249usize];
    ["Offset of field: MoerlGateForward::reserved"][::core::mem::offset_of!(MoerlGateForward, reserved) - 250usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGateMaps {
    pub topk_ids: *const i32,
    pub topk_weights: *const ::core::ffi::c_void,
    pub dense_probs: *mut ::core::ffi::c_void,
    pub bytemap: *mut u8,
    pub bitmap: *mut u8,
    pub rows: u64,
    pub topk_weights_stride: i64,
    pub dense_probs_stride: i64,
    pub topk_weights_element: u32,
    pub experts: u32,
    pub top_k: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGateMaps"][::core::mem::size_of::<MoerlGateMaps>() - 80usize];
    ["Alignment of MoerlGateMaps"][::core::mem::align_of::<MoerlGateMaps>() - 8usize];
    ["Offset of field: MoerlGateMaps::topk_ids"][::core::mem::offset_of!(MoerlGateMaps, topk_ids) - 0usize];
    ["Offset of field: MoerlGateMaps::topk_weights"][::core::mem::offset_of!(MoerlGateMaps, topk_weights) - 8usize];
    ["Offset of field: MoerlGateMaps::dense_probs"][::core::mem::offset_of!(MoerlGateMaps, dense_probs) - 16usize];
    ["Offset of field: MoerlGateMaps::bytemap"][::core::mem::offset_of!(MoerlGateMaps, bytemap) - 24usize];
    ["Offset of field: MoerlGateMaps::bitmap"][::core::mem::offset_of!(MoerlGateMaps, bitmap) - 32usize];
    ["Offset of field: MoerlGateMaps::rows"][::core::mem::offset_of!(MoerlGateMaps, rows) - 40usize];
    ["Offset of field: MoerlGateMaps::topk_weights_stride"]
        [::core::mem::offset_of!(MoerlGateMaps, topk_weights_stride) - 48usize];
    ["Offset of field: MoerlGateMaps::dense_probs_stride"]
        [::core::mem::offset_of!(MoerlGateMaps, dense_probs_stride) - 56usize];
    ["Offset of field: MoerlGateMaps::topk_weights_element"]
        [::core::mem::offset_of!(MoerlGateMaps, topk_weights_element) - 64usize];
    ["Offset of field: MoerlGateMaps::experts"][::core::mem::offset_of!(MoerlGateMaps, experts) - 68usize];
    ["Offset of field: MoerlGateMaps::top_k"][::core::mem::offset_of!(MoerlGateMaps, top_k) - 72usize];
    ["Offset of field: MoerlGateMaps::reserved"][::core::mem::offset_of!(MoerlGateMaps, reserved) - 76usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGateBackward {
    pub router_logits: *const ::core::ffi::c_void,
    pub d_topk_weights: *const ::core::ffi::c_void,
    pub topk_ids: *const i32,
    pub selected_logits: *const f32,
    pub lse: *const f32,
    pub d_router_logits: *mut ::core::ffi::c_void,
    pub rows: u64,
    pub router_logits_stride: i64,
    pub d_topk_weights_stride: i64,
    pub d_router_logits_stride: i64,
    pub router: MoerlGateRouter,
    pub router_logits_element: u32,
    pub d_topk_weights_element: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGateBackward"][::core::mem::size_of::<MoerlGateBackward>() - 120usize];
    ["Alignment of MoerlGateBackward"][::core::mem::align_of::<MoerlGateBackward>() - 8usize];
    ["Offset of field: MoerlGateBackward::router_logits"]
        [::core::mem::offset_of!(MoerlGateBackward, router_logits) - 0usize];
    ["Offset of field: MoerlGateBackward::d_topk_weights"]
        [::core::mem::offset_of!(MoerlGateBackward, d_topk_weights) - 8usize];
    ["Offset of field: MoerlGateBackward::topk_ids"][::core::mem::offset_of!(MoerlGateBackward, topk_ids) - 16usize];
    ["Offset of field: MoerlGateBackward::selected_logits"]
        [::core::mem::offset_of!(MoerlGateBackward, selected_logits) - 24usize];
    ["Offset of field: MoerlGateBackward::lse"][::core::mem::offset_of!(MoerlGateBackward, lse) - 32usize];
    ["Offset of field: MoerlGateBackward::d_router_logits"]
        [::core::mem::offset_of!(MoerlGateBackward, d_router_logits) - 40usize];
    ["Offset of field: MoerlGateBackward::rows"][::core::mem::offset_of!(MoerlGateBackward, rows) - 48usize];
    ["Offset of field: MoerlGateBackward::router_logits_stride"]
        [::core::mem::offset_of!(MoerlGateBackward, router_logits_stride) - 56usize];
    ["Offset of field: MoerlGateBackward::d_topk_weights_stride"]
        [::core::mem::offset_of!(MoerlGateBackward, d_topk_weights_stride) - 64usize];
    ["Offset of field: MoerlGateBackward::d_router_logits_stride"]
        [::core::mem::offset_of!(MoerlGateBackward, d_router_logits_stride) - 72usize];
    ["Offset of field: MoerlGateBackward::router"][::core::mem::offset_of!(MoerlGateBackward, router) - 80usize];
    ["Offset of field: MoerlGateBackward::router_logits_element"]
        [::core::mem::offset_of!(MoerlGateBackward, router_logits_element) - 112usize];
    ["Offset of field: MoerlGateBackward::d_topk_weights_element"]
        [::core::mem::offset_of!(MoerlGateBackward, d_topk_weights_element) - 116usize];
};
pub const MOERL_GATE_ROWS_NATIVE: MoerlGateRowCount = 0;
pub const MOERL_GATE_ROWS_REPLAY: MoerlGateRowCount = 1;
pub const MOERL_GATE_ROWS_MISSING: MoerlGateRowCount = 2;
pub const MOERL_GATE_ROWS_BAD: MoerlGateRowCount = 3;
pub const MOERL_GATE_ROWS_PADDING: MoerlGateRowCount = 4;
pub const MOERL_GATE_ROWS_REPLACED: MoerlGateRowCount = 5;
pub const MOERL_GATE_ROWS_BAD_REFERENCE: MoerlGateRowCount = 6;
pub const MOERL_GATE_ROW_COUNTS: MoerlGateRowCount = 7;
pub type MoerlGateRowCount = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGateTelemetry {
    pub forward: MoerlGateForward,
    pub recorded_weights: *const ::core::ffi::c_void,
    pub ref_logits: *const ::core::ffi::c_void,
    pub old_topk_ids: *const i32,
    pub old_logprob_sel: *const f32,
    pub overlap: *mut u8,
    pub overlap_hist: *mut u64,
    pub changed: *mut u8,
    pub changed_layers: *mut u16,
    pub replaced: *mut u8,
    pub margin: *mut f32,
    pub deficit: *mut f32,
    pub forced_mass: *mut f32,
    pub gate_l1: *mut f32,
    pub set_kl: *mut f32,
    pub router_kl: *mut f32,
    pub d_router_kl: *mut ::core::ffi::c_void,
    pub logprob_sel: *mut f32,
    pub shift: *mut f32,
    pub counts: *mut u64,
    pub native_counts: *mut u64,
    pub row_counts: *mut u64,
    pub recorded_weights_stride: i64,
    pub ref_logits_stride: i64,
    pub d_router_kl_stride: i64,
    pub score_replace: f32,
    pub recorded_weights_element: u32,
    pub d_router_kl_element: u32,
    pub tally_bytes: u32,
    pub selects: u8,
    pub sums: u8,
    pub reserved: [u8; 6usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGateTelemetry"][::core::mem::size_of::<MoerlGateTelemetry>() - 472usize];
    ["Alignment of MoerlGateTelemetry"][::core::mem::align_of::<MoerlGateTelemetry>() - 8usize];
    ["Offset of field: MoerlGateTelemetry::forward"][::core::mem::offset_of!(MoerlGateTelemetry, forward) - 0usize];
    ["Offset of field: MoerlGateTelemetry::recorded_weights"]
        [::core::mem::offset_of!(MoerlGateTelemetry, recorded_weights) - 256usize];
    ["Offset of field: MoerlGateTelemetry::ref_logits"]
        [::core::mem::offset_of!(MoerlGateTelemetry, ref_logits) - 264usize];
    ["Offset of field: MoerlGateTelemetry::old_topk_ids"]
        [::core::mem::offset_of!(MoerlGateTelemetry, old_topk_ids) - 272usize];
    ["Offset of field: MoerlGateTelemetry::old_logprob_sel"]
        [::core::mem::offset_of!(MoerlGateTelemetry, old_logprob_sel) - 280usize];
    ["Offset of field: MoerlGateTelemetry::overlap"][::core::mem::offset_of!(MoerlGateTelemetry, overlap) - 288usize];
    ["Offset of field: MoerlGateTelemetry::overlap_hist"]
        [::core::mem::offset_of!(MoerlGateTelemetry, overlap_hist) - 296usize];
    ["Offset of field: MoerlGateTelemetry::changed"][::core::mem::offset_of!(MoerlGateTelemetry, changed) - 304usize];
    ["Offset of field: MoerlGateTelemetry::changed_layers"]
        [::core::mem::offset_of!(MoerlGateTelemetry, changed_layers) - 312usize];
    ["Offset of field: MoerlGateTelemetry::replaced"][::core::mem::offset_of!(MoerlGateTelemetry, replaced) - 320usize];
    ["Offset of field: MoerlGateTelemetry::margin"][::core::mem::offset_of!(MoerlGateTelemetry, margin) - 328usize];
    ["Offset of field: MoerlGateTelemetry::deficit"][::core::mem::offset_of!(MoerlGateTelemetry, deficit) - 336usize];
    ["Offset of field: MoerlGateTelemetry::forced_mass"]
        [::core::mem::offset_of!(MoerlGateTelemetry, forced_mass) - 344usize];
    ["Offset of field: MoerlGateTelemetry::gate_l1"][::core::mem::offset_of!(MoerlGateTelemetry, gate_l1) - 352usize];
    ["Offset of field: MoerlGateTelemetry::set_kl"][::core::mem::offset_of!(MoerlGateTelemetry, set_kl) - 360usize];
    ["Offset of field: MoerlGateTelemetry::router_kl"]
        [::core::mem::offset_of!(MoerlGateTelemetry, router_kl) - 368usize];
    ["Offset of field: MoerlGateTelemetry::d_router_kl"]
        [::core::mem::offset_of!(MoerlGateTelemetry, d_router_kl) - 376usize];
    ["Offset of field: MoerlGateTelemetry::logprob_sel"]
        [::core::mem::offset_of!(MoerlGateTelemetry, logprob_sel) - 384usize];
    ["Offset of field: MoerlGateTelemetry::shift"][::core::mem::offset_of!(MoerlGateTelemetry, shift) - 392usize];
    ["Offset of field: MoerlGateTelemetry::counts"][::core::mem::offset_of!(MoerlGateTelemetry, counts) - 400usize];
    ["Offset of field: MoerlGateTelemetry::native_counts"]
        [::core::mem::offset_of!(MoerlGateTelemetry, native_counts) - 408usize];
    ["Offset of field: MoerlGateTelemetry::row_counts"]
        [::core::mem::offset_of!(MoerlGateTelemetry, row_counts) - 416usize];
    ["Offset of field: MoerlGateTelemetry::recorded_weights_stride"]
        [::core::mem::offset_of!(MoerlGateTelemetry, recorded_weights_stride) - 424usize];
    ["Offset of field: MoerlGateTelemetry::ref_logits_stride"]
        [::core::mem::offset_of!(MoerlGateTelemetry, ref_logits_stride) - 432usize];
    ["Offset of field: MoerlGateTelemetry::d_router_kl_stride"]
        [::core::mem::offset_of!(MoerlGateTelemetry, d_router_kl_stride) - 440usize];
    ["Offset of field: MoerlGateTelemetry::score_replace"]
        [::core::mem::offset_of!(MoerlGateTelemetry, score_replace) - 448usize];
    ["Offset of field: MoerlGateTelemetry::recorded_weights_element"]
        [::core::mem::offset_of!(MoerlGateTelemetry, recorded_weights_element) - 452usize];
    ["Offset of field: MoerlGateTelemetry::d_router_kl_element"]
        [::core::mem::offset_of!(MoerlGateTelemetry, d_router_kl_element) - 456usize];
    ["Offset of field: MoerlGateTelemetry::tally_bytes"]
        [::core::mem::offset_of!(MoerlGateTelemetry, tally_bytes) - 460usize];
    ["Offset of field: MoerlGateTelemetry::selects"][::core::mem::offset_of!(MoerlGateTelemetry, selects) - 464usize];
    ["Offset of field: MoerlGateTelemetry::sums"][::core::mem::offset_of!(MoerlGateTelemetry, sums) - 465usize];
    ["Offset of field: MoerlGateTelemetry::reserved"][::core::mem::offset_of!(MoerlGateTelemetry, reserved) - 466usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGateRouterShift {
    pub shift: *const f32,
    pub router_shift: *mut f32,
    pub rows: u64,
    pub layers: f32,
    pub floor: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGateRouterShift"][::core::mem::size_of::<MoerlGateRouterShift>() - 32usize];
    ["Alignment of MoerlGateRouterShift"][::core::mem::align_of::<MoerlGateRouterShift>() - 8usize];
    ["Offset of field: MoerlGateRouterShift::shift"][::core::mem::offset_of!(MoerlGateRouterShift, shift) - 0usize];
    ["Offset of field: MoerlGateRouterShift::router_shift"]
        [::core::mem::offset_of!(MoerlGateRouterShift, router_shift) - 8usize];
    ["Offset of field: MoerlGateRouterShift::rows"][::core::mem::offset_of!(MoerlGateRouterShift, rows) - 16usize];
    ["Offset of field: MoerlGateRouterShift::layers"][::core::mem::offset_of!(MoerlGateRouterShift, layers) - 24usize];
    ["Offset of field: MoerlGateRouterShift::floor"][::core::mem::offset_of!(MoerlGateRouterShift, floor) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlExpertSums {
    pub n: u64,
    pub gate: f64,
    pub advantage: f64,
    pub advantage_square: f64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlExpertSums"][::core::mem::size_of::<MoerlExpertSums>() - 32usize];
    ["Alignment of MoerlExpertSums"][::core::mem::align_of::<MoerlExpertSums>() - 8usize];
    ["Offset of field: MoerlExpertSums::n"][::core::mem::offset_of!(MoerlExpertSums, n) - 0usize];
    ["Offset of field: MoerlExpertSums::gate"][::core::mem::offset_of!(MoerlExpertSums, gate) - 8usize];
    ["Offset of field: MoerlExpertSums::advantage"][::core::mem::offset_of!(MoerlExpertSums, advantage) - 16usize];
    ["Offset of field: MoerlExpertSums::advantage_square"]
        [::core::mem::offset_of!(MoerlExpertSums, advantage_square) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlExpertLedger {
    pub topk_ids: *const i32,
    pub topk_weights: *const ::core::ffi::c_void,
    pub advantages: *const f32,
    pub loss_mask: *const u8,
    pub shift: *const f64,
    pub inverse_deviation: *const f64,
    pub sums: *mut MoerlExpertSums,
    pub panels: *mut MoerlExpertSums,
    pub normalized: *mut f32,
    pub nonfinite: *mut u64,
    pub rows: u64,
    pub panel_count: u64,
    pub topk_weights_stride: i64,
    pub layers: f64,
    pub topk_weights_element: u32,
    pub experts: u32,
    pub top_k: u32,
    pub clip: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlExpertLedger"][::core::mem::size_of::<MoerlExpertLedger>() - 128usize];
    ["Alignment of MoerlExpertLedger"][::core::mem::align_of::<MoerlExpertLedger>() - 8usize];
    ["Offset of field: MoerlExpertLedger::topk_ids"][::core::mem::offset_of!(MoerlExpertLedger, topk_ids) - 0usize];
    ["Offset of field: MoerlExpertLedger::topk_weights"]
        [::core::mem::offset_of!(MoerlExpertLedger, topk_weights) - 8usize];
    ["Offset of field: MoerlExpertLedger::advantages"]
        [::core::mem::offset_of!(MoerlExpertLedger, advantages) - 16usize];
    ["Offset of field: MoerlExpertLedger::loss_mask"][::core::mem::offset_of!(MoerlExpertLedger, loss_mask) - 24usize];
    ["Offset of field: MoerlExpertLedger::shift"][::core::mem::offset_of!(MoerlExpertLedger, shift) - 32usize];
    ["Offset of field: MoerlExpertLedger::inverse_deviation"]
        [::core::mem::offset_of!(MoerlExpertLedger, inverse_deviation) - 40usize];
    ["Offset of field: MoerlExpertLedger::sums"][::core::mem::offset_of!(MoerlExpertLedger, sums) - 48usize];
    ["Offset of field: MoerlExpertLedger::panels"][::core::mem::offset_of!(MoerlExpertLedger, panels) - 56usize];
    ["Offset of field: MoerlExpertLedger::normalized"]
        [::core::mem::offset_of!(MoerlExpertLedger, normalized) - 64usize];
    ["Offset of field: MoerlExpertLedger::nonfinite"][::core::mem::offset_of!(MoerlExpertLedger, nonfinite) - 72usize];
    ["Offset of field: MoerlExpertLedger::rows"][::core::mem::offset_of!(MoerlExpertLedger, rows) - 80usize];
    ["Offset of field: MoerlExpertLedger::panel_count"]
        [::core::mem::offset_of!(MoerlExpertLedger, panel_count) - 88usize];
    ["Offset of field: MoerlExpertLedger::topk_weights_stride"]
        [::core::mem::offset_of!(MoerlExpertLedger, topk_weights_stride) - 96usize];
    ["Offset of field: MoerlExpertLedger::layers"][::core::mem::offset_of!(MoerlExpertLedger, layers) - 104usize];
    ["Offset of field: MoerlExpertLedger::topk_weights_element"]
        [::core::mem::offset_of!(MoerlExpertLedger, topk_weights_element) - 112usize];
    ["Offset of field: MoerlExpertLedger::experts"][::core::mem::offset_of!(MoerlExpertLedger, experts) - 116usize];
    ["Offset of field: MoerlExpertLedger::top_k"][::core::mem::offset_of!(MoerlExpertLedger, top_k) - 120usize];
    ["Offset of field: MoerlExpertLedger::clip"][::core::mem::offset_of!(MoerlExpertLedger, clip) - 124usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlExpertNorms {
    pub gradient: *const ::core::ffi::c_void,
    pub squares: *mut f64,
    pub panels: *mut f64,
    pub scale: *mut f32,
    pub elements: u64,
    pub panel_count: u64,
    pub gradient_stride: i64,
    pub clip: f64,
    pub experts: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlExpertNorms"][::core::mem::size_of::<MoerlExpertNorms>() - 72usize];
    ["Alignment of MoerlExpertNorms"][::core::mem::align_of::<MoerlExpertNorms>() - 8usize];
    ["Offset of field: MoerlExpertNorms::gradient"][::core::mem::offset_of!(MoerlExpertNorms, gradient) - 0usize];
    ["Offset of field: MoerlExpertNorms::squares"][::core::mem::offset_of!(MoerlExpertNorms, squares) - 8usize];
    ["Offset of field: MoerlExpertNorms::panels"][::core::mem::offset_of!(MoerlExpertNorms, panels) - 16usize];
    ["Offset of field: MoerlExpertNorms::scale"][::core::mem::offset_of!(MoerlExpertNorms, scale) - 24usize];
    ["Offset of field: MoerlExpertNorms::elements"][::core::mem::offset_of!(MoerlExpertNorms, elements) - 32usize];
    ["Offset of field: MoerlExpertNorms::panel_count"]
        [::core::mem::offset_of!(MoerlExpertNorms, panel_count) - 40usize];
    ["Offset of field: MoerlExpertNorms::gradient_stride"]
        [::core::mem::offset_of!(MoerlExpertNorms, gradient_stride) - 48usize];
    ["Offset of field: MoerlExpertNorms::clip"][::core::mem::offset_of!(MoerlExpertNorms, clip) - 56usize];
    ["Offset of field: MoerlExpertNorms::experts"][::core::mem::offset_of!(MoerlExpertNorms, experts) - 64usize];
    ["Offset of field: MoerlExpertNorms::reserved"][::core::mem::offset_of!(MoerlExpertNorms, reserved) - 68usize];
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
