//! Advantages: what every backend must agree on.

#[path = "advantage/any.rs"]
mod any;
#[path = "advantage/any_tokens.rs"]
mod any_tokens;
#[path = "advantage/baseline.rs"]
mod baseline;
#[path = "advantage/batch.rs"]
mod batch;
mod common;
#[path = "advantage/drawn.rs"]
mod drawn;
#[cfg(feature = "emulate")]
#[path = "advantage/emulated.rs"]
mod emulated;
#[path = "advantage/group.rs"]
mod group;
#[path = "advantage/token.rs"]
mod token;

use any::*;
use any_tokens::*;
use baseline::*;
use batch::*;
use group::*;
use token::*;

on_every_backend!(
    four_answers_give_the_values_of_the_table,
    the_mean_of_the_others_gives_the_values_of_the_table,
    a_mean_by_length_gives_the_value_of_the_table,
    groups_of_one_and_of_equal_rewards_are_zero,
    rewards_that_are_not_finite_leave_their_group,
    members_may_lie_anywhere_and_groups_have_any_size,
    large_groups_agree_with_the_reference,
    a_large_offset_costs_no_digits,
    counts_add_up,
    faults_are_listed_together,
    moments_are_sums_that_ranks_may_add_up,
    whitened_values_have_mean_0_and_deviation_1,
    without_two_values_there_is_no_deviation,
    a_batch_of_rewards_is_divided_by_its_deviation,
    a_segment_counts_as_often_as_it_has_tokens,
    a_reward_that_is_not_finite_is_not_whitened,
    tokens_are_counted_by_segment,
    doubly_robust_estimates_correct_the_value_by_the_weighted_error,
    two_tokens_give_gae_of_the_table,
    two_tokens_give_vtrace_of_the_table,
    vtrace_at_ratio_one_is_gae_bit_for_bit,
    token_results_agree_with_the_reference_for_every_estimator_and_length,
    rewards_of_tokens_and_segments_add_up,
    a_mask_gap_changes_nothing,
    masked_tokens_hold_anything_and_get_zero,
    tokens_that_are_not_finite_are_left_out_and_reported,
    nothing_to_count_is_zero,
    returns_are_whitened_over_the_batch,
    faults_of_a_token_call_are_listed_together,
    two_members_give_the_baseline_of_the_formula,
    baselines_agree_with_the_reference,
    a_mask_gap_does_not_shift_the_index,
    a_baseline_leaves_out_what_is_not_finite,
    faults_of_a_baseline_call_are_listed_together,
    any_groups_are_the_reference_s,
    any_batch_is_the_reference_s,
    any_tokens_are_the_reference_s,
    any_baseline_is_the_reference_s,
    any_composition_is_the_reference_s,
);
