// Exponential moving averages of a list of tensors, in one launch.
//
//   s = s + w (p - s)          w = 1 - b
//   out = scale s              scale = 1 / (1 - b_1 b_2 ...) where the average began at 0
//   out = a (p - p0) + s       BEMA: the average, and a share of the way that it lags behind
//
// Data. A block takes EMA_CHUNK elements of one tensor, and finds it by a search in the list, which comes with the launch's parameters. Each element is read
// and each result written once: p 2 or 4 bytes, s 4 + 4, p0 as p, the copy 2. A thread takes 8 elements at a time, by 16-byte accesses where every
// array of the tensor begins at a 16-byte boundary.
//
// Tricks. The difference is formed before it is weighed: b s + (1 - b) p would round b. Half of it is formed, and weighed by twice as much: the whole of it may be
// more than f32 holds. From 2^-125 on that gives the same bits. An element that is not finite leaves its average as it is.
#include "block.cuh"
#include "pack.cuh"

constexpr uint32_t EMA_THREADS = 256;
constexpr int EIGHT = 8;
constexpr uint32_t EMA_ROUNDS = MOERL_EMA_CHUNK / (EMA_THREADS * EIGHT);

struct Eight {
    float x[EIGHT];
};

// `count` of eight elements from `index` on; OVERWRITTEN by the same launch: not through the read-only path.
template <bool OVERWRITTEN, class T> MOERL_DEVICE Eight load_eight(const T* array, uint64_t index, int count, bool aligned) {
    Eight r = {};
    if (array == nullptr) return r;
    if (aligned && count == EIGHT) {
        MOERL_UNROLL
        for (int part = 0; part < EIGHT / PACK<T>; part++) {
            float values[PACK<T>];
            const T* const from = array + index + part * PACK<T>;
            unpack<T>(OVERWRITTEN ? load16_once(from) : load16_stream(from), values);
            MOERL_UNROLL
            for (int i = 0; i < PACK<T>; i++) r.x[part * PACK<T> + i] = values[i];
        }
        return r;
    }
    MOERL_UNROLL
    for (int i = 0; i < EIGHT; i++) {
        if (i < count) r.x[i] = to_f32(load(array + index + i));
    }
    return r;
}

template <class T> MOERL_DEVICE void store_eight(T* array, uint64_t index, int count, bool aligned, const Eight& values) {
    if (array == nullptr) return;
    if (aligned && count == EIGHT) {
        MOERL_UNROLL
        for (int part = 0; part < EIGHT / PACK<T>; part++) {
            float of_part[PACK<T>];
            MOERL_UNROLL
            for (int i = 0; i < PACK<T>; i++) of_part[i] = values.x[part * PACK<T> + i];
            store16_stream(array + index + part * PACK<T>, pack<T>(of_part));
        }
        return;
    }
    MOERL_UNROLL
    for (int i = 0; i < EIGHT; i++) {
        if (i < count) store(array + index + i, from_f32<T>(values.x[i]));
    }
}

// The tensor that this block works on: the last one that begins no later.
MOERL_DEVICE uint32_t find_tensor(const MoerlEma& p) {
    uint32_t low = 0, high = p.tensor_count;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (p.tensors[middle].first_block <= block_index()) low = middle;
        else high = middle;
    }
    return low;
}

MOERL_DEVICE float half_difference(float a, float b) { return fmaf(0.5f, a, -0.5f * b); }

// Returns how many elements were not finite.
template <class T> MOERL_DEVICE uint32_t average(const MoerlEma& p, const MoerlEmaTensor& t) {
    const uint64_t first = static_cast<uint64_t>(block_index() - t.first_block) * MOERL_EMA_CHUNK;
    const T* const parameters = static_cast<const T*>(t.parameters);
    const T* const initial = static_cast<const T*>(t.initial);
    bf16* const copy = static_cast<bf16*>(t.copy);
    const bool aligned = t.aligned != 0;
    uint32_t lost = 0;
    for (uint32_t round = 0; round < EMA_ROUNDS; round++) {
        const uint64_t index = first + (round * EMA_THREADS + thread_index()) * EIGHT;
        if (index >= t.length) break;
        const int count = t.length - index < EIGHT ? static_cast<int>(t.length - index) : EIGHT;
        const Eight value = load_eight<false>(parameters, index, count, aligned);
        const Eight before = load_eight<false>(initial, index, count, aligned);
        Eight state = load_eight<true>(t.state, index, count, aligned);
        Eight out;
        MOERL_UNROLL
        for (int i = 0; i < EIGHT; i++) {
            const bool is_sound = is_finite(value.x[i]) && is_finite(before.x[i]);
            if (is_sound) state.x[i] = fmaf(2.0f * p.weight, half_difference(value.x[i], state.x[i]), state.x[i]);
            else if (i < count) lost++;
            const bool is_corrected = initial != nullptr && is_sound;
            out.x[i] = is_corrected ? fmaf(2.0f * p.bias, half_difference(value.x[i], before.x[i]), state.x[i]) : p.scale * state.x[i];
        }
        store_eight(t.state, index, count, aligned, state);
        store_eight(copy, index, count, aligned, out);
    }
    return lost;
}

MOERL_KERNEL(ema, MoerlEma, 256) {
    MOERL_SHARED(uint32_t, total, 1);
    const MoerlEmaTensor& t = p.tensors[find_tensor(p)];
    uint32_t lost;
    if (t.element == MOERL_BF16) lost = average<bf16>(p, t);
    else if (t.element == MOERL_F16) lost = average<f16>(p, t);
    else lost = average<float>(p, t);
    if (!sync_block_or(lost != 0) || p.nonfinite == nullptr) return;  // the usual case costs one barrier
    if (thread_index() == 0) total[0] = 0;
    sync_block();
    if (lost != 0) shared_atomic_add(total, lost);
    sync_block();
    if (thread_index() == 0) atomic_add(p.nonfinite, static_cast<uint64_t>(total[0]));
}
