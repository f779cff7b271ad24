//! Element types of arrays, by type and by name.

use bytemuck::Pod;
pub use half::{bf16, f16};

/// The type of an array's elements, where it is only known at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// bfloat16
    Bf16,
    /// IEEE half precision
    F16,
    /// IEEE single precision
    F32,
    /// 8-bit unsigned
    U8,
    /// 16-bit unsigned
    U16,
    /// 16-bit signed
    I16,
    /// 32-bit signed
    I32,
    /// 64-bit signed
    I64,
}

impl Element {
    /// The types that logits and gradients may have.
    pub const FLOATS: &[Element] = &[Element::Bf16, Element::F16, Element::F32];
    /// The types that token ids may have.
    pub const TOKENS: &[Element] = &[Element::I32, Element::I64];
    /// The types that recorded expert ids may have.
    pub const ROUTES: &[Element] = &[Element::U8, Element::U16, Element::I16, Element::I32];
    /// Every integer type.
    pub const INTEGERS: &[Element] = &[Element::U8, Element::U16, Element::I16, Element::I32, Element::I64];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Element::U8 => 1,
            Element::Bf16 | Element::F16 | Element::U16 | Element::I16 => 2,
            Element::F32 | Element::I32 => 4,
            Element::I64 => 8,
        }
    }

    /// The name used in messages: `bf16`, `i32`, …
    pub const fn name(self) -> &'static str {
        match self {
            Element::Bf16 => "bf16",
            Element::F16 => "f16",
            Element::F32 => "f32",
            Element::U8 => "u8",
            Element::U16 => "u16",
            Element::I16 => "i16",
            Element::I32 => "i32",
            Element::I64 => "i64",
        }
    }
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A type that an [`Element`] names.
pub trait Scalar: Pod + Send + Sync + std::fmt::Debug + PartialOrd {
    /// Its name.
    const ELEMENT: Element;
}

macro_rules! scalars {
    ($($type:ty => $element:ident),*) => { $(impl Scalar for $type { const ELEMENT: Element = Element::$element; })* };
}
scalars!(bf16 => Bf16, f16 => F16, f32 => F32, u8 => U8, u16 => U16, i16 => I16, i32 => I32, i64 => I64);

/// A floating-point [`Scalar`]: exact to `f32` one way, rounded once the other.
pub trait Float: Scalar {
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounded to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
}

impl Float for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> f32 {
        x
    }
}
impl Float for bf16 {
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}
impl Float for f16 {
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    fn from_f32(x: f32) -> f16 {
        f16::from_f32(x)
    }
}
