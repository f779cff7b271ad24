//! The contract between host and kernels, generated from `kernels/abi.h` by `cargo xtask bindings`: not edited by hand.
//!
//! What each field means stands in that file.

/// A digest of the `kernels/abi.h` that this was generated from.
pub const ABI_DIGEST: u64 = 0xe383fca8d5924ae1;

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
