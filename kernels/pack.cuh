// 16-byte packs of any element type that become f32 at the edge, so that all arithmetic between is f32.
#pragma once

#include "device.cuh"

template <class T> constexpr int PACK = 16 / static_cast<int>(sizeof(T));

template <class T> MOERL_DEVICE void unpack(Words4 pack, float (&x)[PACK<T>]) {
    MOERL_UNROLL
    for (int i = 0; i < 4; i++) {
        if constexpr (sizeof(T) == 4) {
            x[i] = f32_of(pack.w[i]);
        } else {
            x[2 * i] = to_f32(T{static_cast<uint16_t>(pack.w[i] & 0xffffu)});
            x[2 * i + 1] = to_f32(T{static_cast<uint16_t>(pack.w[i] >> 16)});
        }
    }
}

// Rounds each value once.
template <class T> MOERL_DEVICE Words4 pack(const float (&x)[PACK<T>]) {
    Words4 r;
    MOERL_UNROLL
    for (int i = 0; i < 4; i++) {
        if constexpr (sizeof(T) == 4) r.w[i] = bits_of(x[i]);
        else r.w[i] = from_f32_x2<T>(x[2 * i], x[2 * i + 1]);
    }
    return r;
}
