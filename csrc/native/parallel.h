// Threads for the torch-free module: the pool is handed over as a function pointer at import.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace genssl {

// Signature of LibTorch's C function torch_parallel_for; 0 means success.
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain,
                                void (*body)(int64_t begin, int64_t end, void* context),
                                void* context);

// Null until set_parallel_for is called from Python: then loops run on the calling thread.
ParallelFor& parallel_for_function();

template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (begin >= end) return;
  if (parallel_for_function() == nullptr || end - begin <= grain) {
    body(begin, end);
    return;
  }
  auto call = [](int64_t from, int64_t to, void* context) {
    (*static_cast<const Body*>(context))(from, to);
  };
  if (parallel_for_function()(begin, end, grain, call, const_cast<Body*>(&body)) != 0) {
    throw std::runtime_error("a worker thread failed, most likely for want of memory");
  }
}

}  // namespace genssl
