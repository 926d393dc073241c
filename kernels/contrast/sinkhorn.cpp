#include "kernels/contrast/sinkhorn.h"

#include "kernels/common/math.h"
#include "kernels/contrast/row_reductions.h"

namespace genssl::GENSSL_ISA {
namespace {

// Rows at a time: of the maxima, for which the sums are rescaled once, and of the other passes,
// which share the loads of the columns' numbers.
constexpr int kMaximaGroup = 8, kGroup = kSinkhornScratchRows;
// Columns whose powers are added in fp32 before the sum goes on in fp64.
constexpr int64_t kTile = 1024;

// Powers that vanish are below 2^-149, or 2^-1074: a sum of at least kLeastSum has lost nothing,
// and one of at most its inverse none that overflowed.
template <class T>
constexpr double kLeastSum = sizeof(T) == 4 ? 0x1p-80 : 0x1p-900;

template <class Body>
GENSSL_INLINE void for_blocks(const SinkhornArgs& args, int64_t begin, int64_t end,
                              const Body& body) {
  for (int64_t i = begin; i < end; ++i) body(args.backwards ? begin + end - 1 - i : i);
}

// Calls body.template operator()<count>(row) for rows [row, row + count) that cover a block.
template <int group, class Body>
GENSSL_INLINE void for_groups(const SinkhornArgs& args, int64_t block, const Body& body) {
  const int64_t begin = block * kSinkhornRows;
  const int64_t end = begin + kSinkhornRows < args.rows ? begin + kSinkhornRows : args.rows;
  const int64_t groups = (end - begin + group - 1) / group;
  for (int64_t i = 0; i < groups; ++i) {
    int64_t row = begin + group * (args.backwards ? groups - 1 - i : i);
    if (row + group <= end) {
      body.template operator()<group>(row);
    } else {
      for (; row < end; ++row) body.template operator()<1>(row);
    }
  }
}

// The running maximum and sum of every column, with `count` more rows.
template <int count, class Element>
void add_rows(const Element* rows, int64_t columns, Number<Element> scale, Number<Element>* maximum,
              Number<Element>* sum) {
  using T = Number<Element>;
  for_each_register<Element>(0, columns, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    const auto numbers = in_numbers(lanes);
    const Vec<T> before = numbers.read(maximum);
    Vec<T> values[count], largest = before, total;
    for (int row = 0; row < count; ++row) {
      values[row] = lanes.read(rows + row * columns);
      largest = max(largest, values[row]);
    }
    total = numbers.read(sum) * exp2((before - largest) * Vec<T>(scale));
    for (int row = 0; row < count; ++row) {
      total = total + exp2((values[row] - largest) * Vec<T>(scale));
    }
    numbers.write(maximum, largest);
    numbers.write(sum, total);
  });
}

template <class Element>
void maxima_of_block(const SinkhornArgs& args, int64_t block) {
  using T = Number<Element>;
  T* maximum = static_cast<T*>(args.block_maxima) + block * args.columns;
  T* sum = static_cast<T*>(args.block_sums) + block * args.columns;
  for (int64_t k = 0; k < args.columns; ++k) {
    maximum[k] = kLowest<T>;
    sum[k] = T(0);
  }
  for_groups<kMaximaGroup>(args, block, [&]<int count>(int64_t row) {
    const Element* logits = static_cast<const Element*>(args.logits) + row * args.columns;
    add_rows<count>(logits, args.columns, T(args.scale), maximum, sum);
  });
}

// Numbers at the same columns of every block.
template <class T, class Body>
GENSSL_INLINE void over_blocks(const SinkhornArgs& args, const Body& body) {
  const int64_t blocks = sinkhorn_blocks(args.rows);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t offset = block * args.columns;
    body(static_cast<const T*>(args.block_maxima) + offset,
         static_cast<const T*>(args.block_sums) + offset);
  }
}

template <class T>
void merge_maxima(const SinkhornArgs& args, int64_t begin, int64_t end) {
  for_each_register<T>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    Vec<T> largest(kLowest<T>), total(T(0));
    over_blocks<T>(args, [&](const T* maxima, const T*)
                             GENSSL_INLINE_LAMBDA { largest = max(largest, lanes.read(maxima)); });
    over_blocks<T>(args, [&](const T* maxima, const T* sums) GENSSL_INLINE_LAMBDA {
      const Vec<T> factor = exp2((lanes.read(maxima) - largest) * Vec<T>(T(args.scale)));
      total = fma(lanes.read(sums), factor, total);
    });
    lanes.write(args.maximum, largest);
    lanes.write(args.sums, total);
  });
}

template <class T>
void merge_sums(const SinkhornArgs& args, int64_t begin, int64_t end) {
  for_each_register<T>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    Vec<T> total(T(0));
    over_blocks<T>(args, [&](const T*, const T* sums)
                             GENSSL_INLINE_LAMBDA { total = total + lanes.read(sums); });
    lanes.write(args.sums, total);
  });
}

template <class T>
void lower_offsets(const SinkhornArgs& args, int64_t begin, int64_t end) {
  const Vec<T> log2_of_e(T(1.4426950408889634)), inverse(T(1 / args.mean_sum));
  for_each_register<T>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    const Vec<T> logarithm = log(lanes.read(args.sums) * inverse) * log2_of_e;
    lanes.write(args.offset, lanes.read(args.offset) - logarithm);
  });
}

// `count` consecutive rows of logits, and their powers, [count, K] each.
template <int count, class Element>
struct Rows {
  using T = Number<Element>;
  const SinkhornArgs& args;
  const Element* logits;
  T* powers;
  T normalisers[count];  // 1 / sum of a row's powers

  Rows(const SinkhornArgs& args, int64_t row, void* scratch)
      : args(args),
        logits(static_cast<const Element*>(args.logits) + row * args.columns),
        powers(static_cast<T*>(scratch)) {
    double totals[count];
    raise<count, false>(logits, powers, T(0), totals);
    for (int i = 0; i < count; ++i) {
      if (!(totals[i] >= kLeastSum<T> && totals[i] <= 1 / kLeastSum<T>)) {
        const int64_t offset = i * args.columns;
        const T shift = largest_exponent(logits + offset);
        raise<1, true>(logits + offset, powers + offset, shift, totals + i);
      }
      normalisers[i] = T(1 / totals[i]);
    }
  }

  // powers = 2^(y - shift) and, in each row, their sum. The largest y is exactly the shift.
  template <int rows, bool shifted>
  void raise(const Element* logits, T* powers, T shift, double* totals) const {
    const int64_t columns = args.columns;
    for (int i = 0; i < rows; ++i) totals[i] = 0;
    for (int64_t begin = 0; begin < columns; begin += kTile) {
      const int64_t end = begin + kTile < columns ? begin + kTile : columns;
      Vec<T> sums[rows];
      for (int i = 0; i < rows; ++i) sums[i] = Vec<T>(T(0));
      for_each_register<Element>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
        const auto numbers = in_numbers(lanes);
        const Vec<T> maximum = numbers.read(args.maximum);
        const Vec<T> offset = numbers.read(args.offset);
        for (int i = 0; i < rows; ++i) {
          const Vec<T> difference = lanes.read(logits + i * columns) - maximum;
          const Vec<T> y = fma(difference, Vec<T>(T(args.scale)), offset);
          const Vec<T> power = exp2(shifted ? y - Vec<T>(shift) : y);
          numbers.write(powers + i * columns, power);
          sums[i] = sums[i] + inside(power, lanes, T(0));
        }
      });
      for (int i = 0; i < rows; ++i) totals[i] += double(sum_of_lanes(sums[i]));
    }
  }

  T largest_exponent(const Element* logits) const {
    Vec<T> largest(kLowest<T>);
    for_each_register<Element>(0, args.columns, [&](auto lanes) GENSSL_INLINE_LAMBDA {
      const auto numbers = in_numbers(lanes);
      const Vec<T> y = fma(lanes.read(logits) - numbers.read(args.maximum), Vec<T>(T(args.scale)),
                           numbers.read(args.offset));
      largest = max(largest, inside(y, lanes, kLowest<T>));
    });
    return highest_lane(largest);
  }
};

template <class Element>
void sums_of_block(const SinkhornArgs& args, int64_t block, void* scratch) {
  using T = Number<Element>;
  T* sums = static_cast<T*>(args.block_sums) + block * args.columns;
  for (int64_t k = 0; k < args.columns; ++k) sums[k] = T(0);
  for_groups<kGroup>(args, block, [&]<int count>(int64_t row) {
    const Rows<count, Element> rows(args, row, scratch);
    for_each_register<T>(0, args.columns, [&](auto lanes) GENSSL_INLINE_LAMBDA {
      Vec<T> sum = lanes.read(sums);
      for (int i = 0; i < count; ++i) {
        sum = fma(lanes.read(rows.powers + i * args.columns), Vec<T>(rows.normalisers[i]), sum);
      }
      lanes.write(sums, sum);
    });
  });
}

// Elements before the first one that is aligned to a register.
template <class Element>
int64_t elements_before_alignment(const Element* target) {
  const auto past = reinterpret_cast<uintptr_t>(target) % kVecBytes;
  return past ? static_cast<int64_t>((kVecBytes - past) / sizeof(Element)) : 0;
}

template <class Element>
void write_codes(const SinkhornArgs& args, const Number<Element>* powers,
                 Number<Element> normaliser, Element* codes) {
  const auto code = [&](auto lanes) GENSSL_INLINE_LAMBDA {
    return in_numbers(lanes).read(powers) * Vec<Number<Element>>(normaliser);
  };
  const int64_t columns = args.columns;
  int64_t head = args.streaming ? elements_before_alignment(codes) : columns;
  head = head < columns ? head : columns;
  for_each_register<Element>(
      0, head, [&](auto lanes) GENSSL_INLINE_LAMBDA { lanes.write(codes, code(lanes)); });
  for_each_register<Element>(head, columns, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    lanes.write_streaming(codes, code(lanes));
  });
}

template <class Element>
void codes_of_block(const SinkhornArgs& args, int64_t block, void* scratch) {
  for_groups<kGroup>(args, block, [&]<int count>(int64_t row) {
    const Rows<count, Element> rows(args, row, scratch);
    for (int i = 0; i < count; ++i) {
      write_codes(args, rows.powers + i * args.columns, rows.normalisers[i],
                  static_cast<Element*>(args.codes) + (row + i) * args.columns);
    }
  });
  if (args.streaming) finish_streaming();
}

}  // namespace

void sinkhorn_block_maxima(const SinkhornArgs& args, int64_t begin, int64_t end) {
  with_element(args.type, [&]<class Element>() {
    for_blocks(args, begin, end, [&](int64_t block) { maxima_of_block<Element>(args, block); });
  });
}

void sinkhorn_maxima(const SinkhornArgs& args, int64_t begin, int64_t end) {
  with_element(args.type,
               [&]<class Element>() { merge_maxima<Number<Element>>(args, begin, end); });
}

void sinkhorn_block_sums(const SinkhornArgs& args, int64_t begin, int64_t end, void* scratch) {
  with_element(args.type, [&]<class Element>() {
    for_blocks(args, begin, end,
               [&](int64_t block) { sums_of_block<Element>(args, block, scratch); });
  });
}

void sinkhorn_sums(const SinkhornArgs& args, int64_t begin, int64_t end) {
  with_element(args.type, [&]<class Element>() { merge_sums<Number<Element>>(args, begin, end); });
}

void sinkhorn_offsets(const SinkhornArgs& args, int64_t begin, int64_t end) {
  with_element(args.type,
               [&]<class Element>() { lower_offsets<Number<Element>>(args, begin, end); });
}

void sinkhorn_codes(const SinkhornArgs& args, int64_t begin, int64_t end, void* scratch) {
  with_element(args.type, [&]<class Element>() {
    for_blocks(args, begin, end,
               [&](int64_t block) { codes_of_block<Element>(args, block, scratch); });
  });
}

}  // namespace genssl::GENSSL_ISA
