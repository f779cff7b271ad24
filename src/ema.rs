//! Exponential moving averages of parameters: evaluation weights, a reference policy, or the proximal policy of PPO-EWMA (2110.00641).
//!
//! ```text
//! s ← s + (1 − b)(p − s)            b in [0, 1)
//! out = s / (1 − ∏ b)               where s began at 0 (debiased), else out = s
//! out = a (p − p₀) + s              BEMA (2508.00180)
//! ```
//!
//! s is f32; p is f32, bf16 or f16; out is an optional bf16 copy, ready for an engine that takes weights. One launch serves a list of up to 512
//! tensors. An element of p that is not finite leaves its s as it is, and is counted.
//!
//! **A bf16 state is refused** (`EmaStateTooNarrow`): while (1 − b)|p − s| is less than half a unit of s's last place it cannot move, and for
//! |p − s| ≤ |s| that is certain from b = 1 − 2⁻⁹ ≈ 0.998 on.
//!
//! ```
//! use moerl::ema::{Call, Debias, Tensor};
//! use moerl::memory::{Matrix, MatrixMut};
//! use moerl::{Backend, Buffer, Reference};
//!
//! # fn main() -> moerl::Result<()> {
//! let (backend, stream) = (Reference, ());
//! let parameters = backend.upload(&stream, &[1.0_f32])?;
//! let mut state = backend.upload(&stream, &[0.0_f32])?;
//! let mut average = Debias::new();
//! for expected in [0.1, 0.19, 0.271] {
//!     let tensor = Tensor::new(Matrix::new(parameters.view(), 1, 1)?, MatrixMut::new(state.view_mut(), 1, 1)?);
//!     backend.ema(&stream, &average.step(0.9)?, Call { tensors: &mut [tensor], nonfinite: None })?;
//!     assert!((backend.download(&stream, state.view())?[0] - expected).abs() < 1e-6);
//! }
//! # Ok(())
//! # }
//! ```

use crate::element::Element;
use crate::error::{Checks, Error, Kind, Result};
use crate::memory::{Matrix, MatrixMut, Memory, ViewMut};

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// 1 − b, or BEMA's e_t: what p weighs. In (0, 1].
    pub weight: f64,
    /// What the copy is multiplied by. Of size 1.7e38 at most.
    pub scale: f64,
    /// a_t of BEMA: what p − p₀ weighs in the copy of tensors with [`Tensor::initial`]. Of size 1.7e38 at most.
    pub bias: f64,
}

/// The largest factor: f32 still holds twice as much.
const MOST: f64 = 1.7e38;

impl Step {
    /// A step with decay b of an average that began at the parameters.
    ///
    /// # Errors
    /// `Config` for b outside [0, 1).
    pub fn new(decay: f64) -> Result<Step> {
        if (0.0..1.0).contains(&decay) {
            Ok(Step { weight: 1.0 - decay, scale: 1.0, bias: 0.0 })
        } else {
            Err(Error::invalid(Kind::Config, "decay", format!("is {decay}, needs 0 or more and less than 1")))
        }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// `Config` for every one outside its range.
    pub fn validate(&self) -> Result<()> {
        let mut checks = Checks::new();
        checks.require(self.weight > 0.0 && self.weight <= 1.0, Kind::Config, "weight", || {
            format!("is {}, needs more than 0 and at most 1", self.weight)
        });
        for (name, value) in [("scale", self.scale), ("bias", self.bias)] {
            checks.require(value.abs() <= MOST, Kind::Config, name, || {
                format!("is {value}, needs a number of size {MOST:e} at most")
            });
        }
        checks.finish()
    }
}

/// The weight that an average which began at 0 has gathered: 1 − ∏ b. The product is kept in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Debias {
    product: f64,
}

impl Default for Debias {
    fn default() -> Debias {
        Debias::new()
    }
}

impl Debias {
    /// Before the first step.
    pub fn new() -> Debias {
        Debias { product: 1.0 }
    }

    /// The next step, with decay b; its copy is debiased.
    ///
    /// # Errors
    /// `Config` for b outside [0, 1).
    pub fn step(&mut self, decay: f64) -> Result<Step> {
        let step = Step::new(decay)?;
        self.product *= decay;
        Ok(Step { scale: self.scale(), ..step })
    }

    /// 1 / (1 − ∏ b): what debiases the average as it is now. Infinite before the first step.
    pub fn scale(&self) -> f64 {
        1.0 / (1.0 - self.product)
    }
}

/// BEMA (2508.00180; TRL's callback): with τ = lag + multiplier·t, e_t = τ^−κ and a_t = τ^−η.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Bema {
    /// κ. Not negative.
    pub ema_power: f64,
    /// η. Not negative.
    pub bias_power: f64,
    /// At least 1.
    pub lag: f64,
    /// Not negative.
    pub multiplier: f64,
}

impl Default for Bema {
    /// κ 0.5, η 0.2, lag 10, multiplier 1.
    fn default() -> Bema {
        Bema { ema_power: 0.5, bias_power: 0.2, lag: 10.0, multiplier: 1.0 }
    }
}

impl Bema {
    /// Step t.
    ///
    /// # Errors
    /// `Config` for numbers outside their range.
    pub fn step(&self, t: u64) -> Result<Step> {
        let mut checks = Checks::new();
        for (name, value, least) in [
            ("ema_power", self.ema_power, 0.0),
            ("bias_power", self.bias_power, 0.0),
            ("lag", self.lag, 1.0),
            ("multiplier", self.multiplier, 0.0),
        ] {
            checks.require(value >= least && value.is_finite(), Kind::Config, name, || {
                format!("is {value}, needs a finite number of at least {least}")
            });
        }
        checks.finish()?;
        let tau = self.lag + self.multiplier * t as f64;
        Ok(Step { weight: tau.powf(-self.ema_power), scale: 1.0, bias: tau.powf(-self.bias_power) })
    }
}

/// One tensor; rows lie one behind the other.
#[derive(Debug)]
pub struct Tensor<'a, M> {
    /// p; f32, bf16 or f16.
    pub parameters: Matrix<'a, M>,
    /// s, as many elements; f32.
    pub state: MatrixMut<'a, M>,
    /// out, as many elements.
    pub copy: Option<ViewMut<'a, half::bf16, M>>,
    /// p₀ of BEMA, as many elements of p's type.
    pub initial: Option<Matrix<'a, M>>,
}

impl<'a, M: Memory> Tensor<'a, M> {
    /// A tensor without a copy.
    pub fn new(parameters: Matrix<'a, M>, state: MatrixMut<'a, M>) -> Tensor<'a, M> {
        Tensor { parameters, state, copy: None, initial: None }
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.parameters.rows() * self.parameters.columns()
    }

    fn check(&self, checks: &mut Checks, index: usize) {
        let elements = |rows: usize, columns: usize| rows * columns;
        let element = self.parameters.element();
        checks.require(
            matches!(element, Element::F32 | Element::Bf16 | Element::F16),
            Kind::Dtype,
            "parameters",
            || format!("of tensor {index} are {element}, need f32, bf16 or f16"),
        );
        let state = self.state.element();
        checks
            .require(!matches!(state, Element::Bf16 | Element::F16), Kind::EmaStateTooNarrow, "state", || {
                format!("of tensor {index} is {state}, needs f32: in 16 bits an average stops moving")
            })
            .require(matches!(state, Element::F32 | Element::Bf16 | Element::F16), Kind::Dtype, "state", || {
                format!("of tensor {index} is {state}, needs f32")
            });
        if let Some(initial) = &self.initial {
            checks.require(initial.element() == element, Kind::Dtype, "initial", || {
                format!("of tensor {index} is {}, needs {element} as the parameters", initial.element())
            });
        }
        for (name, layout) in [
            ("parameters", Some(self.parameters.layout())),
            ("state", Some(self.state.layout())),
            ("initial", self.initial.as_ref().map(Matrix::layout)),
        ] {
            let Some(layout) = layout else { continue };
            let found = elements(layout.rows, layout.columns);
            checks
                .require(found == self.len(), Kind::Shape, name, || {
                    format!("of tensor {index} has {found} elements, needs {}", self.len())
                })
                .require(layout.rows <= 1 || layout.row_stride == layout.columns, Kind::Shape, name, || {
                    format!("of tensor {index} has gaps: rows of {} every {}", layout.columns, layout.row_stride)
                });
        }
        if let Some(copy) = &self.copy {
            checks
                .require(copy.len() == self.len(), Kind::Shape, "copy", || {
                    format!("of tensor {index} has {} elements, needs {}", copy.len(), self.len())
                })
                .require(copy.address().is_multiple_of(2), Kind::Alignment, "copy", || {
                    format!("of tensor {index} begins at {:#x}, which is odd", copy.address())
                });
        }
    }
}

/// One step of every tensor of a list.
#[derive(Debug)]
pub struct Call<'c, 'a, M> {
    /// They may differ in type and in what they have.
    pub tensors: &'c mut [Tensor<'a, M>],
    /// `[1]`: elements that are not finite are added.
    pub nonfinite: Option<ViewMut<'a, u64, M>>,
}

impl<M: Memory> Call<'_, '_, M> {
    /// Checks the whole call before anything is queued.
    ///
    /// # Errors
    /// `Invalid` with every fault: `Config`, `Dtype`, `EmaStateTooNarrow`, `Shape`, `Alignment`, `Overlap`.
    pub fn validate(&self, step: &Step) -> Result<()> {
        let mut checks = Checks::new();
        checks.merge(step.validate());
        let mut extents = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            tensor.check(&mut checks, index);
            extents.push(tensor.parameters.layout().extent("parameters", false));
            extents.push(tensor.state.layout().extent("state", true));
            extents.extend(tensor.copy.as_ref().map(|array| array.extent("copy")));
            extents.extend(tensor.initial.as_ref().map(|matrix| matrix.layout().extent("initial", false)));
        }
        if let Some(array) = &self.nonfinite {
            crate::advantage::array(&mut checks, "nonfinite", Some(array.as_view()), 1);
            extents.push(array.extent("nonfinite"));
        }
        // Hundreds of tensors: in the order of their addresses, each against the one that reaches furthest so far.
        extents.retain(|extent| extent.bytes > 0);
        extents.sort_by_key(|extent| extent.address);
        let mut furthest = None;
        for extent in extents {
            if let Some(before) = furthest {
                checks.disjoint(&[Some(before), Some(extent)]);
            }
            let end = |e: &crate::error::Extent| e.address + e.bytes;
            furthest = furthest.filter(|before| end(before) > end(&extent)).or(Some(extent));
        }
        checks.finish()
    }
}

/// The elements of an array of floats in host memory, exactly.
pub(crate) fn floats(matrix: &Matrix<'_, crate::memory::Host>) -> Vec<f64> {
    (0..matrix.rows()).flat_map(|row| matrix.row_f64(row)).collect()
}
