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
    uint64_t rows;
    uint64_t forced_rows;
    int64_t router_logits_stride;
    int64_t forced_ids_stride;
    int64_t topk_weights_stride;
    struct MoerlGateRouter router;
    uint32_t forced_ids_element;
    uint32_t topk_weights_element;
    int32_t sentinel;
    uint32_t missing;        // MoerlGatePolicy
    uint32_t bad;            // MoerlGatePolicy
    uint32_t group_size;     // experts of a group; all of them: no limit
    uint32_t admitted_groups;
    uint32_t group_top;
    uint32_t stage_bytes;    // a row's place in shared memory, a multiple of 16; 0: rows stay in registers
    uint32_t tag;
    // 0 or 1
    uint8_t has_sentinel;
    uint8_t zeros_are_missing;
    uint8_t missing_is_fault;
    uint8_t sentinel_filler;
    uint8_t scored;          // selection goes by score + bias, not by the logit
    uint8_t reserved[3];
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
