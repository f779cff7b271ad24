//! Launches `kernels/objective.cu`: three phases of one launch each where the caller asks for them one by one. In one call there are two, the first two
//! phases or the last two together; one for all of them where every segment fits on chip; and one before them that counts where denominators are local.

use crate::abi::*;
use crate::backend::Buffer;
use crate::device::executor::{Arguments, Executor, Grid, Kernel, Parameters};
use crate::device::workspace::ObjectiveWorkspace;
use crate::diagnostics::{self, Sum};
use crate::error::Result;
use crate::objective::{
    self, Advantages, Aggregation, Anchor, Batch, Bounds, Coefficient, Config, DenominatorBasis, Denominators,
    Divergence, Dppo, KlForm, NonFinite, Output, Phases, Plan, Plane, Rates, RejectionScope, Sizes, TILE, TILE_GROUP,
    Variant,
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
    assert!(Sum::Loss as u32 == MOERL_SUM_LOSS && Sum::PositiveLogprobs as u32 == MOERL_SUM_POSITIVE_LOGPROBS);
    assert!(diagnostics::LEN == MOERL_MAX_NEGATIVE_WEIGHT as usize + 1 && diagnostics::LEN < MOERL_TALLY as usize);
};

/// How the work is dealt to blocks. Nothing here changes a bit of any result.
struct Tuning {
    /// Warps of a block of `partial` and `apply`, a unit each: few, so that one long unit keeps no other warp's registers.
    unit_warps: u32,
    /// Shared memory of a warp whose unit holds several segments (`PartialStage`): two sums and a mark for each of 1040 slots.
    partial_stage: u32,
    /// With two sums more. Fewer warps make a block of these, so that every stage fits in the 48 KB that any device grants without asking.
    wide_stage: u32,
    wide_warps: u32,
    /// As above (`ApplyStage`): 256 coefficients and advantages, a value and an owner for each of 1040 slots.
    apply_stage: u32,
    /// Shared memory of a warp that does all phases (`FusedStage`).
    fused_stage: u32,
    /// Threads of a block of `finish`.
    finish_threads: u32,
    /// Segments of a block of `finish`: a tile of the loss's tree.
    finish_segments: usize,
}

const TUNING: Tuning = Tuning {
    unit_warps: 4,
    partial_stage: 9360,
    wide_stage: 17680,
    wide_warps: 2,
    apply_stage: 10320,
    fused_stage: 11360,
    finish_threads: 256,
    finish_segments: 1024,
};

const fn kernel(name: &'static str) -> Kernel {
    Kernel { image: "objective", name }
}

/// Which of the three phases a launch is, or all of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Partial,
    Finish,
    Apply,
    /// The first two, where nothing has to come between them.
    Sums,
    /// All, of segments that fit on chip.
    Fused,
    /// All, of segments of one token each.
    Singles,
    /// What `Partial` counts for local denominators, before one of the last three.
    Count,
}

/// The code that `apply` runs, by the names of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    ClippedRatio = MOERL_FAMILY_CLIPPED_RATIO as isize,
    SharedGradient = MOERL_FAMILY_SHARED_GRADIENT as isize,
    SegmentRatio = MOERL_FAMILY_SEGMENT_RATIO as isize,
    Any = MOERL_FAMILY_ANY as isize,
}

fn variant_number(variant: &Variant) -> u32 {
    match (variant, variant.is_sequence_level()) {
        (Variant::PpoClip(_), _) => MOERL_PPO_CLIP,
        (Variant::Gspo(_), _) => MOERL_GSPO,
        (Variant::GspoToken(_), _) => MOERL_GSPO_TOKEN,
        (Variant::Cispo(_), false) => MOERL_CISPO,
        (Variant::Cispo(_), true) => MOERL_CISPO_SEQUENCE,
        (Variant::Gmpo(_), _) => MOERL_GMPO,
        (Variant::Sapo(_), false) => MOERL_SAPO,
        (Variant::Sapo(_), true) => MOERL_SAPO_SEQUENCE,
        (Variant::Vespo(_), _) => MOERL_VESPO,
        (Variant::Dppo(Dppo { divergence: Divergence::TotalVariation, .. }), _) => MOERL_DPPO_TV,
        (Variant::Dppo(Dppo { divergence: Divergence::Kl { .. }, .. }), _) => MOERL_DPPO_KL,
        (Variant::MiniRl(_), _) => MOERL_MINIRL,
        (Variant::Topr, _) => MOERL_TOPR,
        (Variant::SquarePenalty { .. }, _) => MOERL_SQUARE_PENALTY,
        (Variant::ReinforceIs | Variant::Gpg | Variant::SnisAttached, _) => MOERL_POLICY_GRADIENT,
        (Variant::TisLoss, _) => MOERL_TIS_LOSS,
        (Variant::KlCov { .. }, _) => MOERL_KL_COV,
    }
}

fn kl_number(form: Option<KlForm>) -> u32 {
    match form {
        None => MOERL_KL_NONE,
        Some(KlForm::K1) => MOERL_KL_K1,
        Some(KlForm::Abs) => MOERL_KL_ABS,
        Some(KlForm::K2) => MOERL_KL_K2,
        Some(KlForm::K3) => MOERL_KL_K3,
        Some(KlForm::K3IsToken) => MOERL_KL_K3_TOKEN,
        Some(KlForm::K3IsSequence) => MOERL_KL_K3_SEQUENCE,
    }
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
    fn planes(&self) -> Vec<Plane> {
        let mut planes = self.config.planes();
        if self.phases.is_none() && self.output.wants_sequence() {
            let wanted = [Plane::LogRatio, Plane::PositiveAdvantage, Plane::NegativeAdvantage, Plane::NonFinite];
            planes.extend(wanted.into_iter().filter(|plane| !self.config.planes().contains(plane)));
        }
        planes
    }

    /// True where `partial` reads more than the masks.
    fn sums_tokens(&self) -> bool {
        self.planes().iter().any(|plane| !matches!(plane, Plane::Count | Plane::Kept))
    }

    /// True where `partial` sums something that its short form does not know.
    fn is_partial_wide(&self) -> bool {
        let planes = self.planes();
        let has = |plane: Plane| planes.contains(&plane);
        let with_tokens = self.sums_tokens();
        has(Plane::Kept) && self.batch.keep.is_some()
            || has(Plane::Kl)
            || has(Plane::Folded)
            || with_tokens && (self.batch.keep.is_some() || self.batch.router_shift.is_some())
            || with_tokens && self.drops_by_terms()
    }

    /// True where a term's input decides whether a segment is dropped.
    fn drops_by_terms(&self) -> bool {
        self.config.nonfinite == NonFinite::DropSegment && (self.config.has_terms() || self.config.uses_rollout())
    }

    /// True where the first phase has nothing to find out: no coefficient needs n, nobody asks for the counts, and no segment can be empty that has
    /// numbers of its own, which may then be anything.
    fn skips_partial(&self) -> bool {
        let has_denominator = match self.config.aggregation {
            Aggregation::TokenSum | Aggregation::Custom => true,
            Aggregation::TokenMean => matches!(self.batch.denominators, Denominators::Global { tokens: 1.., .. }),
            _ => false,
        };
        let has_own = self.batch.segment_weights.is_some() || self.config.aggregation == Aggregation::Custom;
        let has_empty = self.batch.loss_mask.is_some() || self.plan.has_empty;
        has_denominator
            && !(has_own && has_empty)
            && self.sizes.segments > 0
            && self.phases.is_none()
            && self.output.diagnostics.is_none()
            && self.planes() == [Plane::Count]
            && !self.counts_locally()
    }

    /// The launch that does all phases, where one can: of segments of one token each whatever the call; of others if no segment has several tiles
    /// and the objective is one of the most used, with an advantage a segment and nothing weighted.
    fn all_phases(&self) -> Option<Phase> {
        let batch = &self.batch;
        if self.phases.is_some() || self.sizes.segments == 0 {
            return None;
        }
        if self.plan.has_singles_alone {
            return Some(Phase::Singles);
        }
        // Where tokens decide, nothing is summed up of segments.
        let asks_for_more = self.family() == Family::ClippedRatio && self.output.wants_sequence();
        let fits = !self.plan.has_tiles
            && !asks_for_more
            && batch.weights.is_none()
            && matches!(batch.advantages, Advantages::PerSegment(_))
            && self.family() != Family::Any
            && !self.is_partial_wide();
        fits.then_some(Phase::Fused)
    }

    /// True where the first launch can do what the second would. Statistics of segments are counted with those of tokens: where these are the third
    /// phase's, the first, which then reads little, would lose more by them.
    fn sums_and_finishes(&self) -> bool {
        self.sizes.segments > 0 && (self.is_sequence_level() || self.output.diagnostics.is_none())
    }

    fn counts_locally(&self) -> bool {
        matches!(self.batch.denominators, Denominators::Local { .. })
    }

    /// True where rejected tokens are in no denominator.
    fn counts_kept(&self) -> bool {
        self.config.denominator_basis == DenominatorBasis::AfterRejection && self.batch.keep.is_some()
    }

    /// Which code `apply` runs. What is asked for has no say in it, so that it cannot change a bit.
    fn family(&self) -> Family {
        let (config, batch) = (self.config, &self.batch);
        let is_plain = !config.has_terms() && batch.router_shift.is_none();
        match config.variant {
            _ if !is_plain => Family::Any,
            variant if variant.shares_gradient() => Family::SharedGradient,
            Variant::PpoClip(_) if batch.keep.is_none() => Family::ClippedRatio,
            Variant::GspoToken(_) if batch.keep.is_none() => Family::SegmentRatio,
            _ => Family::Any,
        }
    }

    /// What `apply` reads of every token where it has the choice.
    fn reads(&self) -> u32 {
        let (config, variant, output) = (self.config, &self.config.variant, &self.output);
        let statistics = output.diagnostics.is_some() && !self.is_sequence_level();
        let is_coupled = config.mismatch_penalty != 0.0 && config.anchor == Anchor::Rollout;
        let with_ratio = output.ratio.is_some()
            || statistics
            || variant.uses_token_ratio()
            || is_coupled
            || config.kl_form() == Some(KlForm::K3IsToken);
        let with_logprobs = with_ratio || config.has_terms() || !variant.is_valued_by_segment();
        let with_advantages = output.clipped.is_some() || !variant.shares_gradient();
        let with_weights =
            statistics || !(variant.folds_weights() || variant.shares_gradient()) || output.diagnostics.is_some();
        [
            (with_logprobs, MOERL_READ_LOGPROBS),
            (with_ratio, MOERL_READ_OLD + MOERL_READ_SHIFT),
            (with_advantages, MOERL_READ_ADVANTAGES),
            (with_weights, MOERL_READ_WEIGHTS),
            (true, MOERL_READ_TERMS + MOERL_READ_KEEP),
        ]
        .iter()
        .map(|&(wanted, bit)| if wanted { bit } else { 0 })
        .sum()
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
            self.batch.rollout_logprobs.map(|array| array.address()),
            self.batch.ref_logprobs.map(|array| array.address()),
            self.batch.entropy.map(|array| array.address()),
            self.batch.router_shift.map(|array| array.address()),
            Some(advantages),
            self.output.d_logprobs.as_ref().map(|array| array.address()),
            self.output.d_entropy.as_ref().map(|array| array.address()),
            self.output.kl.as_ref().map(|array| array.address()),
            self.output.ratio.as_ref().map(|array| array.address()),
        ];
        let bytes = [
            self.batch.loss_mask.map(|array| array.address()),
            self.batch.keep.map(|array| array.address()),
            self.batch.chosen.map(|array| array.address()),
            self.output.clipped.as_ref().map(|array| array.address()),
        ];
        floats.iter().flatten().all(|address| address.is_multiple_of(16))
            && bytes.iter().flatten().all(|address| address.is_multiple_of(4))
    }

    /// The parameters of a phase, and their buffers.
    fn parameters(&mut self, phase: Phase) -> (Arguments, MoerlObjective) {
        let mut arguments = Arguments::new::<E>();
        let (config, batch) = (self.config, self.batch);
        let planes = if phase == Phase::Count { vec![] } else { self.planes() };
        let (with_tokens, aligned, sequence) = (self.sums_tokens(), self.aligned(), self.is_sequence_level());
        let fused = matches!(phase, Phase::Fused | Phase::Singles);
        let (sums, count) = (phase == Phase::Sums, phase == Phase::Count);
        let partial = sums || phase == Phase::Partial;
        let finish = sums || fused || phase == Phase::Finish;
        let apply = fused || phase == Phase::Apply;
        let reads_tokens = apply || (partial && with_tokens);
        let (drops_by_terms, wide) = (self.drops_by_terms(), self.is_partial_wide());
        // Terms are the third phase's, unless the first has to know.
        let reads_terms = apply || (partial && with_tokens && drops_by_terms);
        let reads_ref = config.kl.is_some() && (reads_terms || (partial && planes.contains(&Plane::Kl)));
        let old = match config.anchor {
            Anchor::Old => batch.old_logprobs.map(|array| ("old_logprobs", array)),
            Anchor::Rollout => batch.rollout_logprobs.map(|array| ("rollout_logprobs", array)),
        };
        let rollout =
            batch.rollout_logprobs.filter(|_| config.anchor == Anchor::Old && config.uses_rollout() && reads_terms);
        let reads_keep = apply || (partial && wide) || (count && self.counts_kept());
        let (reads, skips_partial) = (self.reads(), self.skips_partial());

        let layout = ObjectiveWorkspace::of(self.sizes.segments, self.plan.unit_count);
        let workspace = arguments.write("workspace", &mut layout.aligned(self.output.workspace.reborrow()));
        let part = |offset: usize| workspace.wrapping_add(offset);
        let segments = self.sizes.segments;
        let (planes_memory, coefficients) = match &mut self.phases {
            None => (part(layout.sums()).cast(), part(layout.coefficients()).cast()),
            Some(phases) => (
                arguments.write("sums", &mut phases.sums),
                arguments.write("coefficients", &mut phases.coefficients).cast(),
            ),
        };
        let plane = |which: Plane| match planes.iter().position(|&plane| plane == which) {
            Some(place) => planes_memory.wrapping_add(place * segments),
            None => std::ptr::null_mut(),
        };
        let (advantages, per_token) = match batch.advantages {
            Advantages::PerSegment(array) => (array, false),
            Advantages::PerToken(array) => (array, true),
        };
        let (bounds, rates) = (Bounds::of(&config.variant), Rates::of(&config.variant));
        let family = self.family();
        let output = &mut self.output;
        let with_tallies = match phase {
            Phase::Partial | Phase::Finish | Phase::Sums | Phase::Fused | Phase::Singles => true,
            Phase::Apply => family == Family::Any || !sequence,
            Phase::Count => false,
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
            old_logprobs: match old.filter(|_| reads_tokens) {
                Some((name, array)) => arguments.read(name, array),
                None => std::ptr::null(),
            },
            advantages: arguments.read_optional("advantages", reads_tokens.then_some(advantages)),
            loss_mask: arguments.read_optional("loss_mask", batch.loss_mask.filter(|_| partial || apply || count)),
            weights: arguments.read_optional("weights", batch.weights.filter(|_| reads_tokens)),
            keep: arguments.read_optional("keep", batch.keep.filter(|_| reads_keep)),
            chosen: arguments.read_optional(
                "chosen",
                batch.chosen.filter(|_| apply && matches!(config.variant, Variant::KlCov { .. })),
            ),
            router_shift: arguments.read_optional("router_shift", batch.router_shift.filter(|_| reads_tokens)),
            rollout_logprobs: arguments.read_optional("rollout_logprobs", rollout),
            ref_logprobs: arguments.read_optional("ref_logprobs", batch.ref_logprobs.filter(|_| reads_ref)),
            entropy: arguments
                .read_optional("entropy", batch.entropy.filter(|_| reads_terms && config.entropy_bonus != 0.0)),
            segment_weights: arguments.read_optional("segment_weights", batch.segment_weights.filter(|_| finish)),
            segment_scale: arguments.read_optional("segment_scale", batch.segment_scale.filter(|_| finish)),
            denominators: arguments.read_optional("denominators", denominators.filter(|_| finish)),
            offsets: arguments.read("cu_seqlens", self.plan.offsets()),
            units: arguments.read("units", self.plan.units.view()).cast(),
            log_ratio: plane(Plane::LogRatio),
            count: if skips_partial && !fused { none() } else { plane(Plane::Count) },
            positive: plane(Plane::PositiveAdvantage),
            negative: plane(Plane::NegativeAdvantage),
            kept: plane(Plane::Kept),
            divergence: plane(Plane::Kl),
            folded: plane(Plane::Folded),
            nonfinite: plane(Plane::NonFinite),
            coefficients,
            d_logprobs: if apply { arguments.write_optional("d_logprobs", &mut output.d_logprobs) } else { none() },
            d_entropy: if apply && config.entropy_bonus != 0.0 {
                arguments.write_optional("d_entropy", &mut output.d_entropy)
            } else {
                none()
            },
            kl: if apply { arguments.write_optional("kl", &mut output.kl) } else { none() },
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
            loss: if count { none() } else { arguments.write_optional("loss", &mut output.loss) },
            diagnostics: if with_tallies {
                arguments.write_optional("diagnostics", &mut output.diagnostics)
            } else {
                none()
            },
            errors: arguments.write_optional("errors", &mut output.errors),
            local_counts: if local { part(0).cast() } else { none() },
            tickets: part(layout.tickets()).cast(),
            segment_tickets: part(layout.segment_tickets()).cast(),
            group_tickets: part(layout.group_tickets()).cast(),
            tile_tickets: part(layout.tile_tickets()).cast(),
            arrivals: part(layout.arrivals()).cast(),
            tallies: part(layout.tallies()).cast(),
            segment_tallies: part(layout.segment_tallies()).cast(),
            group_sums: part(layout.group_sums()).cast(),
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
            positive_rate: rates.positive as f32,
            negative_rate: rates.negative as f32,
            positive_scale: rates.positive_scale as f32,
            negative_scale: rates.negative_scale as f32,
            epsilon: match config.variant {
                Variant::Dppo(Dppo { divergence: Divergence::Kl { epsilon }, .. }) => epsilon as f32,
                _ => 0.0,
            },
            kl_beta: config.kl.map_or(0.0, |kl| kl.beta) as f32,
            kl_input_clamp: config.kl.and_then(|kl| kl.input_clamp).map_or(f32::INFINITY, |clamp| clamp as f32),
            kl_output_clamp: config.kl.and_then(|kl| kl.output_clamp).map_or(f32::INFINITY, |clamp| clamp as f32),
            mismatch_penalty: config.mismatch_penalty as f32,
            entropy_bonus: config.entropy_bonus as f32,
            variant: variant_number(&config.variant),
            kl_form: kl_number(config.kl_form()),
            reads,
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
            kl_straight_through: u8::from(config.kl.is_some_and(|kl| kl.straight_through)),
            folds_weights: u8::from(config.variant.folds_weights()),
            is_gated: u8::from(matches!(
                config.variant,
                Variant::Cispo(objective::Cispo { unified_mask: Some(_), .. })
            )),
            rejects_all: u8::from(config.rejection == RejectionScope::AllTerms),
            after_rejection: u8::from(config.denominator_basis == DenominatorBasis::AfterRejection),
            value_in_finish: u8::from(config.variant.is_valued_by_segment()),
            has_rollout: u8::from(config.uses_rollout()),
            opens_totals: u8::from((fused || finish && skips_partial) && !output.accumulate),
            family: family as u8,
            finishes: u8::from(sums),
        };
        (arguments, params)
    }

    /// Tickets count arrivals from zero. The counts before them begin with a batch and go on through its phases.
    fn clear_tickets(&mut self, phase: Phase) -> Result<()> {
        let layout = ObjectiveWorkspace::of(self.sizes.segments, self.plan.unit_count);
        let begins = matches!(phase, Phase::Partial | Phase::Count);
        let goes_on = !begins || (self.output.accumulate && self.phases.is_some());
        let from = if goes_on { layout.tickets() } else { 0 };
        let tickets = layout.aligned(self.output.workspace.reborrow()).slice(from..layout.coefficients());
        self.executor.set_bytes(self.stream, tickets, 0)
    }

    /// Without a bonus nothing moves with the entropy, and the kernels for that do not know its gradient.
    fn clear_d_entropy(&mut self) -> Result<()> {
        match &mut self.output.d_entropy {
            Some(array) if self.config.entropy_bonus == 0.0 => {
                self.executor.set_bytes(self.stream, array.reborrow(), 0)
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// The executor's.
    fn launch(&mut self, phase: Phase) -> Result<()> {
        let tally = self.output.diagnostics.is_some();
        let by_units = |name: &'static str, warps: u32, stage: u32| {
            let blocks = self.plan.unit_count.div_ceil(warps as usize).max(1) as u32;
            let shared_bytes = if self.plan.has_packs { warps * stage } else { 0 };
            (name, Grid { blocks, threads: warps * 32, shared_bytes })
        };
        let Tuning { unit_warps, partial_stage, wide_stage, wide_warps, apply_stage, fused_stage, .. } = TUNING;
        let (name, grid) = match phase {
            Phase::Count if self.counts_kept() => by_units("objective_partial_wide", wide_warps, wide_stage),
            Phase::Count => by_units("objective_partial", unit_warps, partial_stage),
            Phase::Partial | Phase::Sums => match (self.is_partial_wide(), tally && self.is_sequence_level()) {
                (false, false) => by_units("objective_partial", unit_warps, partial_stage),
                (false, true) => by_units("objective_partial_tally", unit_warps, partial_stage),
                (true, false) => by_units("objective_partial_wide", wide_warps, wide_stage),
                (true, true) => by_units("objective_partial_wide_tally", wide_warps, wide_stage),
            },
            Phase::Finish => (
                if tally { "objective_finish_tally" } else { "objective_finish" },
                Grid {
                    blocks: self.sizes.segments.div_ceil(TUNING.finish_segments) as u32,
                    threads: TUNING.finish_threads,
                    shared_bytes: 0,
                },
            ),
            Phase::Apply => {
                let name = match (self.family(), tally) {
                    (Family::ClippedRatio, true) => "objective_apply_ppo_tally",
                    (Family::ClippedRatio, false) => "objective_apply_ppo",
                    (Family::SharedGradient, _) => "objective_apply_gspo",
                    (Family::SegmentRatio, _) => "objective_apply_gspo_token",
                    (Family::Any, true) => "objective_apply_any_tally",
                    (Family::Any, false) => "objective_apply_any",
                };
                by_units(name, unit_warps, apply_stage)
            }
            Phase::Fused => {
                let name = match (self.family(), tally) {
                    (Family::ClippedRatio, true) => "objective_fused_ppo_tally",
                    (Family::ClippedRatio, false) => "objective_fused_ppo",
                    (Family::SharedGradient, true) => "objective_fused_gspo_tally",
                    (Family::SharedGradient, false) => "objective_fused_gspo",
                    (Family::SegmentRatio | Family::Any, true) => "objective_fused_gspo_token_tally",
                    (Family::SegmentRatio | Family::Any, false) => "objective_fused_gspo_token",
                };
                let (name, grid) = by_units(name, unit_warps, 0);
                (name, Grid { shared_bytes: unit_warps * fused_stage, ..grid })
            }
            Phase::Singles => {
                // Those of one family know its arrays alone.
                let family = if self.is_partial_wide() { Family::Any } else { self.family() };
                let name = match (family, tally) {
                    (_, true) => "objective_singles_any_tally",
                    (Family::ClippedRatio, false) => "objective_singles_ppo",
                    (Family::SharedGradient, false) => "objective_singles_gspo",
                    (Family::SegmentRatio, false) => "objective_singles_gspo_token",
                    (Family::Any, false) => "objective_singles_any",
                };
                by_units(name, unit_warps, 0)
            }
        };
        if self.sizes.segments == 0 && phase != Phase::Partial {
            return Ok(());
        }
        if matches!(phase, Phase::Apply | Phase::Fused | Phase::Singles) {
            self.clear_d_entropy()?;
        }
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
    let phases: &[Phase] = match call.all_phases() {
        Some(Phase::Singles) => &[Phase::Singles],
        Some(_) => &[Phase::Fused],
        None if call.skips_partial() => &[Phase::Finish, Phase::Apply],
        None if call.sums_and_finishes() => &[Phase::Sums, Phase::Apply],
        None => &[Phase::Partial, Phase::Finish, Phase::Apply],
    };
    let counts = call.counts_locally() && phases[0] != Phase::Partial;
    // Tickets that were zero before a launch are zero after it: only the call's first has to clear them.
    call.clear_tickets(if counts { Phase::Count } else { phases[0] })?;
    if counts {
        call.launch(Phase::Count)?;
    }
    phases.iter().try_for_each(|&phase| call.launch(phase))
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
            let mut call = Launcher::new(executor, stream, config, plan, batch, Some(phases), output)?;
            call.clear_tickets(Phase::$phase)?;
            call.launch(Phase::$phase)
        }
    };
}
phase!(partial, Partial, "objective_partial");
phase!(finish, Finish, "objective_finish");
phase!(apply, Apply, "objective_apply");
