//! What calls leave, by whatever road, in arrays that begin anywhere and show what is written beside them.

use moerl::correction::{Decision, GLOBALS, Output, Phases, Plans, REJECTED, diagnostics, workspace_bytes};
use moerl::{Backend, Error, ErrorWord};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::case::{Case, Found, Uploaded};
use crate::common::property::Padded;
use crate::common::seeded;
use crate::drawn::Drawn;

/// Where arrays begin behind a boundary, one by one.
pub struct Shifts(Option<StdRng>);

impl Shifts {
    pub fn of(drawn: &Drawn) -> Shifts {
        Shifts(drawn.shifted.then(|| seeded(drawn.seed ^ 1)))
    }
    pub fn next(&mut self) -> usize {
        self.0.as_mut().map_or(0, |rng| rng.random_range(0..4))
    }
}

/// Everything that a call may write, with what it held before.
pub struct Outputs<B: Backend> {
    floats: Vec<Padded<B, f32>>,
    doubles: Vec<Padded<B, f64>>,
    bytes: Vec<Padded<B, u8>>,
    words: Vec<Padded<B, u32>>,
    rejected: Padded<B, u64>,
    workspace: Padded<B, u8>,
    errors: ErrorWord<B>,
}

/// What sums hold that a call adds to.
pub const HELD: f64 = 3.0;

impl<B: Backend> Outputs<B> {
    pub fn new(
        backend: &B,
        stream: &B::Stream,
        plans: Plans<'_, B>,
        accumulate: bool,
        shifts: &mut Shifts,
    ) -> Outputs<B> {
        let (tokens, segments) = (plans.segments.segments().tokens(), plans.segments.segments().len());
        let groups = plans.groups.map_or(0, |groups| groups.groups().len());
        let held = if accumulate { HELD } else { f64::NAN };
        let mut floats = |len: usize| Padded::new(backend, stream, &vec![f32::NAN; len], shifts.next(), 7.5);
        let floats = vec![floats(tokens), floats(tokens), floats(segments), floats(segments)];
        let mut doubles = |len: usize, held: f64| Padded::new(backend, stream, &vec![held; len], shifts.next(), 7.5);
        let doubles = vec![
            doubles(segments, f64::NAN),
            doubles(groups, f64::NAN),
            doubles(GLOBALS, held),
            doubles(diagnostics::LEN, held),
            doubles(groups, f64::NAN),
        ];
        let mut bytes = |len: usize| Padded::new(backend, stream, &vec![0xa5_u8; len], shifts.next(), 0x5a);
        let bytes = vec![bytes(tokens), bytes(segments)];
        let mut words = |len: usize| Padded::new(backend, stream, &vec![0xa5a5_u32; len], shifts.next(), 0x5a5a);
        Outputs {
            floats,
            doubles,
            bytes,
            words: vec![words(segments), words(segments), words(groups)],
            rejected: Padded::new(backend, stream, &[5; REJECTED], shifts.next(), 0x5a5a),
            workspace: Padded::new(backend, stream, &vec![0xa5; workspace_bytes(&plans)], shifts.next(), 0x5a),
            errors: backend.error_word(stream).unwrap(),
        }
    }

    /// Those of `wanted`; of everything a call has only what there can be, unless it breaks the law.
    pub fn output(&mut self, drawn: &Drawn, has_rewards: bool, wanted: u32) -> Output<'_, B::Memory> {
        let (chain, config, law) = (drawn.is_chain(), &drawn.config, drawn.lawful);
        let wants = |bit: u32, possible: bool| wanted >> bit & 1 != 0 && (possible || !law);
        let [weights, log_ratio, segment_weights, advantages] = &mut self.floats[..] else { unreachable!() };
        let [x, carry, globals, sums, expected] = &mut self.doubles[..] else { unreachable!() };
        let [keep, accepted] = &mut self.bytes[..] else { unreachable!() };
        let [kept, multiplicity, carried] = &mut self.words[..] else { unreachable!() };
        let has_mean = drawn.normalises_groups() && has_rewards;
        Output {
            weights: wants(0, true).then(|| weights.view_mut()),
            keep: wants(1, true).then(|| keep.view_mut()),
            log_ratio: wants(2, true).then(|| log_ratio.view_mut()),
            segment_weights: wants(3, true).then(|| segment_weights.view_mut()),
            segment_log_weights: wants(4, true).then(|| x.view_mut()),
            kept: wants(5, true).then(|| kept.view_mut()),
            accepted: wants(6, chain).then(|| accepted.view_mut()),
            multiplicity: wants(7, chain).then(|| multiplicity.view_mut()),
            carry_multiplicity: wants(8, chain).then(|| carried.view_mut()),
            carry_log_weights: wants(9, chain).then(|| carry.view_mut()),
            advantages: wants(10, config.makes_advantages()).then(|| advantages.view_mut()),
            expected_rewards: wants(11, has_mean).then(|| expected.view_mut()),
            rejected: wants(12, true).then(|| self.rejected.view_mut()),
            globals: (wants(13, true) || (law && config.batch_normalise)).then(|| globals.view_mut()),
            diagnostics: wants(14, config.diagnostics).then(|| sums.view_mut()),
            errors: wants(15, true).then(|| self.errors.view_mut()),
            tag: 7,
            accumulate: drawn.accumulate,
            ..Output::new(self.workspace.view_mut())
        }
    }

    pub fn read(&mut self, backend: &B, stream: &B::Stream) -> Found {
        let fault = backend.check(stream, &mut self.errors).err();
        let float = |at: usize, name: &str| self.floats[at].read(backend, stream, name);
        let double = |at: usize, name: &str| self.doubles[at].read(backend, stream, name);
        self.workspace.read(backend, stream, "workspace");
        Found {
            weights: float(0, "weights"),
            keep: self.bytes[0].read(backend, stream, "keep"),
            log_ratio: float(1, "log_ratio"),
            segment_weights: float(2, "segment_weights"),
            segment_log_weights: double(0, "segment_log_weights"),
            kept: self.words[0].read(backend, stream, "kept"),
            accepted: self.bytes[1].read(backend, stream, "accepted"),
            multiplicity: self.words[1].read(backend, stream, "multiplicity"),
            carry_multiplicity: self.words[2].read(backend, stream, "carry_multiplicity"),
            carry_log_weights: double(1, "carry_log_weights"),
            advantages: float(3, "advantages"),
            expected_rewards: double(4, "expected_rewards"),
            rejected: self.rejected.read(backend, stream, "rejected"),
            globals: double(2, "globals"),
            diagnostics: double(3, "diagnostics"),
            fault,
        }
    }
}

/// Every output.
pub const ALL: u32 = 0xffff;

/// What calls leave, one after the other into the same arrays.
pub fn run<B: Backend>(
    backend: &B,
    drawn: &Drawn,
    case: &Case,
    wanted: u32,
    calls: usize,
) -> Result<Vec<Found>, Error> {
    let stream = backend.stream().unwrap();
    let mut shifts = Shifts::of(drawn);
    let input = Uploaded::shifted(backend, &stream, case, || shifts.next()).unwrap();
    let mut outputs = Outputs::new(backend, &stream, input.plans(), drawn.accumulate, &mut shifts);
    let mut found = Vec::new();
    for _ in 0..calls {
        let output = outputs.output(drawn, case.rewards.is_some(), wanted);
        let outcome = backend.correction(&stream, &drawn.config, input.plans(), input.batch(), output);
        found.push(outcome.map(|()| outputs.read(backend, &stream))?);
    }
    Ok(found)
}

/// The three phases, with every output in each.
pub fn run_phases<B: Backend>(backend: &B, drawn: &Drawn, case: &Case) -> Found {
    let stream = backend.stream().unwrap();
    let mut shifts = Shifts::of(drawn);
    let input = Uploaded::shifted(backend, &stream, case, || shifts.next()).unwrap();
    let plans = input.plans();
    let mut outputs = Outputs::new(backend, &stream, plans, drawn.accumulate, &mut shifts);
    let pieces = plans.pieces().len();
    let planes = vec![f64::NAN; drawn.config.planes().len() * pieces];
    let mut sums = Padded::new(backend, &stream, &planes, shifts.next(), 7.5);
    let decisions = vec![Decision { weight: f32::NAN, flags: 99 }; pieces];
    let beside = Decision { weight: 7.5, flags: 7 };
    let mut decisions = Padded::new(backend, &stream, &decisions, shifts.next(), beside);
    for phase in [B::correction_partial, B::correction_finish, B::correction_apply] {
        let output = outputs.output(drawn, case.rewards.is_some(), ALL);
        let phases = Phases { sums: sums.view_mut(), decisions: decisions.view_mut() };
        phase(backend, &stream, &drawn.config, plans, input.batch(), phases, output).unwrap();
    }
    sums.read(backend, &stream, "sums");
    decisions.read(backend, &stream, "decisions");
    outputs.read(backend, &stream)
}
