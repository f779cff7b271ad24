// THE contract between the host (src/abi.rs, generated from this file) and the kernels.
//
// One by-value parameter structure per kernel family; plain old data, no CUDA word, nothing but <stdint.h>.
// Rules: fields are ordered pointers first, then 8-byte, 4-byte and smaller ones, so that no padding hides inside;
// strides and counts that may pass 2^31 are 64-bit; strides are in ELEMENTS; a null pointer means "not asked for".
#ifndef MOERL_ABI_H
#define MOERL_ABI_H

#include <stdint.h>

// ---- elements -------------------------------------------------------------------------------------------------------

enum MoerlElement {
    MOERL_BF16 = 0,
    MOERL_F16 = 1,
    MOERL_F32 = 2,
    MOERL_U8 = 3,
    MOERL_U16 = 4,
    MOERL_I16 = 5,
    MOERL_I32 = 6,
    MOERL_I64 = 7,
};

// ---- the device error word ------------------------------------------------------------------------------------------
//
// One u64 that holds the smallest (row, tag, code) of all faults found since it was last cleared; all ones: no fault.
// Written by integer atomic minimum, so it is the same in every run. row: 40 bits, tag (the caller's layer or call number): 16, code: 8.

static const uint64_t MOERL_NO_FAULT = 0xffffffffffffffffull;
#define MOERL_FAULT_ROW_SHIFT 24
#define MOERL_FAULT_TAG_SHIFT 8

enum MoerlFault {
    // gate
    MOERL_FAULT_DUPLICATE = 1,  // a forced row names an expert twice
    MOERL_FAULT_RANGE = 2,      // a forced row names an expert that does not exist
    MOERL_FAULT_PARTIAL = 3,    // some, but not all, ids of a forced row are the sentinel
    MOERL_FAULT_MISSING = 4,    // a forced row is absent, and the policy is to call that an error
    MOERL_FAULT_ROW_MODE = 5,   // row_mode is not 0, 1 or 2
    MOERL_FAULT_NAN_LOGIT = 6,  // a NaN logit that was not selected
    MOERL_FAULT_NONFINITE_WEIGHT = 7,  // a weight would be NaN or infinite
    MOERL_FAULT_NAN_BIAS = 8,   // NaN in the selection bias
    MOERL_FAULT_ROW_INDEX = 9,  // row_index below -1
    MOERL_FAULT_ROW_COUNT = 10, // the device row count is outside [0, rows]
    // logprob
    MOERL_FAULT_TARGET = 32,       // a token id outside the vocabulary
    MOERL_FAULT_TEMPERATURE = 33,  // a row's temperature is not a positive number that f32 can scale by
    MOERL_FAULT_EMPTY_ROW = 34,    // a whole row of -inf
    MOERL_FAULT_NONFINITE_LOGIT = 35,  // +inf or NaN in a counted column
    MOERL_FAULT_KEEP = 36,         // a keep-set's ids are not strictly ascending, or outside the vocabulary
    MOERL_FAULT_KEEP_OFFSETS = 37, // a keep-set's offsets descend, or leave the ids
    MOERL_FAULT_EMPTY_KEEP = 38,   // a whole keep-set of -inf
    // objective
    MOERL_FAULT_NONFINITE_INPUT = 64,  // NaN or infinity at a token that counts
    MOERL_FAULT_POSITIVE_LOGPROB = 65, // a log-probability above 1e-3
    MOERL_FAULT_MASK = 66,             // a mask value that is neither 0 nor 1
    MOERL_FAULT_ZERO_DENOMINATOR = 67, // a denominator of 0 although a token counts
    MOERL_FAULT_SEGMENT_WEIGHT = 68,   // a segment's weight that is NaN or infinite
    MOERL_FAULT_VARYING_ADVANTAGE = 69,  // of a segment: its tokens' advantages differ, where it has to have one
    // correction
    MOERL_FAULT_SEGMENT_INPUT = 96,    // of a segment: its log-probabilities make no weight
};

// ---- objective ------------------------------------------------------------------------------------------------------

#define MOERL_TILE 1024           // positions of a segment that make one tile of its sums
#define MOERL_TILE_GROUP 32       // tiles that are added up before they join the rest
#define MOERL_UNIT_SEGMENTS 256   // most segments of a unit
#define MOERL_TALLY 64            // numbers of a tally, two a lane: the diagnostics by place, and the loss in the last

enum MoerlVariant {
    MOERL_PPO_CLIP = 0,
    MOERL_GSPO = 1,
    MOERL_GSPO_TOKEN = 2,
    MOERL_CISPO = 3,
    MOERL_CISPO_SEQUENCE = 4,
    MOERL_GMPO = 5,
    MOERL_SAPO = 6,
    MOERL_SAPO_SEQUENCE = 7,
    MOERL_VESPO = 8,
    MOERL_DPPO_TV = 9,
    MOERL_DPPO_KL = 10,
    MOERL_MINIRL = 11,
    MOERL_TOPR = 12,
    MOERL_SQUARE_PENALTY = 13,
    MOERL_POLICY_GRADIENT = 14,  // -A l
    MOERL_TIS_LOSS = 15,
    MOERL_KL_COV = 16,
};

enum MoerlKl {
    MOERL_KL_NONE = 0,
    MOERL_KL_K1 = 1,
    MOERL_KL_ABS = 2,
    MOERL_KL_K2 = 3,
    MOERL_KL_K3 = 4,
    MOERL_KL_K3_TOKEN = 5,     // times the token's ratio
    MOERL_KL_K3_SEQUENCE = 6,  // times the segment's
};

enum MoerlNonFinite {
    MOERL_PROPAGATE = 0,
    MOERL_ZERO_WEIGHT = 1,
    MOERL_DROP_SEGMENT = 2,
};

// What divides the coefficient of a segment, added up.
enum MoerlDivisor {
    MOERL_BY_TOKENS = 1,
    MOERL_BY_SEGMENTS = 2,
    MOERL_BY_PROMPTS = 4,
    MOERL_BY_MAX_LEN = 8,
    MOERL_BY_COUNT = 16,     // the segment's own counted tokens
    MOERL_BY_SCALE = 32,     // segment_scale
    MOERL_TIMES_SCALE = 64,  // segment_scale multiplies instead
};

// Bits of a coefficient's flags.
enum MoerlSegmentFlag {
    MOERL_ABOVE = 1,           // above the upper bound for A > 0
    MOERL_BELOW = 2,           // below the window
    MOERL_CAPPED = 4,          // above the cap for A < 0
    MOERL_PASS_POSITIVE = 8,   // the gradient passes where A > 0
    MOERL_PASS_NEGATIVE = 16,  // and where A < 0
    MOERL_NONFINITE = 32,      // an input of a counted token is NaN or infinite
    MOERL_DROPPED = 64,
    MOERL_EMPTY = 128,         // no token counts
};

// The code that `apply` runs: that of a variant with nothing beside it, or the one that knows them all.
enum MoerlFamily {
    MOERL_FAMILY_CLIPPED_RATIO = 0,
    MOERL_FAMILY_SHARED_GRADIENT = 1,
    MOERL_FAMILY_SEGMENT_RATIO = 2,
    MOERL_FAMILY_ANY = 3,
};

// Which arrays `apply` reads where it has the choice, added up.
enum MoerlRead {
    MOERL_READ_LOGPROBS = 1,
    MOERL_READ_OLD = 2,
    MOERL_READ_ADVANTAGES = 4,
    MOERL_READ_WEIGHTS = 8,
    MOERL_READ_SHIFT = 16,
    MOERL_READ_TERMS = 32,  // rollout_logprobs, ref_logprobs, entropy
    MOERL_READ_KEEP = 64,
};

// Places of the diagnostics: sums, then maxima. Those up to MOERL_SUM_CAPPED are of tokens, up to MOERL_SUM_SEQUENCE_CAPPED of segments.
enum MoerlSum {
    MOERL_SUM_TOKENS = 0,
    MOERL_SUM_NONFINITE = 1,
    MOERL_SUM_POLICY_K1 = 2,
    MOERL_SUM_POLICY_K2 = 3,
    MOERL_SUM_POLICY_K3 = 4,
    MOERL_SUM_RATIO = 5,
    MOERL_SUM_RATIO_SQUARED = 6,
    MOERL_SUM_WEIGHT = 7,
    MOERL_SUM_WEIGHT_SQUARED = 8,
    MOERL_SUM_SATURATED_HIGH = 9,
    MOERL_SUM_SATURATED_LOW = 10,
    MOERL_SUM_CLIPPED_HIGH = 11,
    MOERL_SUM_CLIPPED_LOW = 12,
    MOERL_SUM_CAPPED = 13,
    MOERL_SUM_SEGMENTS = 14,
    MOERL_SUM_EMPTY_SEGMENTS = 15,
    MOERL_SUM_DROPPED_SEGMENTS = 16,
    MOERL_SUM_SEQUENCE_RATIO = 17,
    MOERL_SUM_SEQUENCE_CLIPPED_HIGH = 18,
    MOERL_SUM_SEQUENCE_CLIPPED_LOW = 19,
    MOERL_SUM_SEQUENCE_CAPPED = 20,
    MOERL_SUM_LOSS = 21,
    // of tokens, what stands beside the policy term
    MOERL_SUM_KL_LOSS = 22,
    MOERL_SUM_MISMATCH_LOSS = 23,
    MOERL_SUM_ENTROPY_LOSS = 24,
    MOERL_SUM_ENTROPY = 25,
    MOERL_SUM_REF_K1 = 26,
    MOERL_SUM_REF_K3 = 27,
    MOERL_SUM_ROLLOUT_ENTROPY = 28,
    MOERL_SUM_PULL = 29,
    MOERL_SUM_OUTSIDE = 30,
    MOERL_SUM_GAMMA = 31,
    MOERL_SUM_REJECTED = 32,
    MOERL_SUM_LOGPROBS_SEEN = 33,
    MOERL_SUM_BF16_LOOKING = 34,
    MOERL_SUM_POSITIVE_LOGPROBS = 35,
    MOERL_MAX_RATIO = 36,
    MOERL_MAX_NEGATIVE_RATIO = 37,
    MOERL_MAX_SEQUENCE_RATIO = 38,
    MOERL_MAX_NEGATIVE_SEQUENCE_RATIO = 39,
    MOERL_MAX_WEIGHT = 40,
    MOERL_MAX_NEGATIVE_WEIGHT = 41,
};

// The work of one warp: a tile of a long segment, or whole short ones; at most MOERL_TILE tokens.
struct MoerlUnit {
    uint64_t token;     // the first
    uint32_t segment;   // the first
    uint16_t tokens;
    uint16_t segments;  // 0: a tile of a segment that has several
};

struct MoerlCoefficient {
    float ratio;     // what stands for the token's ratio: s, clamped where the variant clamps it; phi for A >= 0
    float weight;    // c W
    float gradient;  // of every counted token, where they share one; phi for A < 0
    uint32_t flags;
    // What only the terms beside the policy's need.
    float scale;     // c
    float sequence_ratio;  // s
    float shared;    // of every counted token, by way of s in a divergence
    float segment_weight;  // W
};

struct MoerlObjective {
    // [N]; null: not read in this phase
    const float* logprobs;
    const float* old_logprobs;
    const float* advantages;  // [N] or [S]
    const uint8_t* loss_mask;
    const float* weights;
    const uint8_t* keep;
    const uint8_t* chosen;
    const float* router_shift;
    const float* rollout_logprobs;  // null: old_logprobs are the rollout's
    const float* ref_logprobs;
    const float* entropy;
    const float* segment_weights;  // [S]
    const float* segment_scale;  // [S]
    const double* denominators;  // [4], instead of `divisor_values`
    const int64_t* offsets;      // [S + 1]
    const struct MoerlUnit* units;
    // planes [S]
    double* log_ratio;
    double* count;  // null: not known, for nothing needs it
    double* positive;
    double* negative;
    double* kept;
    double* divergence;
    double* folded;
    double* nonfinite;
    struct MoerlCoefficient* coefficients;  // [S]
    float* d_logprobs;                      // [N]
    float* d_entropy;                       // [N]
    float* kl;                              // [N]
    float* ratio;                           // [N]
    uint8_t* clipped;                       // [N]
    float* sequence_ratio;                  // [S]
    uint8_t* sequence_clipped;              // [S]
    double* loss;
    double* diagnostics;
    uint64_t* errors;
    // workspace
    uint64_t* local_counts;  // [2]: T and B, counted in this call; null unless asked for
    uint32_t* tickets;       // of the tree over units
    uint32_t* segment_tickets;  // of the tree over tiles of 1024 segments
    uint32_t* group_tickets; // [units]
    uint32_t* tile_tickets;  // [units]
    uint64_t* arrivals;      // [tiles of segments]: how many segments; above bit 32 the groups of 32 that were summed on chip
    double* tallies;         // of the tree over units
    double* segment_tallies; // of the tree over tiles of segments
    double* group_sums;      // [2][groups of 32 segments]: loss, s
    uint32_t* tile_records;  // [units][8]: D, S+, S- as f32; n | nonfinite << 16; C, K as f32; kept; the tokens' advantage
    double* group_records;   // [units][8]: D, S+, S-, n, nonfinite, C, K, kept
    uint64_t segment_count;
    uint64_t unit_count;
    double divisor_values[4];  // T, B, P, L
    double scale;
    // bounds of the logarithm of a segment's ratio
    double log_upper;
    double log_lower;
    double log_cap;
    // of a token's
    float token_log_upper;
    float token_log_lower;
    float token_log_cap;
    // and of the ratio; for a divergence from the old policy how far it may go
    float upper;
    float lower;
    float cap;
    float saturation_low;
    float saturation_high;
    // of the variant, by the sign of A: tau, or k and lambda
    float positive_rate;
    float negative_rate;
    float positive_scale;
    float negative_scale;
    float epsilon;  // added to probabilities
    float kl_beta;
    float kl_input_clamp;
    float kl_output_clamp;
    float mismatch_penalty;
    float entropy_bonus;
    uint32_t variant;
    uint32_t kl_form;
    uint32_t reads;
    uint32_t nonfinite_policy;
    uint32_t divisors;
    uint32_t tag;
    uint8_t is_sequence_level;
    uint8_t advantage_per_token;
    uint8_t aligned;      // every [N] array begins at a 16-byte boundary (bytes: 4)
    uint8_t accumulate;   // the planes go on from what is there
    uint8_t keep_totals;  // loss and diagnostics do
    uint8_t count_empty;
    uint8_t kl_straight_through;
    uint8_t folds_weights;    // w is part of `folded` and multiplies nothing else
    uint8_t is_gated;         // the window stops the gradient, where the variant leaves that open
    uint8_t rejects_all;      // a rejected token loses every term
    uint8_t after_rejection;  // denominators count what was kept
    uint8_t value_in_finish;  // the policy's loss is known by then
    uint8_t has_rollout;
    uint8_t opens_totals;     // this launch is the first to write the loss
    uint8_t family;
    uint8_t finishes;         // `partial` does what `finish` would
};

// ---- route change ---------------------------------------------------------------------------------------------------

#define MOERL_ROUTE_BINS 16
#define MOERL_ROUTE_NUMBERS 7  // count, |D|, D^2, d, d^2, clipped, rejected

struct MoerlRouteChange {
    // [N]
    const float* logprobs;
    const float* old_logprobs;
    const float* rollout_logprobs;
    const uint8_t* loss_mask;
    const uint8_t* clipped;
    const uint8_t* keep;
    const uint8_t* route_change;
    double* sums;      // [MOERL_ROUTE_BINS][MOERL_ROUTE_NUMBERS]
    // workspace
    uint32_t* ticket;
    double* records;   // [blocks][MOERL_ROUTE_BINS][MOERL_ROUTE_NUMBERS]
    uint64_t tokens;
    uint64_t accumulate;
};

// ---- covariance -----------------------------------------------------------------------------------------------------

enum MoerlCovarianceRule {
    MOERL_COVARIANCE_RANDOM = 0,     // of those between the bounds, the ones with the smallest random keys
    MOERL_COVARIANCE_BERNOULLI = 1,  // of those between the bounds, each by its own coin
    MOERL_COVARIANCE_LARGEST = 2,    // those with the largest covariance
};

// What the launches of a call hand on.
struct MoerlCovarianceState {
    double mean_advantage;
    double mean_logprob;
    uint64_t prefix;  // the digits of the last chosen key that are known
    uint64_t wanted;  // keys still to be chosen among those that begin with them
};

struct MoerlCovariance {
    // [N]
    const float* logprobs;
    const float* advantages;
    const uint8_t* loss_mask;
    const uint8_t* excluded;
    const uint32_t* token_ids;
    uint8_t* chosen;
    uint8_t* keep;
    // workspace
    struct MoerlCovarianceState* state;
    uint32_t* ticket;
    uint32_t* histogram;  // [256]
    double* sums;         // [blocks][3]
    uint64_t tokens;
    uint64_t seed;
    uint64_t threshold;   // of a coin, of 2^32
    double fraction;
    double mean_advantage;
    double mean_logprob;
    double lower;
    double upper;
    uint32_t rule;
    uint32_t shift;       // of the digit that this pass counts
    uint32_t has_means;
    uint32_t reserved;
};

// ---- correction -----------------------------------------------------------------------------------------------------

#define MOERL_CORRECTION_OPTIONS 8        // most rejections of a configuration
#define MOERL_CORRECTION_TOKEN_OPTIONS 4  // of which so many may look at tokens
#define MOERL_CORRECTION_PROPOSALS 16     // most proposal policies of multiple importance sampling
#define MOERL_CORRECTION_REPEATS 16       // most repetitions of the old log-probabilities
#define MOERL_CORRECTION_GLOBALS 16       // the first places of the tally of segments, then of that of tokens
#define MOERL_TALLY_PLACES 32             // of either tally, one a lane

// What a plane holds: one f64 per piece. A piece is a segment, or a turn of one.
enum MoerlCorrectionPlane {
    MOERL_CORRECTION_LOG_RATIO = 0,   // sum m delta
    MOERL_CORRECTION_COUNT = 1,
    MOERL_CORRECTION_NONFINITE = 2,
    MOERL_CORRECTION_KEPT = 3,        // tokens that no rejection of tokens rejects
    MOERL_CORRECTION_REJECTED = 4,    // by the first, second, ... rejection of tokens
    MOERL_CORRECTION_K1 = 8,          // sum m clamp(delta)
    MOERL_CORRECTION_K2 = 9,
    MOERL_CORRECTION_K3 = 10,
    MOERL_CORRECTION_ADVANTAGE = 11,  // sum m A
    MOERL_CORRECTION_OLD = 12,        // sum m o
    MOERL_CORRECTION_ROLLOUT = 13,    // sum m q
    MOERL_CORRECTION_WEIGHT = 14,     // sum m w, where w is a token's own
    MOERL_CORRECTION_RAW_WEIGHT = 15,
    MOERL_CORRECTION_KEPT_K3 = 16,
    MOERL_CORRECTION_MAX = 17,        // of delta, by maximum
    MOERL_CORRECTION_MAX_NEGATIVE = 18,
    MOERL_CORRECTION_PLANES = 19,
};

enum MoerlCorrectionLevel {
    MOERL_CORRECTION_TOKEN = 0,
    MOERL_CORRECTION_TURN = 1,
    MOERL_CORRECTION_SEQUENCE = 2,
    MOERL_CORRECTION_GEOMETRIC = 3,
};

enum MoerlCorrectionWeight {
    MOERL_CORRECTION_ONE = 0,
    MOERL_CORRECTION_CLAMP = 1,          // into [low, high]
    MOERL_CORRECTION_BAND = 2,           // 0 outside
    MOERL_CORRECTION_SEQUENCE_MASK = 3,  // of tokens, unbounded; 0 where the segment's mean is outside
    MOERL_CORRECTION_SELF_NORMALISED = 4,
    MOERL_CORRECTION_METROPOLIS_MASK = 5,
    MOERL_CORRECTION_METROPOLIS_MULTIPLICITY = 6,
    MOERL_CORRECTION_MULTIPLE = 7,
    MOERL_CORRECTION_ATTACHED = 8,  // self-normalised, X saturated; advantages are what the gradient is made of
};

// What a rejection looks at; the first four are of tokens.
enum MoerlCorrectionStatistic {
    MOERL_CORRECTION_OF_TOKEN = 0,  // delta
    MOERL_CORRECTION_OF_TOKEN_K1 = 1,
    MOERL_CORRECTION_OF_TOKEN_K2 = 2,
    MOERL_CORRECTION_OF_TOKEN_K3 = 3,
    MOERL_CORRECTION_OF_TURN = 4,
    MOERL_CORRECTION_OF_SUM = 5,
    MOERL_CORRECTION_OF_MEAN = 6,
    MOERL_CORRECTION_OF_SUM_K1 = 7,
    MOERL_CORRECTION_OF_SUM_K2 = 8,
    MOERL_CORRECTION_OF_SUM_K3 = 9,
    MOERL_CORRECTION_OF_MEAN_K1 = 10,
    MOERL_CORRECTION_OF_MEAN_K2 = 11,
    MOERL_CORRECTION_OF_MEAN_K3 = 12,
    MOERL_CORRECTION_OF_MAX_K2 = 13,
    MOERL_CORRECTION_OF_MAX_K3 = 14,
    MOERL_CORRECTION_OF_EXTREMES = 15,    // the smallest and the largest delta
    MOERL_CORRECTION_OF_BAD_ANSWER = 16,  // mean of q - l, where A < 0
};

// Places of the tally of tokens. Sums, then maxima.
enum MoerlCorrectionTokenSum {
    MOERL_CORRECTION_TOKENS = 0,
    MOERL_CORRECTION_TOKEN_WEIGHTS = 1,
    MOERL_CORRECTION_TOKEN_WEIGHTS_SQUARED = 2,
    MOERL_CORRECTION_TOKEN_CHI2 = 3,  // sum e^{2 delta}
    MOERL_CORRECTION_TOKENS_NONFINITE = 8,
    MOERL_CORRECTION_MISMATCH_K1 = 9,
    MOERL_CORRECTION_MISMATCH_K3 = 10,
    MOERL_CORRECTION_PROBABILITY_ERROR = 11,
    MOERL_CORRECTION_JENSEN_SHANNON = 12,
    MOERL_CORRECTION_TOKEN_RAW = 13,
    MOERL_CORRECTION_TOKEN_RAW_SQUARED = 14,
    MOERL_CORRECTION_TOKENS_ABOVE = 15,
    MOERL_CORRECTION_TOKENS_BELOW = 16,
    MOERL_CORRECTION_TOKENS_SATURATED_HIGH = 17,
    MOERL_CORRECTION_TOKENS_SATURATED_LOW = 18,
    MOERL_CORRECTION_TOKENS_CATASTROPHIC = 19,
    MOERL_CORRECTION_MAX_LOG_RATIO = 28,
    MOERL_CORRECTION_MAX_NEGATIVE_LOG_RATIO = 29,
};

// Places of the tally of segments; the diagnostics hold it behind the other.
enum MoerlCorrectionSegmentSum {
    MOERL_CORRECTION_KEPT_TOKENS = 0,
    MOERL_CORRECTION_KEPT_SEGMENTS = 1,
    MOERL_CORRECTION_KEPT_GROUPS = 2,
    MOERL_CORRECTION_WEIGHED = 4,  // segments with a weight; tokens for the weights of turns
    MOERL_CORRECTION_WEIGHTS = 5,
    MOERL_CORRECTION_WEIGHTS_SQUARED = 6,
    MOERL_CORRECTION_SEQUENCE_CHI2 = 7,
    MOERL_CORRECTION_SEGMENTS = 8,
    MOERL_CORRECTION_EMPTY_SEGMENTS = 9,
    MOERL_CORRECTION_DROPPED_SEGMENTS = 10,
    MOERL_CORRECTION_PPL_OLD = 11,
    MOERL_CORRECTION_PPL_ROLLOUT = 12,
    MOERL_CORRECTION_LOG_PPL_ROLLOUT = 13,
    MOERL_CORRECTION_LOG_PPL_DIFF = 14,
    MOERL_CORRECTION_LOG_PPL_ABS_DIFF = 15,
    MOERL_CORRECTION_PPL_RATIO = 16,
    MOERL_CORRECTION_GEOMETRIC_CHI2 = 17,
    MOERL_CORRECTION_SPREAD_WEIGHTS = 18,  // of segments and turns, a token each
    MOERL_CORRECTION_SPREAD_WEIGHTS_SQUARED = 19,
    MOERL_CORRECTION_SEQUENCE_WEIGHTS = 20,  // the mean over each segment's tokens
    MOERL_CORRECTION_SEQUENCE_WEIGHTS_SQUARED = 21,
    MOERL_CORRECTION_SEQUENCES_ABOVE = 22,
    MOERL_CORRECTION_SEQUENCES_BELOW = 23,
    MOERL_CORRECTION_SEGMENTS_CATASTROPHIC = 24,
    MOERL_CORRECTION_ACCEPTED = 25,
    MOERL_CORRECTION_SUM_KEPT_K3 = 26,
    MOERL_CORRECTION_GROUP_ESS = 27,
    MOERL_CORRECTION_MAX_SEQUENCE_WEIGHT = 28,
    MOERL_CORRECTION_MAX_NEGATIVE_SEQUENCE_WEIGHT = 29,
    MOERL_CORRECTION_MAX_LOG_PPL_DIFF = 30,
    MOERL_CORRECTION_MAX_NEGATIVE_LOG_PPL_DIFF = 31,
};

enum MoerlDecisionFlag {
    MOERL_DECISION_KEPT = 1,
    MOERL_DECISION_NONFINITE = 2,
    MOERL_DECISION_DROPPED = 4,
};

// What `apply` needs to know of a piece.
struct MoerlDecision {
    float weight;
    uint32_t flags;
};

// Keeps what is in [low, high].
struct MoerlCorrectionOption {
    double low;
    double high;
    float token_low;
    float token_high;
    uint32_t statistic;
    uint32_t rejected;  // for those of tokens: their plane behind MOERL_CORRECTION_REJECTED
};

struct MoerlCorrection {
    // [N]; null: not read in this phase
    const float* old_logprobs;  // [R][N]
    const float* rollout_logprobs;
    const float* kept_log_mass;
    const float* router_shift;
    const float* advantages;    // [N] or [S]
    const uint8_t* loss_mask;
    const float* uniforms;      // [S], or [N] for tokens
    const int64_t* offsets;     // [pieces + 1]
    const struct MoerlUnit* units;
    const uint32_t* first_piece;  // [S + 1]; null: a segment is a piece
    const uint32_t* group_ptr;    // [G + 1]
    const uint32_t* members;
    const uint64_t* segment_ids;     // [S]
    const double* current_log_ratio; // [S]: sum m (l - o)
    const float* rewards;            // [S]
    const double* target_logprobs;   // [S]
    const double* proposal_logprobs; // [S][M]
    const double* carried;           // [G]
    double* planes;
    struct MoerlDecision* decisions;  // [pieces]; null: `apply` runs alone
    float* weights;                   // [N]
    uint8_t* keep;                    // [N]
    float* log_ratio;                 // [N]
    float* segment_weights;           // [S]
    double* segment_log_weights;      // [S]
    uint32_t* kept;                   // [S]
    uint8_t* accepted;                // [S]
    uint32_t* multiplicity;           // [S]
    uint32_t* carry_multiplicity;     // [G]
    double* carry_log_weights;        // [G]
    float* baseline_advantages;       // [S]
    double* expected_rewards;         // [G]
    uint64_t* rejected;               // [options][2]: tokens, segments; added to
    double* globals;
    double* diagnostics;
    uint64_t* errors;
    // workspace
    uint32_t* tickets;
    uint32_t* group_tickets;
    uint32_t* tile_tickets;
    double* tallies;
    uint32_t* tile_records;   // [units][16]
    double* group_records;    // [units][MOERL_CORRECTION_PLANES]
    uint32_t* multiplicities; // [S]: as `multiplicity`, whether asked for or not
    uint64_t segment_count;
    uint64_t piece_count;
    uint64_t unit_count;
    uint64_t group_count;
    uint64_t token_count;
    uint64_t seed;
    // bounds of the logarithm of the weight, and of the weight
    double log_low;
    double log_high;
    double catastrophic_low;
    double catastrophic_high;
    double log_proportions[MOERL_CORRECTION_PROPOSALS];
    struct MoerlCorrectionOption options[MOERL_CORRECTION_OPTIONS];
    float low;
    float high;
    float token_log_low;
    float token_log_high;
    // beyond which a raw weight of a token, or of a segment, is reported
    float reported_log_low;
    float reported_log_high;
    float saturation;
    uint32_t option_count;
    uint32_t repeats;
    uint32_t proposals;
    uint32_t level;
    uint32_t weight;
    uint32_t nonfinite_policy;
    uint32_t tag;
    uint8_t place[MOERL_CORRECTION_PLANES];  // where among the planes each one lies; 255: nowhere
    uint8_t mean_of_repeats;
    uint8_t advantage_per_token;
    uint8_t batch_normalise;
    uint8_t reads_tokens;   // `apply` reads more than the mask
    uint8_t aligned;
    uint8_t accumulate;
    uint8_t keep_totals;
    uint8_t has_token_options;
    uint8_t reserved[5];
};

// ---- advantage ------------------------------------------------------------------------------------------------------

#define MOERL_GROUP_CHUNK 1024    // members that one block adds up, where a group has more than these
#define MOERL_MOMENTS_TILE 4096   // values that one block adds up
#define MOERL_RETURN_BLOCK 32     // positions of a segment that one lane walks through
#define MOERL_BASELINE_TILE 128   // token indices of a group that one block takes

// What is subtracted from a reward.
enum MoerlBaseline {
    MOERL_BASELINE_MEAN = 0,
    MOERL_BASELINE_LEAVE_ONE_OUT = 1,
    MOERL_BASELINE_LENGTH_WEIGHTED = 2,
};

// A piece of a group that one block takes: members for the group's statistics, token indices for the baselines of tokens.
struct MoerlGroupPiece {
    uint32_t group;
    uint32_t index;  // which of the group's pieces
};

// What a chunk, or all, of a group's finite rewards come to.
struct MoerlGroupSums {
    double count;
    double sum;
    double min;
    double max;
    double weight;    // of the lengths
    double weighted;  // of length times reward
};

// A = (R - shift) * factor.
struct MoerlGroupScale {
    double mean;
    double shift;
    double factor;
    uint32_t count;
    uint32_t is_flat;
};

struct MoerlGroupAdvantages {
    const float* rewards;        // [S]
    const uint32_t* lengths;     // [S], of MOERL_BASELINE_LENGTH_WEIGHTED
    float* advantages;           // [S]
    uint64_t* counts;            // [3], added to
    const uint32_t* group_ptr;   // [G + 1]
    const uint32_t* members;
    // of groups with more than MOERL_GROUP_CHUNK members
    const struct MoerlGroupPiece* chunks;
    struct MoerlGroupSums* sums;    // [chunks]
    double* squares;                // [chunks]
    struct MoerlGroupScale* scales; // [chunks], used where a group's first chunk is
    uint32_t* tickets;              // [chunks], likewise
    uint64_t groups;
    double epsilon;
    double degenerate_tol;
    uint32_t ddof;
    uint32_t baseline;           // MoerlBaseline
    float left_out;              // the advantage of a reward that is not finite
    uint8_t divide;              // by the standard deviation
    uint8_t single_keeps_reward;
    uint8_t reserved[2];
};

// Sums over a batch: weight, sum of weight * value, and in a second pass sum of weight * (value - mean)^2.
struct MoerlMoments {
    const float* values;      // [L]
    const uint8_t* mask;      // [L], or null
    const uint32_t* weights;  // [L], or null
    double* moments;          // [3]
    double* records;          // [tiles][2]
    uint32_t* ticket;
    uint64_t length;
    uint32_t squares;         // 1: the second pass
    uint32_t reserved;
};

struct MoerlWhiten {
    float* values;          // [L], in place
    const uint8_t* mask;    // [L], or null
    const double* moments;  // [3]
    uint64_t length;
    double epsilon;
    uint32_t ddof;
    uint8_t centre;
    uint8_t epsilon_in_root;
    uint8_t reserved[2];
};

struct MoerlDoublyRobust {
    const float* rewards;  // [S]
    const float* values;
    const float* weights;  // null: 1
    float* advantages;
    float* estimates;      // null, or [S]
    uint64_t* nonfinite;   // [1], added to
    uint64_t segments;
};

struct MoerlCountTokens {
    const uint8_t* loss_mask;         // [N], or null
    const int64_t* offsets;           // [S + 1]
    const struct MoerlUnit* units;
    uint32_t* counts;                 // [S], zero before
    uint64_t unit_count;
};

// What a run of positions makes of the state to its right: value, if one of its tokens counts; y = b + h * value_in + a * y_in.
struct MoerlReturnMap {
    double value;
    double b;
    double h;
    double a;
    uint64_t counts;  // 0: nothing counts, the state passes through
};

// What lies to the right of a position: gamma V of the next token (at the end, the reward and gamma times the bootstrap), and its y.
struct MoerlReturnState {
    double value;
    double y;
};

struct MoerlTokenAdvantages {
    const float* token_rewards;    // [N], or null: 0
    const float* segment_rewards;  // [S], or null: 0
    const float* values;           // [N], or null: 0
    const float* bootstrap;        // [S], or null: 0
    const float* ratio;            // [N], or null: 1
    const uint8_t* loss_mask;      // [N], or null
    const int64_t* offsets;        // [S + 1]
    const struct MoerlUnit* units;
    // [N], or null
    float* advantages;
    float* returns;
    float* policy_weights;
    uint64_t* nonfinite;           // [1], added to
    uint64_t* errors;
    struct MoerlReturnMap* maps;      // [units]
    struct MoerlReturnState* carries; // [units]
    uint32_t* tickets;                // [units]
    uint64_t unit_count;
    double gamma;
    double decay;                  // gamma * lambda
    double ratio_bar;
    double trace_bar;
    uint32_t tag;
    float left_out;                // the advantage of a counted token of which something is not finite
    uint8_t one_step;
    uint8_t reserved[7];
};

// Sums over the counted tokens to the left of a tile, or of it.
struct MoerlEnergy {
    double energy;
    uint64_t tokens;
};

struct MoerlTokenBaseline {
    const float* returns;          // [N]
    const float* logprobs;
    const float* sum_p2;
    const float* weights;          // [N], or null: 1
    const uint8_t* loss_mask;      // [N], or null
    const int64_t* offsets;        // [S + 1]
    const struct MoerlUnit* units;
    const uint32_t* group_ptr;     // [G + 1]
    const uint32_t* members;
    const struct MoerlGroupPiece* pieces;
    float* advantages;             // [N]
    uint64_t* nonfinite;           // [1], added to
    uint64_t* errors;
    struct MoerlEnergy* energies;  // [units]
    uint32_t* tickets;             // [units]
    // by segment, the counted tokens in order
    double* cumulative;            // [N]
    uint32_t* positions;           // [N], from the segment's start
    uint32_t* counts;              // [S]
    uint64_t unit_count;
    double epsilon;
    uint32_t tag;
    uint8_t zero_tail;
    uint8_t reserved[3];
};

// ---- ema --------------------------------------------------------------------------------------------------------------

#define MOERL_EMA_CHUNK 8192    // elements that one block takes
#define MOERL_EMA_TENSORS 512   // of one launch

struct MoerlEmaTensor {
    const void* parameters;  // [length] of `element`
    const void* initial;     // likewise, or null
    float* state;
    void* copy;              // bf16, or null
    uint64_t length;
    uint32_t first_block;
    uint8_t element;         // MoerlElement
    uint8_t aligned;         // every array begins at a 16-byte boundary
    uint8_t reserved[2];
};

struct MoerlEma {
    uint64_t* nonfinite;     // [1], added to; or null
    uint32_t tensor_count;
    float weight;
    float scale;
    float bias;
    struct MoerlEmaTensor tensors[MOERL_EMA_TENSORS];
};

// ---- echo: what the device sees of a structure ------------------------------------------------------------------------

// Every kind of field that the other structures use.
struct MoerlEcho {
    const void* input;
    float* output;
    uint64_t count;
    int64_t stride;
    double real64;
    uint32_t number;
    int32_t offset;
    float real32;
    uint16_t small;
    uint8_t flag;
    uint8_t last;
};

struct MoerlEchoCall {
    struct MoerlEcho* copy;  // receives `sent`, field by field
    uint64_t* layout;        // receives sizeof and offsetof of every field of MoerlEcho, in order: 12 numbers
    struct MoerlEcho sent;
};

// ---- bandwidth --------------------------------------------------------------------------------------------------------

struct MoerlBandwidth {
    const void* input;
    void* output;
    uint64_t packs;  // of 16 bytes
    uint32_t word;   // that `fill` writes
    uint32_t reserved;
};

// ---- gate ---------------------------------------------------------------------------------------------------------------

enum MoerlGateScore {
    MOERL_GATE_SOFTMAX = 0,
    MOERL_GATE_SOFTMAX_SELECTED = 1,
    MOERL_GATE_SIGMOID = 2,
    MOERL_GATE_SQRT_SOFTPLUS = 3,
    MOERL_GATE_RAW = 4,
};

enum MoerlGateRenormalize {
    MOERL_GATE_RENORMALIZE_NONE = 0,
    MOERL_GATE_RENORMALIZE_ADD_EPS = 1,
    MOERL_GATE_RENORMALIZE_FLOOR = 2,
    MOERL_GATE_RENORMALIZE_GUARD = 3,
    MOERL_GATE_RENORMALIZE_EXACT = 4,
};

// What becomes of a row that cannot be replayed.
enum MoerlGatePolicy {
    MOERL_GATE_POLICY_NATIVE = 0,
    MOERL_GATE_POLICY_ZERO_WEIGHT = 1,
    MOERL_GATE_POLICY_SPREAD = 2,
};

// A router.
struct MoerlGateRouter {
    uint32_t experts;
    uint32_t top_k;
    uint32_t score;
    uint32_t renormalize;
    float renormalize_by;    // epsilon or floor
    float scaling_factor;
    float softcap;           // 0: none
    uint32_t propagate;      // 1: NaN weights and gradients instead of zeros where a weight would not be finite
};

struct MoerlGateForward {
    const void* router_logits;
    const void* forced_ids;  // null: every row is native
    const int32_t* row_index;
    const uint8_t* row_mode;
    const float* selection_bias;
    const uint8_t* token_mask;
    const int32_t* row_count;
    int32_t* topk_ids;
    void* topk_weights;
    float* selected_logits;
    float* lse;
    uint64_t* errors;
    const float* expert_scale;
    void* record_ids;
    float* cutoff;           // not of the kernels for many rows
    uint64_t rows;
    uint64_t forced_rows;
    int64_t router_logits_stride;
    int64_t forced_ids_stride;
    int64_t topk_weights_stride;
    int64_t record_ids_stride;
    struct MoerlGateRouter router;
    uint32_t forced_ids_element;
    uint32_t topk_weights_element;
    uint32_t record_ids_element;
    int32_t sentinel;
    uint32_t missing;        // MoerlGatePolicy
    uint32_t bad;            // MoerlGatePolicy
    uint32_t group_size;     // experts of a group; all of them: no limit
    uint32_t admitted_groups;
    uint32_t group_top;
    uint32_t stage_bytes;    // a row's place in shared memory (a warp's, in the kernels for many rows), a multiple of 16; 0: rows stay in registers
    uint32_t tag;
    // 0 or 1
    uint8_t has_sentinel;
    uint8_t zeros_are_missing;
    uint8_t missing_is_fault;
    uint8_t sentinel_filler;
    uint8_t scored;          // selection goes by score + bias, not by the logit
    uint8_t wide_stores;     // of the kernels for many rows: slots may be stored several at a time
    uint8_t reserved[6];
};

// What a forward call chose, as maps over all experts.
struct MoerlGateMaps {
    const int32_t* topk_ids;
    const void* topk_weights;
    void* dense_probs;
    uint8_t* bytemap;
    uint8_t* bitmap;
    uint64_t rows;
    int64_t topk_weights_stride;
    int64_t dense_probs_stride;
    uint32_t topk_weights_element;
    uint32_t experts;
    uint32_t top_k;
    uint32_t reserved;
};

#define MOERL_PANEL 256  // rows whose column sums are made in f32, before they are merged in f64

// Places of the coefficients that regularisers multiply their gradients by, and of the values of the losses.
enum MoerlRouterTerm {
    MOERL_ROUTER_BALANCE = 0,
    MOERL_ROUTER_Z = 1,
    MOERL_ROUTER_ENTROPY = 2,
    MOERL_ROUTER_KL = 3,
};

// Regularisers of a router, finished: what is added to the gradient of its logits.
struct MoerlRouterTerms {
    const float* q;             // [segments, experts]: the derivative of the balance loss by P; null: none
    const float* coefficients;  // [4]; null: no regulariser
    const void* ref_logits;     // null: no divergence from a reference
    const int64_t* offsets;     // [segments + 1]; null: one segment
    uint64_t segments;
    int64_t ref_logits_stride;
    uint32_t ref_logits_element;
    uint32_t reserved;
};

struct MoerlGateBackward {
    const void* router_logits;    // null: neither slots nor rows are read from it
    const void* d_topk_weights;   // null: there is no gradient of weights
    const int32_t* topk_ids;
    const float* selected_logits; // null: the slots are read from router_logits
    const float* lse;             // null: summed from the row where it is needed
    const float* expert_scale;
    const uint8_t* token_mask;
    const int32_t* row_count;
    const float* advantages;      // [rows], of the surrogate; null: none
    const float* advantage_weights;
    void* d_router_logits;
    float* d_selected_logits;     // [rows, top_k]
    float* d_expert_scale;
    float* expert_scale_panels;   // [panels, experts]
    struct MoerlRouterTerms terms;
    uint64_t rows;
    int64_t router_logits_stride;
    int64_t d_topk_weights_stride;
    int64_t d_router_logits_stride;
    struct MoerlGateRouter router;
    uint32_t router_logits_element;
    uint32_t d_topk_weights_element;
    uint32_t stage_bytes;         // a row's place in shared memory, a multiple of 16
    float surrogate_coefficient;
    uint32_t tile_rows;           // that a warp of the kernels for tiles stores at a time; divides its rows
    uint8_t accumulate;           // the gradient is added to what is there
    uint8_t reserved[3];
};

// ---- router_loss ------------------------------------------------------------------------------------------------------

// Consecutive rows of one segment, at most MOERL_PANEL.
struct MoerlPanel {
    uint64_t row;       // the first
    uint32_t segment;
    uint32_t rows;
};

struct MoerlPanelSums {
    double lse_squared;
    double entropy;
    double kl;
    uint32_t rows;       // that count
    uint32_t nonfinite;  // left out
};

struct MoerlRouterLoss {
    const void* router_logits;
    const void* ref_logits;        // null: no divergence from a reference
    const int32_t* topk_ids;       // null: any row has weights; counts_best has to be set
    const float* selected_logits;  // null: none is marked
    const uint8_t* token_mask;
    const int32_t* row_count;
    const struct MoerlPanel* panels;
    const uint32_t* first_panels;  // [segments + 1]
    float* panel_probabilities;    // [panels, experts]
    uint32_t* panel_counts;        // [panels, experts]
    struct MoerlPanelSums* panel_sums;
    // the layout between partial and finish
    double* probabilities;         // [segments, experts]
    uint64_t* counts;              // [segments, experts]
    uint64_t* segment_rows;        // [segments]
    double* totals;                // [3]: of lse², of entropies, of divergences
    uint64_t* nonfinite;           // [1]
    // finish
    const uint64_t* count_rows;    // [segments]: the rows that `counts` counts
    double* segment_values;        // [segments]
    double* values;                // [4]
    float* q;                      // [segments, experts]
    float* coefficients;           // [4]
    float* selection_bias;         // [experts]
    uint64_t rows;
    uint64_t panel_count;
    uint64_t segments;
    uint64_t valid_segments;       // 0: counted here
    int64_t router_logits_stride;
    int64_t ref_logits_stride;
    double weights[4];             // of the losses
    struct MoerlGateRouter router;
    uint32_t router_logits_element;
    uint32_t ref_logits_element;
    float bias_step;
    uint8_t accumulate;            // the sums are added to what is there
    uint8_t counts_best;           // the counts are of the best top_k logits, not of topk_ids
    uint8_t reserved[2];
};

// Places of a forward call's counts of rows: what each row was (one place a row), then what happened to some.
enum MoerlGateRowCount {
    MOERL_GATE_ROWS_NATIVE = 0,
    MOERL_GATE_ROWS_REPLAY = 1,
    MOERL_GATE_ROWS_MISSING = 2,
    MOERL_GATE_ROWS_BAD = 3,
    MOERL_GATE_ROWS_PADDING = 4,
    MOERL_GATE_ROWS_REPLACED = 5,       // replayed, with an expert replaced
    MOERL_GATE_ROWS_BAD_REFERENCE = 6,  // replayed, with recorded weights that nothing can be compared to
    MOERL_GATE_ROW_COUNTS = 7,
};

// A forward call and what is counted and measured of it.
struct MoerlGateTelemetry {
    struct MoerlGateForward forward;
    const void* recorded_weights;  // of the forced rows
    const void* ref_logits;        // of the logits' type
    const int32_t* old_topk_ids;
    const float* old_logprob_sel;
    uint8_t* overlap;
    uint64_t* overlap_hist;
    uint8_t* changed;
    uint16_t* changed_layers;
    uint8_t* replaced;
    float* margin;
    float* deficit;
    float* forced_mass;
    float* gate_l1;
    float* set_kl;
    float* router_kl;
    void* d_router_kl;
    float* logprob_sel;
    float* shift;
    uint64_t* counts;
    uint64_t* native_counts;
    uint64_t* row_counts;
    int64_t recorded_weights_stride;
    int64_t ref_logits_stride;
    int64_t d_router_kl_stride;
    float score_replace;           // a forced expert this far below the k-th best stays; +inf: all do
    uint32_t recorded_weights_element;
    uint32_t d_router_kl_element;
    uint32_t tally_bytes;          // of a block's own counts of experts, a multiple of 16; 0: they are counted in the sums at once
    // 0 or 1
    uint8_t selects;               // replayed rows are selected as well
    uint8_t sums;                  // the log-sum-exp of every row is needed
    uint8_t reserved[6];
};

struct MoerlGateRouterShift {
    const float* shift;
    float* router_shift;
    uint64_t rows;
    float layers;
    float floor;                   // the logarithm of the least factor
};

// ---- expert_ledger ------------------------------------------------------------------------------------------------------

#define MOERL_LEDGER_PANEL 256    // rows that are added up before they join the rest
#define MOERL_NORM_PANEL 8192     // elements of a gradient, likewise

// What the tokens of one expert come to, in a panel or in all.
struct MoerlExpertSums {
    uint64_t n;
    double gate;             // G = sum of g
    double advantage;        // G1 = sum of g (A - K)
    double advantage_square; // G2 = sum of g (A - K)^2
};

struct MoerlExpertLedger {
    const int32_t* topk_ids;
    const void* topk_weights;
    const float* advantages;
    const uint8_t* loss_mask;
    const double* shift;             // K, [E]
    const double* inverse_deviation; // [E]: of the normalised advantages
    struct MoerlExpertSums* sums;    // [E], added to
    struct MoerlExpertSums* panels;  // workspace [panels][E]
    float* normalized;               // [T], added to
    uint64_t* nonfinite;             // [1], added to
    uint64_t rows;
    uint64_t panel_count;
    int64_t topk_weights_stride;
    double layers;                   // L
    uint32_t topk_weights_element;
    uint32_t experts;
    uint32_t top_k;
    float clip;                      // of a normalised advantage; +inf: none
};

struct MoerlExpertNorms {
    const void* gradient;    // [E, elements]
    double* squares;         // [E], added to
    double* panels;          // workspace [E][panels]
    float* scale;            // [E]
    uint64_t elements;
    uint64_t panel_count;
    int64_t gradient_stride;
    double clip;
    uint32_t experts;
    uint32_t reserved;
};

// ---- logprob ----------------------------------------------------------------------------------------------------------

// What a row's (or a panel's) columns sum to; in a panel's record the label's place holds sum_sq.
struct MoerlPartial {
    float max_logit;
    float sum;
    float weighted;  // base 2: times ln 2 it is the sum of e * (z - m)
    float label;
};

enum MoerlLogprobResult {
    MOERL_RESULT_WHOLE = 0,
    MOERL_RESULT_ROWS = 1,    // of a shard: records of rows, counts
    MOERL_RESULT_PANELS = 2,  // of a shard: records of panels, with the label's logit in its place
};

struct MoerlLogprobForward {
    const void* logits;
    const void* tokens;
    const float* temperature;    // null: uniform_temperature
    const uint8_t* loss_mask;
    const float* label_logits;   // [rows, ids]: where the ids' logits may lie in other shards, for rank
    float* logprobs;             // [rows, ids]
    float* entropy;
    float* max;
    float* log_sum;
    float* lse;
    float* sum_p2;
    float* other_labels;         // [rows, ids - 1]
    uint32_t* rank;              // [rows, ids]; all ones: none
    int32_t* argmax;
    struct MoerlPartial* saved;
    float* sum_sq;                 // [rows]; [rows, record_stride] where panels' records are the result
    struct MoerlPartial* records;  // [rows, record_stride]: where several blocks share a row, or panels' records are the result
    float* labels;                 // [rows]: likewise
    uint64_t* best;              // [rows]: the largest logit and its column as one number, the smaller the better; all ones: none
    uint64_t* errors;
    uint64_t rows;
    uint64_t first_row;          // of a call that is made piece by piece: added to the rows of faults
    uint64_t groups;             // group g holds the rows g, g + groups, g + 2 * groups, ...
    int64_t logits_stride;
    int64_t tokens_stride;
    int64_t ignore_index;
    int64_t vocab_start;         // of this shard
    int64_t vocab_total;         // of all shards
    uint64_t record_stride;      // records of a row
    double logit_fold;           // multiplies the logits by dividing the temperature
    uint32_t tokens_element;
    uint32_t vocabulary;         // of this shard
    uint32_t ids;                // of a row
    uint32_t tag;
    float uniform_temperature;
    float softcap;               // 0: none
    float cap_scale;             // logit_scale / softcap
    uint32_t result;             // MoerlLogprobResult
};

struct MoerlLogprobBackward {
    const void* logits;
    void* d_logits;
    const void* tokens;
    const float* temperature;    // null: uniform_temperature
    const uint8_t* loss_mask;
    const struct MoerlPartial* saved;
    const float* d_logprobs;     // [rows, ids]
    const float* d_entropy;
    const float* d_lse;
    const int32_t* kept_ids;
    const int64_t* kept_offsets; // [rows + 1]
    const struct MoerlPartial* kept_saved;
    const float* d_kept_logprobs;
    const float* d_kept_entropy;
    uint64_t rows;
    uint64_t first_row;          // of a call that is made piece by piece: where its keep-sets begin
    uint64_t call_rows;          // and how many rows that call has
    uint64_t kept;               // ids in all
    int64_t logits_stride;
    int64_t d_logits_stride;
    int64_t tokens_stride;
    int64_t ignore_index;
    int64_t vocab_start;
    int64_t vocab_total;
    double logit_fold;
    uint32_t tokens_element;
    uint32_t vocabulary;
    uint32_t ids;
    uint32_t columns;
    uint32_t panels;             // that cover the columns of a row wherever it begins in a line
    float uniform_temperature;
    float softcap;
    float cap_scale;
    float logit_scale;           // of the softcap
    uint32_t strict_keep;
    uint32_t step;               // warps among which the other kernels deal panels
    uint32_t reserved;
};

struct MoerlLogprobKeep {
    const void* logits;
    const void* tokens;
    const float* temperature;
    const uint8_t* loss_mask;
    const int32_t* kept_ids;
    const int64_t* kept_offsets;       // [rows + 1]
    const struct MoerlPartial* full;   // [rows]: the records of the whole rows; null where nothing needs them
    float* kept_logprobs;
    float* kept_entropy;
    float* kept_mass;
    struct MoerlPartial* kept_saved;
    uint64_t* label_added;       // added to
    uint64_t* errors;
    uint64_t rows;
    uint64_t first_row;          // as in the backward
    uint64_t call_rows;
    uint64_t groups;
    uint64_t kept;               // ids in all
    int64_t logits_stride;
    int64_t tokens_stride;
    int64_t ignore_index;
    int64_t vocab_start;
    int64_t vocab_total;
    double logit_fold;
    uint32_t tokens_element;
    uint32_t vocabulary;
    uint32_t ids;
    uint32_t tag;
    float uniform_temperature;
    float softcap;
    float cap_scale;
    uint32_t strict_keep;
    uint32_t is_shard;           // some ids may lie elsewhere
    uint32_t reserved;
};

#define MOERL_MAX_SHARDS 64

// Shard after shard: for each, `records_per_row` records of every row, the first `counts[shard]` of them valid.
struct MoerlLogprobCombine {
    struct MoerlLogprobForward outputs;
    const struct MoerlPartial* records;       // [shards, rows, records_per_row]
    const float* sum_sq;                      // [shards, rows, records_per_row]; null: no squares
    const float* other_labels;                // [shards, rows, ids - 1]
    const uint64_t* best;                     // [shards, rows]
    const struct MoerlPartial* kept_records;  // [shards, rows]
    const int64_t* kept_offsets;              // [rows + 1]
    float* kept_logprobs;
    float* kept_entropy;
    float* kept_mass;
    struct MoerlPartial* kept_saved;
    uint64_t kept;                            // ids in all
    uint32_t shards;
    uint32_t records_per_row;
    uint32_t positions;                       // valid records of a row, of all shards
    uint32_t reserved;
    uint32_t counts[MOERL_MAX_SHARDS];
};

// ---- linear_logprob ------------------------------------------------------------------------------------------------

// kernels/linear_logprob.cu: rows of 16-byte packs from one place to another; strides in packs.
struct MoerlLinearCopy {
    const void* from;
    void* to;
    uint64_t rows;
    uint64_t packs;              // of a row
    uint64_t from_stride;
    uint64_t to_stride;
};

// f32 numbers rounded to bf16, once; both begin at a 16-byte boundary.
struct MoerlLinearRound {
    const float* from;
    void* to;
    uint64_t length;
};

#endif
