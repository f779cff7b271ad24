// Selection among values in registers, without their ids: sorting networks and the k-th largest of two sorted lists.
//
// An order says which of two values comes first. NaN goes through both of `first` and `second`: a NaN anywhere comes out as a NaN wherever
// it could have mattered.
#pragma once

#include "../device.cuh"

// Two 16-bit floats a word, each half with its own list.
template <class T> struct Halves {
    using Value = uint32_t;
    static MOERL_DEVICE Value first(Value a, Value b) { return max_nan_x2<T>(a, b); }
    static MOERL_DEVICE Value second(Value a, Value b) { return min_nan_x2<T>(a, b); }
    static MOERL_DEVICE Value swapped(Value a) { return a >> 16 | a << 16; }
};
struct Singles {
    using Value = float;
    static MOERL_DEVICE Value first(Value a, Value b) { return max_nan(a, b); }
    static MOERL_DEVICE Value second(Value a, Value b) { return min_nan(a, b); }
};
struct Keys {
    using Value = int32_t;
    static MOERL_DEVICE Value first(Value a, Value b) { return a > b ? a : b; }
    static MOERL_DEVICE Value second(Value a, Value b) { return a < b ? a : b; }
};

template <class Order> MOERL_DEVICE void exchange(typename Order::Value& a, typename Order::Value& b) {
    const typename Order::Value first = Order::first(a, b), second = Order::second(a, b);
    a = first;
    b = second;
}

// Batcher's odd-even merge sort of 8: 19 exchanges.
template <class Order> MOERL_DEVICE void sort(typename Order::Value (&x)[8]) {
    constexpr int PAIRS[19][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {1, 2}, {5, 6},
                                  {0, 4}, {1, 5}, {2, 6}, {3, 7}, {2, 4}, {3, 5}, {1, 2}, {3, 4}, {5, 6}};
    MOERL_UNROLL
    for (int i = 0; i < 19; i++) exchange<Order>(x[PAIRS[i][0]], x[PAIRS[i][1]]);
}

// Sorts what rises and then falls, or is rotated from that.
template <class Order, int COUNT> MOERL_DEVICE void sort_bitonic(typename Order::Value (&x)[COUNT]) {
    MOERL_UNROLL
    for (int distance = COUNT / 2; distance > 0; distance /= 2) {
        MOERL_UNROLL
        for (int i = 0; i < COUNT; i++) {
            if ((i & distance) == 0) exchange<Order>(x[i], x[i + distance]);
        }
    }
}

// Two lanes, `lanes` apart, hold a sorted list of 8 each: both then hold the first COUNT of the 16, sorted.
template <class Order, int COUNT> MOERL_DEVICE void merge(const typename Order::Value (&x)[8], int lanes, typename Order::Value (&merged)[COUNT]) {
    static_assert(COUNT == 8 || COUNT == 16, "the better half, or all");
    typename Order::Value better[8], worse[8];
    MOERL_UNROLL
    for (int i = 0; i < 8; i++) {
        const typename Order::Value other = shuffle_xor(x[7 - i], lanes);
        better[i] = Order::first(x[i], other);
        worse[i] = Order::second(x[i], other);
    }
    sort_bitonic<Order, 8>(better);
    if constexpr (COUNT == 16) sort_bitonic<Order, 8>(worse);
    MOERL_UNROLL
    for (int i = 0; i < COUNT; i++) merged[i] = i < 8 ? better[i] : worse[i - 8];
}

// The RANK-th of the union of two sorted lists. With i of them from a and the others from b, the last one taken is min(a[i-1], b[RANK-i-1]),
// and the right i is the one where that is largest.
template <int RANK, int COUNT> MOERL_DEVICE float ranked_of_two(const float (&a)[COUNT], const float (&b)[COUNT]) {
    float best = max_nan(a[RANK - 1], b[RANK - 1]);
    MOERL_UNROLL
    for (int i = 1; i < RANK; i++) best = max_nan(best, min_nan(a[i - 1], b[RANK - i - 1]));
    return best;
}
// The same of the two lists in the halves of x; in both halves. Each word settles two ways to divide RANK.
template <class T, int RANK, int COUNT> MOERL_DEVICE uint32_t ranked_of_halves(const uint32_t (&x)[COUNT]) {
    using Order = Halves<T>;
    uint32_t best = x[RANK - 1];
    MOERL_UNROLL
    for (int i = 1; i <= RANK / 2; i++) best = Order::first(best, Order::second(x[i - 1], Order::swapped(x[RANK - i - 1])));
    return Order::first(best, Order::swapped(best));
}
