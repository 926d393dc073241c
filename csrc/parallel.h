// Threads for CPU kernels: PyTorch's own pool, so that torch.set_num_threads holds here too.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace genssl {

// Calls body(begin, end) on disjoint ranges that cover [begin, end). A grain is the least worth a
// thread.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (end - begin <= grain) {
    if (begin < end) body(begin, end);
    return;
  }
  torch::stable::parallel_for(begin, end, grain, body);
}

inline int64_t num_threads() { return torch::stable::get_num_threads(); }

}  // namespace genssl
