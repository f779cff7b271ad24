//! What calls leave, by whatever road, in arrays that begin anywhere and show what is written beside them.

use std::collections::BTreeMap;

use bytemuck::{Pod, Zeroable};
use moerl::diagnostics;
use moerl::objective::{Batch, Coefficient, Config, Denominators, Output, Phases, Plan, Plane, workspace_bytes};
use moerl::{Backend, Buffer, Error, ErrorWord};
use rand::RngExt;

use crate::case::{Case, Uploaded};
use crate::common;
use crate::common::property::Padded;
use crate::draw::{Call, Given};

/// The outputs, by the bits of [`Call::asked`].
pub const OUTPUTS: [&str; 9] =
    ["loss", "d_logprobs", "diagnostics", "sequence_ratio", "sequence_clipped", "ratio", "clipped", "kl", "d_entropy"];

pub fn bit(name: &str) -> u32 {
    1 << OUTPUTS.iter().position(|&output| output == name).unwrap()
}

/// All that a call of this objective may ask for; `in_phases`, which do not form what no segment needs.
pub fn everything(config: &Config, in_phases: bool) -> u32 {
    let mut asked = (1 << OUTPUTS.len()) - 1;
    let mut drop = |holds: bool, name| asked &= if holds { !bit(name) } else { u32::MAX };
    let planes = config.planes();
    drop(config.kl.is_none(), "kl");
    drop(in_phases && !planes.contains(&Plane::LogRatio), "sequence_ratio");
    drop(in_phases && !planes.contains(&Plane::LogRatio), "sequence_clipped");
    asked
}

/// What came of a call: every output that was asked for.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub of: BTreeMap<&'static str, Vec<f64>>,
    pub fault: Option<Error>,
}

/// What an output holds until it is written, and beside it.
pub trait Untouched: Pod + Send + Sync + PartialEq {
    const BYTES: Self;
    fn wide(self) -> f64;
}
impl Untouched for u8 {
    const BYTES: u8 = 0xff;
    fn wide(self) -> f64 {
        f64::from(self)
    }
}
impl Untouched for f32 {
    const BYTES: f32 = f32::from_bits(u32::MAX);
    fn wide(self) -> f64 {
        f64::from(self)
    }
}
impl Untouched for f64 {
    const BYTES: f64 = f64::from_bits(u64::MAX);
    fn wide(self) -> f64 {
        self
    }
}

pub fn is_untouched<T: Untouched>(values: &[T]) -> bool {
    bytemuck::cast_slice::<T, u8>(values).iter().all(|&byte| byte == 0xff)
}

/// Where a call's outputs go.
pub struct Outputs<B: Backend> {
    loss: Padded<B, f64>,
    diagnostics: Padded<B, f64>,
    d_logprobs: Padded<B, f32>,
    d_entropy: Padded<B, f32>,
    kl: Padded<B, f32>,
    ratio: Padded<B, f32>,
    clipped: Padded<B, u8>,
    sequence_ratio: Padded<B, f32>,
    sequence_clipped: Padded<B, u8>,
    workspace: Padded<B, u8>,
    errors: ErrorWord<B>,
}

/// What loss and diagnostics go on from.
pub const LOSS_BEFORE: f64 = 0.75;
pub const SUMS_BEFORE: f64 = 2.0;

impl<B: Backend> Outputs<B> {
    fn new(backend: &B, stream: &B::Stream, case: &Case, workspace: usize, call: &Call) -> Outputs<B> {
        let (tokens, segments) = (case.tokens(), case.lengths.len());
        let mut shift = call.shifts();
        let mut floats = |len| Padded::new(backend, stream, &vec![f32::BYTES; len], shift(), f32::BYTES);
        let [d_logprobs, d_entropy, kl, ratio] = [(); 4].map(|()| floats(tokens));
        let sequence_ratio = floats(segments);
        let mut bytes = |values: &[u8]| Padded::new(backend, stream, values, shift(), u8::BYTES);
        let (loss, sums) = if call.accumulates {
            let sums: Vec<f64> = (0..diagnostics::LEN)
                .map(|place| if place < diagnostics::SUMS { SUMS_BEFORE } else { f64::NEG_INFINITY })
                .collect();
            (vec![LOSS_BEFORE], sums)
        } else {
            (vec![f64::BYTES], vec![f64::BYTES; diagnostics::LEN])
        };
        Outputs {
            clipped: bytes(&vec![u8::BYTES; tokens]),
            sequence_clipped: bytes(&vec![u8::BYTES; segments]),
            // What another plan may have left there must not matter.
            workspace: bytes(&vec![0xa5; workspace]),
            loss: Padded::new(backend, stream, &loss, 0, f64::BYTES),
            diagnostics: Padded::new(backend, stream, &sums, 1, f64::BYTES),
            d_logprobs,
            d_entropy,
            kl,
            ratio,
            sequence_ratio,
            errors: backend.error_word(stream).unwrap(),
        }
    }

    fn ask(&mut self, asked: u32, accumulate: bool) -> Output<'_, B::Memory> {
        fn given<'a, B: Backend, T: Pod + Send + Sync>(
            asked: u32,
            name: &str,
            place: &'a mut Padded<B, T>,
        ) -> Option<moerl::memory::ViewMut<'a, T, B::Memory>> {
            (asked & bit(name) != 0).then(|| place.view_mut())
        }
        Output {
            loss: given(asked, "loss", &mut self.loss),
            d_logprobs: given(asked, "d_logprobs", &mut self.d_logprobs),
            d_entropy: given(asked, "d_entropy", &mut self.d_entropy),
            kl: given(asked, "kl", &mut self.kl),
            ratio: given(asked, "ratio", &mut self.ratio),
            clipped: given(asked, "clipped", &mut self.clipped),
            sequence_ratio: given(asked, "sequence_ratio", &mut self.sequence_ratio),
            sequence_clipped: given(asked, "sequence_clipped", &mut self.sequence_clipped),
            diagnostics: given(asked, "diagnostics", &mut self.diagnostics),
            workspace: self.workspace.view_mut(),
            errors: Some(self.errors.view_mut()),
            tag: 7,
            accumulate,
        }
    }

    /// All of what was asked for has been written, and nothing else.
    fn read(&mut self, backend: &B, stream: &B::Stream, asked: u32) -> Outcome {
        fn see<B: Backend, T: Untouched>(
            found: &mut BTreeMap<&'static str, Vec<f64>>,
            (backend, stream, asked): (&B, &B::Stream, u32),
            name: &'static str,
            place: &Padded<B, T>,
        ) {
            let own = place.read(backend, stream, name);
            if asked & bit(name) == 0 {
                assert!(is_untouched(&own) || name == "loss" || name == "diagnostics", "{name} was not asked for");
                return;
            }
            let missing = own.iter().position(|&value| is_untouched(&[value]));
            assert!(missing.is_none(), "{name} is not written at {missing:?}");
            found.insert(name, own.into_iter().map(T::wide).collect());
        }
        let (mut of, how) = (BTreeMap::new(), (backend, stream, asked));
        see(&mut of, how, "loss", &self.loss);
        see(&mut of, how, "diagnostics", &self.diagnostics);
        see(&mut of, how, "d_logprobs", &self.d_logprobs);
        see(&mut of, how, "d_entropy", &self.d_entropy);
        see(&mut of, how, "kl", &self.kl);
        see(&mut of, how, "ratio", &self.ratio);
        see(&mut of, how, "clipped", &self.clipped);
        see(&mut of, how, "sequence_ratio", &self.sequence_ratio);
        see(&mut of, how, "sequence_clipped", &self.sequence_clipped);
        self.workspace.read(backend, stream, "workspace");
        Outcome { of, fault: backend.check(stream, &mut self.errors).err() }
    }
}

impl Call {
    /// By how many elements the next array is shifted.
    fn shifts(&self) -> impl FnMut() -> usize {
        let mut rng = common::seeded(self.shift);
        let is_aligned = self.shift.is_multiple_of(2);
        move || if is_aligned { 0 } else { rng.random_range(0..4) }
    }
}

/// The batch, with denominators in memory where the call has them there.
pub fn batch_of<'a, B: Backend>(
    call: &Call,
    input: &'a Uploaded<B>,
    counts: &'a Padded<B, f64>,
) -> Batch<'a, B::Memory> {
    let mut batch = input.batch();
    if call.denominators == Given::Device {
        batch.denominators = Denominators::Device(counts.view());
    }
    batch
}

pub fn counts<B: Backend>(backend: &B, stream: &B::Stream, case: &Case) -> Padded<B, f64> {
    let counts = case.denominators.unwrap_or_default().map(|count| count as f64);
    Padded::new(backend, stream, &counts, 0, f64::NAN)
}

/// One call. Twice, unless it goes on from something: the second must give the bits of the first.
pub fn one_call<B: Backend>(backend: &B, call: &Call, case: &Case, asked: u32) -> moerl::Result<Outcome> {
    let stream = backend.stream()?;
    let plan = Plan::new(backend, &stream, &case.segments())?;
    let input = Uploaded::shifted(backend, &stream, case, call.shifts());
    let counts = counts(backend, &stream, case);
    let mut outputs = Outputs::new(backend, &stream, case, workspace_bytes(&plan), call);
    let mut first: Option<Outcome> = None;
    for _ in 0..if call.accumulates { 1 } else { 2 } {
        let output = outputs.ask(asked, call.accumulates);
        backend.objective(&stream, &call.config, &plan, batch_of(call, &input, &counts), output)?;
        let found = outputs.read(backend, &stream, asked);
        if let Some(first) = &first {
            assert_same("again", &found, first, |_, _| 0.0);
            assert_eq!(found.fault, first.fault);
        }
        first = Some(found);
    }
    Ok(first.unwrap())
}

/// The tokens of every segment that lie between these positions, and where they are.
pub fn pieces(case: &Case, cuts: &[usize]) -> Vec<(Case, Vec<usize>)> {
    let segments = case.segments();
    let ends = [&[0], cuts, &[usize::MAX / 2]].concat();
    ends.windows(2)
        .map(|ends| {
            let ranges: Vec<_> = segments
                .ranges()
                .map(|range| (range.start + ends[0]).min(range.end)..(range.start + ends[1]).min(range.end))
                .collect();
            let tokens: Vec<usize> = ranges.iter().cloned().flatten().collect();
            (case.select(ranges.iter().map(|range| range.len()).collect(), &tokens), tokens)
        })
        .collect()
}

/// The three phases, the tokens coming in pieces: one after the other, or each on a rank of its own.
pub fn by_phases<B: Backend>(backend: &B, call: &Call, case: &Case, cuts: &[usize], asked: u32) -> Outcome {
    let stream = backend.stream().unwrap();
    let (config, has_ranks) = (&call.config, call.has_ranks && !cuts.is_empty());
    let pieces = pieces(case, cuts);
    let plans: Vec<Plan<B>> =
        pieces.iter().map(|(piece, _)| Plan::new(backend, &stream, &piece.segments()).unwrap()).collect();
    let inputs: Vec<Uploaded<B>> =
        pieces.iter().map(|(piece, _)| Uploaded::shifted(backend, &stream, piece, call.shifts())).collect();
    let counts = counts(backend, &stream, case);
    let workspace = plans.iter().map(workspace_bytes).max().unwrap();
    let mut outputs = Outputs::new(backend, &stream, case, workspace, call);
    let len = config.planes().len() * case.lengths.len();
    // Planes are begun, unless the call goes on: then from zero.
    let begun = if call.accumulates { 0.0 } else { f64::NAN };
    let mut sums = Padded::new(backend, &stream, &vec![begun; len], 0, f64::BYTES);
    let mut coefficients = backend.upload(&stream, &vec![Coefficient::zeroed(); case.lengths.len()]).unwrap();
    let of_all = asked & (bit("loss") | bit("diagnostics"));

    let mut joined = vec![0.0; len];
    for (index, (plan, input)) in plans.iter().zip(&inputs).enumerate() {
        let accumulate = call.accumulates || index > 0 && !has_ranks;
        let mut own = Padded::new(backend, &stream, &vec![begun; len], 0, f64::BYTES);
        let of_piece = if has_ranks { own.view_mut() } else { sums.view_mut() };
        let phases = Phases { sums: of_piece, coefficients: coefficients.view_mut() };
        let output = outputs.ask(of_all, accumulate);
        backend.objective_partial(&stream, config, plan, batch_of(call, input, &counts), phases, output).unwrap();
        for (to, from) in joined.iter_mut().zip(&own.read(backend, &stream, "sums")) {
            *to += from;
        }
    }
    if has_ranks {
        sums = Padded::new(backend, &stream, &joined, 0, f64::BYTES);
    }
    let last = plans.len() - 1;
    let phases = Phases { sums: sums.view_mut(), coefficients: coefficients.view_mut() };
    let output = outputs.ask(asked & (of_all | bit("sequence_ratio") | bit("sequence_clipped")), call.accumulates);
    let batch = batch_of(call, &inputs[last], &counts);
    backend.objective_finish(&stream, config, &plans[last], batch, phases, output).unwrap();

    let by_token = ["d_logprobs", "d_entropy", "kl", "ratio", "clipped"];
    let of_tokens = by_token.iter().fold(0, |bits, name| bits | bit(name)) & asked;
    let mut whole: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for ((plan, input), (piece, tokens)) in plans.iter().zip(&inputs).zip(&pieces) {
        let mut own = Outputs::new(backend, &stream, piece, workspace, call);
        let phases = Phases { sums: sums.view_mut(), coefficients: coefficients.view_mut() };
        // Loss and diagnostics of all pieces, maps of each.
        let Output { loss, diagnostics, errors, .. } = outputs.ask(of_all, call.accumulates);
        let output = Output { loss, diagnostics, errors, ..own.ask(of_tokens, call.accumulates) };
        backend.objective_apply(&stream, config, plan, batch_of(call, input, &counts), phases, output).unwrap();
        for (name, values) in own.read(backend, &stream, of_tokens).of {
            let to = whole.entry(name).or_insert_with(|| vec![f64::NAN; case.tokens()]);
            for (&u, value) in tokens.iter().zip(values) {
                to[u] = value;
            }
        }
    }
    let mut found = outputs.read(backend, &stream, asked & !of_tokens);
    found.of.extend(whole);
    found
}

/// Equal bit for bit where both have an output, a NaN to any other; diagnostics within `slack` of their place and the tokens.
pub fn assert_same(what: &str, found: &Outcome, expected: &Outcome, slack: impl Fn(usize, f64) -> f64) {
    for (name, values) in &found.of {
        let Some(others) = expected.of.get(name) else { continue };
        for (at, (&f, &e)) in values.iter().zip(others).enumerate() {
            let is_equal = f.to_bits() == e.to_bits() || f.is_nan() && e.is_nan();
            let allowed = if *name == "diagnostics" { slack(at, f.abs()) } else { 0.0 };
            assert!(
                is_equal || (f - e).abs() <= allowed || allowed == f64::INFINITY,
                "{what}: {name} at {at}: {f:e} not {e:e}"
            );
        }
    }
}
