//! The contract between host and kernels, generated from `kernels/abi.h` by `cargo xtask bindings`: not edited by hand.
//!
//! What each field means stands in that file.

/// A digest of the `kernels/abi.h` that this was generated from.
pub const ABI_DIGEST: u64 = 0x6788403cf0110586;

pub const MOERL_FAULT_ROW_SHIFT: u32 = 24;
pub const MOERL_FAULT_TAG_SHIFT: u32 = 8;
pub const MOERL_TILE: u32 = 1024;
pub const MOERL_TILE_GROUP: u32 = 32;
pub const MOERL_UNIT_SEGMENTS: u32 = 256;
pub const MOERL_TALLY: u32 = 64;
pub const MOERL_ROUTE_BINS: u32 = 16;
pub const MOERL_ROUTE_NUMBERS: u32 = 7;
pub const MOERL_CORRECTION_OPTIONS: u32 = 8;
pub const MOERL_CORRECTION_TOKEN_OPTIONS: u32 = 4;
pub const MOERL_CORRECTION_PROPOSALS: u32 = 16;
pub const MOERL_CORRECTION_REPEATS: u32 = 16;
pub const MOERL_CORRECTION_GLOBALS: u32 = 16;
pub const MOERL_TALLY_PLACES: u32 = 32;
pub const MOERL_GROUP_CHUNK: u32 = 1024;
pub const MOERL_MOMENTS_TILE: u32 = 4096;
pub const MOERL_RETURN_BLOCK: u32 = 32;
pub const MOERL_BASELINE_TILE: u32 = 128;
pub const MOERL_EMA_CHUNK: u32 = 8192;
pub const MOERL_EMA_TENSORS: u32 = 512;
pub const MOERL_PANEL: u32 = 256;
pub const MOERL_LEDGER_PANEL: u32 = 256;
pub const MOERL_NORM_PANEL: u32 = 8192;
pub const MOERL_MAX_SHARDS: u32 = 64;
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
pub const MOERL_FAULT_KEEP: MoerlFault = 36;
pub const MOERL_FAULT_KEEP_OFFSETS: MoerlFault = 37;
pub const MOERL_FAULT_EMPTY_KEEP: MoerlFault = 38;
pub const MOERL_FAULT_NONFINITE_INPUT: MoerlFault = 64;
pub const MOERL_FAULT_POSITIVE_LOGPROB: MoerlFault = 65;
pub const MOERL_FAULT_MASK: MoerlFault = 66;
pub const MOERL_FAULT_ZERO_DENOMINATOR: MoerlFault = 67;
pub const MOERL_FAULT_SEGMENT_WEIGHT: MoerlFault = 68;
pub const MOERL_FAULT_VARYING_ADVANTAGE: MoerlFault = 69;
pub const MOERL_FAULT_SEGMENT_INPUT: MoerlFault = 96;
pub type MoerlFault = ::core::ffi::c_uint;
pub const MOERL_PPO_CLIP: MoerlVariant = 0;
pub const MOERL_GSPO: MoerlVariant = 1;
pub const MOERL_GSPO_TOKEN: MoerlVariant = 2;
pub const MOERL_CISPO: MoerlVariant = 3;
pub const MOERL_CISPO_SEQUENCE: MoerlVariant = 4;
pub const MOERL_GMPO: MoerlVariant = 5;
pub const MOERL_SAPO: MoerlVariant = 6;
pub const MOERL_SAPO_SEQUENCE: MoerlVariant = 7;
pub const MOERL_VESPO: MoerlVariant = 8;
pub const MOERL_DPPO_TV: MoerlVariant = 9;
pub const MOERL_DPPO_KL: MoerlVariant = 10;
pub const MOERL_MINIRL: MoerlVariant = 11;
pub const MOERL_TOPR: MoerlVariant = 12;
pub const MOERL_SQUARE_PENALTY: MoerlVariant = 13;
pub const MOERL_POLICY_GRADIENT: MoerlVariant = 14;
pub const MOERL_TIS_LOSS: MoerlVariant = 15;
pub const MOERL_KL_COV: MoerlVariant = 16;
pub type MoerlVariant = ::core::ffi::c_uint;
pub const MOERL_KL_NONE: MoerlKl = 0;
pub const MOERL_KL_K1: MoerlKl = 1;
pub const MOERL_KL_ABS: MoerlKl = 2;
pub const MOERL_KL_K2: MoerlKl = 3;
pub const MOERL_KL_K3: MoerlKl = 4;
pub const MOERL_KL_K3_TOKEN: MoerlKl = 5;
pub const MOERL_KL_K3_SEQUENCE: MoerlKl = 6;
pub type MoerlKl = ::core::ffi::c_uint;
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
pub const MOERL_FAMILY_CLIPPED_RATIO: MoerlFamily = 0;
pub const MOERL_FAMILY_SHARED_GRADIENT: MoerlFamily = 1;
pub const MOERL_FAMILY_SEGMENT_RATIO: MoerlFamily = 2;
pub const MOERL_FAMILY_ANY: MoerlFamily = 3;
pub type MoerlFamily = ::core::ffi::c_uint;
pub const MOERL_READ_LOGPROBS: MoerlRead = 1;
pub const MOERL_READ_OLD: MoerlRead = 2;
pub const MOERL_READ_ADVANTAGES: MoerlRead = 4;
pub const MOERL_READ_WEIGHTS: MoerlRead = 8;
pub const MOERL_READ_SHIFT: MoerlRead = 16;
pub const MOERL_READ_TERMS: MoerlRead = 32;
pub const MOERL_READ_KEEP: MoerlRead = 64;
pub type MoerlRead = ::core::ffi::c_uint;
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
pub const MOERL_SUM_LOSS: MoerlSum = 21;
pub const MOERL_SUM_KL_LOSS: MoerlSum = 22;
pub const MOERL_SUM_MISMATCH_LOSS: MoerlSum = 23;
pub const MOERL_SUM_ENTROPY_LOSS: MoerlSum = 24;
pub const MOERL_SUM_ENTROPY: MoerlSum = 25;
pub const MOERL_SUM_REF_K1: MoerlSum = 26;
pub const MOERL_SUM_REF_K3: MoerlSum = 27;
pub const MOERL_SUM_ROLLOUT_ENTROPY: MoerlSum = 28;
pub const MOERL_SUM_PULL: MoerlSum = 29;
pub const MOERL_SUM_OUTSIDE: MoerlSum = 30;
pub const MOERL_SUM_GAMMA: MoerlSum = 31;
pub const MOERL_SUM_REJECTED: MoerlSum = 32;
pub const MOERL_SUM_LOGPROBS_SEEN: MoerlSum = 33;
pub const MOERL_SUM_BF16_LOOKING: MoerlSum = 34;
pub const MOERL_SUM_POSITIVE_LOGPROBS: MoerlSum = 35;
pub const MOERL_MAX_RATIO: MoerlSum = 36;
pub const MOERL_MAX_NEGATIVE_RATIO: MoerlSum = 37;
pub const MOERL_MAX_SEQUENCE_RATIO: MoerlSum = 38;
pub const MOERL_MAX_NEGATIVE_SEQUENCE_RATIO: MoerlSum = 39;
pub const MOERL_MAX_WEIGHT: MoerlSum = 40;
pub const MOERL_MAX_NEGATIVE_WEIGHT: MoerlSum = 41;
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
    pub scale: f32,
    pub sequence_ratio: f32,
    pub shared: f32,
    pub segment_weight: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlCoefficient"][::core::mem::size_of::<MoerlCoefficient>() - 32usize];
    ["Alignment of MoerlCoefficient"][::core::mem::align_of::<MoerlCoefficient>() - 4usize];
    ["Offset of field: MoerlCoefficient::ratio"][::core::mem::offset_of!(MoerlCoefficient, ratio) - 0usize];
    ["Offset of field: MoerlCoefficient::weight"][::core::mem::offset_of!(MoerlCoefficient, weight) - 4usize];
    ["Offset of field: MoerlCoefficient::gradient"][::core::mem::offset_of!(MoerlCoefficient, gradient) - 8usize];
    ["Offset of field: MoerlCoefficient::flags"][::core::mem::offset_of!(MoerlCoefficient, flags) - 12usize];
    ["Offset of field: MoerlCoefficient::scale"][::core::mem::offset_of!(MoerlCoefficient, scale) - 16usize];
    ["Offset of field: MoerlCoefficient::sequence_ratio"]
        [::core::mem::offset_of!(MoerlCoefficient, sequence_ratio) - 20usize];
    ["Offset of field: MoerlCoefficient::shared"][::core::mem::offset_of!(MoerlCoefficient, shared) - 24usize];
    ["Offset of field: MoerlCoefficient::segment_weight"]
        [::core::mem::offset_of!(MoerlCoefficient, segment_weight) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlObjective {
    pub logprobs: *const f32,
    pub old_logprobs: *const f32,
    pub advantages: *const f32,
    pub loss_mask: *const u8,
    pub weights: *const f32,
    pub keep: *const u8,
    pub chosen: *const u8,
    pub router_shift: *const f32,
    pub rollout_logprobs: *const f32,
    pub ref_logprobs: *const f32,
    pub entropy: *const f32,
    pub segment_weights: *const f32,
    pub segment_scale: *const f32,
    pub denominators: *const f64,
    pub offsets: *const i64,
    pub units: *const MoerlUnit,
    pub log_ratio: *mut f64,
    pub count: *mut f64,
    pub positive: *mut f64,
    pub negative: *mut f64,
    pub kept: *mut f64,
    pub divergence: *mut f64,
    pub folded: *mut f64,
    pub nonfinite: *mut f64,
    pub coefficients: *mut MoerlCoefficient,
    pub d_logprobs: *mut f32,
    pub d_entropy: *mut f32,
    pub kl: *mut f32,
    pub ratio: *mut f32,
    pub clipped: *mut u8,
    pub sequence_ratio: *mut f32,
    pub sequence_clipped: *mut u8,
    pub loss: *mut f64,
    pub diagnostics: *mut f64,
    pub errors: *mut u64,
    pub local_counts: *mut u64,
    pub tickets: *mut u32,
    pub segment_tickets: *mut u32,
    pub group_tickets: *mut u32,
    pub tile_tickets: *mut u32,
    pub arrivals: *mut u64,
    pub tallies: *mut f64,
    pub segment_tallies: *mut f64,
    pub group_sums: *mut f64,
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
    pub positive_rate: f32,
    pub negative_rate: f32,
    pub positive_scale: f32,
    pub negative_scale: f32,
    pub epsilon: f32,
    pub kl_beta: f32,
    pub kl_input_clamp: f32,
    pub kl_output_clamp: f32,
    pub mismatch_penalty: f32,
    pub entropy_bonus: f32,
    pub variant: u32,
    pub kl_form: u32,
    pub reads: u32,
    pub nonfinite_policy: u32,
    pub divisors: u32,
    pub tag: u32,
    pub is_sequence_level: u8,
    pub advantage_per_token: u8,
    pub aligned: u8,
    pub accumulate: u8,
    pub keep_totals: u8,
    pub count_empty: u8,
    pub kl_straight_through: u8,
    pub folds_weights: u8,
    pub is_gated: u8,
    pub rejects_all: u8,
    pub after_rejection: u8,
    pub value_in_finish: u8,
    pub has_rollout: u8,
    pub opens_totals: u8,
    pub family: u8,
    pub finishes: u8,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlObjective"][::core::mem::size_of::<MoerlObjective>() - 560usize];
    ["Alignment of MoerlObjective"][::core::mem::align_of::<MoerlObjective>() - 8usize];
    ["Offset of field: MoerlObjective::logprobs"][::core::mem::offset_of!(MoerlObjective, logprobs) - 0usize];
    ["Offset of field: MoerlObjective::old_logprobs"][::core::mem::offset_of!(MoerlObjective, old_logprobs) - 8usize];
    ["Offset of field: MoerlObjective::advantages"][::core::mem::offset_of!(MoerlObjective, advantages) - 16usize];
    ["Offset of field: MoerlObjective::loss_mask"][::core::mem::offset_of!(MoerlObjective, loss_mask) - 24usize];
    ["Offset of field: MoerlObjective::weights"][::core::mem::offset_of!(MoerlObjective, weights) - 32usize];
    ["Offset of field: MoerlObjective::keep"][::core::mem::offset_of!(MoerlObjective, keep) - 40usize];
    ["Offset of field: MoerlObjective::chosen"][::core::mem::offset_of!(MoerlObjective, chosen) - 48usize];
    ["Offset of field: MoerlObjective::router_shift"][::core::mem::offset_of!(MoerlObjective, router_shift) - 56usize];
    ["Offset of field: MoerlObjective::rollout_logprobs"]
        [::core::mem::offset_of!(MoerlObjective, rollout_logprobs) - 64usize];
    ["Offset of field: MoerlObjective::ref_logprobs"][::core::mem::offset_of!(MoerlObjective, ref_logprobs) - 72usize];
    ["Offset of field: MoerlObjective::entropy"][::core::mem::offset_of!(MoerlObjective, entropy) - 80usize];
    ["Offset of field: MoerlObjective::segment_weights"]
        [::core::mem::offset_of!(MoerlObjective, segment_weights) - 88usize];
    ["Offset of field: MoerlObjective::segment_scale"]
        [::core::mem::offset_of!(MoerlObjective, segment_scale) - 96usize];
    ["Offset of field: MoerlObjective::denominators"][::core::mem::offset_of!(MoerlObjective, denominators) - 104usize];
    ["Offset of field: MoerlObjective::offsets"][::core::mem::offset_of!(MoerlObjective, offsets) - 112usize];
    ["Offset of field: MoerlObjective::units"][::core::mem::offset_of!(MoerlObjective, units) - 120usize];
    ["Offset of field: MoerlObjective::log_ratio"][::core::mem::offset_of!(MoerlObjective, log_ratio) - 128usize];
    ["Offset of field: MoerlObjective::count"][::core::mem::offset_of!(MoerlObjective, count) - 136usize];
    ["Offset of field: MoerlObjective::positive"][::core::mem::offset_of!(MoerlObjective, positive) - 144usize];
    ["Offset of field: MoerlObjective::negative"][::core::mem::offset_of!(MoerlObjective, negative) - 152usize];
    ["Offset of field: MoerlObjective::kept"][::core::mem::offset_of!(MoerlObjective, kept) - 160usize];
    ["Offset of field: MoerlObjective::divergence"][::core::mem::offset_of!(MoerlObjective, divergence) - 168usize];
    ["Offset of field: MoerlObjective::folded"][::core::mem::offset_of!(MoerlObjective, folded) - 176usize];
    ["Offset of field: MoerlObjective::nonfinite"][::core::mem::offset_of!(MoerlObjective, nonfinite) - 184usize];
    ["Offset of field: MoerlObjective::coefficients"][::core::mem::offset_of!(MoerlObjective, coefficients) - 192usize];
    ["Offset of field: MoerlObjective::d_logprobs"][::core::mem::offset_of!(MoerlObjective, d_logprobs) - 200usize];
    ["Offset of field: MoerlObjective::d_entropy"][::core::mem::offset_of!(MoerlObjective, d_entropy) - 208usize];
    ["Offset of field: MoerlObjective::kl"][::core::mem::offset_of!(MoerlObjective, kl) - 216usize];
    ["Offset of field: MoerlObjective::ratio"][::core::mem::offset_of!(MoerlObjective, ratio) - 224usize];
    ["Offset of field: MoerlObjective::clipped"][::core::mem::offset_of!(MoerlObjective, clipped) - 232usize];
    ["Offset of field: MoerlObjective::sequence_ratio"]
        [::core::mem::offset_of!(MoerlObjective, sequence_ratio) - 240usize];
    ["Offset of field: MoerlObjective::sequence_clipped"]
        [::core::mem::offset_of!(MoerlObjective, sequence_clipped) - 248usize];
    ["Offset of field: MoerlObjective::loss"][::core::mem::offset_of!(MoerlObjective, loss) - 256usize];
    ["Offset of field: MoerlObjective::diagnostics"][::core::mem::offset_of!(MoerlObjective, diagnostics) - 264usize];
    ["Offset of field: MoerlObjective::errors"][::core::mem::offset_of!(MoerlObjective, errors) - 272usize];
    ["Offset of field: MoerlObjective::local_counts"][::core::mem::offset_of!(MoerlObjective, local_counts) - 280usize];
    ["Offset of field: MoerlObjective::tickets"][::core::mem::offset_of!(MoerlObjective, tickets) - 288usize];
    ["Offset of field: MoerlObjective::segment_tickets"]
        [::core::mem::offset_of!(MoerlObjective, segment_tickets) - 296usize];
    ["Offset of field: MoerlObjective::group_tickets"]
        [::core::mem::offset_of!(MoerlObjective, group_tickets) - 304usize];
    ["Offset of field: MoerlObjective::tile_tickets"][::core::mem::offset_of!(MoerlObjective, tile_tickets) - 312usize];
    ["Offset of field: MoerlObjective::arrivals"][::core::mem::offset_of!(MoerlObjective, arrivals) - 320usize];
    ["Offset of field: MoerlObjective::tallies"][::core::mem::offset_of!(MoerlObjective, tallies) - 328usize];
    ["Offset of field: MoerlObjective::segment_tallies"]
        [::core::mem::offset_of!(MoerlObjective, segment_tallies) - 336usize];
    ["Offset of field: MoerlObjective::group_sums"][::core::mem::offset_of!(MoerlObjective, group_sums) - 344usize];
    ["Offset of field: MoerlObjective::tile_records"][::core::mem::offset_of!(MoerlObjective, tile_records) - 352usize];
    ["Offset of field: MoerlObjective::group_records"]
        [::core::mem::offset_of!(MoerlObjective, group_records) - 360usize];
    ["Offset of field: MoerlObjective::segment_count"]
        [::core::mem::offset_of!(MoerlObjective, segment_count) - 368usize];
    ["Offset of field: MoerlObjective::unit_count"][::core::mem::offset_of!(MoerlObjective, unit_count) - 376usize];
    ["Offset of field: MoerlObjective::divisor_values"]
        [::core::mem::offset_of!(MoerlObjective, divisor_values) - 384usize];
    ["Offset of field: MoerlObjective::scale"][::core::mem::offset_of!(MoerlObjective, scale) - 416usize];
    ["Offset of field: MoerlObjective::log_upper"][::core::mem::offset_of!(MoerlObjective, log_upper) - 424usize];
    ["Offset of field: MoerlObjective::log_lower"][::core::mem::offset_of!(MoerlObjective, log_lower) - 432usize];
    ["Offset of field: MoerlObjective::log_cap"][::core::mem::offset_of!(MoerlObjective, log_cap) - 440usize];
    ["Offset of field: MoerlObjective::token_log_upper"]
        [::core::mem::offset_of!(MoerlObjective, token_log_upper) - 448usize];
    ["Offset of field: MoerlObjective::token_log_lower"]
        [::core::mem::offset_of!(MoerlObjective, token_log_lower) - 452usize];
    ["Offset of field: MoerlObjective::token_log_cap"]
        [::core::mem::offset_of!(MoerlObjective, token_log_cap) - 456usize];
    ["Offset of field: MoerlObjective::upper"][::core::mem::offset_of!(MoerlObjective, upper) - 460usize];
    ["Offset of field: MoerlObjective::lower"][::core::mem::offset_of!(MoerlObjective, lower) - 464usize];
    ["Offset of field: MoerlObjective::cap"][::core::mem::offset_of!(MoerlObjective, cap) - 468usize];
    ["Offset of field: MoerlObjective::saturation_low"]
        [::core::mem::offset_of!(MoerlObjective, saturation_low) - 472usize];
    ["Offset of field: MoerlObjective::saturation_high"]
        [::core::mem::offset_of!(MoerlObjective, saturation_high) - 476usize];
    ["Offset of field: MoerlObjective::positive_rate"]
        [::core::mem::offset_of!(MoerlObjective, positive_rate) - 480usize];
    ["Offset of field: MoerlObjective::negative_rate"]
        [::core::mem::offset_of!(MoerlObjective, negative_rate) - 484usize];
    ["Offset of field: MoerlObjective::positive_scale"]
        [::core::mem::offset_of!(MoerlObjective, positive_scale) - 488usize];
    ["Offset of field: MoerlObjective::negative_scale"]
        [::core::mem::offset_of!(MoerlObjective, negative_scale) - 492usize];
    ["Offset of field: MoerlObjective::epsilon"][::core::mem::offset_of!(MoerlObjective, epsilon) - 496usize];
    ["Offset of field: MoerlObjective::kl_beta"][::core::mem::offset_of!(MoerlObjective, kl_beta) - 500usize];
    ["Offset of field: MoerlObjective::kl_input_clamp"]
        [::core::mem::offset_of!(MoerlObjective, kl_input_clamp) - 504usize];
    ["Offset of field: MoerlObjective::kl_output_clamp"]
        [::core::mem::offset_of!(MoerlObjective, kl_output_clamp) - 508usize];
    ["Offset of field: MoerlObjective::mismatch_penalty"]
        [::core::mem::offset_of!(MoerlObjective, mismatch_penalty) - 512usize];
    ["Offset of field: MoerlObjective::entropy_bonus"]
        [::core::mem::offset_of!(MoerlObjective, entropy_bonus) - 516usize];
    ["Offset of field: MoerlObjective::variant"][::core::mem::offset_of!(MoerlObjective, variant) - 520usize];
    ["Offset of field: MoerlObjective::kl_form"][::core::mem::offset_of!(MoerlObjective, kl_form) - 524usize];
    ["Offset of field: MoerlObjective::reads"][::core::mem::offset_of!(MoerlObjective, reads) - 528usize];
    ["Offset of field: MoerlObjective::nonfinite_policy"]
        [::core::mem::offset_of!(MoerlObjective, nonfinite_policy) - 532usize];
    ["Offset of field: MoerlObjective::divisors"][::core::mem::offset_of!(MoerlObjective, divisors) - 536usize];
    ["Offset of field: MoerlObjective::tag"][::core::mem::offset_of!(MoerlObjective, tag) - 540usize];
    ["Offset of field: MoerlObjective::is_sequence_level"]
        [::core::mem::offset_of!(MoerlObjective, is_sequence_level) - 544usize];
    ["Offset of field: MoerlObjective::advantage_per_token"]
        [::core::mem::offset_of!(MoerlObjective, advantage_per_token) - 545usize];
    ["Offset of field: MoerlObjective::aligned"][::core::mem::offset_of!(MoerlObjective, aligned) - 546usize];
    ["Offset of field: MoerlObjective::accumulate"][::core::mem::offset_of!(MoerlObjective, accumulate) - 547usize];
    ["Offset of field: MoerlObjective::keep_totals"][::core::mem::offset_of!(MoerlObjective, keep_totals) - 548usize];
    ["Offset of field: MoerlObjective::count_empty"][::core::mem::offset_of!(MoerlObjective, count_empty) - 549usize];
    ["Offset of field: MoerlObjective::kl_straight_through"]
        [::core::mem::offset_of!(MoerlObjective, kl_straight_through) - 550usize];
    ["Offset of field: MoerlObjective::folds_weights"]
        [::core::mem::offset_of!(MoerlObjective, folds_weights) - 551usize];
    ["Offset of field: MoerlObjective::is_gated"][::core::mem::offset_of!(MoerlObjective, is_gated) - 552usize];
    ["Offset of field: MoerlObjective::rejects_all"][::core::mem::offset_of!(MoerlObjective, rejects_all) - 553usize];
    ["Offset of field: MoerlObjective::after_rejection"]
        [::core::mem::offset_of!(MoerlObjective, after_rejection) - 554usize];
    ["Offset of field: MoerlObjective::value_in_finish"]
        [::core::mem::offset_of!(MoerlObjective, value_in_finish) - 555usize];
    ["Offset of field: MoerlObjective::has_rollout"][::core::mem::offset_of!(MoerlObjective, has_rollout) - 556usize];
    ["Offset of field: MoerlObjective::opens_totals"][::core::mem::offset_of!(MoerlObjective, opens_totals) - 557usize];
    ["Offset of field: MoerlObjective::family"][::core::mem::offset_of!(MoerlObjective, family) - 558usize];
    ["Offset of field: MoerlObjective::finishes"][::core::mem::offset_of!(MoerlObjective, finishes) - 559usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlRouteChange {
    pub logprobs: *const f32,
    pub old_logprobs: *const f32,
    pub rollout_logprobs: *const f32,
    pub loss_mask: *const u8,
    pub clipped: *const u8,
    pub keep: *const u8,
    pub route_change: *const u8,
    pub sums: *mut f64,
    pub ticket: *mut u32,
    pub records: *mut f64,
    pub tokens: u64,
    pub accumulate: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlRouteChange"][::core::mem::size_of::<MoerlRouteChange>() - 96usize];
    ["Alignment of MoerlRouteChange"][::core::mem::align_of::<MoerlRouteChange>() - 8usize];
    ["Offset of field: MoerlRouteChange::logprobs"][::core::mem::offset_of!(MoerlRouteChange, logprobs) - 0usize];
    ["Offset of field: MoerlRouteChange::old_logprobs"]
        [::core::mem::offset_of!(MoerlRouteChange, old_logprobs) - 8usize];
    ["Offset of field: MoerlRouteChange::rollout_logprobs"]
        [::core::mem::offset_of!(MoerlRouteChange, rollout_logprobs) - 16usize];
    ["Offset of field: MoerlRouteChange::loss_mask"][::core::mem::offset_of!(MoerlRouteChange, loss_mask) - 24usize];
    ["Offset of field: MoerlRouteChange::clipped"][::core::mem::offset_of!(MoerlRouteChange, clipped) - 32usize];
    ["Offset of field: MoerlRouteChange::keep"][::core::mem::offset_of!(MoerlRouteChange, keep) - 40usize];
    ["Offset of field: MoerlRouteChange::route_change"]
        [::core::mem::offset_of!(MoerlRouteChange, route_change) - 48usize];
    ["Offset of field: MoerlRouteChange::sums"][::core::mem::offset_of!(MoerlRouteChange, sums) - 56usize];
    ["Offset of field: MoerlRouteChange::ticket"][::core::mem::offset_of!(MoerlRouteChange, ticket) - 64usize];
    ["Offset of field: MoerlRouteChange::records"][::core::mem::offset_of!(MoerlRouteChange, records) - 72usize];
    ["Offset of field: MoerlRouteChange::tokens"][::core::mem::offset_of!(MoerlRouteChange, tokens) - 80usize];
    ["Offset of field: MoerlRouteChange::accumulate"][::core::mem::offset_of!(MoerlRouteChange, accumulate) - 88usize];
};
pub const MOERL_COVARIANCE_RANDOM: MoerlCovarianceRule = 0;
pub const MOERL_COVARIANCE_BERNOULLI: MoerlCovarianceRule = 1;
pub const MOERL_COVARIANCE_LARGEST: MoerlCovarianceRule = 2;
pub type MoerlCovarianceRule = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlCovarianceState {
    pub mean_advantage: f64,
    pub mean_logprob: f64,
    pub prefix: u64,
    pub wanted: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlCovarianceState"][::core::mem::size_of::<MoerlCovarianceState>() - 32usize];
    ["Alignment of MoerlCovarianceState"][::core::mem::align_of::<MoerlCovarianceState>() - 8usize];
    ["Offset of field: MoerlCovarianceState::mean_advantage"]
        [::core::mem::offset_of!(MoerlCovarianceState, mean_advantage) - 0usize];
    ["Offset of field: MoerlCovarianceState::mean_logprob"]
        [::core::mem::offset_of!(MoerlCovarianceState, mean_logprob) - 8usize];
    ["Offset of field: MoerlCovarianceState::prefix"][::core::mem::offset_of!(MoerlCovarianceState, prefix) - 16usize];
    ["Offset of field: MoerlCovarianceState::wanted"][::core::mem::offset_of!(MoerlCovarianceState, wanted) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlCovariance {
    pub logprobs: *const f32,
    pub advantages: *const f32,
    pub loss_mask: *const u8,
    pub excluded: *const u8,
    pub token_ids: *const u32,
    pub chosen: *mut u8,
    pub keep: *mut u8,
    pub state: *mut MoerlCovarianceState,
    pub ticket: *mut u32,
    pub histogram: *mut u32,
    pub sums: *mut f64,
    pub tokens: u64,
    pub seed: u64,
    pub threshold: u64,
    pub fraction: f64,
    pub mean_advantage: f64,
    pub mean_logprob: f64,
    pub lower: f64,
    pub upper: f64,
    pub rule: u32,
    pub shift: u32,
    pub has_means: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlCovariance"][::core::mem::size_of::<MoerlCovariance>() - 168usize];
    ["Alignment of MoerlCovariance"][::core::mem::align_of::<MoerlCovariance>() - 8usize];
    ["Offset of field: MoerlCovariance::logprobs"][::core::mem::offset_of!(MoerlCovariance, logprobs) - 0usize];
    ["Offset of field: MoerlCovariance::advantages"][::core::mem::offset_of!(MoerlCovariance, advantages) - 8usize];
    ["Offset of field: MoerlCovariance::loss_mask"][::core::mem::offset_of!(MoerlCovariance, loss_mask) - 16usize];
    ["Offset of field: MoerlCovariance::excluded"][::core::mem::offset_of!(MoerlCovariance, excluded) - 24usize];
    ["Offset of field: MoerlCovariance::token_ids"][::core::mem::offset_of!(MoerlCovariance, token_ids) - 32usize];
    ["Offset of field: MoerlCovariance::chosen"][::core::mem::offset_of!(MoerlCovariance, chosen) - 40usize];
    ["Offset of field: MoerlCovariance::keep"][::core::mem::offset_of!(MoerlCovariance, keep) - 48usize];
    ["Offset of field: MoerlCovariance::state"][::core::mem::offset_of!(MoerlCovariance, state) - 56usize];
    ["Offset of field: MoerlCovariance::ticket"][::core::mem::offset_of!(MoerlCovariance, ticket) - 64usize];
    ["Offset of field: MoerlCovariance::histogram"][::core::mem::offset_of!(MoerlCovariance, histogram) - 72usize];
    ["Offset of field: MoerlCovariance::sums"][::core::mem::offset_of!(MoerlCovariance, sums) - 80usize];
    ["Offset of field: MoerlCovariance::tokens"][::core::mem::offset_of!(MoerlCovariance, tokens) - 88usize];
    ["Offset of field: MoerlCovariance::seed"][::core::mem::offset_of!(MoerlCovariance, seed) - 96usize];
    ["Offset of field: MoerlCovariance::threshold"][::core::mem::offset_of!(MoerlCovariance, threshold) - 104usize];
    ["Offset of field: MoerlCovariance::fraction"][::core::mem::offset_of!(MoerlCovariance, fraction) - 112usize];
    ["Offset of field: MoerlCovariance::mean_advantage"]
        [::core::mem::offset_of!(MoerlCovariance, mean_advantage) - 120usize];
    ["Offset of field: MoerlCovariance::mean_logprob"]
        [::core::mem::offset_of!(MoerlCovariance, mean_logprob) - 128usize];
    ["Offset of field: MoerlCovariance::lower"][::core::mem::offset_of!(MoerlCovariance, lower) - 136usize];
    ["Offset of field: MoerlCovariance::upper"][::core::mem::offset_of!(MoerlCovariance, upper) - 144usize];
    ["Offset of field: MoerlCovariance::rule"][::core::mem::offset_of!(MoerlCovariance, rule) - 152usize];
    ["Offset of field: MoerlCovariance::shift"][::core::mem::offset_of!(MoerlCovariance, shift) - 156usize];
    ["Offset of field: MoerlCovariance::has_means"][::core::mem::offset_of!(MoerlCovariance, has_means) - 160usize];
    ["Offset of field: MoerlCovariance::reserved"][::core::mem::offset_of!(MoerlCovariance, reserved) - 164usize];
};
pub const MOERL_CORRECTION_LOG_RATIO: MoerlCorrectionPlane = 0;
pub const MOERL_CORRECTION_COUNT: MoerlCorrectionPlane = 1;
pub const MOERL_CORRECTION_NONFINITE: MoerlCorrectionPlane = 2;
pub const MOERL_CORRECTION_KEPT: MoerlCorrectionPlane = 3;
pub const MOERL_CORRECTION_REJECTED: MoerlCorrectionPlane = 4;
pub const MOERL_CORRECTION_K1: MoerlCorrectionPlane = 8;
pub const MOERL_CORRECTION_K2: MoerlCorrectionPlane = 9;
pub const MOERL_CORRECTION_K3: MoerlCorrectionPlane = 10;
pub const MOERL_CORRECTION_ADVANTAGE: MoerlCorrectionPlane = 11;
pub const MOERL_CORRECTION_OLD: MoerlCorrectionPlane = 12;
pub const MOERL_CORRECTION_ROLLOUT: MoerlCorrectionPlane = 13;
pub const MOERL_CORRECTION_WEIGHT: MoerlCorrectionPlane = 14;
pub const MOERL_CORRECTION_RAW_WEIGHT: MoerlCorrectionPlane = 15;
pub const MOERL_CORRECTION_KEPT_K3: MoerlCorrectionPlane = 16;
pub const MOERL_CORRECTION_MAX: MoerlCorrectionPlane = 17;
pub const MOERL_CORRECTION_MAX_NEGATIVE: MoerlCorrectionPlane = 18;
pub const MOERL_CORRECTION_PLANES: MoerlCorrectionPlane = 19;
pub type MoerlCorrectionPlane = ::core::ffi::c_uint;
pub const MOERL_CORRECTION_TOKEN: MoerlCorrectionLevel = 0;
pub const MOERL_CORRECTION_TURN: MoerlCorrectionLevel = 1;
pub const MOERL_CORRECTION_SEQUENCE: MoerlCorrectionLevel = 2;
pub const MOERL_CORRECTION_GEOMETRIC: MoerlCorrectionLevel = 3;
pub type MoerlCorrectionLevel = ::core::ffi::c_uint;
pub const MOERL_CORRECTION_ONE: MoerlCorrectionWeight = 0;
pub const MOERL_CORRECTION_CLAMP: MoerlCorrectionWeight = 1;
pub const MOERL_CORRECTION_BAND: MoerlCorrectionWeight = 2;
pub const MOERL_CORRECTION_SEQUENCE_MASK: MoerlCorrectionWeight = 3;
pub const MOERL_CORRECTION_SELF_NORMALISED: MoerlCorrectionWeight = 4;
pub const MOERL_CORRECTION_METROPOLIS_MASK: MoerlCorrectionWeight = 5;
pub const MOERL_CORRECTION_METROPOLIS_MULTIPLICITY: MoerlCorrectionWeight = 6;
pub const MOERL_CORRECTION_MULTIPLE: MoerlCorrectionWeight = 7;
pub const MOERL_CORRECTION_ATTACHED: MoerlCorrectionWeight = 8;
pub type MoerlCorrectionWeight = ::core::ffi::c_uint;
pub const MOERL_CORRECTION_OF_TOKEN: MoerlCorrectionStatistic = 0;
pub const MOERL_CORRECTION_OF_TOKEN_K1: MoerlCorrectionStatistic = 1;
pub const MOERL_CORRECTION_OF_TOKEN_K2: MoerlCorrectionStatistic = 2;
pub const MOERL_CORRECTION_OF_TOKEN_K3: MoerlCorrectionStatistic = 3;
pub const MOERL_CORRECTION_OF_TURN: MoerlCorrectionStatistic = 4;
pub const MOERL_CORRECTION_OF_SUM: MoerlCorrectionStatistic = 5;
pub const MOERL_CORRECTION_OF_MEAN: MoerlCorrectionStatistic = 6;
pub const MOERL_CORRECTION_OF_SUM_K1: MoerlCorrectionStatistic = 7;
pub const MOERL_CORRECTION_OF_SUM_K2: MoerlCorrectionStatistic = 8;
pub const MOERL_CORRECTION_OF_SUM_K3: MoerlCorrectionStatistic = 9;
pub const MOERL_CORRECTION_OF_MEAN_K1: MoerlCorrectionStatistic = 10;
pub const MOERL_CORRECTION_OF_MEAN_K2: MoerlCorrectionStatistic = 11;
pub const MOERL_CORRECTION_OF_MEAN_K3: MoerlCorrectionStatistic = 12;
pub const MOERL_CORRECTION_OF_MAX_K2: MoerlCorrectionStatistic = 13;
pub const MOERL_CORRECTION_OF_MAX_K3: MoerlCorrectionStatistic = 14;
pub const MOERL_CORRECTION_OF_EXTREMES: MoerlCorrectionStatistic = 15;
pub const MOERL_CORRECTION_OF_BAD_ANSWER: MoerlCorrectionStatistic = 16;
pub type MoerlCorrectionStatistic = ::core::ffi::c_uint;
pub const MOERL_CORRECTION_TOKENS: MoerlCorrectionTokenSum = 0;
pub const MOERL_CORRECTION_TOKEN_WEIGHTS: MoerlCorrectionTokenSum = 1;
pub const MOERL_CORRECTION_TOKEN_WEIGHTS_SQUARED: MoerlCorrectionTokenSum = 2;
pub const MOERL_CORRECTION_TOKEN_CHI2: MoerlCorrectionTokenSum = 3;
pub const MOERL_CORRECTION_TOKENS_NONFINITE: MoerlCorrectionTokenSum = 8;
pub const MOERL_CORRECTION_MISMATCH_K1: MoerlCorrectionTokenSum = 9;
pub const MOERL_CORRECTION_MISMATCH_K3: MoerlCorrectionTokenSum = 10;
pub const MOERL_CORRECTION_PROBABILITY_ERROR: MoerlCorrectionTokenSum = 11;
pub const MOERL_CORRECTION_JENSEN_SHANNON: MoerlCorrectionTokenSum = 12;
pub const MOERL_CORRECTION_TOKEN_RAW: MoerlCorrectionTokenSum = 13;
pub const MOERL_CORRECTION_TOKEN_RAW_SQUARED: MoerlCorrectionTokenSum = 14;
pub const MOERL_CORRECTION_TOKENS_ABOVE: MoerlCorrectionTokenSum = 15;
pub const MOERL_CORRECTION_TOKENS_BELOW: MoerlCorrectionTokenSum = 16;
pub const MOERL_CORRECTION_TOKENS_SATURATED_HIGH: MoerlCorrectionTokenSum = 17;
pub const MOERL_CORRECTION_TOKENS_SATURATED_LOW: MoerlCorrectionTokenSum = 18;
pub const MOERL_CORRECTION_TOKENS_CATASTROPHIC: MoerlCorrectionTokenSum = 19;
pub const MOERL_CORRECTION_MAX_LOG_RATIO: MoerlCorrectionTokenSum = 28;
pub const MOERL_CORRECTION_MAX_NEGATIVE_LOG_RATIO: MoerlCorrectionTokenSum = 29;
pub type MoerlCorrectionTokenSum = ::core::ffi::c_uint;
pub const MOERL_CORRECTION_KEPT_TOKENS: MoerlCorrectionSegmentSum = 0;
pub const MOERL_CORRECTION_KEPT_SEGMENTS: MoerlCorrectionSegmentSum = 1;
pub const MOERL_CORRECTION_KEPT_GROUPS: MoerlCorrectionSegmentSum = 2;
pub const MOERL_CORRECTION_WEIGHED: MoerlCorrectionSegmentSum = 4;
pub const MOERL_CORRECTION_WEIGHTS: MoerlCorrectionSegmentSum = 5;
pub const MOERL_CORRECTION_WEIGHTS_SQUARED: MoerlCorrectionSegmentSum = 6;
pub const MOERL_CORRECTION_SEQUENCE_CHI2: MoerlCorrectionSegmentSum = 7;
pub const MOERL_CORRECTION_SEGMENTS: MoerlCorrectionSegmentSum = 8;
pub const MOERL_CORRECTION_EMPTY_SEGMENTS: MoerlCorrectionSegmentSum = 9;
pub const MOERL_CORRECTION_DROPPED_SEGMENTS: MoerlCorrectionSegmentSum = 10;
pub const MOERL_CORRECTION_PPL_OLD: MoerlCorrectionSegmentSum = 11;
pub const MOERL_CORRECTION_PPL_ROLLOUT: MoerlCorrectionSegmentSum = 12;
pub const MOERL_CORRECTION_LOG_PPL_ROLLOUT: MoerlCorrectionSegmentSum = 13;
pub const MOERL_CORRECTION_LOG_PPL_DIFF: MoerlCorrectionSegmentSum = 14;
pub const MOERL_CORRECTION_LOG_PPL_ABS_DIFF: MoerlCorrectionSegmentSum = 15;
pub const MOERL_CORRECTION_PPL_RATIO: MoerlCorrectionSegmentSum = 16;
pub const MOERL_CORRECTION_GEOMETRIC_CHI2: MoerlCorrectionSegmentSum = 17;
pub const MOERL_CORRECTION_SPREAD_WEIGHTS: MoerlCorrectionSegmentSum = 18;
pub const MOERL_CORRECTION_SPREAD_WEIGHTS_SQUARED: MoerlCorrectionSegmentSum = 19;
pub const MOERL_CORRECTION_SEQUENCE_WEIGHTS: MoerlCorrectionSegmentSum = 20;
pub const MOERL_CORRECTION_SEQUENCE_WEIGHTS_SQUARED: MoerlCorrectionSegmentSum = 21;
pub const MOERL_CORRECTION_SEQUENCES_ABOVE: MoerlCorrectionSegmentSum = 22;
pub const MOERL_CORRECTION_SEQUENCES_BELOW: MoerlCorrectionSegmentSum = 23;
pub const MOERL_CORRECTION_SEGMENTS_CATASTROPHIC: MoerlCorrectionSegmentSum = 24;
pub const MOERL_CORRECTION_ACCEPTED: MoerlCorrectionSegmentSum = 25;
pub const MOERL_CORRECTION_SUM_KEPT_K3: MoerlCorrectionSegmentSum = 26;
pub const MOERL_CORRECTION_GROUP_ESS: MoerlCorrectionSegmentSum = 27;
pub const MOERL_CORRECTION_MAX_SEQUENCE_WEIGHT: MoerlCorrectionSegmentSum = 28;
pub const MOERL_CORRECTION_MAX_NEGATIVE_SEQUENCE_WEIGHT: MoerlCorrectionSegmentSum = 29;
pub const MOERL_CORRECTION_MAX_LOG_PPL_DIFF: MoerlCorrectionSegmentSum = 30;
pub const MOERL_CORRECTION_MAX_NEGATIVE_LOG_PPL_DIFF: MoerlCorrectionSegmentSum = 31;
pub type MoerlCorrectionSegmentSum = ::core::ffi::c_uint;
pub const MOERL_DECISION_KEPT: MoerlDecisionFlag = 1;
pub const MOERL_DECISION_NONFINITE: MoerlDecisionFlag = 2;
pub const MOERL_DECISION_DROPPED: MoerlDecisionFlag = 4;
pub type MoerlDecisionFlag = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlDecision {
    pub weight: f32,
    pub flags: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlDecision"][::core::mem::size_of::<MoerlDecision>() - 8usize];
    ["Alignment of MoerlDecision"][::core::mem::align_of::<MoerlDecision>() - 4usize];
    ["Offset of field: MoerlDecision::weight"][::core::mem::offset_of!(MoerlDecision, weight) - 0usize];
    ["Offset of field: MoerlDecision::flags"][::core::mem::offset_of!(MoerlDecision, flags) - 4usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlCorrectionOption {
    pub low: f64,
    pub high: f64,
    pub token_low: f32,
    pub token_high: f32,
    pub statistic: u32,
    pub rejected: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlCorrectionOption"][::core::mem::size_of::<MoerlCorrectionOption>() - 32usize];
    ["Alignment of MoerlCorrectionOption"][::core::mem::align_of::<MoerlCorrectionOption>() - 8usize];
    ["Offset of field: MoerlCorrectionOption::low"][::core::mem::offset_of!(MoerlCorrectionOption, low) - 0usize];
    ["Offset of field: MoerlCorrectionOption::high"][::core::mem::offset_of!(MoerlCorrectionOption, high) - 8usize];
    ["Offset of field: MoerlCorrectionOption::token_low"]
        [::core::mem::offset_of!(MoerlCorrectionOption, token_low) - 16usize];
    ["Offset of field: MoerlCorrectionOption::token_high"]
        [::core::mem::offset_of!(MoerlCorrectionOption, token_high) - 20usize];
    ["Offset of field: MoerlCorrectionOption::statistic"]
        [::core::mem::offset_of!(MoerlCorrectionOption, statistic) - 24usize];
    ["Offset of field: MoerlCorrectionOption::rejected"]
        [::core::mem::offset_of!(MoerlCorrectionOption, rejected) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlCorrection {
    pub old_logprobs: *const f32,
    pub rollout_logprobs: *const f32,
    pub kept_log_mass: *const f32,
    pub router_shift: *const f32,
    pub advantages: *const f32,
    pub loss_mask: *const u8,
    pub uniforms: *const f32,
    pub offsets: *const i64,
    pub units: *const MoerlUnit,
    pub first_piece: *const u32,
    pub group_ptr: *const u32,
    pub members: *const u32,
    pub segment_ids: *const u64,
    pub current_log_ratio: *const f64,
    pub rewards: *const f32,
    pub target_logprobs: *const f64,
    pub proposal_logprobs: *const f64,
    pub carried: *const f64,
    pub planes: *mut f64,
    pub decisions: *mut MoerlDecision,
    pub weights: *mut f32,
    pub keep: *mut u8,
    pub log_ratio: *mut f32,
    pub segment_weights: *mut f32,
    pub segment_log_weights: *mut f64,
    pub kept: *mut u32,
    pub accepted: *mut u8,
    pub multiplicity: *mut u32,
    pub carry_multiplicity: *mut u32,
    pub carry_log_weights: *mut f64,
    pub baseline_advantages: *mut f32,
    pub expected_rewards: *mut f64,
    pub rejected: *mut u64,
    pub globals: *mut f64,
    pub diagnostics: *mut f64,
    pub errors: *mut u64,
    pub tickets: *mut u32,
    pub group_tickets: *mut u32,
    pub tile_tickets: *mut u32,
    pub tallies: *mut f64,
    pub tile_records: *mut u32,
    pub group_records: *mut f64,
    pub multiplicities: *mut u32,
    pub segment_count: u64,
    pub piece_count: u64,
    pub unit_count: u64,
    pub group_count: u64,
    pub token_count: u64,
    pub seed: u64,
    pub log_low: f64,
    pub log_high: f64,
    pub catastrophic_low: f64,
    pub catastrophic_high: f64,
    pub log_proportions: [f64; 16usize],
    pub options: [MoerlCorrectionOption; 8usize],
    pub low: f32,
    pub high: f32,
    pub token_log_low: f32,
    pub token_log_high: f32,
    pub reported_log_low: f32,
    pub reported_log_high: f32,
    pub saturation: f32,
    pub option_count: u32,
    pub repeats: u32,
    pub proposals: u32,
    pub level: u32,
    pub weight: u32,
    pub nonfinite_policy: u32,
    pub tag: u32,
    pub place: [u8; 19usize],
    pub mean_of_repeats: u8,
    pub advantage_per_token: u8,
    pub batch_normalise: u8,
    pub reads_tokens: u8,
    pub aligned: u8,
    pub accumulate: u8,
    pub keep_totals: u8,
    pub has_token_options: u8,
    pub reserved: [u8; 5usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlCorrection"][::core::mem::size_of::<MoerlCorrection>() - 896usize];
    ["Alignment of MoerlCorrection"][::core::mem::align_of::<MoerlCorrection>() - 8usize];
    ["Offset of field: MoerlCorrection::old_logprobs"][::core::mem::offset_of!(MoerlCorrection, old_logprobs) - 0usize];
    ["Offset of field: MoerlCorrection::rollout_logprobs"]
        [::core::mem::offset_of!(MoerlCorrection, rollout_logprobs) - 8usize];
    ["Offset of field: MoerlCorrection::kept_log_mass"]
        [::core::mem::offset_of!(MoerlCorrection, kept_log_mass) - 16usize];
    ["Offset of field: MoerlCorrection::router_shift"]
        [::core::mem::offset_of!(MoerlCorrection, router_shift) - 24usize];
    ["Offset of field: MoerlCorrection::advantages"][::core::mem::offset_of!(MoerlCorrection, advantages) - 32usize];
    ["Offset of field: MoerlCorrection::loss_mask"][::core::mem::offset_of!(MoerlCorrection, loss_mask) - 40usize];
    ["Offset of field: MoerlCorrection::uniforms"][::core::mem::offset_of!(MoerlCorrection, uniforms) - 48usize];
    ["Offset of field: MoerlCorrection::offsets"][::core::mem::offset_of!(MoerlCorrection, offsets) - 56usize];
    ["Offset of field: MoerlCorrection::units"][::core::mem::offset_of!(MoerlCorrection, units) - 64usize];
    ["Offset of field: MoerlCorrection::first_piece"][::core::mem::offset_of!(MoerlCorrection, first_piece) - 72usize];
    ["Offset of field: MoerlCorrection::group_ptr"][::core::mem::offset_of!(MoerlCorrection, group_ptr) - 80usize];
    ["Offset of field: MoerlCorrection::members"][::core::mem::offset_of!(MoerlCorrection, members) - 88usize];
    ["Offset of field: MoerlCorrection::segment_ids"][::core::mem::offset_of!(MoerlCorrection, segment_ids) - 96usize];
    ["Offset of field: MoerlCorrection::current_log_ratio"]
        [::core::mem::offset_of!(MoerlCorrection, current_log_ratio) - 104usize];
    ["Offset of field: MoerlCorrection::rewards"][::core::mem::offset_of!(MoerlCorrection, rewards) - 112usize];
    ["Offset of field: MoerlCorrection::target_logprobs"]
        [::core::mem::offset_of!(MoerlCorrection, target_logprobs) - 120usize];
    ["Offset of field: MoerlCorrection::proposal_logprobs"]
        [::core::mem::offset_of!(MoerlCorrection, proposal_logprobs) - 128usize];
    ["Offset of field: MoerlCorrection::carried"][::core::mem::offset_of!(MoerlCorrection, carried) - 136usize];
    ["Offset of field: MoerlCorrection::planes"][::core::mem::offset_of!(MoerlCorrection, planes) - 144usize];
    ["Offset of field: MoerlCorrection::decisions"][::core::mem::offset_of!(MoerlCorrection, decisions) - 152usize];
    ["Offset of field: MoerlCorrection::weights"][::core::mem::offset_of!(MoerlCorrection, weights) - 160usize];
    ["Offset of field: MoerlCorrection::keep"][::core::mem::offset_of!(MoerlCorrection, keep) - 168usize];
    ["Offset of field: MoerlCorrection::log_ratio"][::core::mem::offset_of!(MoerlCorrection, log_ratio) - 176usize];
    ["Offset of field: MoerlCorrection::segment_weights"]
        [::core::mem::offset_of!(MoerlCorrection, segment_weights) - 184usize];
    ["Offset of field: MoerlCorrection::segment_log_weights"]
        [::core::mem::offset_of!(MoerlCorrection, segment_log_weights) - 192usize];
    ["Offset of field: MoerlCorrection::kept"][::core::mem::offset_of!(MoerlCorrection, kept) - 200usize];
    ["Offset of field: MoerlCorrection::accepted"][::core::mem::offset_of!(MoerlCorrection, accepted) - 208usize];
    ["Offset of field: MoerlCorrection::multiplicity"]
        [::core::mem::offset_of!(MoerlCorrection, multiplicity) - 216usize];
    ["Offset of field: MoerlCorrection::carry_multiplicity"]
        [::core::mem::offset_of!(MoerlCorrection, carry_multiplicity) - 224usize];
    ["Offset of field: MoerlCorrection::carry_log_weights"]
        [::core::mem::offset_of!(MoerlCorrection, carry_log_weights) - 232usize];
    ["Offset of field: MoerlCorrection::baseline_advantages"]
        [::core::mem::offset_of!(MoerlCorrection, baseline_advantages) - 240usize];
    ["Offset of field: MoerlCorrection::expected_rewards"]
        [::core::mem::offset_of!(MoerlCorrection, expected_rewards) - 248usize];
    ["Offset of field: MoerlCorrection::rejected"][::core::mem::offset_of!(MoerlCorrection, rejected) - 256usize];
    ["Offset of field: MoerlCorrection::globals"][::core::mem::offset_of!(MoerlCorrection, globals) - 264usize];
    ["Offset of field: MoerlCorrection::diagnostics"][::core::mem::offset_of!(MoerlCorrection, diagnostics) - 272usize];
    ["Offset of field: MoerlCorrection::errors"][::core::mem::offset_of!(MoerlCorrection, errors) - 280usize];
    ["Offset of field: MoerlCorrection::tickets"][::core::mem::offset_of!(MoerlCorrection, tickets) - 288usize];
    ["Offset of field: MoerlCorrection::group_tickets"]
        [::core::mem::offset_of!(MoerlCorrection, group_tickets) - 296usize];
    ["Offset of field: MoerlCorrection::tile_tickets"]
        [::core::mem::offset_of!(MoerlCorrection, tile_tickets) - 304usize];
    ["Offset of field: MoerlCorrection::tallies"][::core::mem::offset_of!(MoerlCorrection, tallies) - 312usize];
    ["Offset of field: MoerlCorrection::tile_records"]
        [::core::mem::offset_of!(MoerlCorrection, tile_records) - 320usize];
    ["Offset of field: MoerlCorrection::group_records"]
        [::core::mem::offset_of!(MoerlCorrection, group_records) - 328usize];
    ["Offset of field: MoerlCorrection::multiplicities"]
        [::core::mem::offset_of!(MoerlCorrection, multiplicities) - 336usize];
    ["Offset of field: MoerlCorrection::segment_count"]
        [::core::mem::offset_of!(MoerlCorrection, segment_count) - 344usize];
    ["Offset of field: MoerlCorrection::piece_count"][::core::mem::offset_of!(MoerlCorrection, piece_count) - 352usize];
    ["Offset of field: MoerlCorrection::unit_count"][::core::mem::offset_of!(MoerlCorrection, unit_count) - 360usize];
    ["Offset of field: MoerlCorrection::group_count"][::core::mem::offset_of!(MoerlCorrection, group_count) - 368usize];
    ["Offset of field: MoerlCorrection::token_count"][::core::mem::offset_of!(MoerlCorrection, token_count) - 376usize];
    ["Offset of field: MoerlCorrection::seed"][::core::mem::offset_of!(MoerlCorrection, seed) - 384usize];
    ["Offset of field: MoerlCorrection::log_low"][::core::mem::offset_of!(MoerlCorrection, log_low) - 392usize];
    ["Offset of field: MoerlCorrection::log_high"][::core::mem::offset_of!(MoerlCorrection, log_high) - 400usize];
    ["Offset of field: MoerlCorrection::catastrophic_low"]
        [::core::mem::offset_of!(MoerlCorrection, catastrophic_low) - 408usize];
    ["Offset of field: MoerlCorrection::catastrophic_high"]
        [::core::mem::offset_of!(MoerlCorrection, catastrophic_high) - 416usize];
    ["Offset of field: MoerlCorrection::log_proportions"]
        [::core::mem::offset_of!(MoerlCorrection, log_proportions) - 424usize];
    ["Offset of field: MoerlCorrection::options"][::core::mem::offset_of!(MoerlCorrection, options) - 552usize];
    ["Offset of field: MoerlCorrection::low"][::core::mem::offset_of!(MoerlCorrection, low) - 808usize];
    ["Offset of field: MoerlCorrection::high"][::core::mem::offset_of!(MoerlCorrection, high) - 812usize];
    ["Offset of field: MoerlCorrection::token_log_low"]
        [::core::mem::offset_of!(MoerlCorrection, token_log_low) - 816usize];
    ["Offset of field: MoerlCorrection::token_log_high"]
        [::core::mem::offset_of!(MoerlCorrection, token_log_high) - 820usize];
    ["Offset of field: MoerlCorrection::reported_log_low"]
        [::core::mem::offset_of!(MoerlCorrection, reported_log_low) - 824usize];
    ["Offset of field: MoerlCorrection::reported_log_high"]
        [::core::mem::offset_of!(MoerlCorrection, reported_log_high) - 828usize];
    ["Offset of field: MoerlCorrection::saturation"][::core::mem::offset_of!(MoerlCorrection, saturation) - 832usize];
    ["Offset of field: MoerlCorrection::option_count"]
        [::core::mem::offset_of!(MoerlCorrection, option_count) - 836usize];
    ["Offset of field: MoerlCorrection::repeats"][::core::mem::offset_of!(MoerlCorrection, repeats) - 840usize];
    ["Offset of field: MoerlCorrection::proposals"][::core::mem::offset_of!(MoerlCorrection, proposals) - 844usize];
    ["Offset of field: MoerlCorrection::level"][::core::mem::offset_of!(MoerlCorrection, level) - 848usize];
    ["Offset of field: MoerlCorrection::weight"][::core::mem::offset_of!(MoerlCorrection, weight) - 852usize];
    ["Offset of field: MoerlCorrection::nonfinite_policy"]
        [::core::mem::offset_of!(MoerlCorrection, nonfinite_policy) - 856usize];
    ["Offset of field: MoerlCorrection::tag"][::core::mem::offset_of!(MoerlCorrection, tag) - 860usize];
    ["Offset of field: MoerlCorrection::place"][::core::mem::offset_of!(MoerlCorrection, place) - 864usize];
    ["Offset of field: MoerlCorrection::mean_of_repeats"]
        [::core::mem::offset_of!(MoerlCorrection, mean_of_repeats) - 883usize];
    ["Offset of field: MoerlCorrection::advantage_per_token"]
        [::core::mem::offset_of!(MoerlCorrection, advantage_per_token) - 884usize];
    ["Offset of field: MoerlCorrection::batch_normalise"]
        [::core::mem::offset_of!(MoerlCorrection, batch_normalise) - 885usize];
    ["Offset of field: MoerlCorrection::reads_tokens"]
        [::core::mem::offset_of!(MoerlCorrection, reads_tokens) - 886usize];
    ["Offset of field: MoerlCorrection::aligned"][::core::mem::offset_of!(MoerlCorrection, aligned) - 887usize];
    ["Offset of field: MoerlCorrection::accumulate"][::core::mem::offset_of!(MoerlCorrection, accumulate) - 888usize];
    ["Offset of field: MoerlCorrection::keep_totals"][::core::mem::offset_of!(MoerlCorrection, keep_totals) - 889usize];
    ["Offset of field: MoerlCorrection::has_token_options"]
        [::core::mem::offset_of!(MoerlCorrection, has_token_options) - 890usize];
    ["Offset of field: MoerlCorrection::reserved"][::core::mem::offset_of!(MoerlCorrection, reserved) - 891usize];
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
    pub left_out: f32,
    pub divide: u8,
    pub single_keeps_reward: u8,
    pub reserved: [u8; 2usize],
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
    ["Offset of field: MoerlGroupAdvantages::left_out"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, left_out) - 120usize];
    ["Offset of field: MoerlGroupAdvantages::divide"][::core::mem::offset_of!(MoerlGroupAdvantages, divide) - 124usize];
    ["Offset of field: MoerlGroupAdvantages::single_keeps_reward"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, single_keeps_reward) - 125usize];
    ["Offset of field: MoerlGroupAdvantages::reserved"]
        [::core::mem::offset_of!(MoerlGroupAdvantages, reserved) - 126usize];
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
    pub left_out: f32,
    pub one_step: u8,
    pub reserved: [u8; 7usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlTokenAdvantages"][::core::mem::size_of::<MoerlTokenAdvantages>() - 184usize];
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
    ["Offset of field: MoerlTokenAdvantages::left_out"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, left_out) - 172usize];
    ["Offset of field: MoerlTokenAdvantages::one_step"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, one_step) - 176usize];
    ["Offset of field: MoerlTokenAdvantages::reserved"]
        [::core::mem::offset_of!(MoerlTokenAdvantages, reserved) - 177usize];
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
pub const MOERL_ROUTER_BALANCE: MoerlRouterTerm = 0;
pub const MOERL_ROUTER_Z: MoerlRouterTerm = 1;
pub const MOERL_ROUTER_ENTROPY: MoerlRouterTerm = 2;
pub const MOERL_ROUTER_KL: MoerlRouterTerm = 3;
pub type MoerlRouterTerm = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlRouterTerms {
    pub q: *const f32,
    pub coefficients: *const f32,
    pub ref_logits: *const ::core::ffi::c_void,
    pub offsets: *const i64,
    pub segments: u64,
    pub ref_logits_stride: i64,
    pub ref_logits_element: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlRouterTerms"][::core::mem::size_of::<MoerlRouterTerms>() - 56usize];
    ["Alignment of MoerlRouterTerms"][::core::mem::align_of::<MoerlRouterTerms>() - 8usize];
    ["Offset of field: MoerlRouterTerms::q"][::core::mem::offset_of!(MoerlRouterTerms, q) - 0usize];
    ["Offset of field: MoerlRouterTerms::coefficients"]
        [::core::mem::offset_of!(MoerlRouterTerms, coefficients) - 8usize];
    ["Offset of field: MoerlRouterTerms::ref_logits"][::core::mem::offset_of!(MoerlRouterTerms, ref_logits) - 16usize];
    ["Offset of field: MoerlRouterTerms::offsets"][::core::mem::offset_of!(MoerlRouterTerms, offsets) - 24usize];
    ["Offset of field: MoerlRouterTerms::segments"][::core::mem::offset_of!(MoerlRouterTerms, segments) - 32usize];
    ["Offset of field: MoerlRouterTerms::ref_logits_stride"]
        [::core::mem::offset_of!(MoerlRouterTerms, ref_logits_stride) - 40usize];
    ["Offset of field: MoerlRouterTerms::ref_logits_element"]
        [::core::mem::offset_of!(MoerlRouterTerms, ref_logits_element) - 48usize];
    ["Offset of field: MoerlRouterTerms::reserved"][::core::mem::offset_of!(MoerlRouterTerms, reserved) - 52usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlGateBackward {
    pub router_logits: *const ::core::ffi::c_void,
    pub d_topk_weights: *const ::core::ffi::c_void,
    pub topk_ids: *const i32,
    pub selected_logits: *const f32,
    pub lse: *const f32,
    pub expert_scale: *const f32,
    pub token_mask: *const u8,
    pub row_count: *const i32,
    pub advantages: *const f32,
    pub advantage_weights: *const f32,
    pub d_router_logits: *mut ::core::ffi::c_void,
    pub d_selected_logits: *mut f32,
    pub d_expert_scale: *mut f32,
    pub expert_scale_panels: *mut f32,
    pub terms: MoerlRouterTerms,
    pub rows: u64,
    pub router_logits_stride: i64,
    pub d_topk_weights_stride: i64,
    pub d_router_logits_stride: i64,
    pub router: MoerlGateRouter,
    pub router_logits_element: u32,
    pub d_topk_weights_element: u32,
    pub stage_bytes: u32,
    pub surrogate_coefficient: f32,
    pub tile_rows: u32,
    pub accumulate: u8,
    pub reserved: [u8; 3usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlGateBackward"][::core::mem::size_of::<MoerlGateBackward>() - 256usize];
    ["Alignment of MoerlGateBackward"][::core::mem::align_of::<MoerlGateBackward>() - 8usize];
    ["Offset of field: MoerlGateBackward::router_logits"]
        [::core::mem::offset_of!(MoerlGateBackward, router_logits) - 0usize];
    ["Offset of field: MoerlGateBackward::d_topk_weights"]
        [::core::mem::offset_of!(MoerlGateBackward, d_topk_weights) - 8usize];
    ["Offset of field: MoerlGateBackward::topk_ids"][::core::mem::offset_of!(MoerlGateBackward, topk_ids) - 16usize];
    ["Offset of field: MoerlGateBackward::selected_logits"]
        [::core::mem::offset_of!(MoerlGateBackward, selected_logits) - 24usize];
    ["Offset of field: MoerlGateBackward::lse"][::core::mem::offset_of!(MoerlGateBackward, lse) - 32usize];
    ["Offset of field: MoerlGateBackward::expert_scale"]
        [::core::mem::offset_of!(MoerlGateBackward, expert_scale) - 40usize];
    ["Offset of field: MoerlGateBackward::token_mask"]
        [::core::mem::offset_of!(MoerlGateBackward, token_mask) - 48usize];
    ["Offset of field: MoerlGateBackward::row_count"][::core::mem::offset_of!(MoerlGateBackward, row_count) - 56usize];
    ["Offset of field: MoerlGateBackward::advantages"]
        [::core::mem::offset_of!(MoerlGateBackward, advantages) - 64usize];
    ["Offset of field: MoerlGateBackward::advantage_weights"]
        [::core::mem::offset_of!(MoerlGateBackward, advantage_weights) - 72usize];
    ["Offset of field: MoerlGateBackward::d_router_logits"]
        [::core::mem::offset_of!(MoerlGateBackward, d_router_logits) - 80usize];
    ["Offset of field: MoerlGateBackward::d_selected_logits"]
        [::core::mem::offset_of!(MoerlGateBackward, d_selected_logits) - 88usize];
    ["Offset of field: MoerlGateBackward::d_expert_scale"]
        [::core::mem::offset_of!(MoerlGateBackward, d_expert_scale) - 96usize];
    ["Offset of field: MoerlGateBackward::expert_scale_panels"]
        [::core::mem::offset_of!(MoerlGateBackward, expert_scale_panels) - 104usize];
    ["Offset of field: MoerlGateBackward::terms"][::core::mem::offset_of!(MoerlGateBackward, terms) - 112usize];
    ["Offset of field: MoerlGateBackward::rows"][::core::mem::offset_of!(MoerlGateBackward, rows) - 168usize];
    ["Offset of field: MoerlGateBackward::router_logits_stride"]
        [::core::mem::offset_of!(MoerlGateBackward, router_logits_stride) - 176usize];
    ["Offset of field: MoerlGateBackward::d_topk_weights_stride"]
        [::core::mem::offset_of!(MoerlGateBackward, d_topk_weights_stride) - 184usize];
    ["Offset of field: MoerlGateBackward::d_router_logits_stride"]
        [::core::mem::offset_of!(MoerlGateBackward, d_router_logits_stride) - 192usize];
    ["Offset of field: MoerlGateBackward::router"][::core::mem::offset_of!(MoerlGateBackward, router) - 200usize];
    ["Offset of field: MoerlGateBackward::router_logits_element"]
        [::core::mem::offset_of!(MoerlGateBackward, router_logits_element) - 232usize];
    ["Offset of field: MoerlGateBackward::d_topk_weights_element"]
        [::core::mem::offset_of!(MoerlGateBackward, d_topk_weights_element) - 236usize];
    ["Offset of field: MoerlGateBackward::stage_bytes"]
        [::core::mem::offset_of!(MoerlGateBackward, stage_bytes) - 240usize];
    ["Offset of field: MoerlGateBackward::surrogate_coefficient"]
        [::core::mem::offset_of!(MoerlGateBackward, surrogate_coefficient) - 244usize];
    ["Offset of field: MoerlGateBackward::tile_rows"][::core::mem::offset_of!(MoerlGateBackward, tile_rows) - 248usize];
    ["Offset of field: MoerlGateBackward::accumulate"]
        [::core::mem::offset_of!(MoerlGateBackward, accumulate) - 252usize];
    ["Offset of field: MoerlGateBackward::reserved"][::core::mem::offset_of!(MoerlGateBackward, reserved) - 253usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlPanel {
    pub row: u64,
    pub segment: u32,
    pub rows: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlPanel"][::core::mem::size_of::<MoerlPanel>() - 16usize];
    ["Alignment of MoerlPanel"][::core::mem::align_of::<MoerlPanel>() - 8usize];
    ["Offset of field: MoerlPanel::row"][::core::mem::offset_of!(MoerlPanel, row) - 0usize];
    ["Offset of field: MoerlPanel::segment"][::core::mem::offset_of!(MoerlPanel, segment) - 8usize];
    ["Offset of field: MoerlPanel::rows"][::core::mem::offset_of!(MoerlPanel, rows) - 12usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlPanelSums {
    pub lse_squared: f64,
    pub entropy: f64,
    pub kl: f64,
    pub rows: u32,
    pub nonfinite: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlPanelSums"][::core::mem::size_of::<MoerlPanelSums>() - 32usize];
    ["Alignment of MoerlPanelSums"][::core::mem::align_of::<MoerlPanelSums>() - 8usize];
    ["Offset of field: MoerlPanelSums::lse_squared"][::core::mem::offset_of!(MoerlPanelSums, lse_squared) - 0usize];
    ["Offset of field: MoerlPanelSums::entropy"][::core::mem::offset_of!(MoerlPanelSums, entropy) - 8usize];
    ["Offset of field: MoerlPanelSums::kl"][::core::mem::offset_of!(MoerlPanelSums, kl) - 16usize];
    ["Offset of field: MoerlPanelSums::rows"][::core::mem::offset_of!(MoerlPanelSums, rows) - 24usize];
    ["Offset of field: MoerlPanelSums::nonfinite"][::core::mem::offset_of!(MoerlPanelSums, nonfinite) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlRouterLoss {
    pub router_logits: *const ::core::ffi::c_void,
    pub ref_logits: *const ::core::ffi::c_void,
    pub topk_ids: *const i32,
    pub selected_logits: *const f32,
    pub token_mask: *const u8,
    pub row_count: *const i32,
    pub panels: *const MoerlPanel,
    pub first_panels: *const u32,
    pub panel_probabilities: *mut f32,
    pub panel_counts: *mut u32,
    pub panel_sums: *mut MoerlPanelSums,
    pub probabilities: *mut f64,
    pub counts: *mut u64,
    pub segment_rows: *mut u64,
    pub totals: *mut f64,
    pub nonfinite: *mut u64,
    pub count_rows: *const u64,
    pub segment_values: *mut f64,
    pub values: *mut f64,
    pub q: *mut f32,
    pub coefficients: *mut f32,
    pub selection_bias: *mut f32,
    pub rows: u64,
    pub panel_count: u64,
    pub segments: u64,
    pub valid_segments: u64,
    pub router_logits_stride: i64,
    pub ref_logits_stride: i64,
    pub weights: [f64; 4usize],
    pub router: MoerlGateRouter,
    pub router_logits_element: u32,
    pub ref_logits_element: u32,
    pub bias_step: f32,
    pub accumulate: u8,
    pub counts_best: u8,
    pub reserved: [u8; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlRouterLoss"][::core::mem::size_of::<MoerlRouterLoss>() - 304usize];
    ["Alignment of MoerlRouterLoss"][::core::mem::align_of::<MoerlRouterLoss>() - 8usize];
    ["Offset of field: MoerlRouterLoss::router_logits"]
        [::core::mem::offset_of!(MoerlRouterLoss, router_logits) - 0usize];
    ["Offset of field: MoerlRouterLoss::ref_logits"][::core::mem::offset_of!(MoerlRouterLoss, ref_logits) - 8usize];
    ["Offset of field: MoerlRouterLoss::topk_ids"][::core::mem::offset_of!(MoerlRouterLoss, topk_ids) - 16usize];
    ["Offset of field: MoerlRouterLoss::selected_logits"]
        [::core::mem::offset_of!(MoerlRouterLoss, selected_logits) - 24usize];
    ["Offset of field: MoerlRouterLoss::token_mask"][::core::mem::offset_of!(MoerlRouterLoss, token_mask) - 32usize];
    ["Offset of field: MoerlRouterLoss::row_count"][::core::mem::offset_of!(MoerlRouterLoss, row_count) - 40usize];
    ["Offset of field: MoerlRouterLoss::panels"][::core::mem::offset_of!(MoerlRouterLoss, panels) - 48usize];
    ["Offset of field: MoerlRouterLoss::first_panels"]
        [::core::mem::offset_of!(MoerlRouterLoss, first_panels) - 56usize];
    ["Offset of field: MoerlRouterLoss::panel_probabilities"]
        [::core::mem::offset_of!(MoerlRouterLoss, panel_probabilities) - 64usize];
    ["Offset of field: MoerlRouterLoss::panel_counts"]
        [::core::mem::offset_of!(MoerlRouterLoss, panel_counts) - 72usize];
    ["Offset of field: MoerlRouterLoss::panel_sums"][::core::mem::offset_of!(MoerlRouterLoss, panel_sums) - 80usize];
    ["Offset of field: MoerlRouterLoss::probabilities"]
        [::core::mem::offset_of!(MoerlRouterLoss, probabilities) - 88usize];
    ["Offset of field: MoerlRouterLoss::counts"][::core::mem::offset_of!(MoerlRouterLoss, counts) - 96usize];
    ["Offset of field: MoerlRouterLoss::segment_rows"]
        [::core::mem::offset_of!(MoerlRouterLoss, segment_rows) - 104usize];
    ["Offset of field: MoerlRouterLoss::totals"][::core::mem::offset_of!(MoerlRouterLoss, totals) - 112usize];
    ["Offset of field: MoerlRouterLoss::nonfinite"][::core::mem::offset_of!(MoerlRouterLoss, nonfinite) - 120usize];
    ["Offset of field: MoerlRouterLoss::count_rows"][::core::mem::offset_of!(MoerlRouterLoss, count_rows) - 128usize];
    ["Offset of field: MoerlRouterLoss::segment_values"]
        [::core::mem::offset_of!(MoerlRouterLoss, segment_values) - 136usize];
    ["Offset of field: MoerlRouterLoss::values"][::core::mem::offset_of!(MoerlRouterLoss, values) - 144usize];
    ["Offset of field: MoerlRouterLoss::q"][::core::mem::offset_of!(MoerlRouterLoss, q) - 152usize];
    ["Offset of field: MoerlRouterLoss::coefficients"]
        [::core::mem::offset_of!(MoerlRouterLoss, coefficients) - 160usize];
    ["Offset of field: MoerlRouterLoss::selection_bias"]
        [::core::mem::offset_of!(MoerlRouterLoss, selection_bias) - 168usize];
    ["Offset of field: MoerlRouterLoss::rows"][::core::mem::offset_of!(MoerlRouterLoss, rows) - 176usize];
    ["Offset of field: MoerlRouterLoss::panel_count"][::core::mem::offset_of!(MoerlRouterLoss, panel_count) - 184usize];
    ["Offset of field: MoerlRouterLoss::segments"][::core::mem::offset_of!(MoerlRouterLoss, segments) - 192usize];
    ["Offset of field: MoerlRouterLoss::valid_segments"]
        [::core::mem::offset_of!(MoerlRouterLoss, valid_segments) - 200usize];
    ["Offset of field: MoerlRouterLoss::router_logits_stride"]
        [::core::mem::offset_of!(MoerlRouterLoss, router_logits_stride) - 208usize];
    ["Offset of field: MoerlRouterLoss::ref_logits_stride"]
        [::core::mem::offset_of!(MoerlRouterLoss, ref_logits_stride) - 216usize];
    ["Offset of field: MoerlRouterLoss::weights"][::core::mem::offset_of!(MoerlRouterLoss, weights) - 224usize];
    ["Offset of field: MoerlRouterLoss::router"][::core::mem::offset_of!(MoerlRouterLoss, router) - 256usize];
    ["Offset of field: MoerlRouterLoss::router_logits_element"]
        [::core::mem::offset_of!(MoerlRouterLoss, router_logits_element) - 288usize];
    ["Offset of field: MoerlRouterLoss::ref_logits_element"]
        [::core::mem::offset_of!(MoerlRouterLoss, ref_logits_element) - 292usize];
    ["Offset of field: MoerlRouterLoss::bias_step"][::core::mem::offset_of!(MoerlRouterLoss, bias_step) - 296usize];
    ["Offset of field: MoerlRouterLoss::accumulate"][::core::mem::offset_of!(MoerlRouterLoss, accumulate) - 300usize];
    ["Offset of field: MoerlRouterLoss::counts_best"][::core::mem::offset_of!(MoerlRouterLoss, counts_best) - 301usize];
    ["Offset of field: MoerlRouterLoss::reserved"][::core::mem::offset_of!(MoerlRouterLoss, reserved) - 302usize];
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
pub const MOERL_RESULT_WHOLE: MoerlLogprobResult = 0;
pub const MOERL_RESULT_ROWS: MoerlLogprobResult = 1;
pub const MOERL_RESULT_PANELS: MoerlLogprobResult = 2;
pub type MoerlLogprobResult = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlLogprobForward {
    pub logits: *const ::core::ffi::c_void,
    pub tokens: *const ::core::ffi::c_void,
    pub temperature: *const f32,
    pub loss_mask: *const u8,
    pub label_logits: *const f32,
    pub logprobs: *mut f32,
    pub entropy: *mut f32,
    pub max: *mut f32,
    pub log_sum: *mut f32,
    pub lse: *mut f32,
    pub sum_p2: *mut f32,
    pub other_labels: *mut f32,
    pub rank: *mut u32,
    pub argmax: *mut i32,
    pub saved: *mut MoerlPartial,
    pub sum_sq: *mut f32,
    pub records: *mut MoerlPartial,
    pub labels: *mut f32,
    pub best: *mut u64,
    pub errors: *mut u64,
    pub rows: u64,
    pub first_row: u64,
    pub groups: u64,
    pub logits_stride: i64,
    pub tokens_stride: i64,
    pub ignore_index: i64,
    pub vocab_start: i64,
    pub vocab_total: i64,
    pub record_stride: u64,
    pub logit_fold: f64,
    pub tokens_element: u32,
    pub vocabulary: u32,
    pub ids: u32,
    pub tag: u32,
    pub uniform_temperature: f32,
    pub softcap: f32,
    pub cap_scale: f32,
    pub result: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlLogprobForward"][::core::mem::size_of::<MoerlLogprobForward>() - 272usize];
    ["Alignment of MoerlLogprobForward"][::core::mem::align_of::<MoerlLogprobForward>() - 8usize];
    ["Offset of field: MoerlLogprobForward::logits"][::core::mem::offset_of!(MoerlLogprobForward, logits) - 0usize];
    ["Offset of field: MoerlLogprobForward::tokens"][::core::mem::offset_of!(MoerlLogprobForward, tokens) - 8usize];
    ["Offset of field: MoerlLogprobForward::temperature"]
        [::core::mem::offset_of!(MoerlLogprobForward, temperature) - 16usize];
    ["Offset of field: MoerlLogprobForward::loss_mask"]
        [::core::mem::offset_of!(MoerlLogprobForward, loss_mask) - 24usize];
    ["Offset of field: MoerlLogprobForward::label_logits"]
        [::core::mem::offset_of!(MoerlLogprobForward, label_logits) - 32usize];
    ["Offset of field: MoerlLogprobForward::logprobs"]
        [::core::mem::offset_of!(MoerlLogprobForward, logprobs) - 40usize];
    ["Offset of field: MoerlLogprobForward::entropy"][::core::mem::offset_of!(MoerlLogprobForward, entropy) - 48usize];
    ["Offset of field: MoerlLogprobForward::max"][::core::mem::offset_of!(MoerlLogprobForward, max) - 56usize];
    ["Offset of field: MoerlLogprobForward::log_sum"][::core::mem::offset_of!(MoerlLogprobForward, log_sum) - 64usize];
    ["Offset of field: MoerlLogprobForward::lse"][::core::mem::offset_of!(MoerlLogprobForward, lse) - 72usize];
    ["Offset of field: MoerlLogprobForward::sum_p2"][::core::mem::offset_of!(MoerlLogprobForward, sum_p2) - 80usize];
    ["Offset of field: MoerlLogprobForward::other_labels"]
        [::core::mem::offset_of!(MoerlLogprobForward, other_labels) - 88usize];
    ["Offset of field: MoerlLogprobForward::rank"][::core::mem::offset_of!(MoerlLogprobForward, rank) - 96usize];
    ["Offset of field: MoerlLogprobForward::argmax"][::core::mem::offset_of!(MoerlLogprobForward, argmax) - 104usize];
    ["Offset of field: MoerlLogprobForward::saved"][::core::mem::offset_of!(MoerlLogprobForward, saved) - 112usize];
    ["Offset of field: MoerlLogprobForward::sum_sq"][::core::mem::offset_of!(MoerlLogprobForward, sum_sq) - 120usize];
    ["Offset of field: MoerlLogprobForward::records"][::core::mem::offset_of!(MoerlLogprobForward, records) - 128usize];
    ["Offset of field: MoerlLogprobForward::labels"][::core::mem::offset_of!(MoerlLogprobForward, labels) - 136usize];
    ["Offset of field: MoerlLogprobForward::best"][::core::mem::offset_of!(MoerlLogprobForward, best) - 144usize];
    ["Offset of field: MoerlLogprobForward::errors"][::core::mem::offset_of!(MoerlLogprobForward, errors) - 152usize];
    ["Offset of field: MoerlLogprobForward::rows"][::core::mem::offset_of!(MoerlLogprobForward, rows) - 160usize];
    ["Offset of field: MoerlLogprobForward::first_row"]
        [::core::mem::offset_of!(MoerlLogprobForward, first_row) - 168usize];
    ["Offset of field: MoerlLogprobForward::groups"][::core::mem::offset_of!(MoerlLogprobForward, groups) - 176usize];
    ["Offset of field: MoerlLogprobForward::logits_stride"]
        [::core::mem::offset_of!(MoerlLogprobForward, logits_stride) - 184usize];
    ["Offset of field: MoerlLogprobForward::tokens_stride"]
        [::core::mem::offset_of!(MoerlLogprobForward, tokens_stride) - 192usize];
    ["Offset of field: MoerlLogprobForward::ignore_index"]
        [::core::mem::offset_of!(MoerlLogprobForward, ignore_index) - 200usize];
    ["Offset of field: MoerlLogprobForward::vocab_start"]
        [::core::mem::offset_of!(MoerlLogprobForward, vocab_start) - 208usize];
    ["Offset of field: MoerlLogprobForward::vocab_total"]
        [::core::mem::offset_of!(MoerlLogprobForward, vocab_total) - 216usize];
    ["Offset of field: MoerlLogprobForward::record_stride"]
        [::core::mem::offset_of!(MoerlLogprobForward, record_stride) - 224usize];
    ["Offset of field: MoerlLogprobForward::logit_fold"]
        [::core::mem::offset_of!(MoerlLogprobForward, logit_fold) - 232usize];
    ["Offset of field: MoerlLogprobForward::tokens_element"]
        [::core::mem::offset_of!(MoerlLogprobForward, tokens_element) - 240usize];
    ["Offset of field: MoerlLogprobForward::vocabulary"]
        [::core::mem::offset_of!(MoerlLogprobForward, vocabulary) - 244usize];
    ["Offset of field: MoerlLogprobForward::ids"][::core::mem::offset_of!(MoerlLogprobForward, ids) - 248usize];
    ["Offset of field: MoerlLogprobForward::tag"][::core::mem::offset_of!(MoerlLogprobForward, tag) - 252usize];
    ["Offset of field: MoerlLogprobForward::uniform_temperature"]
        [::core::mem::offset_of!(MoerlLogprobForward, uniform_temperature) - 256usize];
    ["Offset of field: MoerlLogprobForward::softcap"][::core::mem::offset_of!(MoerlLogprobForward, softcap) - 260usize];
    ["Offset of field: MoerlLogprobForward::cap_scale"]
        [::core::mem::offset_of!(MoerlLogprobForward, cap_scale) - 264usize];
    ["Offset of field: MoerlLogprobForward::result"][::core::mem::offset_of!(MoerlLogprobForward, result) - 268usize];
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
    pub kept_ids: *const i32,
    pub kept_offsets: *const i64,
    pub kept_saved: *const MoerlPartial,
    pub d_kept_logprobs: *const f32,
    pub d_kept_entropy: *const f32,
    pub rows: u64,
    pub first_row: u64,
    pub call_rows: u64,
    pub kept: u64,
    pub logits_stride: i64,
    pub d_logits_stride: i64,
    pub tokens_stride: i64,
    pub ignore_index: i64,
    pub vocab_start: i64,
    pub vocab_total: i64,
    pub logit_fold: f64,
    pub tokens_element: u32,
    pub vocabulary: u32,
    pub ids: u32,
    pub columns: u32,
    pub panels: u32,
    pub uniform_temperature: f32,
    pub softcap: f32,
    pub cap_scale: f32,
    pub logit_scale: f32,
    pub strict_keep: u32,
    pub step: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlLogprobBackward"][::core::mem::size_of::<MoerlLogprobBackward>() - 248usize];
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
    ["Offset of field: MoerlLogprobBackward::kept_ids"]
        [::core::mem::offset_of!(MoerlLogprobBackward, kept_ids) - 72usize];
    ["Offset of field: MoerlLogprobBackward::kept_offsets"]
        [::core::mem::offset_of!(MoerlLogprobBackward, kept_offsets) - 80usize];
    ["Offset of field: MoerlLogprobBackward::kept_saved"]
        [::core::mem::offset_of!(MoerlLogprobBackward, kept_saved) - 88usize];
    ["Offset of field: MoerlLogprobBackward::d_kept_logprobs"]
        [::core::mem::offset_of!(MoerlLogprobBackward, d_kept_logprobs) - 96usize];
    ["Offset of field: MoerlLogprobBackward::d_kept_entropy"]
        [::core::mem::offset_of!(MoerlLogprobBackward, d_kept_entropy) - 104usize];
    ["Offset of field: MoerlLogprobBackward::rows"][::core::mem::offset_of!(MoerlLogprobBackward, rows) - 112usize];
    ["Offset of field: MoerlLogprobBackward::first_row"]
        [::core::mem::offset_of!(MoerlLogprobBackward, first_row) - 120usize];
    ["Offset of field: MoerlLogprobBackward::call_rows"]
        [::core::mem::offset_of!(MoerlLogprobBackward, call_rows) - 128usize];
    ["Offset of field: MoerlLogprobBackward::kept"][::core::mem::offset_of!(MoerlLogprobBackward, kept) - 136usize];
    ["Offset of field: MoerlLogprobBackward::logits_stride"]
        [::core::mem::offset_of!(MoerlLogprobBackward, logits_stride) - 144usize];
    ["Offset of field: MoerlLogprobBackward::d_logits_stride"]
        [::core::mem::offset_of!(MoerlLogprobBackward, d_logits_stride) - 152usize];
    ["Offset of field: MoerlLogprobBackward::tokens_stride"]
        [::core::mem::offset_of!(MoerlLogprobBackward, tokens_stride) - 160usize];
    ["Offset of field: MoerlLogprobBackward::ignore_index"]
        [::core::mem::offset_of!(MoerlLogprobBackward, ignore_index) - 168usize];
    ["Offset of field: MoerlLogprobBackward::vocab_start"]
        [::core::mem::offset_of!(MoerlLogprobBackward, vocab_start) - 176usize];
    ["Offset of field: MoerlLogprobBackward::vocab_total"]
        [::core::mem::offset_of!(MoerlLogprobBackward, vocab_total) - 184usize];
    ["Offset of field: MoerlLogprobBackward::logit_fold"]
        [::core::mem::offset_of!(MoerlLogprobBackward, logit_fold) - 192usize];
    ["Offset of field: MoerlLogprobBackward::tokens_element"]
        [::core::mem::offset_of!(MoerlLogprobBackward, tokens_element) - 200usize];
    ["Offset of field: MoerlLogprobBackward::vocabulary"]
        [::core::mem::offset_of!(MoerlLogprobBackward, vocabulary) - 204usize];
    ["Offset of field: MoerlLogprobBackward::ids"][::core::mem::offset_of!(MoerlLogprobBackward, ids) - 208usize];
    ["Offset of field: MoerlLogprobBackward::columns"]
        [::core::mem::offset_of!(MoerlLogprobBackward, columns) - 212usize];
    ["Offset of field: MoerlLogprobBackward::panels"][::core::mem::offset_of!(MoerlLogprobBackward, panels) - 216usize];
    ["Offset of field: MoerlLogprobBackward::uniform_temperature"]
        [::core::mem::offset_of!(MoerlLogprobBackward, uniform_temperature) - 220usize];
    ["Offset of field: MoerlLogprobBackward::softcap"]
        [::core::mem::offset_of!(MoerlLogprobBackward, softcap) - 224usize];
    ["Offset of field: MoerlLogprobBackward::cap_scale"]
        [::core::mem::offset_of!(MoerlLogprobBackward, cap_scale) - 228usize];
    ["Offset of field: MoerlLogprobBackward::logit_scale"]
        [::core::mem::offset_of!(MoerlLogprobBackward, logit_scale) - 232usize];
    ["Offset of field: MoerlLogprobBackward::strict_keep"]
        [::core::mem::offset_of!(MoerlLogprobBackward, strict_keep) - 236usize];
    ["Offset of field: MoerlLogprobBackward::step"][::core::mem::offset_of!(MoerlLogprobBackward, step) - 240usize];
    ["Offset of field: MoerlLogprobBackward::reserved"]
        [::core::mem::offset_of!(MoerlLogprobBackward, reserved) - 244usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlLogprobKeep {
    pub logits: *const ::core::ffi::c_void,
    pub tokens: *const ::core::ffi::c_void,
    pub temperature: *const f32,
    pub loss_mask: *const u8,
    pub kept_ids: *const i32,
    pub kept_offsets: *const i64,
    pub full: *const MoerlPartial,
    pub kept_logprobs: *mut f32,
    pub kept_entropy: *mut f32,
    pub kept_mass: *mut f32,
    pub kept_saved: *mut MoerlPartial,
    pub label_added: *mut u64,
    pub errors: *mut u64,
    pub rows: u64,
    pub first_row: u64,
    pub call_rows: u64,
    pub groups: u64,
    pub kept: u64,
    pub logits_stride: i64,
    pub tokens_stride: i64,
    pub ignore_index: i64,
    pub vocab_start: i64,
    pub vocab_total: i64,
    pub logit_fold: f64,
    pub tokens_element: u32,
    pub vocabulary: u32,
    pub ids: u32,
    pub tag: u32,
    pub uniform_temperature: f32,
    pub softcap: f32,
    pub cap_scale: f32,
    pub strict_keep: u32,
    pub is_shard: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlLogprobKeep"][::core::mem::size_of::<MoerlLogprobKeep>() - 232usize];
    ["Alignment of MoerlLogprobKeep"][::core::mem::align_of::<MoerlLogprobKeep>() - 8usize];
    ["Offset of field: MoerlLogprobKeep::logits"][::core::mem::offset_of!(MoerlLogprobKeep, logits) - 0usize];
    ["Offset of field: MoerlLogprobKeep::tokens"][::core::mem::offset_of!(MoerlLogprobKeep, tokens) - 8usize];
    ["Offset of field: MoerlLogprobKeep::temperature"]
        [::core::mem::offset_of!(MoerlLogprobKeep, temperature) - 16usize];
    ["Offset of field: MoerlLogprobKeep::loss_mask"][::core::mem::offset_of!(MoerlLogprobKeep, loss_mask) - 24usize];
    ["Offset of field: MoerlLogprobKeep::kept_ids"][::core::mem::offset_of!(MoerlLogprobKeep, kept_ids) - 32usize];
    ["Offset of field: MoerlLogprobKeep::kept_offsets"]
        [::core::mem::offset_of!(MoerlLogprobKeep, kept_offsets) - 40usize];
    ["Offset of field: MoerlLogprobKeep::full"][::core::mem::offset_of!(MoerlLogprobKeep, full) - 48usize];
    ["Offset of field: MoerlLogprobKeep::kept_logprobs"]
        [::core::mem::offset_of!(MoerlLogprobKeep, kept_logprobs) - 56usize];
    ["Offset of field: MoerlLogprobKeep::kept_entropy"]
        [::core::mem::offset_of!(MoerlLogprobKeep, kept_entropy) - 64usize];
    ["Offset of field: MoerlLogprobKeep::kept_mass"][::core::mem::offset_of!(MoerlLogprobKeep, kept_mass) - 72usize];
    ["Offset of field: MoerlLogprobKeep::kept_saved"][::core::mem::offset_of!(MoerlLogprobKeep, kept_saved) - 80usize];
    ["Offset of field: MoerlLogprobKeep::label_added"]
        [::core::mem::offset_of!(MoerlLogprobKeep, label_added) - 88usize];
    ["Offset of field: MoerlLogprobKeep::errors"][::core::mem::offset_of!(MoerlLogprobKeep, errors) - 96usize];
    ["Offset of field: MoerlLogprobKeep::rows"][::core::mem::offset_of!(MoerlLogprobKeep, rows) - 104usize];
    ["Offset of field: MoerlLogprobKeep::first_row"][::core::mem::offset_of!(MoerlLogprobKeep, first_row) - 112usize];
    ["Offset of field: MoerlLogprobKeep::call_rows"][::core::mem::offset_of!(MoerlLogprobKeep, call_rows) - 120usize];
    ["Offset of field: MoerlLogprobKeep::groups"][::core::mem::offset_of!(MoerlLogprobKeep, groups) - 128usize];
    ["Offset of field: MoerlLogprobKeep::kept"][::core::mem::offset_of!(MoerlLogprobKeep, kept) - 136usize];
    ["Offset of field: MoerlLogprobKeep::logits_stride"]
        [::core::mem::offset_of!(MoerlLogprobKeep, logits_stride) - 144usize];
    ["Offset of field: MoerlLogprobKeep::tokens_stride"]
        [::core::mem::offset_of!(MoerlLogprobKeep, tokens_stride) - 152usize];
    ["Offset of field: MoerlLogprobKeep::ignore_index"]
        [::core::mem::offset_of!(MoerlLogprobKeep, ignore_index) - 160usize];
    ["Offset of field: MoerlLogprobKeep::vocab_start"]
        [::core::mem::offset_of!(MoerlLogprobKeep, vocab_start) - 168usize];
    ["Offset of field: MoerlLogprobKeep::vocab_total"]
        [::core::mem::offset_of!(MoerlLogprobKeep, vocab_total) - 176usize];
    ["Offset of field: MoerlLogprobKeep::logit_fold"][::core::mem::offset_of!(MoerlLogprobKeep, logit_fold) - 184usize];
    ["Offset of field: MoerlLogprobKeep::tokens_element"]
        [::core::mem::offset_of!(MoerlLogprobKeep, tokens_element) - 192usize];
    ["Offset of field: MoerlLogprobKeep::vocabulary"][::core::mem::offset_of!(MoerlLogprobKeep, vocabulary) - 196usize];
    ["Offset of field: MoerlLogprobKeep::ids"][::core::mem::offset_of!(MoerlLogprobKeep, ids) - 200usize];
    ["Offset of field: MoerlLogprobKeep::tag"][::core::mem::offset_of!(MoerlLogprobKeep, tag) - 204usize];
    ["Offset of field: MoerlLogprobKeep::uniform_temperature"]
        [::core::mem::offset_of!(MoerlLogprobKeep, uniform_temperature) - 208usize];
    ["Offset of field: MoerlLogprobKeep::softcap"][::core::mem::offset_of!(MoerlLogprobKeep, softcap) - 212usize];
    ["Offset of field: MoerlLogprobKeep::cap_scale"][::core::mem::offset_of!(MoerlLogprobKeep, cap_scale) - 216usize];
    ["Offset of field: MoerlLogprobKeep::strict_keep"]
        [::core::mem::offset_of!(MoerlLogprobKeep, strict_keep) - 220usize];
    ["Offset of field: MoerlLogprobKeep::is_shard"][::core::mem::offset_of!(MoerlLogprobKeep, is_shard) - 224usize];
    ["Offset of field: MoerlLogprobKeep::reserved"][::core::mem::offset_of!(MoerlLogprobKeep, reserved) - 228usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlLogprobCombine {
    pub outputs: MoerlLogprobForward,
    pub records: *const MoerlPartial,
    pub sum_sq: *const f32,
    pub other_labels: *const f32,
    pub best: *const u64,
    pub kept_records: *const MoerlPartial,
    pub kept_offsets: *const i64,
    pub kept_logprobs: *mut f32,
    pub kept_entropy: *mut f32,
    pub kept_mass: *mut f32,
    pub kept_saved: *mut MoerlPartial,
    pub kept: u64,
    pub shards: u32,
    pub records_per_row: u32,
    pub positions: u32,
    pub reserved: u32,
    pub counts: [u32; 64usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlLogprobCombine"][::core::mem::size_of::<MoerlLogprobCombine>() - 632usize];
    ["Alignment of MoerlLogprobCombine"][::core::mem::align_of::<MoerlLogprobCombine>() - 8usize];
    ["Offset of field: MoerlLogprobCombine::outputs"][::core::mem::offset_of!(MoerlLogprobCombine, outputs) - 0usize];
    ["Offset of field: MoerlLogprobCombine::records"][::core::mem::offset_of!(MoerlLogprobCombine, records) - 272usize];
    ["Offset of field: MoerlLogprobCombine::sum_sq"][::core::mem::offset_of!(MoerlLogprobCombine, sum_sq) - 280usize];
    ["Offset of field: MoerlLogprobCombine::other_labels"]
        [::core::mem::offset_of!(MoerlLogprobCombine, other_labels) - 288usize];
    ["Offset of field: MoerlLogprobCombine::best"][::core::mem::offset_of!(MoerlLogprobCombine, best) - 296usize];
    ["Offset of field: MoerlLogprobCombine::kept_records"]
        [::core::mem::offset_of!(MoerlLogprobCombine, kept_records) - 304usize];
    ["Offset of field: MoerlLogprobCombine::kept_offsets"]
        [::core::mem::offset_of!(MoerlLogprobCombine, kept_offsets) - 312usize];
    ["Offset of field: MoerlLogprobCombine::kept_logprobs"]
        [::core::mem::offset_of!(MoerlLogprobCombine, kept_logprobs) - 320usize];
    ["Offset of field: MoerlLogprobCombine::kept_entropy"]
        [::core::mem::offset_of!(MoerlLogprobCombine, kept_entropy) - 328usize];
    ["Offset of field: MoerlLogprobCombine::kept_mass"]
        [::core::mem::offset_of!(MoerlLogprobCombine, kept_mass) - 336usize];
    ["Offset of field: MoerlLogprobCombine::kept_saved"]
        [::core::mem::offset_of!(MoerlLogprobCombine, kept_saved) - 344usize];
    ["Offset of field: MoerlLogprobCombine::kept"][::core::mem::offset_of!(MoerlLogprobCombine, kept) - 352usize];
    ["Offset of field: MoerlLogprobCombine::shards"][::core::mem::offset_of!(MoerlLogprobCombine, shards) - 360usize];
    ["Offset of field: MoerlLogprobCombine::records_per_row"]
        [::core::mem::offset_of!(MoerlLogprobCombine, records_per_row) - 364usize];
    ["Offset of field: MoerlLogprobCombine::positions"]
        [::core::mem::offset_of!(MoerlLogprobCombine, positions) - 368usize];
    ["Offset of field: MoerlLogprobCombine::reserved"]
        [::core::mem::offset_of!(MoerlLogprobCombine, reserved) - 372usize];
    ["Offset of field: MoerlLogprobCombine::counts"][::core::mem::offset_of!(MoerlLogprobCombine, counts) - 376usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlLinearCopy {
    pub from: *const ::core::ffi::c_void,
    pub to: *mut ::core::ffi::c_void,
    pub rows: u64,
    pub packs: u64,
    pub from_stride: u64,
    pub to_stride: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlLinearCopy"][::core::mem::size_of::<MoerlLinearCopy>() - 48usize];
    ["Alignment of MoerlLinearCopy"][::core::mem::align_of::<MoerlLinearCopy>() - 8usize];
    ["Offset of field: MoerlLinearCopy::from"][::core::mem::offset_of!(MoerlLinearCopy, from) - 0usize];
    ["Offset of field: MoerlLinearCopy::to"][::core::mem::offset_of!(MoerlLinearCopy, to) - 8usize];
    ["Offset of field: MoerlLinearCopy::rows"][::core::mem::offset_of!(MoerlLinearCopy, rows) - 16usize];
    ["Offset of field: MoerlLinearCopy::packs"][::core::mem::offset_of!(MoerlLinearCopy, packs) - 24usize];
    ["Offset of field: MoerlLinearCopy::from_stride"][::core::mem::offset_of!(MoerlLinearCopy, from_stride) - 32usize];
    ["Offset of field: MoerlLinearCopy::to_stride"][::core::mem::offset_of!(MoerlLinearCopy, to_stride) - 40usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MoerlLinearRound {
    pub from: *const f32,
    pub to: *mut ::core::ffi::c_void,
    pub length: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MoerlLinearRound"][::core::mem::size_of::<MoerlLinearRound>() - 24usize];
    ["Alignment of MoerlLinearRound"][::core::mem::align_of::<MoerlLinearRound>() - 8usize];
    ["Offset of field: MoerlLinearRound::from"][::core::mem::offset_of!(MoerlLinearRound, from) - 0usize];
    ["Offset of field: MoerlLinearRound::to"][::core::mem::offset_of!(MoerlLinearRound, to) - 8usize];
    ["Offset of field: MoerlLinearRound::length"][::core::mem::offset_of!(MoerlLinearRound, length) - 16usize];
};
