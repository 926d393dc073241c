#include "kernels/contrast/nearest_code.h"

#include <bit>
#include <tuple>
#include <vector>

#include "csrc/common.h"
#include "csrc/memory.h"
#include "csrc/parallel.h"
#include "kernels/contrast/code_sums.h"

namespace genssl {
namespace {

// Multiplications and additions that are worth a thread.
constexpr int64_t kGrain = 1 << 20;

int64_t grain_of(int64_t work_of_item) {
  return std::max<int64_t>(kGrain / std::max<int64_t>(work_of_item, 1), 1);
}

void check_matrix(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2, name, ": expected two dimensions, got the shape ",
                  shape_of(tensor));
}

template <class T>
void search(NearestCodeArgs<T> args) {
  const NearestCodeSizes sizes =
      GENSSL_DISPATCH(nearest_code_sizes<T>)(args.rows, args.codes, args.depth);
  const int64_t padded = sizes.panels * sizes.width;
  AlignedBuffer<T> center, panels, half_norms;
  AlignedBuffer<int32_t> integers;
  std::vector<CodePanel> summary(sizes.panels);
  args.center = center.reserve(args.depth);
  args.panels = panels.reserve(padded * args.depth);
  args.half_norms = half_norms.reserve(padded);
  args.integers = integers.reserve(padded * sizes.pairs);
  args.summary = summary.data();
  if (args.codes > 1) {
    GENSSL_DISPATCH(nearest_code_center<T>)(args, thread_scratch<double>(args.depth));
    const int64_t grain = grain_of(8 * sizes.width * args.depth);
    parallel_for(0, sizes.panels, grain, [&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(nearest_code_pack<T>)
      (args, begin, end, thread_scratch<T>(sizes.workspace));
    });
    std::vector<int64_t> table(std::bit_ceil(2 * static_cast<uint64_t>(args.codes)));
    GENSSL_DISPATCH(nearest_code_drop_duplicates<T>)(args, table.data(), table.size());
    parallel_for(0, sizes.panels, grain, [&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(nearest_code_pack_integers<T>)(args, begin, end);
    });
  }
  parallel_for(0, ceil_div(args.rows, sizes.block_rows),
               grain_of(sizes.block_rows * args.codes * args.depth),
               [&](int64_t begin, int64_t end) {
                 T* workspace = thread_scratch<T>(sizes.workspace);
                 GENSSL_DISPATCH(nearest_code<T>)(args, begin, end, workspace);
               });
}

std::tuple<Tensor, Tensor> nearest_code(Tensor x, Tensor codebook) {
  check_matrix(x, "x");
  check_matrix(codebook, "codebook");
  check_type(codebook, "codebook", x.scalar_type());
  STD_TORCH_CHECK(codebook.size(0) > 0 && codebook.size(1) == x.size(1),
                  "codebook: expected the shape [K, ", x.size(1), "], K at least 1, got ",
                  shape_of(codebook));
  x = as_contiguous(x);
  codebook = contiguous_to(codebook, compute_type(x));
  Tensor indices = new_empty(x, {x.size(0)}, ScalarType::Long);
  Tensor distances = new_empty(x, {x.size(0)}, compute_type(x));
  const auto run = [&]<class T>(T) {
    search(NearestCodeArgs<T>{
        .type = element_type(x, "x"),
        .x = x.const_data_ptr(),
        .codebook = static_cast<const T*>(codebook.const_data_ptr()),
        .rows = x.size(0),
        .codes = codebook.size(0),
        .depth = x.size(1),
        .indices = static_cast<int64_t*>(indices.mutable_data_ptr()),
        .distances = static_cast<T*>(distances.mutable_data_ptr()),
    });
  };
  compute_type(x) == ScalarType::Double ? run(double{}) : run(float{});
  return {indices, distances};
}

// The rows that have a code, sorted by it.
struct SortedRows {
  std::vector<int64_t> offsets, order;

  SortedRows(const int64_t* indices, int64_t rows, int64_t codes) : offsets(codes + 1) {
    for (int64_t n = 0; n < rows; ++n) {
      STD_TORCH_CHECK(indices[n] < codes, "indices: expected less than ", codes, ", got ",
                      indices[n]);
      if (indices[n] >= 0) ++offsets[indices[n] + 1];
    }
    for (int64_t code = 0; code < codes; ++code) offsets[code + 1] += offsets[code];
    order.resize(offsets[codes]);
    std::vector<int64_t> next(offsets.begin(), offsets.end() - 1);
    for (int64_t n = 0; n < rows; ++n) {
      if (indices[n] >= 0) order[next[indices[n]]++] = n;
    }
  }
};

std::tuple<Tensor, Tensor> code_sums(Tensor x, Tensor indices, OptionalTensor weights,
                                     int64_t codes) {
  check_matrix(x, "x");
  check_type(indices, "indices", ScalarType::Long);
  check_shape(indices, "indices", {x.size(0)});
  STD_TORCH_CHECK(codes >= 0, "num_codes: expected at least 0, got ", codes);
  x = as_contiguous(x);
  indices = as_contiguous(indices);
  if (weights) {
    check_shape(*weights, "weights", {x.size(0)});
    weights = contiguous_to(*weights, compute_type(x));
  }
  const SortedRows sorted(static_cast<const int64_t*>(indices.const_data_ptr()), x.size(0), codes);
  Tensor counts = new_empty(x, {codes}, compute_type(x));
  Tensor sums = new_empty(x, {codes, x.size(1)}, compute_type(x));
  const auto run = [&]<class T>(T) {
    const CodeSumsArgs<T> args{
        .type = element_type(x, "x"),
        .x = x.const_data_ptr(),
        .weights = static_cast<const T*>(data_of(weights)),
        .order = sorted.order.data(),
        .offsets = sorted.offsets.data(),
        .depth = x.size(1),
        .counts = static_cast<T*>(counts.mutable_data_ptr()),
        .sums = static_cast<T*>(sums.mutable_data_ptr()),
    };
    const int64_t rows_of_code = ceil_div(x.size(0), std::max<int64_t>(codes, 1));
    parallel_for(0, codes, grain_of(32 * rows_of_code * args.depth),
                 [&](int64_t begin, int64_t end) {
                   const int64_t size = GENSSL_DISPATCH(code_sums_workspace<T>)(args.depth);
                   GENSSL_DISPATCH(code_sums<T>)(args, begin, end, thread_scratch<double>(size));
                 });
  };
  compute_type(x) == ScalarType::Double ? run(double{}) : run(float{});
  return {counts, sums};
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_nearest_code", TORCH_BOX(&genssl::nearest_code));
  m.impl("_code_sums", TORCH_BOX(&genssl::code_sums));
}
