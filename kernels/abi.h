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
    // objective
    MOERL_FAULT_NONFINITE_INPUT = 64,  // NaN or infinity at a token that counts
    MOERL_FAULT_POSITIVE_LOGPROB = 65, // a log-probability above 1e-3
    MOERL_FAULT_MASK = 66,             // a mask value that is neither 0 nor 1
    MOERL_FAULT_ZERO_DENOMINATOR = 67, // a denominator of 0 although a token counts
};

// ---- objective ------------------------------------------------------------------------------------------------------

#define MOERL_TILE 1024           // positions of a segment that make one tile of its sums
#define MOERL_TILE_GROUP 32       // tiles that are added up before they join the rest
#define MOERL_UNIT_SEGMENTS 256   // most segments of a unit
#define MOERL_TALLY 32            // numbers of a tally: the diagnostics by place, and the loss in the last

enum MoerlVariant {
    MOERL_PPO_CLIP = 0,
    MOERL_GSPO = 1,
    MOERL_GSPO_TOKEN = 2,
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

// Places of the diagnostics: sums, then maxima. Those up to MOERL_SUM_CAPPED are of tokens, the others of segments.
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
    MOERL_MAX_RATIO = 21,
    MOERL_MAX_NEGATIVE_RATIO = 22,
    MOERL_MAX_SEQUENCE_RATIO = 23,
    MOERL_MAX_NEGATIVE_SEQUENCE_RATIO = 24,
};

// The work of one warp: a tile of a long segment, or whole short ones; at most MOERL_TILE tokens.
struct MoerlUnit {
    uint64_t token;     // the first
    uint32_t segment;   // the first
    uint16_t tokens;
    uint16_t segments;  // 0: a tile of a segment that has several
};

struct MoerlCoefficient {
    float ratio;     // s
    float weight;    // c
    float gradient;  // of every counted token, where they share one
    uint32_t flags;
};

struct MoerlObjective {
    // [N]; null: not read in this phase
    const float* logprobs;
    const float* old_logprobs;
    const float* advantages;  // [N] or [S]
    const uint8_t* loss_mask;
    const float* weights;
    const float* segment_scale;  // [S]
    const double* denominators;  // [4], instead of `divisor_values`
    const int64_t* offsets;      // [S + 1]
    const struct MoerlUnit* units;
    // planes [S]
    double* log_ratio;
    double* count;
    double* positive;
    double* negative;
    double* nonfinite;
    struct MoerlCoefficient* coefficients;  // [S]
    float* d_logprobs;                      // [N]
    float* ratio;                           // [N]
    uint8_t* clipped;                       // [N]
    float* sequence_ratio;                  // [S]
    uint8_t* sequence_clipped;              // [S]
    double* loss;
    double* diagnostics;
    uint64_t* errors;
    // workspace
    uint64_t* local_counts;  // [2]: T and B, counted in this call; null unless asked for
    uint32_t* tickets;       // of the tree of tallies
    uint32_t* group_tickets; // [units]
    uint32_t* tile_tickets;  // [units]
    double* tallies;         // of the tree
    uint32_t* tile_records;  // [units][4]: D, S+, S- as f32; n | nonfinite << 16
    double* group_records;   // [units][5]
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
    // and of the ratio
    float upper;
    float lower;
    float cap;
    float saturation_low;
    float saturation_high;
    uint32_t nonfinite_policy;
    uint32_t divisors;
    uint32_t tag;
    uint8_t is_sequence_level;
    uint8_t advantage_per_token;
    uint8_t aligned;      // every [N] array begins at a 16-byte boundary (bytes: 4)
    uint8_t accumulate;   // the planes go on from what is there
    uint8_t keep_totals;  // loss and diagnostics do
    uint8_t count_empty;
    uint8_t reserved[6];
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
    uint8_t divide;              // by the standard deviation
    uint8_t single_keeps_reward;
    uint8_t reserved[6];
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
    uint8_t one_step;
    uint8_t reserved[3];
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

struct MoerlGateBackward {
    const void* router_logits;  // null unless softmax over all
    const void* d_topk_weights;
    const int32_t* topk_ids;
    const float* selected_logits;
    const float* lse;
    void* d_router_logits;
    uint64_t rows;
    int64_t router_logits_stride;
    int64_t d_topk_weights_stride;
    int64_t d_router_logits_stride;
    struct MoerlGateRouter router;
    uint32_t router_logits_element;
    uint32_t d_topk_weights_element;
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

struct MoerlLogprobForward {
    const void* logits;
    const void* tokens;
    const float* temperature;    // null: uniform_temperature
    const uint8_t* loss_mask;
    float* logprobs;
    float* entropy;
    float* max;
    float* log_sum;
    float* lse;
    float* sum_p2;
    struct MoerlPartial* saved;
    float* sum_sq;
    struct MoerlPartial* records;  // [rows, panels]: where several blocks share a row
    float* labels;                 // [rows]: likewise
    uint64_t* errors;
    uint64_t rows;
    uint64_t groups;             // group g holds the rows g, g + groups, g + 2 * groups, ...
    int64_t logits_stride;
    int64_t tokens_stride;
    int64_t ignore_index;
    uint32_t tokens_element;
    uint32_t vocabulary;
    uint32_t tag;
    float uniform_temperature;
};

struct MoerlLogprobBackward {
    const void* logits;
    void* d_logits;
    const void* tokens;
    const float* temperature;    // null: uniform_temperature
    const uint8_t* loss_mask;
    const struct MoerlPartial* saved;
    const float* d_logprobs;
    const float* d_entropy;
    const float* d_lse;
    uint64_t rows;
    uint64_t groups;             // as in the forward
    int64_t logits_stride;
    int64_t d_logits_stride;
    int64_t tokens_stride;
    int64_t ignore_index;
    uint32_t tokens_element;
    uint32_t vocabulary;
    uint32_t columns;
    uint32_t panels;             // that cover the columns
    uint32_t shares;             // this many blocks share a group, each takes every shares-th panel of it
    float uniform_temperature;
};

#endif
