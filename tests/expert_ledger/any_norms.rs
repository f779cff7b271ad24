//! Any gradient's norms and what its experts are scaled by: types, strides, places and numbers, and what must be refused.

use moerl::element::Element;
use moerl::expert_ledger::{ClipScale, SquaredNorms, norm_workspace};
use moerl::memory::{Matrix, ViewMut};
use moerl::{Backend, Buffer, Reference, Result};
use proptest::prelude::*;
use proptest::sample::select;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::common::placed::{Place, Placed, Rows, rounded};
use crate::common::property::{for_any, unless_refused};
use crate::common::{canonical, report, seeded};

/// What is wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Nothing,
    Type,
    /// An array too long, the workspace too short.
    Length,
    Workspace,
    Shared,
    /// An address that is no multiple of an element.
    Odd,
}

// ---- norms --------------------------------------------------------------------------------------------------------------

/// What is drawn of a gradient.
#[derive(Clone, Debug)]
struct Gradient {
    experts: usize,
    elements: usize,
    element: usize,
    /// Of the numbers; see [`Gradient::number`].
    kind: u8,
    /// How likely a number is NaN or infinite.
    bad: f64,
    place: Place,
    flaw: Flaw,
    seed: u64,
}

fn gradient() -> impl Strategy<Value = Gradient> {
    // Of a vector, of a warp's vectors, of what a block reads at once, of a panel.
    let elements = select(vec![
        0_usize, 1, 3, 4, 5, 7, 8, 9, 127, 129, 255, 257, 1023, 1025, 2047, 2049, 8191, 8192, 8193, 16_385,
    ]);
    let limits = select(vec![(0_usize, 0_usize), (4096, 0), (4097, 0), (257, 0), (257, 1), (257, 2)]);
    let shape = prop_oneof![9 => (1_usize..4, elements), 1 => limits];
    let flaws = select(vec![Flaw::Type, Flaw::Length, Flaw::Workspace, Flaw::Shared, Flaw::Odd]);
    let flaw = prop_oneof![6 => Just(Flaw::Nothing), 1 => flaws];
    let place = (0_usize..9, 0_usize..9).prop_map(|(before, gap)| Place { before, gap });
    let place = prop_oneof![Just(Place::default()), place];
    let bad = select(vec![0.0, 0.0, 0.0, 1e-4, 0.1]);
    (shape, 0_usize..3, 0_u8..3, bad, place, flaw, any::<u64>()).prop_map(
        |((experts, elements), element, kind, bad, place, flaw, seed)| Gradient {
            experts,
            elements,
            element,
            kind,
            bad,
            place,
            flaw,
            seed,
        },
    )
}

impl Gradient {
    fn element(&self) -> Element {
        if self.flaw == Flaw::Type { Element::I32 } else { Element::FLOATS[self.element] }
    }
    fn number(&self, rng: &mut StdRng) -> f32 {
        let extremes = [f32::MAX, -f32::MAX, 1e30, f32::MIN_POSITIVE, 1e-45, 0.0, -0.0, 1.0];
        match self.kind {
            0 => rng.random_range(-1.0..1.0),
            1 => rng.random_range(-1.0_f32..1.0) * 10f32.powi(rng.random_range(-44..38)),
            _ => extremes[rng.random_range(0..extremes.len())],
        }
    }
    fn numbers(&self) -> Vec<f32> {
        let mut rng = seeded(self.seed);
        let few = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let mut one = || if rng.random_bool(self.bad) { few[rng.random_range(0..3)] } else { self.number(&mut rng) };
        (0..self.experts * self.elements).map(|_| rounded(self.element(), one())).collect()
    }
    fn before(&self) -> Vec<f64> {
        let mut rng = seeded(self.seed ^ 1);
        (0..self.experts).map(|_| rng.random_range(0.0..2.0)).collect()
    }
    fn is_unlawful(&self) -> bool {
        let has_workspace = norm_workspace(self.experts, self.elements) > 0;
        let of_arrays = match self.flaw {
            Flaw::Nothing => false,
            Flaw::Workspace | Flaw::Shared => has_workspace,
            Flaw::Type => self.elements > 0,
            Flaw::Length | Flaw::Odd => true,
        };
        of_arrays || !(1..=4096).contains(&self.experts)
    }
}

/// The squares after one call and after another that adds to them.
fn run_norms<B: Backend>(backend: &B, drawn: &Gradient, numbers: &[f32], place: Place) -> Result<[Vec<f64>; 2]> {
    let stream = backend.stream()?;
    let gradient = Rows::new(backend, &stream, drawn.element(), place, [drawn.experts, drawn.elements], Some(numbers));
    let before = [drawn.before(), vec![0.0; usize::from(drawn.flaw == Flaw::Length)]].concat();
    let flat = Place { gap: 0, ..place };
    let mut squares = Placed::new(backend, &stream, flat, before.len(), &before);
    let len = norm_workspace(drawn.experts, drawn.elements);
    let len = len - usize::from(drawn.flaw == Flaw::Workspace && len > 0);
    let mut workspace = Placed::<B, f64>::output(backend, &stream, place.before, len);
    let nothing = backend.allocate::<f32>(&stream, 0)?;
    let matrix = match drawn.elements {
        0 => Matrix::new(nothing.view(), drawn.experts, 0)?,
        _ => gradient.matrix(),
    };
    let mut found = [vec![], vec![]];
    for found in &mut found {
        let mut call = SquaredNorms { gradient: matrix, squares: squares.view_mut(), workspace: workspace.view_mut() };
        if drawn.flaw == Flaw::Shared && len > 0 {
            // SAFETY: the call is refused before anything looks there.
            call.squares = unsafe { ViewMut::from_raw(call.workspace.address(), drawn.experts) };
        }
        if drawn.flaw == Flaw::Odd {
            // SAFETY: likewise.
            call.squares = unsafe { ViewMut::from_raw(call.squares.address() + 4, before.len()) };
        }
        backend.expert_squared_norms(&stream, call)?;
        *found = squares.read("squares", backend, &stream);
    }
    workspace.read("workspace", backend, &stream);
    Ok(found)
}

fn bits(squares: &[f64]) -> Vec<u64> {
    squares.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect()
}

pub fn any_norms_are_the_reference_s<B: Backend>(backend: &B) {
    for_any(90, &gradient(), |drawn| {
        let numbers = drawn.numbers();
        let both = unless_refused(
            run_norms(backend, drawn, &numbers, drawn.place),
            run_norms(&Reference, drawn, &numbers, drawn.place),
        );
        assert_eq!(both.is_none(), drawn.is_unlawful());
        let Some((found, expected)) = both else { return };
        for (f, x) in found.iter().flatten().zip(expected.iter().flatten()).filter(|(f, x)| !x.is_nan() || !f.is_nan())
        {
            // Squares are exact; they are added in f64 in another order, none below 0. Two calls, both sides.
            let tolerance = f64::EPSILON * (2 * drawn.elements + 8) as f64 * x.abs();
            let error = if f == x { 0.0 } else { (f - x).abs() };
            let share = report::see(14, "any squared norms", "f64", error, tolerance.max(f64::MIN_POSITIVE));
            assert!(share <= 1.0, "{f} not {x}: {share} of the tolerance");
        }
        for place in [drawn.place, Place { before: (drawn.place.before + 1) % 9, gap: drawn.place.gap + 1 }] {
            let [other, _] = run_norms(backend, drawn, &numbers, place).unwrap();
            assert_eq!(bits(&other), bits(&found[0]), "at {place:?}");
        }
    });
    report::print("gate", backend.name());
}

// ---- scales -------------------------------------------------------------------------------------------------------------

/// What is drawn of a call for scales.
#[derive(Clone, Debug)]
struct Scales {
    experts: usize,
    clip: f64,
    before: usize,
    flaw: Flaw,
    seed: u64,
}

fn scales() -> impl Strategy<Value = Scales> {
    let experts = prop_oneof![4 => 0_usize..9, 4 => select(vec![255_usize, 256, 257, 4095, 4096, 4097])];
    let clip = select(vec![1.0, 1e-3, 1e-300, 1e300, 5e-324, f64::MAX, 2e-6]);
    let unsound = select(vec![0.0, -1.0, f64::NAN, f64::INFINITY]);
    let clip = prop_oneof![9 => clip.boxed(), 1 => unsound.boxed()];
    let flaw = prop_oneof![9 => Just(Flaw::Nothing), 1 => select(vec![Flaw::Length, Flaw::Shared, Flaw::Odd])];
    (experts, clip, 0_usize..4, flaw, any::<u64>()).prop_map(|(experts, clip, before, flaw, seed)| Scales {
        experts,
        clip,
        before,
        flaw,
        seed,
    })
}

fn run_scales<B: Backend>(backend: &B, drawn: &Scales, squares: &[f64], before: usize) -> Result<Vec<f32>> {
    let stream = backend.stream()?;
    let place = Place { before, gap: 0 };
    let squares = Placed::new(backend, &stream, place, squares.len(), squares);
    let len = drawn.experts + usize::from(drawn.flaw == Flaw::Length);
    let mut scale = Placed::<B, f32>::output(backend, &stream, before, len);
    let mut call = ClipScale { squares: squares.view(), clip: drawn.clip, scale: scale.view_mut() };
    if drawn.flaw == Flaw::Shared {
        // SAFETY: the call is refused before anything looks there, or there is nothing to look at.
        call.scale = unsafe { ViewMut::from_raw(squares.view().address(), len) };
    }
    if drawn.flaw == Flaw::Odd {
        // SAFETY: likewise.
        call.scale = unsafe { ViewMut::from_raw(call.scale.address() + 1, len) };
    }
    backend.expert_clip_scale(&stream, call)?;
    Ok(scale.read("scale", backend, &stream))
}

pub fn any_scales_are_the_reference_s<B: Backend>(backend: &B) {
    for_any(120, &scales(), |drawn| {
        let mut rng = seeded(drawn.seed);
        let extremes = [0.0, -0.0, -1.0, 5e-324, 1e-300, f64::MAX, f64::INFINITY, f64::NAN, 1.0, 1e-12];
        let mut square = || match rng.random_range(0..3) {
            0 => extremes[rng.random_range(0..extremes.len())],
            1 => rng.random_range(0.0..4.0),
            _ => 10f64.powi(rng.random_range(-300..300)),
        };
        let squares: Vec<f64> = (0..drawn.experts).map(|_| square()).collect();
        let both = unless_refused(
            run_scales(backend, drawn, &squares, drawn.before),
            run_scales(&Reference, drawn, &squares, drawn.before),
        );
        let is_sound = drawn.clip > 0.0 && drawn.clip.is_finite() && (1..=4096).contains(&drawn.experts);
        assert_eq!(both.is_none(), !is_sound || drawn.flaw != Flaw::Nothing);
        let Some((found, expected)) = both else { return };
        // A square root, a sum and a quotient, each rounded as IEEE 754 says.
        assert!(canonical(&found).eq(canonical(&expected)), "{found:?} not {expected:?}");
        assert!(
            found
                .iter()
                .zip(&squares)
                .all(|(f, s)| (0.0..=1.0).contains(f) || (f.is_nan() && (*s < 0.0 || s.is_nan())))
        );
        let other = run_scales(backend, drawn, &squares, (drawn.before + 1) % 4).unwrap();
        assert!(canonical(&other).eq(canonical(&found)), "elsewhere");
    });
}
