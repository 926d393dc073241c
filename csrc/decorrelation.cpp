#include "kernels/contrast/decorrelation.h"

#include <array>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "csrc/common.h"
#include "csrc/memory.h"
#include "csrc/parallel.h"
#include "kernels/common/panels.h"

namespace genssl {
namespace {

// Numbers of both views that are worth a thread.
constexpr int64_t kGrain = 1 << 15;
constexpr int64_t kMaxSegments = 8;

// Weights of the terms of a loss, and what follows from them for N rows and D columns.
struct BarlowTwins {
  static constexpr Decorrelation kind = Decorrelation::barlow_twins;
  static constexpr int share = 2;  // coupling of the gradient over the factor of the squares
  double weight, scale, eps;

  double coupling(int64_t n, int64_t) const { return 2 * scale * weight / n / n; }
  double invariance(int64_t, int64_t) const { return 0; }

  // What is taken from the diagonals of the Gram matrices: their mean where all features vary.
  template <class T>
  std::array<double, 2> shift(const DecorrelationArgs<T>& args) const {
    const double d = args.columns;
    return {d, d};
  }
  double shift_of_gradient(int64_t n, int64_t d) const { return coupling(n, d) * eps * d; }

  // The terms of the diagonal; `along` are the squares that a Gram matrix counts with the others.
  template <class T>
  double diagonal(const DecorrelationArgs<T>& args, bool gram, double& along) const {
    double loss = 0;
    for (int64_t i = 0; i < args.columns; ++i) {
      const double c = args.statistic(kMoment)[i], n = args.rows;
      loss += scale * (1 - c) * (1 - c);
      along += n * n * c * c;
      const double counted = gram ? coupling(args.rows, args.columns) * n * c : 0;
      const T factor = static_cast<T>(-2 * scale / n * (1 - c) - counted);
      args.statistic(kDiagonal)[i] = args.statistic(kDiagonal + 1)[i] = factor;
    }
    return loss;
  }
};

struct VICReg {
  static constexpr Decorrelation kind = Decorrelation::vicreg;
  static constexpr int share = 4;
  double invariance_weight, variance, covariance, gamma, eps;

  double coupling(int64_t n, int64_t d) const { return 4 * covariance / d / (n - 1) / (n - 1); }
  double invariance(int64_t n, int64_t d) const { return 2 * invariance_weight / n / d; }

  template <class T>
  std::array<double, 2> shift(const DecorrelationArgs<T>& args) const {
    std::array<double, 2> sum{};
    for (int view = 0; view < 2; ++view) {
      for (int64_t i = 0; i < args.columns; ++i) sum[view] += args.statistic(kMoment + view)[i];
      sum[view] = static_cast<T>(sum[view] * (args.rows - 1) / args.rows);
    }
    return sum;
  }
  double shift_of_gradient(int64_t, int64_t) const { return 0; }

  template <class T>
  double diagonal(const DecorrelationArgs<T>& args, bool gram, double& along) const {
    const double n = args.rows - 1, d = args.columns;
    const std::array<double, 2> taken = shift(args);
    double loss = 0;
    for (int64_t i = 0; i < args.columns; ++i) {
      loss += invariance_weight / args.rows / d * args.statistic(kDifference)[i];
      for (int view = 0; view < 2; ++view) {
        const double var = args.statistic(kMoment + view)[i], std = std::sqrt(var + eps);
        const double hinge = std::max(gamma - std, 0.0);
        loss += variance / d * hinge;
        along += n * n * var * var;
        const double counted =
            gram ? coupling(args.rows, args.columns) * (n * var - taken[view]) : 0;
        const double pull = hinge > 0 ? variance / (d * n * std) : 0;
        args.statistic(kDiagonal + view)[i] = static_cast<T>(-pull - counted);
      }
    }
    return loss;
  }
};

template <class T>
ScalarType scalar_type() {
  return sizeof(T) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
}

int64_t padded(int64_t columns) { return ceil_div(columns, 32) * 32 + 16; }

template <class T>
T* data(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Items of `numbers` numbers each.
template <class Body>
void for_items(int64_t items, int64_t numbers, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(numbers, 1));
  parallel_for(0, items, grain, body);
}

// Views as they are computed, and what one call works on.
template <class Loss, class T>
struct Views {
  Loss loss;
  Tensor z[2];
  DecorrelationArgs<T> args;
  int64_t panel_columns, strips, scratch;

  Views(const Loss& loss, const Tensor& z1, const Tensor& z2, T* statistics)
      : loss(loss),
        z{contiguous_to(z1, scalar_type<T>()), contiguous_to(z2, scalar_type<T>())},
        panel_columns(GENSSL_DISPATCH(panel_columns)(sizeof(T) == sizeof(double))),
        strips(ceil_div(z1.size(1), kStripColumns)),
        scratch(GENSSL_DISPATCH(decorrelation_scratch<T>)(z1.size(0))) {
    args = {Loss::kind,
            z1.size(0),
            z1.size(1),
            {static_cast<const T*>(z[0].const_data_ptr()),
             static_cast<const T*>(z[1].const_data_ptr())},
            statistics,
            loss.eps};
  }

  template <class Body>
  void for_strips(const Body& body) const {
    for_items(strips, 2 * args.rows * kStripColumns, body);
  }

  // Both Gram matrices [2, N, N]; returns their inner product, or the sum of their squares.
  double multiply(Tensor& gram) const {
    const int64_t n = args.rows, d = args.columns, stride = padded(n) - 16;
    const int64_t most = std::clamp<int64_t>(d / (2 * n), 1, kMaxSegments);
    const int64_t columns = ceil_div(ceil_div(d, most), kStripColumns) * kStripColumns;
    const int64_t segments = ceil_div(d, columns);
    Tensor partial = new_empty(z[0], {segments, 2, n, stride}, scalar_type<T>());
    std::vector<double> products(ceil_div(n, panel_columns));
    const std::array<double, 2> shift = loss.shift(args);
    const GramArgs<T> gram_args{
        .views = args,
        .segments = segments,
        .segment_columns = columns,
        .groups = ceil_div(n, kGroupRows),
        .partial = data<T>(partial),
        .stride = stride,
        .gram = data<T>(gram),
        .shift = {static_cast<T>(shift[0]), static_cast<T>(shift[1])},
        .products = products.data(),
    };
    for_items(segments * gram_args.groups, n * columns, [&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(decorrelation_gram<T>)(gram_args, begin, end, thread_scratch<T>(scratch));
    });
    const int64_t panels_of_gram = static_cast<int64_t>(products.size());
    for_items(panels_of_gram, segments * n * panel_columns, [&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(decorrelation_gram_sum<T>)(gram_args, begin, end);
    });
    return std::accumulate(products.begin(), products.end(), 0.0);
  }

  // The sum of squares off the diagonal by tiles, and x S [2, N, padded] where it is wanted.
  double multiply_tiles(Tensor* product) const {
    const int64_t n = args.rows, stride = padded(args.columns), size = n * stride;
    Tensor x = new_empty(z[0], {2, n, stride}, scalar_type<T>());
    T *normalized = data<T>(x), *target = product ? data<T>(*product) : nullptr;
    const int64_t blocks = ceil_div(args.columns, kBlockFeatures);
    const int64_t rounds = tile_rounds(Loss::kind, blocks), units = tile_units(Loss::kind, blocks);
    std::vector<double> squares(rounds * units);
    const TileArgs<T> tiles{args,
                            blocks,
                            stride,
                            {normalized, normalized + size},
                            {target, target ? target + size : nullptr},
                            squares.data()};
    for_strips([&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(decorrelation_normalize<T>)(tiles, begin, end);
    });
    for (int64_t round = 0; round < rounds; ++round) {
      for_items(units, n * kBlockFeatures, [&](int64_t begin, int64_t end) {
        GENSSL_DISPATCH(decorrelation_tiles<T>)(tiles, round, begin, end,
                                                thread_scratch<T>(scratch));
      });
    }
    return std::accumulate(squares.begin(), squares.end(), 0.0);
  }
};

void check_views(const Tensor& z1, const Tensor& z2) {
  STD_TORCH_CHECK(z1.dim() == 2 && z1.size(0) >= 2 && z1.size(1) >= 1,
                  "z1: expected the shape [N, D] with N >= 2 and D >= 1, got ", shape_of(z1));
  check_shape(z2, "z2", z1.sizes());
  check_type(z2, "z2", z1.scalar_type());
}

// The loss, the Gram matrices or x S (nothing if they are not to be kept) and the statistics.
template <class T, class Loss>
std::tuple<Tensor, Tensor, Tensor> forward(const Loss& loss, const Tensor& z1, const Tensor& z2,
                                           bool gram, bool keep) {
  const int64_t n = z1.size(0), d = z1.size(1);
  const ScalarType type = scalar_type<T>();
  Tensor statistics = new_empty(z1, {kStatistics, d}, type), value = new_empty(z1, {}, type);
  const Views<Loss, T> views(loss, z1, z2, data<T>(statistics));
  views.for_strips([&](int64_t begin, int64_t end) {
    GENSSL_DISPATCH(decorrelation_statistics<T>)
    (views.args, begin, end, thread_scratch<T>(views.scratch));
  });
  const bool tiled_forward = !gram && !keep;
  Tensor products =
      tiled_forward ? new_empty(z1, {0}, type) : new_empty(z1, {2, n, gram ? n : padded(d)}, type);
  double along = 0;
  const double diagonal = loss.diagonal(views.args, gram, along);
  const double off_diagonal =
      gram ? views.multiply(products) - along : views.multiply_tiles(keep ? &products : nullptr);
  *data<T>(value) = static_cast<T>(diagonal + loss.coupling(n, d) * off_diagonal / Loss::share);
  return {value, keep ? products : new_empty(z1, {0}, type), statistics};
}

template <class T, class Loss>
std::tuple<Tensor, Tensor> backward(const Loss& loss, const Tensor& grad, const Tensor& z1,
                                    const Tensor& z2, Tensor products, Tensor statistics,
                                    bool gram) {
  const int64_t n = z1.size(0), d = z1.size(1), stride = gram ? n : padded(d);
  const ScalarType type = scalar_type<T>();
  check_shape(products, "products", {2, n, stride});
  check_shape(statistics, "statistics", {kStatistics, d});
  products = contiguous_to(products, type);
  statistics = contiguous_to(statistics, type);
  const Tensor factor = contiguous_to(grad, type);
  const Views<Loss, T> views(loss, z1, z2, data<T>(statistics));
  Tensor to_z[2] = {new_empty(z1, {n, d}, type), new_empty(z1, {n, d}, type)};
  const T* first = data<T>(products);
  const T* second = first + n * stride;
  const GradientArgs<T> args{
      .views = views.args,
      .gram = {gram ? first : nullptr, second},
      .product = {first, second},
      .stride = stride,
      .grad = *static_cast<const T*>(factor.const_data_ptr()),
      .coupling = static_cast<T>(loss.coupling(n, d)),
      .invariance = static_cast<T>(loss.invariance(n, d)),
      .shift = static_cast<T>(gram ? loss.shift_of_gradient(n, d) : 0),
      .grad_z = {data<T>(to_z[0]), data<T>(to_z[1])},
  };
  views.for_strips([&](int64_t begin, int64_t end) {
    GENSSL_DISPATCH(decorrelation_gradient<T>)(args, begin, end, thread_scratch<T>(views.scratch));
  });
  return {contiguous_to(to_z[0], z1.scalar_type()), contiguous_to(to_z[1], z1.scalar_type())};
}

template <class Loss>
std::tuple<Tensor, Tensor, Tensor> forward_of(const Loss& loss, const Tensor& z1, const Tensor& z2,
                                              bool gram, bool keep) {
  check_views(z1, z2);
  const bool wide = z1.scalar_type() == ScalarType::Double;
  return wide ? forward<double>(loss, z1, z2, gram, keep)
              : forward<float>(loss, z1, z2, gram, keep);
}

template <class Loss>
std::tuple<Tensor, Tensor> backward_of(const Loss& loss, const Tensor& grad, const Tensor& z1,
                                       const Tensor& z2, const Tensor& products,
                                       const Tensor& statistics, bool gram) {
  check_views(z1, z2);
  const bool wide = z1.scalar_type() == ScalarType::Double;
  return wide ? backward<double>(loss, grad, z1, z2, products, statistics, gram)
              : backward<float>(loss, grad, z1, z2, products, statistics, gram);
}

std::tuple<Tensor, Tensor, Tensor> barlow_twins(Tensor z1, Tensor z2, double weight, double scale,
                                                double eps, bool gram, bool keep) {
  return forward_of(BarlowTwins{weight, scale, eps}, z1, z2, gram, keep);
}

std::tuple<Tensor, Tensor> barlow_twins_backward(Tensor grad, Tensor z1, Tensor z2, Tensor products,
                                                 Tensor statistics, double weight, double scale,
                                                 double eps, bool gram) {
  return backward_of(BarlowTwins{weight, scale, eps}, grad, z1, z2, products, statistics, gram);
}

std::tuple<Tensor, Tensor, Tensor> vicreg(Tensor z1, Tensor z2, double invariance, double variance,
                                          double covariance, double gamma, double eps, bool gram,
                                          bool keep) {
  return forward_of(VICReg{invariance, variance, covariance, gamma, eps}, z1, z2, gram, keep);
}

std::tuple<Tensor, Tensor> vicreg_backward(Tensor grad, Tensor z1, Tensor z2, Tensor products,
                                           Tensor statistics, double invariance, double variance,
                                           double covariance, double gamma, double eps, bool gram) {
  return backward_of(VICReg{invariance, variance, covariance, gamma, eps}, grad, z1, z2, products,
                     statistics, gram);
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_barlow_twins", TORCH_BOX(&genssl::barlow_twins));
  m.impl("_barlow_twins_backward", TORCH_BOX(&genssl::barlow_twins_backward));
  m.impl("_vicreg", TORCH_BOX(&genssl::vicreg));
  m.impl("_vicreg_backward", TORCH_BOX(&genssl::vicreg_backward));
}
