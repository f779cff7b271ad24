// Philox4x32-10 (Salmon et al., SC 2011): a key and a counter into four uniform words, without a state. src/random.rs is the same on the host.
#pragma once

#include "device.cuh"

MOERL_DEVICE Words4 philox4x32_10(uint64_t key, Words4 counter) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    MOERL_UNROLL
    for (int round = 0; round < 10; round++) {
        const uint64_t first = static_cast<uint64_t>(0xd2511f53u) * counter.w[0], second = static_cast<uint64_t>(0xcd9e8d57u) * counter.w[2];
        counter = {{static_cast<uint32_t>(second >> 32) ^ counter.w[1] ^ k0, static_cast<uint32_t>(second),
                    static_cast<uint32_t>(first >> 32) ^ counter.w[3] ^ k1, static_cast<uint32_t>(first)}};
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return counter;
}
