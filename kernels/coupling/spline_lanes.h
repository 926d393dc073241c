// Splines of neighbouring elements as lanes: logits, which lie element by element in memory, are
// transposed in registers to one row of lanes for each logit, and gradients back.
//
// 16384 x 16 splines of 8 bins, one core, AVX-512 (forward, and backward alone):
//   squares of 16 lanes, addresses in a table             7.1 ms   17.0 ms
//   half squares: 8 columns of two lanes a register       5.0 ms    9.4 ms
//   shuffles within quarters, addresses by steps,
//   logits fetched ahead                                  3.6 ms    7.3 ms
#pragma once

#include "kernels/common/element.h"
#include "kernels/coupling/spline_vec.h"

namespace genssl::GENSSL_ISA {

// Columns of a block: half as many as a register has lanes.
constexpr int kLanes = Vec<float>::size, kBlockColumns = kLanes / 2;

// Rows of logits of one register of elements. The last block of columns may reach past them.
struct SplineScratch {
  alignas(64) float rows[(3 * kMaxSplineBins + 1 + kBlockColumns) * kLanes];
};

// The `count` elements from `index` on.
struct SplineLanes {
  int64_t index;
  int count;
};

GENSSL_INLINE Vec<float> read_lanes(const SplineLanes& lanes, ElementType type, const void* array) {
  Vec<float> result;
  with_float_element(type, [&]<class Element>() GENSSL_INLINE_LAMBDA {
    const auto* source = static_cast<const Element*>(array) + lanes.index;
    result = lanes.count == kLanes ? load(source) : load(source, lanes.count);
  });
  return result;
}

GENSSL_INLINE void write_lanes(const SplineLanes& lanes, ElementType type, Vec<float> value,
                               void* array) {
  with_float_element(type, [&]<class Element>() GENSSL_INLINE_LAMBDA {
    auto* target = static_cast<Element*>(array) + lanes.index;
    if (lanes.count == kLanes) {
      store(value, target);
    } else {
      store(value, target, lanes.count);
    }
  });
}

// Where the logits of every lane start; lanes past the last repeat it.
struct LaneOffsets {
  int64_t first, step;
  bool even;  // lane i starts at first + i step; otherwise as listed
  int64_t of[kLanes];

  GENSSL_INLINE LaneOffsets(const SplineLanes& lanes, const SplineRows& rows) {
    int64_t outer = 0, inner = lanes.index;
    if (lanes.index >= rows.inner) {
      outer = lanes.index / rows.inner;
      inner = lanes.index % rows.inner;
    }
    first = outer * rows.outer_stride + inner * rows.stride;
    step = rows.stride;
    even = inner + lanes.count <= rows.inner && lanes.count == kLanes;
    if (!even) list(lanes.count, rows, inner);
  }

  __attribute__((noinline)) void list(int count, const SplineRows& rows, int64_t inner) {
    of[0] = first;
    for (int lane = 1; lane < kLanes; ++lane) {
      of[lane] = of[lane - 1];
      if (lane >= count) continue;
      of[lane] += rows.stride;
      if (++inner < rows.inner) continue;
      of[lane] += rows.outer_stride - inner * rows.stride;
      inner = 0;
    }
  }
};

template <int... lanes>
struct LaneNumbers {};
template <class Pattern, int... lanes>
GENSSL_INLINE Vec<float> take_lanes(Vec<float> a, Vec<float> b, LaneNumbers<lanes...>) {
  return Vec<float>(__builtin_shufflevector(a.value, b.value, Pattern::source(lanes)...));
}
// Lanes of two registers as the pattern says: those of b follow those of a.
template <class Pattern>
GENSSL_INLINE Vec<float> shuffle(Vec<float> a, Vec<float> b) {
  return take_lanes<Pattern>(a, b, LaneNumbers<__integer_pack(kLanes)...>());
}

struct LowerHalves {
  static constexpr int source(int lane) {
    return lane < kBlockColumns ? lane : lane + kBlockColumns;
  }
};
struct UpperHalf {
  static constexpr int source(int lane) { return lane % kBlockColumns + kBlockColumns; }
};
// The quarters of both registers in turn: two of the lower or of the upper half of each.
template <int first>
struct QuartersInTurn {
  static constexpr int source(int lane) {
    return (lane / 8 + first) * 4 + lane % 4 + lane / 4 % 2 * kLanes;
  }
};
// Blocks of `block` lanes change places between the registers.
template <int block, bool lower>
struct Exchanged {
  static constexpr int source(int lane) {
    if (lower) return (lane & block) ? lane + kLanes : lane + block;
    return (lane & block) ? lane - block + kLanes : lane;
  }
};
// Of each quarter of sixteen lanes, two neighbours from both registers, taken in turn by one or by
// pairs; and every second quarter.
template <int first>
struct InTurn {
  static constexpr int source(int lane) {
    return lane / 4 * 4 + first + lane % 4 / 2 + lane % 2 * kLanes;
  }
};
template <int first>
struct ByPairs {
  static constexpr int source(int lane) {
    return lane / 4 * 4 + first + lane % 2 + lane % 4 / 2 * kLanes;
  }
};
template <int first>
struct EverySecondQuarter {
  static constexpr int source(int lane) {
    return (lane / 4 % 2 * 2 + first) * 4 + lane % 4 + lane / 8 * kLanes;
  }
};

// Transposes both halves of the registers by themselves: from register i with the columns of lanes
// i and kBlockColumns + i to register c with column c of every lane, and back.
template <int block = 1>
GENSSL_INLINE void transpose_halves(Vec<float> (&rows)[kBlockColumns]) {
  if constexpr (block < kBlockColumns) {
#pragma GCC unroll 8
    for (int i = 0; i < kBlockColumns; ++i) {
      if (i & block) continue;
      const Vec<float> a = rows[i], b = rows[i + block];
      rows[i] = shuffle<Exchanged<block, false>>(a, b);
      rows[i + block] = shuffle<Exchanged<block, true>>(a, b);
    }
    transpose_halves<2 * block>(rows);
  }
}

// Four columns of four lanes in every quarter, transposed.
GENSSL_INLINE void transpose_quarters(Vec<float>* rows) {
  const Vec<float> a = shuffle<InTurn<0>>(rows[0], rows[1]);
  const Vec<float> b = shuffle<InTurn<2>>(rows[0], rows[1]);
  const Vec<float> c = shuffle<InTurn<0>>(rows[2], rows[3]);
  const Vec<float> d = shuffle<InTurn<2>>(rows[2], rows[3]);
  rows[0] = shuffle<ByPairs<0>>(a, c);
  rows[1] = shuffle<ByPairs<2>>(a, c);
  rows[2] = shuffle<ByPairs<0>>(b, d);
  rows[3] = shuffle<ByPairs<2>>(b, d);
}

// The lane whose columns lie in the lower half of register i before the transpose, and how much
// further that of the upper half is. With these, sixteen lanes need shuffles within quarters and of
// whole quarters alone, which take three quarters of the time of general ones.
constexpr int kUpperLane = kLanes == 16 ? 4 : kBlockColumns;
constexpr int lower_lane(int i) { return i + i / kUpperLane * kUpperLane; }

GENSSL_INLINE void transpose_loaded(Vec<float> (&rows)[kBlockColumns]) {
  if constexpr (kLanes == 16) {
    transpose_quarters(rows);
    transpose_quarters(rows + 4);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const Vec<float> a = rows[c], b = rows[c + 4];
      rows[c] = shuffle<EverySecondQuarter<0>>(a, b);
      rows[c + 4] = shuffle<EverySecondQuarter<1>>(a, b);
    }
  } else {
    transpose_halves(rows);
  }
}

// Columns of every lane become lanes: register i has those of lane stored_lane(i) in its lower
// half, and of lane stored_lane(i) + kUpperLane in its upper half.
constexpr int stored_lane(int i) { return kLanes == 16 ? i % 4 + i / 4 * 8 : i; }

GENSSL_INLINE void transpose_stored(Vec<float> (&rows)[kBlockColumns]) {
  if constexpr (kLanes == 16) {
    transpose_quarters(rows);
    transpose_quarters(rows + 4);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const Vec<float> a = rows[c], b = rows[c + 4];
      rows[c] = shuffle<QuartersInTurn<0>>(a, b);
      rows[c + 4] = shuffle<QuartersInTurn<2>>(a, b);
    }
  } else {
    transpose_halves(rows);
  }
}

// Elements ahead whose logits are fetched: the arithmetic of a register takes longer than hardware
// looks ahead.
constexpr int64_t kAhead = 3 * kLanes;

// `count` columns, at most a block, at `lower` in the lower half of a register and at `upper` in
// the upper one. Loads of half a register cross fewer cache lines.
template <class Element>
GENSSL_INLINE Vec<float> load_halves(const Element* lower, const Element* upper, int count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Element) == sizeof(float)) {
    const auto half = [&](const Element* source) GENSSL_INLINE_LAMBDA {
      if (count == kBlockColumns) return _mm256_loadu_ps(source);
      return _mm256_maskz_loadu_ps(static_cast<__mmask8>((1u << count) - 1), source);
    };
    return Vec<float>(_mm512_insertf32x8(_mm512_castps256_ps512(half(lower)), half(upper), 1));
  }
#endif
  return shuffle<LowerHalves>(load(lower, count), load(upper, count));
}

// The next `count` columns, at most a block, of every lane: start(lane) points to them.
template <class Start>
GENSSL_INLINE void load_block(const Start& start, int count, float* target) {
  Vec<float> rows[kBlockColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kBlockColumns; ++i) {
    const auto *lower = start(lower_lane(i)), *upper = start(lower_lane(i) + kUpperLane);
    rows[i] = load_halves(lower, upper, count);
  }
  transpose_loaded(rows);
#pragma GCC unroll 8
  for (int i = 0; i < kBlockColumns; ++i) rows[i].store(target + i * kLanes);
}

template <class Start>
GENSSL_INLINE void load_columns(const Start& start, int columns, float* rows) {
  int k = 0;
  for (; k + kBlockColumns <= columns; k += kBlockColumns) {
    load_block([&](int lane) GENSSL_INLINE_LAMBDA { return start(lane) + k; }, kBlockColumns,
               rows + k * kLanes);
  }
  if (k < columns) {
    load_block([&](int lane) GENSSL_INLINE_LAMBDA { return start(lane) + k; }, columns - k,
               rows + k * kLanes);
  }
}

inline void load_rows(const SplineLanes& lanes, ElementType type, const SplineRows& source,
                      int columns, float* rows) {
  const LaneOffsets offsets(lanes, source);
  with_float_element(type, [&]<class Element>() GENSSL_INLINE_LAMBDA {
    const auto* logits = static_cast<const Element*>(source.data);
    if (offsets.even) {
      const auto* first = logits + offsets.first;
      const int64_t step = offsets.step;
      for (int lane = 0; lane < kLanes; ++lane) __builtin_prefetch(first + (kAhead + lane) * step);
      load_columns([&](int lane) GENSSL_INLINE_LAMBDA { return first + lane * step; }, columns,
                   rows);
    } else {
      load_columns([&](int lane) GENSSL_INLINE_LAMBDA { return logits + offsets.of[lane]; },
                   columns, rows);
    }
  });
}

// Rows of lanes, transposed.
inline void store_rows(const SplineLanes& lanes, ElementType type, const float* rows, int columns,
                       const SplineTarget& target) {
  with_float_element(type, [&]<class Element>() GENSSL_INLINE_LAMBDA {
    auto* logits = static_cast<Element*>(target.data) + lanes.index * target.stride;
    for (int k = 0; k < columns; k += kBlockColumns) {
      const int count = columns - k < kBlockColumns ? columns - k : kBlockColumns;
      Vec<float> block[kBlockColumns];
#pragma GCC unroll 8
      for (int i = 0; i < kBlockColumns; ++i) {
        block[i] = Vec<float>::load(rows + (k + i) * kLanes);
      }
      transpose_stored(block);
#pragma GCC unroll 8
      for (int i = 0; i < kBlockColumns; ++i) {
        const int lower = stored_lane(i), upper = lower + kUpperLane;
        if (lower < lanes.count) store(block[i], logits + lower * target.stride + k, count);
        if (upper < lanes.count) {
          store(shuffle<UpperHalf>(block[i], block[i]), logits + upper * target.stride + k, count);
        }
      }
    }
  });
}

// The same for a whole register of elements whose columns lie together, past the caches.
inline void stream_rows(const SplineLanes& lanes, const float* rows, int columns, void* target) {
  SplineScratch elements;
  store_rows({0, kLanes}, ElementType::float32, rows, columns, {elements.rows, columns});
  float* first = static_cast<float*>(target) + lanes.index * columns;
  for (int i = 0; i < columns; ++i) {
    store_streaming(Vec<float>::load(elements.rows + i * kLanes), first + i * kLanes);
  }
}

// widths, heights and derivatives below each other.
GENSSL_INLINE void load_parameters(const SplineLanes& lanes, ElementType type, int bins,
                                   int derivatives, const SplineRows& widths,
                                   const SplineRows& heights, const SplineRows& slopes,
                                   float* rows) {
  load_rows(lanes, type, widths, bins, rows);
  load_rows(lanes, type, heights, bins, rows + bins * kLanes);
  load_rows(lanes, type, slopes, derivatives, rows + 2 * bins * kLanes);
}

// Calls body with the registers of lanes in blocks [begin, end).
template <class Body>
GENSSL_INLINE void for_each_lanes(const SplineArgs& args, int64_t begin, int64_t end,
                                  const Body& body) {
  constexpr int size = kLanes;
  const int64_t total = args.samples * args.elements_per_sample;
  const int64_t last = end * kSplineBlock < total ? end * kSplineBlock : total;
  for (int64_t index = begin * kSplineBlock; index < last; index += size) {
    const int64_t left = last - index;
    body(SplineLanes{index, left < size ? static_cast<int>(left) : size});
  }
}

}  // namespace genssl::GENSSL_ISA
