//! Rollout correction: what every backend must agree on.

#[path = "correction/agreement.rs"]
mod agreement;
#[path = "correction/any.rs"]
mod any;
#[path = "correction/bad_input.rs"]
mod bad_input;
#[path = "correction/case.rs"]
mod case;
mod common;
#[path = "correction/drawn.rs"]
mod drawn;
#[cfg(feature = "emulate")]
#[path = "correction/emulated.rs"]
mod emulated;
#[path = "correction/invariance.rs"]
mod invariance;
#[cfg(any(feature = "cuda", feature = "emulate"))]
#[path = "correction/large.rs"]
mod large;
#[path = "correction/outputs.rs"]
mod outputs;
#[path = "correction/presets.rs"]
mod presets;
#[path = "correction/table.rs"]
mod table;

use agreement::*;
use any::*;
use bad_input::*;
use invariance::*;
use presets::*;
use table::*;

on_every_backend!(
    presets_weigh_as_their_systems_do,
    a_segment_without_tokens_divides_nothing,
    token_weights_have_the_values_of_the_table,
    segment_weights_have_the_values_of_the_table,
    saturation_bounds_a_sum_after_it_was_summed,
    a_renormalised_rollout_has_ratio_one,
    repeated_old_logprobs_are_averaged_as_configured,
    rejections_keep_what_their_bounds_say,
    verls_k1_is_of_the_negative_log_ratio,
    off_policy_answers_are_masked_where_they_are_bad,
    turns_are_weighted_and_rejected_one_by_one,
    the_batch_may_normalise_its_weights,
    the_mean_is_of_weights_that_a_segment_set_to_0,
    a_group_normalises_its_own_weights,
    rejected_segments_leave_their_group,
    one_member_may_outweigh_the_others_by_far,
    a_chain_with_given_uniforms_has_the_values_of_the_table,
    the_balance_heuristic_has_the_values_of_the_table,
    the_token_form_of_the_test_is_speculative,
    results_agree_with_the_reference_for_every_weight_and_length,
    results_agree_for_every_rejection,
    results_agree_for_every_offset,
    diagnostics_agree_with_the_reference,
    diagnostics_mean_what_they_say,
    neighbours_do_not_change_a_bit,
    masked_tokens_may_hold_anything,
    the_place_in_the_pack_does_not_change_a_bit,
    the_same_ids_in_other_packing_give_the_same_decisions,
    a_group_keeps_its_bits_wherever_it_lies,
    multiplicities_of_a_group_add_up_to_its_members,
    multiplicity_leaves_the_target_invariant_and_the_mask_does_not,
    segments_may_come_in_several_calls_and_on_several_ranks,
    a_token_that_is_not_finite_is_handled_as_configured,
    faults_are_reported_whatever_is_asked_for,
    a_segment_of_nothing_finite_is_not_catastrophic,
    odd_masks_and_positive_logprobs_are_reported,
    nothing_to_count_is_nothing,
    faults_of_a_call_are_listed_together,
    numbers_outside_their_range_are_refused,
    turns_must_refine_segments,
    repeated_runs_are_equal_bit_for_bit,
    any_call_is_the_reference_s_whatever_else_is_asked_for,
);
