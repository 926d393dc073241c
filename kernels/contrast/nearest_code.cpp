#include "kernels/contrast/nearest_code.h"

#include <float.h>

#include "kernels/common/element.h"
#include "kernels/common/linear.h"
#include "kernels/contrast/integer_products.h"

namespace genssl::GENSSL_ISA {
namespace {

template <class T>
constexpr T kRoundoff = sizeof(T) == 4 ? T(FLT_EPSILON / 2) : T(DBL_EPSILON / 2);
template <class T>
constexpr T kTiny = sizeof(T) == 4 ? T(FLT_MIN) : T(DBL_MIN);
template <class T>
constexpr bool kHasIntegers = sizeof(T) == 4;
template <class T>
constexpr T kInfinity = T(__builtin_inf());

GENSSL_INLINE Vec<double> load_wide(const double* source) { return Vec<double>::load(source); }
GENSSL_INLINE Vec<double> load_wide(const float* source) {
  Vec<double> lanes;
  load_floats(source, lanes);
  return lanes;
}
template <class T>
GENSSL_INLINE Vec<double> load_wide(const T* source, int64_t count) {
  if (count >= Vec<double>::size) return load_wide(source);
  T lanes[Vec<double>::size] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = source[i];
  return load_wide(lanes);
}

// |a - b|^2 from differences, in double.
template <class T>
GENSSL_INLINE double squared_distance(const T* a, const T* b, int64_t depth) {
  constexpr int size = Vec<double>::size;
  Vec<double> even(0.0), odd(0.0);
  for (int64_t k = 0; k < depth; k += 2 * size) {
    const Vec<double> first = load_wide(a + k, depth - k) - load_wide(b + k, depth - k);
    even = fma(first, first, even);
    if (k + size >= depth) break;
    const int64_t left = depth - k - size;
    const Vec<double> second = load_wide(a + k + size, left) - load_wide(b + k + size, left);
    odd = fma(second, second, odd);
  }
  return sum_of_lanes(even + odd);
}

// What the codes seen so far leave of a row, lane by lane: the lowest score, the number of the
// register that held it, and the second lowest score.
template <class T>
struct Lowest {
  Vec<T> score, place, second;

  GENSSL_INLINE void clear() { score = place = second = Vec<T>(kInfinity<T>); }
  GENSSL_INLINE void add(Vec<T> candidate, Vec<T> number) {
    second = min(second, max(score, candidate));
    place = select(candidate < score, number, place);
    score = min(score, candidate);
  }
};

// Calls tile.template operator()<ROWS>(row) for tiles that cover the rows.
template <class Tile>
GENSSL_INLINE void for_each_tile(int64_t rows, const Tile& tile) {
  constexpr int eight = kTileRows < 8 ? kTileRows : 8;
  for (int64_t row = 0; row < rows;) {
    const int count = next_tile_rows(rows - row);
    switch (count) {
      case 1:
        tile.template operator()<1>(row);
        break;
      case 2:
        tile.template operator()<2>(row);
        break;
      case 3:
        tile.template operator()<3>(row);
        break;
      case 4:
        tile.template operator()<4>(row);
        break;
      case 8:
        tile.template operator()<eight>(row);
        break;
      default:
        tile.template operator()<kTileRows>(row);
    }
    row += count;
  }
}

// Adds the scores of a tile of rows and a panel of codes, register number `number` on, to the
// lowest: score(r, v, half_norm). Unrolled, so that the products never leave their registers.
template <int ROWS, class T, class Score>
GENSSL_INLINE void add_scores(const T* half_norms, int64_t number, Lowest<T>* lowest,
                              const Score& score) {
  Vec<T> half_norm[kPanelVecs], numbers[kPanelVecs];
  for (int v = 0; v < kPanelVecs; ++v) {
    half_norm[v] = Vec<T>::load(half_norms + v * Vec<T>::size);
    numbers[v] = Vec<T>(T(number + v));
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    Lowest<T> of_row = lowest[r];
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVecs; ++v) of_row.add(score(r, v, half_norm[v]), numbers[v]);
    lowest[r] = of_row;
  }
}

template <int ROWS, class T>
__attribute__((noinline)) void add_products(const T* rows, int64_t stride, const T* panel,
                                            int64_t depth, const T* half_norms, int64_t number,
                                            Lowest<T>* lowest) {
  Vec<T> dot[ROWS][kPanelVecs];
  sum_products<T, ROWS, 1, kPanelVecs>(rows, stride, panel, depth, dot);
  add_scores<ROWS, T>(half_norms, number, lowest,
                      [&](int r, int v, Vec<T> half_norm)
                          GENSSL_INLINE_LAMBDA { return half_norm - dot[r][v]; });
}

// From integers, a product of which counts -scales[r].
template <int ROWS>
__attribute__((noinline)) void add_integer_products(const int16_t* rows, int64_t stride,
                                                    const int32_t* panel, int64_t pairs,
                                                    const float* half_norms, const float* scales,
                                                    int64_t number, Lowest<float>* lowest) {
  Int32 dot[ROWS][kPanelVecs];
  sum_integer_products<ROWS>(rows, stride, panel, pairs, dot);
  add_scores<ROWS, float>(
      half_norms, number, lowest, [&](int r, int v, Vec<float> half_norm) GENSSL_INLINE_LAMBDA {
        const Vec<float> product(__builtin_convertvector(dot[r][v], Vec<float>::Native));
        return fma(product, Vec<float>(scales[r]), half_norm);
      });
}

// What is left of a row: its lowest score over all lanes, that score's code (the first one, exact
// in T), and the second lowest score.
template <class T>
struct Winner {
  Vec<T> scores, codes, seconds;
  T score, code, second;

  GENSSL_INLINE explicit Winner(const Lowest<T>& lowest)
      : scores(lowest.score), seconds(lowest.second) {
    Vec<T> lanes;
    for (int lane = 0; lane < Vec<T>::size; ++lane) lanes.value[lane] = T(lane);
    const Vec<T> none(kInfinity<T>);
    codes = fma(lowest.place, Vec<T>(T(Vec<T>::size)), lanes);
    score = lowest_lane(scores);
    code = lowest_lane(select(scores == Vec<T>(score), codes, none));
    second = lowest_lane(min(seconds, select(codes == Vec<T>(code), none, scores)));
  }
};

// What the panels say of all codes less the center.
template <class T>
struct CodesSummary {
  T radius;               // the largest length, 0 only if all are 0
  float scale, residual;  // of the integers: their unit, and the largest length of what they lack

  explicit CodesSummary(const NearestCodeArgs<T>& args) {
    double square = 0;
    float largest = 0, residual_square = 0;
    for (int64_t panel = 0; panel < count_panels<T>(args.codes); ++panel) {
      const CodePanel& summary = args.summary[panel];
      if (!(summary.square <= square)) square = summary.square;
      if (!(summary.largest <= largest)) largest = summary.largest;
      if (!(summary.residual <= residual_square)) residual_square = summary.residual;
    }
    radius = T(__builtin_sqrt(square));
    scale = integer_scale(float(radius), largest, args.depth);
    residual = float(__builtin_sqrt(double(residual_square)));
  }
};

// Scratch memory of one block of rows. Rows that are decided make room for the others.
template <class T>
struct Block {
  int64_t stride;
  Lowest<T>* lowest;  // [block_rows]
  T* rows;            // [block_rows, stride]: x less the center
  int16_t* integers;  // [block_rows, stride]: the same in integers
  T* exact;           // [stride]: a row of x
  T* scales;          // [block_rows]: what a product of a row's integers counts, negative
  T* lengths;         // [block_rows]: |x - center|
  T* lacks;           // [block_rows]: the length of what rounding to integers takes off
  T* limits;          // [block_rows]: scores that may be those of the nearest code
  int64_t numbers[kMaxBlockRows];

  GENSSL_INLINE Block(T* workspace, int64_t block_rows, int64_t depth)
      : stride(row_stride<T>(depth)),
        lowest(reinterpret_cast<Lowest<T>*>(workspace)),
        rows(reinterpret_cast<T*>(lowest + block_rows)),
        integers(reinterpret_cast<int16_t*>(rows + block_rows * stride)),
        exact(rows + 2 * block_rows * stride),
        scales(exact + stride),
        lengths(scales + block_rows),
        lacks(lengths + block_rows),
        limits(lacks + block_rows) {}

  static GENSSL_INLINE int64_t size(int64_t block_rows, int64_t depth) {
    const int64_t lowest = sizeof(Lowest<T>) / sizeof(T);
    return (2 * block_rows + 1) * row_stride<T>(depth) + block_rows * (lowest + 4);
  }
};

template <class T, class Element>
class Search {
 public:
  GENSSL_INLINE Search(const NearestCodeArgs<T>& args, int64_t block_rows, T* workspace)
      : args_(args), block_(workspace, block_rows, args.depth), codes_(args) {}

  GENSSL_INLINE void run(int64_t begin, int64_t end) {
    if (args_.codes > 1) {
      search(begin, end);
    } else {
      for (int64_t n = begin; n < end; ++n) args_.indices[n] = 0;
    }
    for (int64_t n = begin; n < end; ++n) {
      args_.distances[n] = T(distance_to(exact_row(n), args_.indices[n]));
    }
  }

 private:
  GENSSL_INLINE void search(int64_t begin, int64_t end) {
    int64_t count = end - begin;
    for (int64_t r = 0; r < count; ++r) {
      block_.numbers[r] = begin + r;
      prepare_row(begin + r, r);
    }
    if constexpr (kHasIntegers<T>) {
      find_lowest_by_integers(count);
      count = keep_undecided(count, [&](int64_t r, T radius) { return coarse_bound(r, radius); });
    }
    if (count > 0) {
      find_lowest(count);
      count = keep_undecided(count, [&](int64_t r, T radius) { return fine_bound(r, radius); });
    }
    if (count > 0) compare_distances(count);
  }

  const Element* row(int64_t n) const {
    return static_cast<const Element*>(args_.x) + n * args_.depth;
  }

  // Row n in the type that is computed with.
  GENSSL_INLINE const T* exact_row(int64_t n) const {
    if constexpr (sizeof(Element) == sizeof(T)) {
      return row(n);
    } else {
      for_each_register<Element>(0, args_.depth, [&](auto lanes) {
        lanes.read(row(n)).store(block_.exact + lanes.index);
      });
      return block_.exact;
    }
  }

  // Row n of x less the center becomes row r of the block, in integers too, with its bounds.
  GENSSL_INLINE void prepare_row(int64_t n, int64_t r) {
    T* target = block_.rows + r * block_.stride;
    Vec<T> squares(T(0)), magnitudes(T(0));
    for (int64_t k = 0; k < args_.depth; k += Vec<T>::size) {
      const int64_t left = args_.depth - k;
      const Vec<T> value =
          left >= Vec<T>::size ? load(row(n) + k) : load(row(n) + k, static_cast<int>(left));
      const Vec<T> centered = value - load_lanes(args_.center + k, left);
      squares = fma(centered, centered, squares);
      magnitudes = max(magnitudes, abs(centered));
      store_lanes(centered, target + k, left);
    }
    const T square = sum_of_lanes(squares);
    const T length = block_.lengths[r] = T(__builtin_sqrt(double(square)));
    if constexpr (kHasIntegers<T>) {
      const T scale = integer_scale(length, highest_lane(magnitudes), args_.depth);
      int16_t* integers = block_.integers + r * block_.stride;
      const T lack = quantize_row(target, args_.depth, scale, integers);
      block_.lacks[r] = T(__builtin_sqrt(double(lack)));
      block_.scales[r] = -scale * codes_.scale;
    }
  }

  // The difference of two scores of row r is off by less, where the codes have at most this length:
  // rounding of `depth` fused multiply-adds, of x and c less the center, of the norm and of the
  // difference; and what underflows.
  GENSSL_INLINE T fine_bound(int64_t r, T radius) const {
    if (radius == T(0)) return T(0);  // all codes are equal and all scores exact
    const T depth = T(args_.depth);
    const T length = block_.lengths[r] + T(__builtin_sqrt(double(depth * kTiny<T>)));
    return 2 * (depth + 8) * (kRoundoff<T> * (radius * (length + radius)) + kTiny<T>);
  }
  // The same for scores from integers: what x and the codes lack, times the other.
  GENSSL_INLINE T coarse_bound(int64_t r, T radius) const {
    const T length = block_.lengths[r], lack = block_.lacks[r];
    return fine_bound(r, radius) + T(2.01) * (lack * radius + (length + lack) * codes_.residual);
  }

  GENSSL_INLINE void find_lowest_by_integers(int64_t rows) const {
    constexpr int64_t width = kPanelColumns<T>;
    const int64_t pairs = count_pairs(args_.depth);
    for (int64_t r = 0; r < rows; ++r) block_.lowest[r].clear();
    for (int64_t panel = 0; panel < count_panels<T>(args_.codes); ++panel) {
      for_each_tile(rows, [&]<int ROWS>(int64_t r) GENSSL_INLINE_LAMBDA {
        add_integer_products<ROWS>(block_.integers + r * block_.stride, block_.stride,
                                   args_.integers + panel * pairs * width, pairs,
                                   args_.half_norms + panel * width, block_.scales + r,
                                   panel * kPanelVecs, block_.lowest + r);
      });
    }
  }

  GENSSL_INLINE void find_lowest(int64_t rows) const {
    constexpr int64_t width = kPanelColumns<T>;
    for (int64_t r = 0; r < rows; ++r) block_.lowest[r].clear();
    for (int64_t panel = 0; panel < count_panels<T>(args_.codes); ++panel) {
      for_each_tile(rows, [&]<int ROWS>(int64_t r) GENSSL_INLINE_LAMBDA {
        add_products<ROWS>(block_.rows + r * block_.stride, block_.stride,
                           args_.panels + panel * width * args_.depth, args_.depth,
                           args_.half_norms + panel * width, panel * kPanelVecs, block_.lowest + r);
      });
    }
  }

  // Takes the codes of the lowest scores, or the nearest of several within the bound. Rows of which
  // more may be within it than the lanes hold, or which have no bound, move to the front; returns
  // how many they are.
  template <class Bound>
  GENSSL_INLINE int64_t keep_undecided(int64_t count, const Bound& bound_of) {
    int64_t kept = 0;
    for (int64_t r = 0; r < count; ++r) {
      const Winner<T> winner(block_.lowest[r]);
      int64_t& index = args_.indices[block_.numbers[r]];
      index = winner.score < kInfinity<T> ? static_cast<int64_t>(winner.code) : 0;
      T bound = bound_of(r, codes_.radius);
      if (bound < kInfinity<T>) {  // neither overflow nor NaN
        if (winner.second - winner.score >= bound) continue;
        bound = bound_of(r, radius_of_nearer(r, index));
        if (winner.second - winner.score >= bound) continue;
        if (lowest_lane(winner.seconds) > winner.score + bound) {
          index = nearest_of_lanes(winner, winner.score + bound, block_.numbers[r]);
          continue;
        }
      }
      copy_lanes(block_.rows + r * block_.stride, args_.depth, block_.rows + kept * block_.stride);
      block_.lengths[kept] = block_.lengths[r];
      block_.limits[kept] = winner.score + bound;
      block_.numbers[kept++] = block_.numbers[r];
    }
    return kept;
  }

  // Codes nearer to row r than this one have at most this length: those far away do not matter.
  GENSSL_INLINE T radius_of_nearer(int64_t r, int64_t code) const {
    const double distance = distance_to(exact_row(block_.numbers[r]), code);
    const T reach = T(1.001) * (block_.lengths[r] + T(__builtin_sqrt(distance))) + kTiny<T>;
    return reach < codes_.radius ? reach : codes_.radius;
  }

  GENSSL_INLINE double distance_to(const T* x, int64_t code) const {
    return squared_distance(x, args_.codebook + code * args_.depth, args_.depth);
  }

  // Of the lowest scores of the lanes, those within the limit compete by their distance in double.
  __attribute__((noinline)) int64_t nearest_of_lanes(const Winner<T>& winner, T limit,
                                                     int64_t n) const {
    const T* x = exact_row(n);
    int64_t nearest = static_cast<int64_t>(winner.code);
    double lowest = distance_to(x, nearest);
    for (int lane = 0; lane < Vec<T>::size; ++lane) {
      if (!(winner.scores[lane] <= limit)) continue;
      const int64_t code = static_cast<int64_t>(winner.codes[lane]);
      const double distance = distance_to(x, code);
      if (distance > lowest || (distance == lowest && code > nearest)) continue;
      nearest = code;
      lowest = distance;
    }
    return nearest;
  }

  // Codes whose score is within the bound of the lowest compete by their distance in double.
  GENSSL_INLINE void compare_distances(int64_t count) const {
    double nearest[kMaxBlockRows];
    for (int64_t r = 0; r < count; ++r) args_.indices[block_.numbers[r]] = -1;
    for_each_score(count, [&](int64_t r, Vec<T> scores, int64_t first) {
      for (int lane = 0; lane < Vec<T>::size; ++lane) {
        const int64_t code = first + lane;
        if (scores[lane] > block_.limits[r] || code >= args_.codes) continue;
        int64_t& index = args_.indices[block_.numbers[r]];
        const double distance = distance_to(exact_row(block_.numbers[r]), code);
        const bool is_nan = distance != distance;
        const bool wins = distance < nearest[r] || (is_nan && nearest[r] == nearest[r]);
        if (index >= 0 && !wins) continue;
        index = code;
        nearest[r] = distance;
      }
    });
  }

  // Calls visit(row, scores, code of the first score) for every register of scores of the rows.
  template <class Visit>
  GENSSL_INLINE void for_each_score(int64_t rows, const Visit& visit) const {
    constexpr int64_t width = kPanelColumns<T>;
    const Matrix<T> codes{nullptr, args_.panels, count_panels<T>(args_.codes) * width, args_.depth};
    multiply<T>(block_.rows, block_.stride, rows, codes, nullptr,
                [&](int64_t row, int count, int64_t column, const T* product) {
                  const auto visit_register = [&](int64_t r, int64_t n, int64_t, Vec<T> dot) {
                    visit(r, Vec<T>::load(args_.half_norms + n) - dot, n);
                  };
                  for_each_register<T>(row, count, column, codes.columns, product, visit_register);
                });
  }

  const NearestCodeArgs<T>& args_;
  Block<T> block_;
  CodesSummary<T> codes_;
};

template <class T>
bool are_equal(const T* a, const T* b, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    if (!(a[k] == b[k])) return false;
  }
  return true;
}

// Of a code's norm and three of its numbers.
template <class T>
uint64_t hash_of(const T* code, int64_t depth, T half_norm) {
  const T samples[4] = {half_norm, code[0] + T(0), code[depth / 2] + T(0), code[depth - 1] + T(0)};
  uint64_t hash = 0;
  for (T sample : samples) {
    uint64_t bits = 0;
    memcpy(&bits, &sample, sizeof sample);
    hash = (hash ^ bits) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 29;
  }
  return hash;
}

template <class T, class Element>
void search_blocks(const NearestCodeArgs<T>& args, int64_t begin, int64_t end, T* workspace) {
  const int64_t block_rows = nearest_code_sizes<T>(args.rows, args.codes, args.depth).block_rows;
  Search<T, Element> search(args, block_rows, workspace);
  for (int64_t block = begin; block < end; ++block) {
    search.run(block * block_rows, smaller(args.rows, (block + 1) * block_rows));
  }
}

}  // namespace

template <class T>
NearestCodeSizes nearest_code_sizes(int64_t rows, int64_t codes, int64_t depth) {
  const int64_t height = smaller(4 * kTileRows, block_rows<T>(depth, larger(rows, 1)));
  const int64_t of_panel = kPanelColumns<T> * depth;
  return {count_panels<T>(codes), kPanelColumns<T>, kHasIntegers<T> ? count_pairs(depth) : 0,
          height, larger(Block<T>::size(height, depth), of_panel)};
}

template <class T>
void nearest_code_center(const NearestCodeArgs<T>& args, double* sums) {
  for (int64_t k = 0; k < args.depth; ++k) sums[k] = 0;
  for (int64_t code = 0; code < args.codes; ++code) {
    const T* values = args.codebook + code * args.depth;
    for (int64_t k = 0; k < args.depth; ++k) sums[k] += double(values[k]);
  }
  for (int64_t k = 0; k < args.depth; ++k) args.center[k] = T(sums[k] / double(args.codes));
}

template <class T>
void nearest_code_pack(const NearestCodeArgs<T>& args, int64_t begin, int64_t end, T* workspace) {
  constexpr int64_t width = kPanelColumns<T>;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t count = smaller(width, args.codes - panel * width);
    CodePanel& summary = args.summary[panel];
    summary = {};
    for (int64_t i = 0; i < width; ++i) {
      T& half_norm = args.half_norms[panel * width + i];
      half_norm = kInfinity<T>;
      if (i >= count) continue;
      const T* code = args.codebook + (panel * width + i) * args.depth;
      T* target = workspace + i * args.depth;
      double sum = 0;
      bool is_zero = true;
      for (int64_t k = 0; k < args.depth; ++k) {
        target[k] = code[k] - args.center[k];
        sum += double(target[k]) * double(target[k]);
        const float magnitude = float(target[k] < T(0) ? -target[k] : target[k]);
        if (!(magnitude <= summary.largest)) summary.largest = magnitude;
        is_zero = is_zero && target[k] == T(0);
      }
      half_norm = T(sum / 2);
      if (!is_zero && sum < DBL_MIN) sum = DBL_MIN;
      if (!(sum <= summary.square)) summary.square = sum;
    }
    const Matrix<T> centered{workspace, nullptr, count, args.depth};
    pack_panel(centered, 0, args.panels + panel * width * args.depth);
  }
}

template <class T>
void nearest_code_drop_duplicates(const NearestCodeArgs<T>& args, int64_t* table, int64_t size) {
  for (int64_t i = 0; i < size; ++i) table[i] = -1;
  for (int64_t code = 0; code < args.codes; ++code) {
    const T* values = args.codebook + code * args.depth;
    uint64_t slot = hash_of(values, args.depth, args.half_norms[code]) & (size - 1);
    while (table[slot] >= 0 &&
           !are_equal(args.codebook + table[slot] * args.depth, values, args.depth)) {
      slot = (slot + 1) & (size - 1);
    }
    if (table[slot] < 0) {
      table[slot] = code;
    } else {
      args.half_norms[code] = kInfinity<T>;
    }
  }
}

template <class T>
void nearest_code_pack_integers(const NearestCodeArgs<T>& args, int64_t begin, int64_t end) {
  if constexpr (kHasIntegers<T>) {
    const float scale = CodesSummary<T>(args).scale;
    const int64_t of_panel = kPanelColumns<T> * args.depth;
    const int64_t of_integers = kPanelColumns<T> * count_pairs(args.depth);
    for (int64_t panel = begin; panel < end; ++panel) {
      args.summary[panel].residual = quantize_panel(args.panels + panel * of_panel, args.depth,
                                                    scale, args.integers + panel * of_integers);
    }
  }
}

template <class T>
void nearest_code(const NearestCodeArgs<T>& args, int64_t begin, int64_t end, T* workspace) {
  if constexpr (sizeof(T) == 8) {
    search_blocks<T, double>(args, begin, end, workspace);
  } else {
    with_float_element(args.type, [&]<class Element>() {
      search_blocks<T, Element>(args, begin, end, workspace);
    });
  }
}

#define GENSSL_INSTANTIATE(T)                                                                  \
  template NearestCodeSizes nearest_code_sizes<T>(int64_t, int64_t, int64_t);                  \
  template void nearest_code_center<T>(const NearestCodeArgs<T>&, double*);                    \
  template void nearest_code_pack<T>(const NearestCodeArgs<T>&, int64_t, int64_t, T*);         \
  template void nearest_code_drop_duplicates<T>(const NearestCodeArgs<T>&, int64_t*, int64_t); \
  template void nearest_code_pack_integers<T>(const NearestCodeArgs<T>&, int64_t, int64_t);    \
  template void nearest_code<T>(const NearestCodeArgs<T>&, int64_t, int64_t, T*);
GENSSL_INSTANTIATE(float)
GENSSL_INSTANTIATE(double)

}  // namespace genssl::GENSSL_ISA
