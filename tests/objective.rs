//! Policy objectives: what every backend must agree on.

#[path = "objective/agreement.rs"]
mod agreement;
#[path = "objective/any.rs"]
mod any;
#[path = "objective/attached.rs"]
mod attached;
#[path = "objective/bad_input.rs"]
mod bad_input;
#[path = "objective/case.rs"]
mod case;
mod common;
#[path = "objective/conventions.rs"]
mod conventions;
#[path = "objective/draw.rs"]
mod draw;
#[cfg(feature = "emulate")]
#[path = "objective/emulated.rs"]
mod emulated;
#[path = "objective/found.rs"]
mod found;
#[path = "objective/invariance.rs"]
mod invariance;
#[cfg(any(feature = "cuda", feature = "emulate"))]
#[path = "objective/large.rs"]
mod large;
#[path = "objective/outputs.rs"]
mod outputs;
#[path = "objective/singles.rs"]
mod singles;
#[path = "objective/table.rs"]
mod table;
#[path = "objective/upstream.rs"]
mod upstream;
#[path = "objective/variants.rs"]
mod variants;

use agreement::*;
use any::*;
use attached::*;
use bad_input::*;
use conventions::*;
use found::*;
use invariance::*;
use singles::*;
use table::*;
use upstream::*;
use variants::*;

on_every_backend!(
    two_tokens_give_the_values_of_the_table,
    every_variant_gives_the_values_of_the_table,
    weights_of_a_geometric_mean_are_part_of_it,
    divergences_give_the_values_of_the_table,
    bounds_pass_the_gradient_and_the_next_number_does_not,
    results_agree_with_the_reference_for_every_variant_and_length,
    every_objective_agrees_with_the_reference,
    ratios_may_be_taken_against_the_rollout,
    rejected_tokens_lose_their_terms,
    a_log_ratio_of_200_saturates,
    a_normalised_sum_is_a_mean_over_the_batch,
    luspo_weighs_every_token_alike,
    an_overflowing_ratio_makes_no_nan,
    a_masked_log_ratio_of_200_changes_nothing,
    a_weighted_divergence_has_its_own_gradient,
    accumulated_calls_are_one_batch,
    what_does_not_count_is_in_no_denominator,
    weights_are_in_the_gradient,
    a_window_is_of_the_ratio_and_not_of_its_logarithm,
    a_batch_without_a_kept_token_is_zero,
    denominators_after_no_rejection_count_every_token,
    empty_segments_among_others_are_absent,
    saturated_tokens_are_counted_and_pass_nothing,
    a_term_without_its_input_is_refused,
    correcting_for_the_rollout_twice_is_refused,
    a_bad_segment_weight_is_reported,
    the_parts_of_a_loss_add_up,
    rounded_log_probabilities_are_noticed,
    log_probabilities_just_above_0_are_counted,
    results_agree_for_every_aggregation,
    results_agree_for_every_saturation_and_cap,
    absent_old_logprobs_make_every_ratio_one,
    diagnostics_agree_with_the_reference,
    unaligned_arrays_give_the_same_bits,
    masked_tokens_may_hold_anything,
    nothing_to_count_is_zero,
    a_token_that_is_not_finite_is_handled_as_configured,
    gmpo_reports_advantages_that_vary_inside_a_segment,
    gmpo_reports_sums_of_both_signs,
    zero_denominators_are_reported,
    odd_masks_and_positive_logprobs_are_reported,
    faults_of_a_call_are_listed_together,
    neighbours_do_not_change_a_bit,
    the_place_in_the_pack_does_not_change_a_bit,
    splitting_a_batch_changes_no_gradient,
    the_order_and_the_ranks_of_segments_change_no_gradient,
    the_size_class_does_not_change_a_bit,
    context_parallel_ranks_agree,
    phases_give_what_the_one_call_gives,
    what_is_asked_for_does_not_change_a_bit,
    segments_of_one_token_give_what_the_phases_give,
    segments_may_come_in_several_calls,
    gspo_token_is_gspo_where_they_coincide,
    repeated_runs_are_equal_bit_for_bit,
    attached_weights_have_the_values_of_the_table,
    attached_gradients_are_those_of_the_estimate,
    rejected_segments_have_no_part_in_an_attached_estimate,
    an_attached_objective_is_linear_in_its_factors,
    attached_weights_without_what_they_need_are_refused,
    without_a_bonus_the_entropys_gradient_is_zero,
    phases_know_which_segments_are_clipped,
    an_empty_segment_may_have_any_number_of_its_own,
    statistics_are_of_the_token_alone,
    without_a_denominator_every_gradient_is_nan,
    a_dropped_segment_pulls_nothing,
    bounds_on_one_side_of_zero_count_what_is_beyond_them,
    an_infinite_segment_weight_shows_in_all_of_its_segment,
    an_overflowing_ratio_leaves_no_nan_beside_any_zero,
    a_weighted_divergence_keeps_its_gradient_far_from_the_reference,
    a_dropped_segment_divides_by_nothing,
    misaligned_sums_are_refused,
    any_call_agrees_with_the_reference_and_itself,
);
