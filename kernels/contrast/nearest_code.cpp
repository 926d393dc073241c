#include "kernels/contrast/nearest_code.h"

#include <float.h>

#include "kernels/common/element.h"
#include "kernels/common/linear.h"

namespace genssl::GENSSL_ISA {
namespace {

template <class T>
constexpr T kRoundoff = sizeof(T) == 4 ? T(FLT_EPSILON / 2) : T(DBL_EPSILON / 2);
template <class T>
constexpr T kTiny = sizeof(T) == 4 ? T(FLT_MIN) : T(DBL_MIN);
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

GENSSL_INLINE double sum_lanes(Vec<double> a) {
  double sum = a[0];
  for (int lane = 1; lane < Vec<double>::size; ++lane) sum += a[lane];
  return sum;
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
  return sum_lanes(even + odd);
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

// Adds the scores of a tile of rows and a panel of codes, from registers: stored and loaded again
// they would cost a tenth more.
template <int ROWS, class T>
__attribute__((noinline)) void add_scores(const T* rows, int64_t stride, const Matrix<T>& codes,
                                          const T* half_norms, int64_t panel, Lowest<T>* lowest) {
  constexpr int64_t width = kPanelColumns<T>;
  Vec<T> dot[ROWS][kPanelVecs];
  sum_products<T, ROWS, 1, kPanelVecs>(rows, stride, codes.panels + panel * width * codes.depth,
                                       codes.depth, dot);
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < kPanelVecs; ++v) {
      const Vec<T> half_norm = Vec<T>::load(half_norms + panel * width + v * Vec<T>::size);
      lowest[r].add(half_norm - dot[r][v], Vec<T>(T(panel * kPanelVecs + v)));
    }
  }
}

template <class T>
GENSSL_INLINE void find_lowest_of_tile(int count, const T* rows, int64_t stride,
                                       const Matrix<T>& codes, const T* half_norms, int64_t panel,
                                       Lowest<T>* lowest) {
  constexpr int eight = kTileRows < 8 ? kTileRows : 8;
  switch (count) {
    case 1:
      return add_scores<1>(rows, stride, codes, half_norms, panel, lowest);
    case 2:
      return add_scores<2>(rows, stride, codes, half_norms, panel, lowest);
    case 3:
      return add_scores<3>(rows, stride, codes, half_norms, panel, lowest);
    case 4:
      return add_scores<4>(rows, stride, codes, half_norms, panel, lowest);
    case 8:
      return add_scores<eight>(rows, stride, codes, half_norms, panel, lowest);
    default:
      return add_scores<kTileRows>(rows, stride, codes, half_norms, panel, lowest);
  }
}

// A row's lowest score over all lanes, its code, and the second lowest score.
template <class T>
struct Winner {
  T score = kInfinity<T>, second = kInfinity<T>;
  int64_t code = 0;

  GENSSL_INLINE explicit Winner(const Lowest<T>& lowest) {
    constexpr int size = Vec<T>::size;
    T scores[size], places[size], seconds[size];
    lowest.score.store(scores);
    lowest.place.store(places);
    lowest.second.store(seconds);
    for (int lane = 0; lane < size; ++lane) {
      if (!(scores[lane] < kInfinity<T>)) continue;
      const int64_t here = static_cast<int64_t>(places[lane]) * size + lane;
      const bool wins = scores[lane] < score || (scores[lane] == score && here < code);
      const T loser = wins ? score : scores[lane];
      if (loser < second) second = loser;
      if (seconds[lane] < second) second = seconds[lane];
      if (!wins) continue;
      score = scores[lane];
      code = here;
    }
  }
};

// Scratch memory of one block of rows.
template <class T>
struct Block {
  int64_t stride;
  T* rows;            // [block_rows, stride]: x less the center
  T* exact;           // [stride]: a row of x
  T* limits;          // [block_rows]: scores that may be those of the nearest code, if undecided
  Lowest<T>* lowest;  // [block_rows]

  GENSSL_INLINE Block(T* workspace, int64_t block_rows, int64_t depth)
      : stride(row_stride<T>(depth)),
        rows(workspace),
        exact(rows + block_rows * stride),
        limits(exact + stride),
        lowest(reinterpret_cast<Lowest<T>*>(limits + divide_up(block_rows, kLine) * kLine)) {}

  static GENSSL_INLINE int64_t size(int64_t block_rows, int64_t depth) {
    return (block_rows + 1) * row_stride<T>(depth) + divide_up(block_rows, kLine) * kLine +
           block_rows * static_cast<int64_t>(sizeof(Lowest<T>) / sizeof(T));
  }

 private:
  static constexpr int64_t kLine = kVecBytes / sizeof(T);
};

template <class T, class Element>
class Search {
 public:
  GENSSL_INLINE Search(const NearestCodeArgs<T>& args, int64_t block_rows, T* workspace)
      : args_(args),
        block_(workspace, block_rows, args.depth),
        codes_{nullptr, args.panels, count_panels<T>(args.codes) * kPanelColumns<T>, args.depth} {
    double radius = 0;
    for (int64_t panel = 0; panel < count_panels<T>(args.codes); ++panel) {
      if (!(args.radii[panel] <= radius)) radius = args.radii[panel];
    }
    radius_ = T(__builtin_sqrt(radius));
  }

  GENSSL_INLINE void run(int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    for (int64_t r = 0; r < rows; ++r) args_.indices[begin + r] = 0;
    if (args_.codes > 1) {
      for (int64_t r = 0; r < rows; ++r) {
        block_.limits[r] = rounding_of_scores(center_row(begin + r, r));
        block_.lowest[r].clear();
      }
      find_lowest(rows);
      decide(begin, rows);
    }
    for (int64_t n = begin; n < end; ++n) {
      const T* code = args_.codebook + args_.indices[n] * args_.depth;
      args_.distances[n] = T(squared_distance(exact_row(n), code, args_.depth));
    }
  }

 private:
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

  // Writes row n of x less the center as row r of the block; returns the square of its length.
  GENSSL_INLINE T center_row(int64_t n, int64_t r) const {
    T* target = block_.rows + r * block_.stride;
    Vec<T> squares(T(0));
    for (int64_t k = 0; k < args_.depth; k += Vec<T>::size) {
      const int64_t left = args_.depth - k;
      const Vec<T> value =
          left >= Vec<T>::size ? load(row(n) + k) : load(row(n) + k, static_cast<int>(left));
      const Vec<T> centered = value - load_lanes(args_.center + k, left);
      squares = fma(centered, centered, squares);
      store_lanes(centered, target + k, left);
    }
    T sum(0);
    for (int lane = 0; lane < Vec<T>::size; ++lane) sum += squares[lane];
    return sum;
  }

  // The difference of two scores of a row, which has this squared length, is off by less: rounding
  // of `depth` fused multiply-adds, of x and c less the center, of the norm and of the difference;
  // and what underflows.
  GENSSL_INLINE T rounding_of_scores(T square) const {
    if (radius_ == T(0)) return T(0);  // all codes are equal and all scores exact
    const T depth = T(args_.depth);
    const T length = T(__builtin_sqrt(double(square + depth * kTiny<T>)));
    return 2 * (depth + 8) * (kRoundoff<T> * (radius_ * (length + radius_)) + kTiny<T>);
  }

  // Calls visit(row, scores, register number) for every register of scores of the block's rows.
  template <class Visit>
  GENSSL_INLINE void for_each_score(int64_t rows, const Visit& visit) const {
    for (int64_t panel = 0; panel < count_panels<T>(args_.codes); ++panel) {
      const auto epilogue = [&](int64_t row, int count, int64_t column, const T* product) {
        for (int vec = 0; vec < kPanelVecs; ++vec) {
          const int64_t first = column + vec * Vec<T>::size;
          const Vec<T> half_norm = Vec<T>::load(args_.half_norms + first);
          for (int r = 0; r < count; ++r) {
            const Vec<T> dot = Vec<T>::load(product + r * kPanelColumns<T> + vec * Vec<T>::size);
            visit(row + r, half_norm - dot, first / Vec<T>::size);
          }
        }
      };
      multiply_panels<T>(block_.rows, block_.stride, rows, codes_, panel, 1, nullptr, epilogue);
    }
  }

  GENSSL_INLINE void find_lowest(int64_t rows) const {
    for (int64_t panel = 0; panel < count_panels<T>(args_.codes); ++panel) {
      for (int64_t row = 0; row < rows;) {
        const int tile = next_tile_rows(rows - row);
        const T* first = block_.rows + row * block_.stride;
        find_lowest_of_tile(tile, first, block_.stride, codes_, args_.half_norms, panel,
                            block_.lowest + row);
        row += tile;
      }
    }
  }

  // Takes the code of the lowest score, and searches again for the rows where rounding may matter.
  GENSSL_INLINE void decide(int64_t begin, int64_t rows) const {
    int64_t undecided[kMaxBlockRows], count = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const Winner<T> winner(block_.lowest[r]);
      args_.indices[begin + r] = winner.code;
      const bool is_bounded = block_.limits[r] < kInfinity<T>;  // neither overflow nor NaN
      if (is_bounded && winner.second - winner.score >= block_.limits[r]) continue;
      const T* source = block_.rows + r * block_.stride;
      copy_lanes(source, args_.depth, block_.rows + count * block_.stride);
      block_.limits[count] = winner.score + block_.limits[r];
      undecided[count++] = begin + r;
    }
    if (count > 0) search_again(undecided, count);
  }

  // Codes whose score is within the limit compete by their distance in double.
  GENSSL_INLINE void search_again(const int64_t* undecided, int64_t count) const {
    double nearest[kMaxBlockRows];
    for (int64_t r = 0; r < count; ++r) args_.indices[undecided[r]] = -1;
    for_each_score(count, [&](int64_t r, Vec<T> scores, int64_t number) {
      for (int lane = 0; lane < Vec<T>::size; ++lane) {
        const int64_t code = number * Vec<T>::size + lane;
        if (scores[lane] > block_.limits[r] || code >= args_.codes) continue;
        int64_t& index = args_.indices[undecided[r]];
        const T* x = exact_row(undecided[r]);
        const double distance =
            squared_distance(x, args_.codebook + code * args_.depth, args_.depth);
        const bool is_nan = distance != distance;
        const bool wins = distance < nearest[r] || (is_nan && nearest[r] == nearest[r]);
        if (index >= 0 && !wins) continue;
        index = code;
        nearest[r] = distance;
      }
    });
  }

  const NearestCodeArgs<T>& args_;
  Block<T> block_;
  Matrix<T> codes_;
  T radius_;
};

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
  return {count_panels<T>(codes), kPanelColumns<T>, height,
          larger(Block<T>::size(height, depth), of_panel)};
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
    double largest = 0;
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
        is_zero = is_zero && target[k] == T(0);
      }
      half_norm = T(sum / 2);
      if (!is_zero && sum < DBL_MIN) sum = DBL_MIN;
      if (!(sum <= largest)) largest = sum;
    }
    args.radii[panel] = largest;
    const Matrix<T> centered{workspace, nullptr, count, args.depth};
    pack_panel(centered, 0, args.panels + panel * width * args.depth);
  }
}

template <class T>
void nearest_code(const NearestCodeArgs<T>& args, int64_t begin, int64_t end, T* workspace) {
  if constexpr (sizeof(T) == 8) {
    search_blocks<T, double>(args, begin, end, workspace);
  } else if (args.type == ElementType::float32) {
    search_blocks<T, float>(args, begin, end, workspace);
  } else if (args.type == ElementType::bfloat16) {
    search_blocks<T, BFloat16>(args, begin, end, workspace);
  } else {
    search_blocks<T, Float16>(args, begin, end, workspace);
  }
}

#define GENSSL_INSTANTIATE(T)                                                          \
  template NearestCodeSizes nearest_code_sizes<T>(int64_t, int64_t, int64_t);          \
  template void nearest_code_center<T>(const NearestCodeArgs<T>&, double*);            \
  template void nearest_code_pack<T>(const NearestCodeArgs<T>&, int64_t, int64_t, T*); \
  template void nearest_code<T>(const NearestCodeArgs<T>&, int64_t, int64_t, T*);
GENSSL_INSTANTIATE(float)
GENSSL_INSTANTIATE(double)

}  // namespace genssl::GENSSL_ISA
