#include "kernels/integrate/sampler_step.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "csrc/common.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

using Tensors = std::vector<Tensor>;

// Tensors that together exceed this do not fit into the last cache; then stores that bypass it
// double the rate.
constexpr int64_t kCacheBytes = int64_t{32} << 20;
// Elements that are worth a thread.
constexpr int64_t kGrain = 32768;

Tensors read_history(const Tensors& tensors, const Tensor& x, const char* name, int64_t limit,
                     const void** pointers) {
  STD_TORCH_CHECK(static_cast<int64_t>(tensors.size()) <= limit, name, ": expected at most ", limit,
                  " tensors, got ", tensors.size());
  Tensors result;
  for (const Tensor& tensor : tensors) {
    result.push_back(contiguous_like(tensor, x, name));
    *pointers++ = result.back().const_data_ptr();
  }
  return result;
}

void read_table(const Tensor& table, int64_t num_states, SamplerStepArgs& args) {
  check_type(table, "coefficients", ScalarType::Double);
  STD_TORCH_CHECK(table.dim() == 2, "coefficients: expected [rows, columns], got ",
                  shape_of(table));
  const int64_t num_predictions = table.size(1) - num_states - 6;
  STD_TORCH_CHECK(num_states >= 1 && num_states <= kMaxHistory && num_predictions >= 0 &&
                      num_predictions <= kMaxHistory,
                  "coefficients: expected 1 to ", kMaxHistory, " states and at most ", kMaxHistory,
                  " predictions, got ", num_states, " and ", num_predictions);
  args.coefficients = static_cast<const double*>(table.const_data_ptr());
  args.num_states = static_cast<int>(num_states);
  args.num_predictions = static_cast<int>(num_predictions);
}

void check_rows(const int64_t* rows, int64_t count, int64_t table_rows) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < table_rows, "index: expected rows in [0, ",
                    table_rows, "), got ", rows[i]);
  }
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 64 == 0; }

Tensor sampler_step_out(Tensor x, Tensor model_output, Tensors predictions, Tensors states,
                        OptionalTensor noise, Tensor coefficients, int64_t index,
                        OptionalTensor index_tensor, int64_t num_states, double clip, int64_t seed,
                        OptionalTensor seed_tensor, int64_t step, OptionalTensor step_tensor,
                        int64_t first_sample, Tensor out) {
  STD_TORCH_CHECK(out.is_contiguous(), "out: expected a contiguous tensor");
  contiguous_like(out, x, "out");
  x = as_contiguous(x);
  model_output = contiguous_like(model_output, x, "model_output");
  if (noise) noise = contiguous_like(*noise, x, "noise");
  coefficients = as_contiguous(coefficients);
  Tensor prediction = new_empty_like(x);
  SamplerStepArgs args{
      .type = element_type(x, "x"),
      .samples = num_samples(x),
      .elements_per_sample = elements_per_sample(x),
      .x = x.const_data_ptr(),
      .output = model_output.const_data_ptr(),
      .noise = data_of(noise),
      .num_old_states = static_cast<int>(states.size()),
      .num_old_predictions = static_cast<int>(predictions.size()),
      .next = out.mutable_data_ptr(),
      .prediction = prediction.mutable_data_ptr(),
      .row = index,
      .clip = clip,
      .seed = static_cast<uint64_t>(value_of(seed, seed_tensor, "seed")),
      .step = static_cast<uint32_t>(value_of(step, step_tensor, "step")),
      .first_sample = static_cast<uint64_t>(first_sample),
  };
  read_table(coefficients, num_states, args);
  states = read_history(states, x, "states", args.num_states - 1, args.old_states);
  predictions = read_history(predictions, x, "predictions", std::max(args.num_predictions - 1, 0),
                             args.old_predictions);
  if (index_tensor) {
    check_type(*index_tensor, "index", ScalarType::Long);
    check_shape(*index_tensor, "index", {args.samples});
    index_tensor = as_contiguous(*index_tensor);
    args.rows = static_cast<const int64_t*>(index_tensor->const_data_ptr());
  }
  check_rows(args.rows ? args.rows : &index, args.rows ? args.samples : 1, coefficients.size(0));
  args.streaming = !args.rows && is_aligned(args.next) && is_aligned(args.prediction) &&
                   4 * x.numel() * static_cast<int64_t>(x.element_size()) > kCacheBytes;
  parallel_for(
      0, ceil_div(x.numel(), kSamplerTile), kGrain / kSamplerTile,
      [&](int64_t begin, int64_t end) { GENSSL_DISPATCH(sampler_step)(args, begin, end); });
  return prediction;
}

std::tuple<Tensor, Tensor> sampler_step(Tensor x, Tensor model_output, Tensors predictions,
                                        Tensors states, OptionalTensor noise, Tensor coefficients,
                                        int64_t index, OptionalTensor index_tensor,
                                        int64_t num_states, double clip, int64_t seed,
                                        OptionalTensor seed_tensor, int64_t step,
                                        OptionalTensor step_tensor, int64_t first_sample) {
  Tensor next = new_empty_like(x);
  Tensor prediction = sampler_step_out(x, model_output, predictions, states, noise, coefficients,
                                       index, index_tensor, num_states, clip, seed, seed_tensor,
                                       step, step_tensor, first_sample, next);
  return {next, prediction};
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_sampler_step", TORCH_BOX(&genssl::sampler_step));
  m.impl("_sampler_step_out", TORCH_BOX(&genssl::sampler_step_out));
}
