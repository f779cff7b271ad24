//! Launches `kernels/objective.cu`: three phases of one launch each.

use crate::abi::*;
use crate::backend::Buffer;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::device::workspace::ObjectiveWorkspace;
use crate::diagnostics::{self, Sum};
use crate::error::Result;
use crate::objective::{
    self, Advantages, Aggregation, Batch, Bounds, Coefficient, Config, Denominators, NonFinite, Output, Phases, Plan,
    Plane, Sizes, TILE, TILE_GROUP, Variant,
};
use crate::segments::{UNIT_SEGMENTS, Unit};

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlObjective {}

// What the kernels and the interface name alike.
const _: () = {
    assert!(TILE == MOERL_TILE as usize && TILE_GROUP == MOERL_TILE_GROUP as usize);
    assert!(UNIT_SEGMENTS == MOERL_UNIT_SEGMENTS as usize);
    assert!(size_of::<Unit>() == size_of::<MoerlUnit>() && size_of::<Coefficient>() == size_of::<MoerlCoefficient>());
    assert!(Sum::PolicyKlK1 as u32 == MOERL_SUM_POLICY_K1 && Sum::Weight as u32 == MOERL_SUM_WEIGHT);
    assert!(Sum::Capped as u32 == MOERL_SUM_CAPPED && Sum::Segments as u32 == MOERL_SUM_SEGMENTS);
    assert!(Sum::SequenceCapped as u32 == MOERL_SUM_SEQUENCE_CAPPED && Sum::MaxRatio as u32 == MOERL_MAX_RATIO);
    assert!(
        diagnostics::LEN == MOERL_MAX_NEGATIVE_SEQUENCE_RATIO as usize + 1 && diagnostics::LEN < MOERL_TALLY as usize
    );
};

/// How the work is dealt to blocks. Nothing here changes a bit of any result.
struct Tuning {
    /// Warps of a block of `partial` and `apply`, a unit each: few, so that one long unit keeps no other warp's registers.
    unit_warps: u32,
    /// Shared memory of a warp whose unit holds several segments (`PartialStage`): two sums and a mark for each of 1040 slots.
    partial_stage: u32,
    /// As above (`ApplyStage`): 256 coefficients and advantages, a value and an owner for each of 1040 slots. Four warps stay below the 48 KB
    /// that any device grants without asking.
    apply_stage: u32,
    /// Threads of a block of `finish`.
    finish_threads: u32,
    /// Segments of a block of `finish`: a tile of the loss's tree.
    finish_segments: usize,
}

const TUNING: Tuning =
    Tuning { unit_warps: 4, partial_stage: 9360, apply_stage: 10320, finish_threads: 256, finish_segments: 1024 };

const fn kernel(name: &'static str) -> Kernel {
    Kernel { image: "objective", name }
}

/// Which of the three phases a launch is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Partial,
    Finish,
    Apply,
}

/// What divides the coefficient.
fn divisors(aggregation: Aggregation) -> u32 {
    match aggregation {
        Aggregation::TokenMean => MOERL_BY_TOKENS,
        Aggregation::TokenSum => 0,
        Aggregation::SeqMeanTokenMean => MOERL_BY_SEGMENTS + MOERL_BY_COUNT,
        Aggregation::SeqMeanTokenSum => MOERL_BY_SEGMENTS,
        Aggregation::SeqMeanTokenSumNorm => MOERL_BY_SEGMENTS + MOERL_BY_MAX_LEN,
        Aggregation::PromptMean => MOERL_BY_PROMPTS + MOERL_BY_SCALE,
        Aggregation::Custom => MOERL_TIMES_SCALE,
    }
}

/// A call on its way to its launches.
struct Launcher<'c, 'a, E: Executor> {
    executor: &'c E,
    stream: &'c E::Stream,
    config: &'c Config,
    plan: &'c Plan<E>,
    batch: Batch<'a, E::Memory>,
    phases: Option<Phases<'a, E::Memory>>,
    output: Output<'a, E::Memory>,
    sizes: Sizes,
}

impl<'c, 'a, E: Executor> Launcher<'c, 'a, E> {
    fn new(
        executor: &'c E,
        stream: &'c E::Stream,
        config: &'c Config,
        plan: &'c Plan<E>,
        batch: Batch<'a, E::Memory>,
        phases: Option<Phases<'a, E::Memory>>,
        output: Output<'a, E::Memory>,
    ) -> Result<Self> {
        let sizes = objective::check(config, plan, &batch, phases.as_ref(), &output)?;
        Ok(Launcher { executor, stream, config, plan, batch, phases, output, sizes })
    }

    fn is_sequence_level(&self) -> bool {
        self.config.variant.is_sequence_level()
    }

    /// The planes that this call has.
    fn planes(&self) -> &'static [Plane] {
        if self.phases.is_none() && self.output.wants_sequence() { &Plane::ALL } else { self.config.planes() }
    }

    /// True where `partial` reads more than the mask.
    fn sums_tokens(&self) -> bool {
        self.planes().len() > 1
    }

    fn aligned(&self) -> bool {
        let advantages = match self.batch.advantages {
            Advantages::PerToken(array) => array.address(),
            Advantages::PerSegment(_) => 0,
        };
        let floats = [
            Some(self.batch.logprobs.address()),
            self.batch.old_logprobs.map(|array| array.address()),
            self.batch.weights.map(|array| array.address()),
            Some(advantages),
            self.output.d_logprobs.as_ref().map(|array| array.address()),
            self.output.ratio.as_ref().map(|array| array.address()),
        ];
        let bytes = [
            self.batch.loss_mask.map(|array| array.address()),
            self.output.clipped.as_ref().map(|array| array.address()),
        ];
        floats.iter().flatten().all(|address| address.is_multiple_of(16))
            && bytes.iter().flatten().all(|address| address.is_multiple_of(4))
    }

    /// The parameters of a phase, and their buffers.
    fn parameters(&mut self, phase: Phase) -> (Arguments, MoerlObjective) {
        let mut arguments = Arguments::new::<E>();
        let (config, batch, planes) = (self.config, self.batch, self.planes());
        let (with_tokens, aligned, sequence) = (self.sums_tokens(), self.aligned(), self.is_sequence_level());
        let (partial, finish, apply) = (phase == Phase::Partial, phase == Phase::Finish, phase == Phase::Apply);
        let reads_tokens = apply || (partial && with_tokens);

        let layout = ObjectiveWorkspace::of(self.sizes.segments, self.plan.unit_count);
        let workspace = arguments.write("workspace", &mut layout.aligned(self.output.workspace.reborrow()));
        let part = |offset: usize| workspace.wrapping_add(offset);
        let segments = self.sizes.segments;
        let (sums, coefficients) = match &mut self.phases {
            None => (part(layout.sums()).cast(), part(layout.coefficients()).cast()),
            Some(phases) => (
                arguments.write("sums", &mut phases.sums),
                arguments.write("coefficients", &mut phases.coefficients).cast(),
            ),
        };
        let plane = |which: Plane| match planes.iter().position(|&plane| plane == which) {
            Some(place) => sums.wrapping_add(place * segments),
            None => std::ptr::null_mut(),
        };
        let (advantages, per_token) = match batch.advantages {
            Advantages::PerSegment(array) => (array, false),
            Advantages::PerToken(array) => (array, true),
        };
        let bounds = Bounds::of(config.variant.clip());
        let output = &mut self.output;
        let with_tallies = match phase {
            Phase::Partial => true,
            Phase::Finish => true,
            Phase::Apply => !sequence,
        };
        let (divisor_values, denominators, local) = match batch.denominators {
            Denominators::Global { tokens, segments, prompts, max_len } => {
                ([tokens as f64, segments as f64, prompts as f64, max_len as f64], None, false)
            }
            Denominators::Device(array) => ([0.0; 4], Some(array), false),
            Denominators::Local { max_len } => ([0.0, 0.0, 0.0, max_len as f64], None, true),
        };
        let params = MoerlObjective {
            logprobs: arguments.read_optional("logprobs", reads_tokens.then_some(batch.logprobs)),
            old_logprobs: arguments.read_optional("old_logprobs", batch.old_logprobs.filter(|_| reads_tokens)),
            advantages: arguments.read_optional("advantages", reads_tokens.then_some(advantages)),
            loss_mask: arguments.read_optional("loss_mask", batch.loss_mask.filter(|_| !finish)),
            weights: arguments.read_optional("weights", batch.weights.filter(|_| reads_tokens)),
            segment_scale: arguments.read_optional("segment_scale", batch.segment_scale.filter(|_| finish)),
            denominators: arguments.read_optional("denominators", denominators.filter(|_| finish)),
            offsets: arguments.read("cu_seqlens", self.plan.offsets()),
            units: arguments.read("units", self.plan.units.view()).cast(),
            log_ratio: plane(Plane::LogRatio),
            count: plane(Plane::Count),
            positive: plane(Plane::PositiveAdvantage),
            negative: plane(Plane::NegativeAdvantage),
            nonfinite: plane(Plane::NonFinite),
            coefficients,
            d_logprobs: if apply { arguments.write_optional("d_logprobs", &mut output.d_logprobs) } else { none() },
            ratio: if apply { arguments.write_optional("ratio", &mut output.ratio) } else { none() },
            clipped: if apply { arguments.write_optional("clipped", &mut output.clipped) } else { none() },
            sequence_ratio: if finish {
                arguments.write_optional("sequence_ratio", &mut output.sequence_ratio)
            } else {
                none()
            },
            sequence_clipped: if finish {
                arguments.write_optional("sequence_clipped", &mut output.sequence_clipped)
            } else {
                none()
            },
            loss: arguments.write_optional("loss", &mut output.loss),
            diagnostics: if with_tallies {
                arguments.write_optional("diagnostics", &mut output.diagnostics)
            } else {
                none()
            },
            errors: arguments.write_optional("errors", &mut output.errors),
            local_counts: if local { part(0).cast() } else { none() },
            tickets: part(layout.tickets()).cast(),
            group_tickets: part(layout.group_tickets()).cast(),
            tile_tickets: part(layout.tile_tickets()).cast(),
            tallies: part(layout.tallies()).cast(),
            tile_records: part(layout.tile_records()).cast(),
            group_records: part(layout.group_records()).cast(),
            segment_count: segments as u64,
            unit_count: self.plan.unit_count as u64,
            divisor_values,
            scale: config.dp_scale,
            log_upper: bounds.log_upper,
            log_lower: bounds.log_lower,
            log_cap: bounds.log_cap,
            token_log_upper: bounds.log_upper as f32,
            token_log_lower: bounds.log_lower as f32,
            token_log_cap: bounds.log_cap as f32,
            upper: bounds.upper as f32,
            lower: bounds.lower as f32,
            cap: bounds.cap as f32,
            saturation_low: config.saturation.low,
            saturation_high: config.saturation.high,
            nonfinite_policy: match config.nonfinite {
                NonFinite::Propagate => MOERL_PROPAGATE,
                NonFinite::ZeroWeight => MOERL_ZERO_WEIGHT,
                NonFinite::DropSegment => MOERL_DROP_SEGMENT,
            },
            divisors: divisors(config.aggregation),
            tag: u32::from(output.tag),
            is_sequence_level: u8::from(sequence),
            advantage_per_token: u8::from(per_token),
            aligned: u8::from(aligned),
            // The planes of the one call lie in the workspace and hold nothing to go on from.
            accumulate: u8::from(output.accumulate && self.phases.is_some()),
            keep_totals: u8::from(output.accumulate),
            count_empty: u8::from(config.count_empty),
            reserved: [0; 6],
        };
        (arguments, params)
    }

    /// Tickets count arrivals from zero. The counts before them begin with a batch and go on through its phases.
    fn clear_tickets(&mut self, phase: Phase) -> Result<()> {
        let layout = ObjectiveWorkspace::of(self.sizes.segments, self.plan.unit_count);
        let goes_on = phase != Phase::Partial || (self.output.accumulate && self.phases.is_some());
        let from = if goes_on { layout.tickets() } else { 0 };
        let tickets = layout.aligned(self.output.workspace.reborrow()).slice(from..layout.coefficients());
        self.executor.set_bytes(self.stream, tickets, 0)
    }

    /// # Errors
    /// The executor's.
    fn launch(&mut self, phase: Phase) -> Result<()> {
        let units = self.plan.unit_count.div_ceil(TUNING.unit_warps as usize).max(1) as u32;
        let threads = TUNING.unit_warps * 32;
        let packs = if self.plan.has_packs { TUNING.unit_warps } else { 0 };
        let tally = self.output.diagnostics.is_some();
        let (name, grid) = match (phase, self.config.variant) {
            (Phase::Partial, _) => (
                if tally && self.is_sequence_level() { "objective_partial_tally" } else { "objective_partial" },
                Grid { blocks: units, threads, shared_bytes: packs * TUNING.partial_stage },
            ),
            (Phase::Finish, variant) => (
                match (variant, tally) {
                    (Variant::Gspo(_), true) => "objective_finish_gspo_tally",
                    (Variant::Gspo(_), false) => "objective_finish_gspo",
                    (_, true) => "objective_finish_tally",
                    (_, false) => "objective_finish",
                },
                Grid {
                    blocks: self.sizes.segments.div_ceil(TUNING.finish_segments) as u32,
                    threads: TUNING.finish_threads,
                    shared_bytes: 0,
                },
            ),
            (Phase::Apply, variant) => (
                match (variant, tally) {
                    (Variant::PpoClip(_), true) => "objective_apply_ppo_tally",
                    (Variant::PpoClip(_), false) => "objective_apply_ppo",
                    (Variant::Gspo(_), _) => "objective_apply_gspo",
                    (Variant::GspoToken(_), _) => "objective_apply_gspo_token",
                },
                Grid { blocks: units, threads, shared_bytes: packs * TUNING.apply_stage },
            ),
        };
        if self.sizes.segments == 0 && phase != Phase::Partial {
            return Ok(());
        }
        self.clear_tickets(phase)?;
        let (arguments, params) = self.parameters(phase);
        // SAFETY: check() compared every length with the plan's sizes; the units and offsets are the plan's own; the parts of the workspace have
        // the room that ObjectiveWorkspace says, and check() that it is there.
        unsafe { self.executor.launch(self.stream, kernel(name), grid, &arguments, &params) }
    }
}

fn none<T>() -> *mut T {
    std::ptr::null_mut()
}

/// [`Backend::objective`](crate::Backend::objective).
pub(super) fn one_call<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    plan: &Plan<E>,
    batch: Batch<'_, E::Memory>,
    output: Output<'_, E::Memory>,
) -> Result<()> {
    let mut call = Launcher::new(executor, stream, config, plan, batch, None, output)?;
    call.launch(Phase::Partial)?;
    call.launch(Phase::Finish)?;
    call.launch(Phase::Apply)
}

macro_rules! phase {
    ($name:ident, $phase:ident, $method:literal) => {
        #[doc = concat!("[`Backend::", $method, "`](crate::Backend::", $method, ").")]
        pub(super) fn $name<E: Executor>(
            executor: &E,
            stream: &E::Stream,
            config: &Config,
            plan: &Plan<E>,
            batch: Batch<'_, E::Memory>,
            phases: Phases<'_, E::Memory>,
            output: Output<'_, E::Memory>,
        ) -> Result<()> {
            Launcher::new(executor, stream, config, plan, batch, Some(phases), output)?.launch(Phase::$phase)
        }
    };
}
phase!(partial, Partial, "objective_partial");
phase!(finish, Finish, "objective_finish");
phase!(apply, Apply, "objective_apply");
