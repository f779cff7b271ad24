//! Any call at all, as it is drawn for logits. Every row of hidden states selects a column of the weight, so that the logits are exact however they
//! are summed: what comes out of hidden states must have every bit of what comes out of these logits.

use std::ops::Range;

use moerl::element::{Element, Float, bf16};
use moerl::linear_logprob::{Chunk, Config, Gradients, Head, Projection, Shape, WeightGradient};
use moerl::logprob::{Backward, Forward, Partial, workspace_bytes};
use moerl::memory::{Matrix, MatrixMut};
use moerl::{Backend, Error};
use proptest::prelude::*;
use rand::RngExt;

use crate::ask;
use crate::common::property::{Padded, for_any};
use crate::common::seeded;
use crate::logits::any_call::*;
use crate::logits::support::{Inputs, TAG, Target};
use crate::support::*;

on_every_multiplying_backend!(any_call_is_that_on_its_logits, any_gradient_is_the_product_of_that_of_its_logits);

/// What is drawn of a call besides that on its logits.
#[derive(Clone, Debug)]
struct Linear {
    logits: Drawn,
    head: usize,
    /// H, in units of 16 bytes.
    hidden: usize,
    chunk: usize,
    is_limited_by_bytes: bool,
    /// The rows between each second pair of cuts, in thousandths, are needed.
    needed: Option<Vec<usize>>,
    /// Units of 16 bytes between rows of hidden states, weight, and their gradients.
    gaps: [usize; 4],
    d_hidden: usize,
    d_weight: usize,
}

fn linear() -> impl Strategy<Value = Linear> {
    let few = (0..3_usize, 1..4_usize, 1..3_usize, any::<bool>());
    let rest = (
        prop::option::of(prop::collection::vec(0..1001_usize, 0..6)),
        [0..3_usize, 0..3, 0..3, 0..3],
        0..3_usize,
        0..4_usize,
    );
    (drawn(), few, rest).prop_map(|(logits, few, rest)| {
        let (head, hidden, chunk, is_limited_by_bytes) = few;
        let (needed, gaps, d_hidden, d_weight) = rest;
        let logits = Drawn {
            vocabulary: (logits.vocabulary - 1) % 2100 + 1,
            element: 1,
            offset: 0,
            gap: 0,
            values: if logits.values == Values::Masked { Values::Ties } else { logits.values },
            ..logits
        };
        Linear { logits, head, hidden, chunk, is_limited_by_bytes, needed, gaps, d_hidden, d_weight }
    })
}

/// A call's data.
struct Data {
    config: Config,
    shape: Shape,
    /// The call on the logits themselves; rows that are not needed are masked.
    inputs: Inputs<bf16>,
    needed: Option<Vec<Range<usize>>>,
    /// `[N, H]` and `[V, H]`.
    hidden: Vec<f32>,
    weight: Vec<f32>,
}

impl Linear {
    fn data(&self) -> Data {
        let d = &self.logits;
        let head = HEADS[self.head];
        let width = self.hidden * if head.operand() == Element::F32 { 4 } else { 8 };
        let mut inputs = d.inputs::<bf16>();
        let (rows, columns) = (inputs.rows, inputs.columns);
        let levels = Drawn { rows: width, ..d.clone() }.logits::<bf16>(&mut seeded(d.seed ^ 2));
        let finite = |x: bf16| if x.to_f32().is_finite() { x.to_f32() + 0.0 } else { 0.5 };
        let level = |h: usize, j: usize| finite(levels[h * columns + j]);
        inputs.logits = (0..rows * columns).map(|i| bf16::from_f32(level(i / columns % width, i % columns))).collect();
        let needed = self.needed.as_ref().map(|cuts| {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| rows * cut / 1000).collect();
            cuts.sort_unstable();
            cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).filter(|range| !range.is_empty()).collect::<Vec<_>>()
        });
        let is_needed = |r: usize| needed.as_ref().is_none_or(|needed| needed.iter().any(|range| range.contains(&r)));
        let mut hidden = vec![0.0; rows * width];
        for r in 0..rows {
            hidden[r * width + r % width] = 1.0;
            if !is_needed(r) {
                hidden[r * width..(r + 1) * width].fill([f32::NAN, f32::INFINITY][r % 2]);
            }
        }
        if needed.is_some() {
            let mask = inputs.loss_mask.take().unwrap_or(vec![1; rows]);
            inputs.loss_mask = Some((0..rows).map(|r| if is_needed(r) { mask[r] } else { 0 }).collect());
        }
        let chunk = 128 * self.chunk;
        let row_bytes = columns.next_multiple_of(8) * head.logits().size();
        let chunk =
            if self.is_limited_by_bytes { Chunk::MaxLogitsBytes(chunk * row_bytes) } else { Chunk::Rows(chunk) };
        Data {
            config: Config { logprob: inputs.config.clone(), chunk, ..config(head, 128) },
            shape: shape(rows, width, columns),
            inputs,
            needed,
            hidden,
            weight: (0..columns * width).map(|i| level(i % width, i / width)).collect(),
        }
    }
}

/// Values in the head's type with gaps between the rows, behind a boundary of 16 bytes.
enum Operand<B: Backend> {
    Narrow(Padded<B, bf16>),
    Wide(Padded<B, f32>),
}

impl<B: Backend> Operand<B> {
    /// `[rows, width]`, every `stride` elements; gaps are NaN.
    fn new(backend: &B, stream: &B::Stream, element: Element, values: &[f32], width: usize, stride: usize) -> Self {
        let spread: Vec<f32> =
            values.chunks(width).flat_map(|row| [row, &vec![f32::NAN; stride - width][..]].concat()).collect();
        match element {
            Element::Bf16 => {
                let narrow: Vec<bf16> = spread.iter().map(|&x| bf16::from_f32(x)).collect();
                Operand::Narrow(Padded::new(backend, stream, &narrow, 0, bf16::NAN))
            }
            _ => Operand::Wide(Padded::new(backend, stream, &spread, 0, f32::NAN)),
        }
    }

    fn matrix(&self, rows: usize, width: usize, stride: usize) -> Result<Matrix<'_, B::Memory>, Error> {
        match self {
            Operand::Narrow(array) => Matrix::strided(array.view(), rows, width, stride),
            Operand::Wide(array) => Matrix::strided(array.view(), rows, width, stride),
        }
    }

    fn matrix_mut(&mut self, rows: usize, width: usize, stride: usize) -> Result<MatrixMut<'_, B::Memory>, Error> {
        match self {
            Operand::Narrow(array) => MatrixMut::strided(array.view_mut(), rows, width, stride),
            Operand::Wide(array) => MatrixMut::strided(array.view_mut(), rows, width, stride),
        }
    }

    /// The rows; the gaps must be as they were.
    fn read(&self, backend: &B, stream: &B::Stream, name: &str, width: usize, stride: usize) -> Vec<f32> {
        let all: Vec<f32> = match self {
            Operand::Narrow(array) => array.read(backend, stream, name).iter().map(|x| x.to_f32()).collect(),
            Operand::Wide(array) => array.read(backend, stream, name),
        };
        assert!(all.chunks(stride).all(|row| row[width..].iter().all(|x| x.is_nan())), "{name}: a gap was written");
        all.chunks(stride).flat_map(|row| row[..width].to_vec()).collect()
    }
}

/// Hidden states and weight on a backend.
struct Operands<B: Backend> {
    hidden: Operand<B>,
    weight: Operand<B>,
    strides: [usize; 2],
    workspace: Padded<B, u8>,
}

impl<B: Backend> Operands<B> {
    fn new(backend: &B, stream: &B::Stream, data: &Data, gaps: &[usize], bytes: usize, skipped: usize) -> Self {
        let (width, element) = (data.shape.hidden, data.config.head.operand());
        let strides = [gaps[0], gaps[1]].map(|gap| width + gap * 16 / element.size());
        Operands {
            hidden: Operand::new(backend, stream, element, &data.hidden, width, strides[0]),
            weight: Operand::new(backend, stream, element, &data.weight, width, strides[1]),
            strides,
            workspace: Padded::new(backend, stream, &blank::<u8>(bytes), skipped, 0xee),
        }
    }

    fn projection<'a>(&'a mut self, data: &'a Data) -> Result<Projection<'a, B::Memory>, Error> {
        let Shape { rows, hidden, vocabulary } = data.shape;
        Ok(Projection {
            rows: data.needed.as_deref(),
            ..Projection::new(
                self.hidden.matrix(rows, hidden, self.strides[0])?,
                self.weight.matrix(vocabulary, hidden, self.strides[1])?,
                self.workspace.view_mut(),
            )
        })
    }
}

fn forward_of_hidden<B: Backend>(backend: &B, l: &Linear, data: &Data, asked: u32) -> Result<Found, Error> {
    let stream = backend.stream()?;
    let mut rng = seeded(l.logits.seed);
    let inputs = &data.inputs;
    let bytes = data.config.forward_footprint(&data.shape).workspace();
    let mut operands = Operands::new(backend, &stream, data, &l.gaps, bytes, rng.random_range(0..40));
    // What is not needed is not known to be masked.
    let given = Given::new(backend, &stream, &l.unmasked(inputs), &mut rng);
    let mut arrays = Arrays::new(backend, &stream, inputs.rows, inputs.ids, &mut rng);
    let scratch = blank::<u8>(workspace_bytes(inputs.rows, inputs.vocabulary()));
    let mut scratch = Padded::new(backend, &stream, &scratch, rng.random_range(0..16), 0xee);
    let mut errors = backend.error_word(&stream)?;
    {
        let mut views = arrays.views(asked);
        let mut call = Forward::new(operands.projection(data)?);
        call.tokens = given.tokens()?;
        call.temperature = given.temperature.as_ref().map(Padded::view);
        call.loss_mask = given.loss_mask.as_ref().map(Padded::view);
        call.keep = given.keep();
        call.workspace = inputs.workspace.then(|| scratch.view_mut());
        call.errors = Some(errors.view_mut());
        call.tag = TAG;
        ask!(call, views);
        call.other_labels = views.floats[7].take();
        call.label_added = views.added.take();
        backend.linear_logprob_forward(&stream, &data.config, call)?;
    }
    operands.workspace.read(backend, &stream, "workspace");
    let words = arrays.read(backend, &stream, asked, 1);
    Ok(Found { words, fault: fault_of(backend, &stream, &mut errors)? })
}

impl Linear {
    /// The call's own mask.
    fn unmasked(&self, inputs: &Inputs<bf16>) -> Inputs<bf16> {
        let own = self.logits.inputs::<bf16>();
        Inputs { loss_mask: own.loss_mask, ..inputs.clone() }
    }
}

fn any_call_is_that_on_its_logits<B: Backend>(backend: &B) {
    for_any(40, &linear(), |l| {
        if HEADS[l.head].logits() == Element::F32 {
            check_forward(backend, l, |inputs| inputs.widened());
        } else {
            check_forward(backend, l, Clone::clone);
        }
    });
}

fn check_forward<B: Backend, T: Float>(backend: &B, l: &Linear, stored: impl Fn(&Inputs<bf16>) -> Inputs<T>) {
    let data = l.data();
    let inputs = stored(&data.inputs);
    for asked in [ALL, l.logits.asked] {
        let asked = possible(&inputs, asked);
        let found = forward_of_hidden(backend, l, &data, asked);
        match (found, forward_of(backend, &inputs, asked, 1, l.logits.seed)) {
            (Ok(found), Ok(expected)) => {
                assert_eq!(found.fault, expected.fault);
                for (i, words) in found.words.iter().enumerate() {
                    assert_eq!(*words, expected.words[i], "{} with outputs {asked:b}", OUTPUTS[i]);
                }
            }
            (Err(found), Err(expected)) => assert_eq!(found.to_string(), expected.to_string()),
            (found, expected) => panic!("{found:?}, on its logits {expected:?}"),
        }
    }
}

// ---- gradients ------------------------------------------------------------------------------------------------------

/// What was written, or `None` where it was not asked for.
type Written = Option<Vec<f32>>;

fn backward_of_hidden<B: Backend>(
    backend: &B,
    l: &Linear,
    data: &Data,
    saved: [&[Partial]; 2],
    up: &[Option<Vec<f32>>; 5],
) -> Result<[Written; 2], Error> {
    let stream = backend.stream()?;
    let mut rng = seeded(l.logits.seed);
    let Shape { rows, hidden: width, vocabulary } = data.shape;
    let operand = data.config.head.operand();
    let d_hidden_element = [None, Some(operand), Some(Element::F32)][l.d_hidden];
    let d_weight_element = [None, Some(operand), Some(Element::F32), Some(Element::F32)][l.d_weight];
    let footprint = data.config.backward_footprint(&data.shape, d_hidden_element, d_weight_element);
    let bytes = footprint.workspace();
    let mut operands = Operands::new(backend, &stream, data, &l.gaps, bytes, rng.random_range(0..40));
    let given = Given::new(backend, &stream, &l.unmasked(&data.inputs), &mut rng);
    let saved = saved.map(|saved| Padded::new(backend, &stream, saved, rng.random_range(0..4), blank(1)[0]));
    let upstream: Vec<_> = up
        .iter()
        .map(|a| a.as_ref().map(|a| Padded::new(backend, &stream, a, rng.random_range(0..4), f32::NAN)))
        .collect();
    let stride = |element: Element, gap: usize| width + gap * 16 / element.size();
    let blank_of = |element: Option<Element>, rows: usize, gap: usize| {
        let element = element.unwrap_or(Element::F32);
        let stride = stride(element, gap);
        (Operand::new(backend, &stream, element, &vec![BEFORE; rows * width], width, stride), stride)
    };
    let (mut d_hidden, d_hidden_stride) = blank_of(d_hidden_element, rows, l.gaps[2]);
    let (mut d_weight, d_weight_stride) =
        blank_of(d_weight_element, vocabulary, if l.d_weight == 3 { l.gaps[3] } else { 0 });
    {
        let to_hidden = d_hidden.matrix_mut(rows, width, d_hidden_stride)?;
        let to_weight = d_weight.matrix_mut(vocabulary, width, d_weight_stride)?;
        let gradients = Gradients {
            d_hidden: d_hidden_element.map(|_| to_hidden),
            d_weight: match l.d_weight {
                0 => None,
                3 => Some(WeightGradient::Added(to_weight)),
                _ => Some(WeightGradient::Written(to_weight)),
            },
            ..Gradients::new(operands.projection(data)?)
        };
        let mut call = Backward::new(gradients, saved[0].view());
        call.tokens = given.tokens()?;
        call.temperature = given.temperature.as_ref().map(Padded::view);
        call.loss_mask = given.loss_mask.as_ref().map(Padded::view);
        call.keep = given.keep();
        call.kept_saved = (up[3].is_some() || up[4].is_some()).then(|| saved[1].view());
        call.d_logprobs = upstream[0].as_ref().map(Padded::view);
        call.d_entropy = upstream[1].as_ref().map(Padded::view);
        call.d_lse = upstream[2].as_ref().map(Padded::view);
        call.d_kept_logprobs = upstream[3].as_ref().map(Padded::view);
        call.d_kept_entropy = upstream[4].as_ref().map(Padded::view);
        backend.linear_logprob_backward(&stream, &data.config, call)?;
    }
    operands.workspace.read(backend, &stream, "workspace");
    let d_hidden = d_hidden.read(backend, &stream, "d_hidden", width, d_hidden_stride);
    let d_weight = d_weight.read(backend, &stream, "d_weight", width, d_weight_stride);
    Ok([d_hidden_element.map(|_| d_hidden), d_weight_element.map(|_| d_weight)])
}

fn any_gradient_is_the_product_of_that_of_its_logits<B: Backend>(backend: &B) {
    for_any(40, &linear(), |l| match HEADS[l.head] {
        Head::Bf16Logits => check_backward::<B, bf16, bf16>(backend, l, Clone::clone),
        Head::F32Logits => check_backward::<B, f32, bf16>(backend, l, |inputs| inputs.widened()),
        Head::F32Weights => check_backward::<B, f32, f32>(backend, l, |inputs| inputs.widened()),
    });
}

/// Panics where a sum of these terms is further off than a sum in f32 of as many may be, in any order, rounded to its type: 2⁻²³ of the terms'
/// sizes each, and where the factors are cut to TF32 2⁻¹⁰ of them.
fn assert_sum(
    name: &str,
    found: f32,
    terms: impl Iterator<Item = (f64, f64)>,
    before: f64,
    element: Element,
    is_cut: bool,
) {
    let (mut sum, mut size, mut count) = (before, before.abs(), 2.0);
    for (a, b) in terms {
        (sum, size, count) = (sum + a * b, size + (a * b).abs(), count + 1.0);
    }
    if size.is_nan() || size >= 1e38 {
        assert!(!size.is_nan() || !found.is_finite(), "{name}: {found} for {sum}");
        return; // beyond f32, or a row without a gradient that is a number
    }
    let share = count / f64::from(1 << 23) + if is_cut { 1.0 / 512.0 } else { 0.0 };
    let rounding = if element == Element::Bf16 { sum.abs() / 256.0 } else { 0.0 };
    let goal = share * size * 1.01 + rounding + 1e-37;
    assert!((f64::from(found) - sum).abs() <= goal, "{name}: {found} for {sum}, {goal:e} allowed");
}

fn check_backward<B: Backend, T: Float, G: Float>(
    backend: &B,
    l: &Linear,
    stored: impl Fn(&Inputs<bf16>) -> Inputs<T>,
) {
    let data = l.data();
    let inputs = stored(&data.inputs);
    let Ok(found) = forward_of(backend, &inputs, possible(&inputs, 1 << 13 | 1 << 14), 1, 0) else { return };
    let kept_saved = found.words("kept_saved").map_or(blank(inputs.rows), |_| found.records("kept_saved"));
    let saved = [found.records("saved"), kept_saved];
    let saved: [&[Partial]; 2] = [&saved[0], &saved[1]];
    let up = l.logits.upstream(&inputs);
    let d_logits = backward_of::<B, T, G>(
        backend,
        &inputs,
        saved,
        &up,
        Target::Elsewhere { offset: 0, stride: inputs.columns },
        0,
    );
    let (d_logits, [d_hidden, d_weight]) = match (d_logits, backward_of_hidden(backend, l, &data, saved, &up)) {
        (Ok(d_logits), Ok(found)) => (d_logits, found),
        (Err(on_logits), Err(found)) => {
            let (found, on_logits) = (found.to_string(), on_logits.to_string());
            return assert!(found.contains(&on_logits), "{found}: {on_logits}");
        }
        (_, Err(error)) if l.d_hidden == 0 && l.d_weight == 0 => {
            return assert!(error.to_string().contains("or d_weight is needed"), "{error}");
        }
        (d_logits, found) => panic!("{found:?}, on its logits {d_logits:?}"),
    };
    let Shape { rows, hidden: width, vocabulary } = data.shape;
    let is_cut = data.config.head == Head::F32Weights && takes_tf32(backend);
    let wide: Vec<Vec<f64>> = d_logits.iter().map(|row| row.iter().map(|g| f64::from(g.to_f32())).collect()).collect();
    for (i, found) in d_hidden.iter().flatten().enumerate() {
        let (r, h) = (i / width, i % width);
        let weight = |j: usize| f64::from(data.weight[j * width + h]);
        let element = if l.d_hidden == 1 { data.config.head.operand() } else { Element::F32 };
        assert_sum("d_hidden", *found, (0..vocabulary).map(|j| (wide[r][j], weight(j))), 0.0, element, is_cut);
    }
    // The rows that select a column of the weight; a row without a gradient adds nothing.
    for (i, found) in d_weight.iter().flatten().enumerate() {
        let (j, h) = (i / width, i % width);
        let terms = (0..rows).map(|r| (wide[r][j], if data.hidden[r * width + h] == 1.0 { 1.0 } else { 0.0 }));
        let element = if l.d_weight == 1 { data.config.head.operand() } else { Element::F32 };
        let before = if l.d_weight == 3 { f64::from(BEFORE) } else { 0.0 };
        assert_sum("d_weight", *found, terms, before, element, is_cut);
    }
}
