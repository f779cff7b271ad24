//! The narrowest type for expert ids.

use crate::element::Element;
use crate::error::{Checks, Kind, Result};
use crate::gate::MAX_EXPERTS;

/// How ids of E experts are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    experts: usize,
    element: Element,
}

impl Packing {
    /// u8 for up to 256 experts, else u16.
    ///
    /// # Errors
    /// `Config` unless E is 1 to 4096.
    pub fn narrowest(experts: usize) -> Result<Packing> {
        Packing::new(experts, if experts <= 256 { Element::U8 } else { Element::U16 })
    }

    /// This type: u16 instead of u8 where one array must hold the ids of several routers.
    ///
    /// # Errors
    /// `Config` unless E is 1 to 4096, `Dtype` for anything but u8 and u16, and for u8 with more than 256 experts.
    pub fn new(experts: usize, element: Element) -> Result<Packing> {
        let mut checks = Checks::new();
        checks
            .require((1..=MAX_EXPERTS).contains(&experts), Kind::Config, "experts", || {
                format!("are {experts}, need 1 to {MAX_EXPERTS}")
            })
            .require(matches!(element, Element::U8 | Element::U16), Kind::Dtype, "packing", || {
                format!("is {element}, needs u8 or u16")
            })
            .require(element != Element::U8 || experts <= 256, Kind::Dtype, "packing", || {
                format!("is u8, which cannot name {experts} experts; use u16")
            });
        checks.finish()?;
        Ok(Packing { experts, element })
    }

    /// E.
    pub fn experts(&self) -> usize {
        self.experts
    }
    /// u8 or u16.
    pub fn element(&self) -> Element {
        self.element
    }
    /// True where all bits one name no expert, so that they can stand for "missing". Not for 256 experts in u8.
    pub fn has_sentinel(&self) -> bool {
        sentinel(self.element, self.experts).is_some()
    }
}

/// The id that stands for "not recorded": all bits one, unless that is an expert.
pub(super) fn sentinel(element: Element, experts: usize) -> Option<i64> {
    match element {
        Element::U8 => (experts <= 255).then_some(0xff),
        Element::U16 => (experts <= 0xffff).then_some(0xffff),
        _ => Some(-1),
    }
}

/// What one token's routes take: `layers · top_k` ids.
///
/// ```
/// use moerl::element::Element;
/// use moerl::routes::bytes_per_token;
/// assert_eq!(bytes_per_token(48, 8, Element::U8), 384); // Qwen3-30B-A3B
/// assert_eq!(bytes_per_token(58, 8, Element::U8), 464); // DeepSeek-V3
/// assert_eq!(bytes_per_token(60, 8, Element::U16), 960); // Kimi K2: 384 experts
/// ```
pub const fn bytes_per_token(layers: usize, top_k: usize, element: Element) -> usize {
    layers * top_k * element.size()
}
