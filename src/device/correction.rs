//! Launches `kernels/correction.cu`: three phases of one launch each.

use crate::abi::*;
use crate::backend::Buffer;
use crate::correction::{
    self, Batch, Config, Decision, Divergence, Level, Metropolis, Output, Over, Phases, Plane, Plans, Rejection,
    Repeats, Sizes, Weight, diagnostics,
};
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::device::workspace::{CorrectionWorkspace, DECIDING_GROUPS, DECIDING_SEGMENTS};
use crate::error::Result;
use crate::objective::{Advantages, NonFinite};

// SAFETY: generated from the structure in kernels/abi.h that the kernels take.
unsafe impl Parameters for MoerlCorrection {}

// What the kernels and the interface name alike.
const _: () = {
    assert!(
        Plane::ALL.len() == MOERL_CORRECTION_PLANES as usize && size_of::<Decision>() == size_of::<MoerlDecision>()
    );
    assert!(diagnostics::LEN == 2 * MOERL_TALLY_PLACES as usize);
};

/// How the work is dealt to blocks. Nothing here changes a bit of any result.
struct Tuning {
    /// Warps of a block of `partial` and `apply`, a unit each.
    unit_warps: u32,
    /// Warps of a block of `partial` with all sums, whose stage is larger.
    full_warps: u32,
    /// Shared memory of a warp whose unit holds several pieces (`CorrectionPartialStage`): a log-ratio and a mark for each of 1040 slots.
    partial_stage: u32,
    /// As above with o, q and A.
    full_stage: u32,
    /// As above (`CorrectionApplyStage`): 256 decisions and an owner for each of 1040 slots.
    apply_stage: u32,
    /// Threads of a block of `finish`.
    finish_threads: u32,
}

const TUNING: Tuning = Tuning {
    unit_warps: 4,
    full_warps: 2,
    partial_stage: 5200,
    full_stage: 17_680,
    apply_stage: 3088,
    finish_threads: DECIDING_SEGMENTS as u32,
};

const fn kernel(name: &'static str) -> Kernel {
    Kernel { image: "correction", name }
}

/// Which of the three phases a launch is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Partial,
    Finish,
    Apply,
}

const NOWHERE: u8 = 255;

fn level(level: Level) -> u32 {
    match level {
        Level::Token => MOERL_CORRECTION_TOKEN,
        Level::Turn => MOERL_CORRECTION_TURN,
        Level::Sequence => MOERL_CORRECTION_SEQUENCE,
        Level::Geometric => MOERL_CORRECTION_GEOMETRIC,
    }
}

fn weight(weight: &Weight) -> u32 {
    match weight {
        Weight::One => MOERL_CORRECTION_ONE,
        Weight::Truncated { .. } | Weight::Clamped { .. } => MOERL_CORRECTION_CLAMP,
        Weight::Band { .. } => MOERL_CORRECTION_BAND,
        Weight::SequenceMasked { .. } => MOERL_CORRECTION_SEQUENCE_MASK,
        Weight::SelfNormalised { .. } => MOERL_CORRECTION_SELF_NORMALISED,
        Weight::SelfNormalisedAttached => MOERL_CORRECTION_ATTACHED,
        Weight::Metropolis { mode: Metropolis::Mask, .. } => MOERL_CORRECTION_METROPOLIS_MASK,
        Weight::Metropolis { mode: Metropolis::Multiplicity, .. } => MOERL_CORRECTION_METROPOLIS_MULTIPLICITY,
        Weight::MultipleImportance { .. } => MOERL_CORRECTION_MULTIPLE,
    }
}

/// What a rejection looks at, and between which bounds that is kept.
fn statistic(rejection: &Rejection) -> (u32, f64, f64) {
    match *rejection {
        Rejection::Band { level, low, high } => {
            let of = match level {
                Level::Token => MOERL_CORRECTION_OF_TOKEN,
                Level::Turn => MOERL_CORRECTION_OF_TURN,
                Level::Sequence => MOERL_CORRECTION_OF_SUM,
                Level::Geometric => MOERL_CORRECTION_OF_MEAN,
            };
            (of, low.ln(), high.ln())
        }
        Rejection::Veto { low, high } => (MOERL_CORRECTION_OF_EXTREMES, low.ln(), high.ln()),
        Rejection::OffPolicySequence { threshold } => (MOERL_CORRECTION_OF_BAD_ANSWER, f64::NEG_INFINITY, threshold),
        Rejection::Divergence { estimate, over } => {
            let (of, low, high) = match estimate {
                Divergence::K1 { low, high } => (0, low.ln(), high.ln()),
                Divergence::K2(most) => (1, f64::NEG_INFINITY, most),
                Divergence::K3(most) => (2, f64::NEG_INFINITY, most),
            };
            let first = match over {
                Over::Token => MOERL_CORRECTION_OF_TOKEN_K1,
                Over::Sum => MOERL_CORRECTION_OF_SUM_K1,
                Over::Mean => MOERL_CORRECTION_OF_MEAN_K1,
                // There is no maximum of k1.
                Over::Max => MOERL_CORRECTION_OF_MAX_K2 - 1,
            };
            (first + of, low, high)
        }
    }
}

fn options(config: &Config) -> [MoerlCorrectionOption; correction::MAX_REJECTIONS] {
    let none =
        MoerlCorrectionOption { low: 0.0, high: 0.0, token_low: 0.0, token_high: 0.0, statistic: 0, rejected: 0 };
    let mut options = [none; correction::MAX_REJECTIONS];
    let mut of_tokens = 0;
    for (option, rejection) in options.iter_mut().zip(&config.rejections) {
        let (statistic, low, high) = statistic(rejection);
        *option = MoerlCorrectionOption {
            low,
            high,
            token_low: low as f32,
            token_high: high as f32,
            statistic,
            rejected: of_tokens,
        };
        of_tokens += u32::from(rejection.is_of_tokens());
    }
    options
}

/// A call on its way to its launches.
struct Launcher<'c, 'a, E: Executor> {
    executor: &'c E,
    stream: &'c E::Stream,
    config: &'c Config,
    plans: Plans<'c, E>,
    batch: Batch<'a, E::Memory>,
    phases: Option<Phases<'a, E::Memory>>,
    output: Output<'a, E::Memory>,
    sizes: Sizes,
    /// `apply` is all there is to do.
    is_alone: bool,
}

impl<'c, 'a, E: Executor> Launcher<'c, 'a, E> {
    fn new(
        executor: &'c E,
        stream: &'c E::Stream,
        config: &'c Config,
        plans: Plans<'c, E>,
        batch: Batch<'a, E::Memory>,
        phases: Option<Phases<'a, E::Memory>>,
        output: Output<'a, E::Memory>,
    ) -> Result<Self> {
        let sizes = correction::check(config, &plans, &batch, phases.as_ref(), &output)?;
        let is_alone = phases.is_none() && config.is_of_tokens_alone() && !output.wants_segments();
        Ok(Launcher { executor, stream, config, plans, batch, phases, output, sizes, is_alone })
    }

    fn layout(&self) -> CorrectionWorkspace {
        CorrectionWorkspace::of(&self.plans)
    }

    /// True where `apply` needs more of a token than its mask.
    fn reads_tokens(&self) -> bool {
        let has_own_weight = self.config.level() == Level::Token && self.config.weight != Weight::One;
        has_own_weight || self.config.token_rejections() > 0 || self.output.log_ratio.is_some() || self.is_alone
    }

    /// True where `partial` forms more than log-ratios and counts.
    fn is_full(&self) -> bool {
        let planes = self.config.planes();
        let has_more = planes.iter().any(|&plane| plane as u32 >= MOERL_CORRECTION_K1 && !plane.is_maximum());
        has_more || self.output.globals.is_some() || self.output.diagnostics.is_some()
    }

    fn aligned(&self) -> bool {
        let advantages = match self.batch.advantages {
            Some(Advantages::PerToken(array)) => array.address(),
            _ => 0,
        };
        let floats = [
            Some(self.batch.old_logprobs.address()),
            Some(self.batch.rollout_logprobs.address()),
            self.batch.kept_log_mass.map(|array| array.address()),
            self.batch.router_shift.map(|array| array.address()),
            Some(advantages),
            self.output.weights.as_ref().map(|array| array.address()),
            self.output.log_ratio.as_ref().map(|array| array.address()),
        ];
        let bytes =
            [self.batch.loss_mask.map(|array| array.address()), self.output.keep.as_ref().map(|array| array.address())];
        floats.iter().flatten().all(|address| address.is_multiple_of(16))
            && bytes.iter().flatten().all(|address| address.is_multiple_of(4))
            && (self.sizes.repeats == 1 || self.sizes.tokens.is_multiple_of(4))
    }

    /// The parameters of a phase, and their buffers.
    fn parameters(&mut self, phase: Phase) -> (Arguments, MoerlCorrection) {
        let mut arguments = Arguments::new::<E>();
        let (config, batch, plans, sizes) = (self.config, self.batch, self.plans, self.sizes);
        let (partial, finish, apply) = (phase == Phase::Partial, phase == Phase::Finish, phase == Phase::Apply);
        let (layout, aligned, reads_tokens, is_alone) =
            (self.layout(), self.aligned(), self.reads_tokens(), self.is_alone);
        let options = options(config);
        let has_planes = config.planes();
        let (low, high) = config.weight_bounds();
        let reported = config.reported_bounds();
        let tokens = partial || apply;
        let (advantages, advantage_per_token) = match batch.advantages {
            Some(Advantages::PerToken(array)) => (Some(array), true),
            Some(Advantages::PerSegment(array)) => (Some(array), false),
            None => (None, false),
        };
        let needs_advantages = has_planes.contains(&Plane::Advantage);
        let reads_advantages = needs_advantages && if advantage_per_token { tokens } else { finish };
        let (seed, proportions) = match &config.weight {
            Weight::Metropolis { seed, .. } => (*seed, &[][..]),
            Weight::MultipleImportance { proportions } => (0, &proportions[..]),
            _ => (0, &[][..]),
        };
        let mut log_proportions = [0.0; correction::MAX_PROPOSALS];
        for (to, share) in log_proportions.iter_mut().zip(proportions) {
            *to = share.ln();
        }
        let mut place = [NOWHERE; MOERL_CORRECTION_PLANES as usize];
        for (at, &plane) in has_planes.iter().enumerate() {
            place[plane as usize] = at as u8;
        }
        let draws = matches!(config.weight, Weight::Metropolis { .. })
            && if config.level() == Level::Token { apply } else { finish };

        let workspace = arguments.write("workspace", &mut layout.aligned(self.output.workspace.reborrow()));
        let part = |offset: usize| workspace.wrapping_add(offset);
        let (planes, decisions) = match &mut self.phases {
            None => (part(layout.planes()).cast(), part(layout.decisions()).cast()),
            Some(phases) => {
                (arguments.write("sums", &mut phases.sums), arguments.write("decisions", &mut phases.decisions).cast())
            }
        };
        let output = &mut self.output;
        let pieces = plans.pieces_plan();
        let params = MoerlCorrection {
            old_logprobs: arguments.read_optional("old_logprobs", tokens.then_some(batch.old_logprobs)),
            rollout_logprobs: arguments.read_optional("rollout_logprobs", tokens.then_some(batch.rollout_logprobs)),
            kept_log_mass: arguments.read_optional("kept_log_mass", batch.kept_log_mass.filter(|_| tokens)),
            router_shift: arguments.read_optional("router_shift", batch.router_shift.filter(|_| tokens)),
            advantages: arguments.read_optional("advantages", advantages.filter(|_| reads_advantages)),
            loss_mask: arguments.read_optional("loss_mask", batch.loss_mask.filter(|_| tokens)),
            uniforms: arguments.read_optional("uniforms", batch.uniforms.filter(|_| draws)),
            offsets: arguments.read("cu_seqlens", pieces.offsets()),
            units: arguments.read("units", pieces.units.view()).cast(),
            first_piece: arguments.read_optional("first_piece", plans.turns.map(|turns| turns.first.view())),
            group_ptr: arguments
                .read_optional("group_ptr", plans.groups.filter(|_| finish).map(|groups| groups.offsets())),
            members: arguments.read_optional("members", plans.groups.filter(|_| finish).map(|groups| groups.members())),
            segment_ids: arguments.read_optional("segment_ids", batch.segment_ids.filter(|_| draws)),
            current_log_ratio: arguments
                .read_optional("current_log_ratio", batch.current_log_ratio.filter(|_| finish && needs_advantages)),
            rewards: arguments.read_optional("rewards", batch.rewards.filter(|_| finish)),
            target_logprobs: arguments.read_optional("target_logprobs", batch.target_logprobs.filter(|_| finish)),
            proposal_logprobs: arguments.read_optional("proposal_logprobs", batch.proposal_logprobs.filter(|_| finish)),
            carried: arguments.read_optional("carried", batch.carried.filter(|_| finish)),
            planes,
            decisions: if is_alone { none() } else { decisions },
            weights: written(&mut arguments, apply, "weights", &mut output.weights),
            keep: written(&mut arguments, apply, "keep", &mut output.keep),
            log_ratio: written(&mut arguments, apply, "log_ratio", &mut output.log_ratio),
            segment_weights: written(&mut arguments, !partial, "segment_weights", &mut output.segment_weights),
            segment_log_weights: written(
                &mut arguments,
                finish,
                "segment_log_weights",
                &mut output.segment_log_weights,
            ),
            kept: written(&mut arguments, finish, "kept", &mut output.kept),
            accepted: written(&mut arguments, finish, "accepted", &mut output.accepted),
            multiplicity: written(&mut arguments, finish, "multiplicity", &mut output.multiplicity),
            carry_multiplicity: written(&mut arguments, finish, "carry_multiplicity", &mut output.carry_multiplicity),
            carry_log_weights: written(&mut arguments, finish, "carry_log_weights", &mut output.carry_log_weights),
            baseline_advantages: written(&mut arguments, finish, "baseline_advantages", &mut output.advantages),
            expected_rewards: written(&mut arguments, finish, "expected_rewards", &mut output.expected_rewards),
            rejected: written(&mut arguments, finish, "rejected", &mut output.rejected),
            globals: arguments.write_optional("globals", &mut output.globals),
            diagnostics: written(&mut arguments, !apply, "diagnostics", &mut output.diagnostics),
            errors: arguments.write_optional("errors", &mut output.errors),
            tickets: part(layout.tickets()).cast(),
            group_tickets: part(layout.group_tickets()).cast(),
            tile_tickets: part(layout.tile_tickets()).cast(),
            tallies: part(layout.tallies()).cast(),
            tile_records: part(layout.tile_records()).cast(),
            group_records: part(layout.group_records()).cast(),
            multiplicities: part(layout.multiplicities()).cast(),
            segment_count: sizes.segments as u64,
            piece_count: sizes.pieces as u64,
            unit_count: pieces.unit_count as u64,
            group_count: sizes.groups as u64,
            token_count: sizes.tokens as u64,
            seed,
            log_low: low.ln(),
            log_high: high.ln(),
            catastrophic_low: config.catastrophic.0.ln(),
            catastrophic_high: config.catastrophic.1.ln(),
            log_proportions,
            options,
            low: low as f32,
            high: high as f32,
            token_log_low: low.ln() as f32,
            token_log_high: high.ln() as f32,
            reported_log_low: reported.0.ln() as f32,
            reported_log_high: reported.1.ln() as f32,
            saturation: config.saturation,
            option_count: config.rejections.len() as u32,
            repeats: sizes.repeats as u32,
            proposals: proportions.len() as u32,
            level: level(config.level()),
            weight: weight(&config.weight),
            nonfinite_policy: match config.nonfinite {
                NonFinite::Propagate => MOERL_PROPAGATE,
                NonFinite::ZeroWeight => MOERL_ZERO_WEIGHT,
                NonFinite::DropSegment => MOERL_DROP_SEGMENT,
            },
            tag: u32::from(output.tag),
            place,
            mean_of_repeats: u8::from(config.repeats == Repeats::Mean),
            advantage_per_token: u8::from(advantage_per_token && needs_advantages),
            batch_normalise: u8::from(config.batch_normalise),
            reads_tokens: u8::from(reads_tokens),
            aligned: u8::from(aligned),
            accumulate: u8::from(output.accumulate && self.phases.is_some()),
            keep_totals: u8::from(output.accumulate),
            has_token_options: u8::from(config.token_rejections() > 0),
            reserved: [0; 5],
        };
        (arguments, params)
    }

    /// # Errors
    /// The executor's.
    fn launch(&mut self, phase: Phase) -> Result<()> {
        let tally = self.output.globals.is_some() || self.output.diagnostics.is_some();
        let units = self.plans.pieces_plan().unit_count;
        let has_packs = self.plans.pieces_plan().has_packs;
        let of_units = |warps: u32, stage: u32| Grid {
            blocks: units.div_ceil(warps as usize).max(1) as u32,
            threads: warps * 32,
            shared_bytes: if has_packs { warps * stage } else { 0 },
        };
        let deciding = |items: usize, per_block: usize| Grid {
            blocks: items.div_ceil(per_block) as u32,
            threads: TUNING.finish_threads,
            shared_bytes: 0,
        };
        let (name, grid) = match phase {
            Phase::Partial if self.is_full() => {
                ("correction_partial_full", of_units(TUNING.full_warps, TUNING.full_stage))
            }
            Phase::Partial => ("correction_partial", of_units(TUNING.unit_warps, TUNING.partial_stage)),
            Phase::Finish if self.plans.groups.is_some() => (
                if tally { "correction_finish_groups_tally" } else { "correction_finish_groups" },
                deciding(self.sizes.groups, DECIDING_GROUPS),
            ),
            Phase::Finish => (
                if tally { "correction_finish_tally" } else { "correction_finish" },
                deciding(self.sizes.segments, DECIDING_SEGMENTS),
            ),
            Phase::Apply => ("correction_apply", of_units(TUNING.unit_warps, TUNING.apply_stage)),
        };
        if grid.blocks == 0 {
            return Ok(());
        }
        let layout = self.layout();
        let tickets = layout.aligned(self.output.workspace.reborrow()).slice(layout.tickets()..layout.decisions());
        if phase != Phase::Apply {
            self.executor.set_bytes(self.stream, tickets, 0)?;
        }
        let (arguments, params) = self.parameters(phase);
        // SAFETY: check() compared every length with the plans' sizes; units, offsets and members are the plans' own, and check_plans() that they
        // are of these segments; the parts of the workspace have the room that CorrectionWorkspace says, and check() that it is there.
        unsafe { self.executor.launch(self.stream, kernel(name), grid, &arguments, &params) }
    }
}

fn none<T>() -> *mut T {
    std::ptr::null_mut()
}

/// The pointer to an array that only some phases write.
fn written<T: bytemuck::Pod, M: crate::memory::Memory>(
    arguments: &mut Arguments,
    now: bool,
    name: &'static str,
    array: &mut Option<crate::memory::ViewMut<'_, T, M>>,
) -> *mut T {
    if now { arguments.write_optional(name, array) } else { none() }
}

/// [`Backend::correction`](crate::Backend::correction).
pub(super) fn one_call<E: Executor>(
    executor: &E,
    stream: &E::Stream,
    config: &Config,
    plans: Plans<'_, E>,
    batch: Batch<'_, E::Memory>,
    output: Output<'_, E::Memory>,
) -> Result<()> {
    let mut call = Launcher::new(executor, stream, config, plans, batch, None, output)?;
    if !call.is_alone {
        call.launch(Phase::Partial)?;
        call.launch(Phase::Finish)?;
        if !call.output.wants_tokens(config) {
            return Ok(());
        }
    }
    call.launch(Phase::Apply)
}

macro_rules! phase {
    ($name:ident, $phase:ident, $method:literal) => {
        #[doc = concat!("[`Backend::", $method, "`](crate::Backend::", $method, ").")]
        pub(super) fn $name<E: Executor>(
            executor: &E,
            stream: &E::Stream,
            config: &Config,
            plans: Plans<'_, E>,
            batch: Batch<'_, E::Memory>,
            phases: Phases<'_, E::Memory>,
            output: Output<'_, E::Memory>,
        ) -> Result<()> {
            Launcher::new(executor, stream, config, plans, batch, Some(phases), output)?.launch(Phase::$phase)
        }
    };
}
phase!(partial, Partial, "correction_partial");
phase!(finish, Finish, "correction_finish");
phase!(apply, Apply, "correction_apply");
