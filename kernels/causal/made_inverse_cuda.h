// Launchers of the inverse of masked autoregressive transforms on CUDA; their only callers are
// csrc/cuda and the tests.
#pragma once

#include <stddef.h>

#include "kernels/causal/made_inverse.h"

namespace genssl::cuda {

constexpr int kMaxMADELayers = 48;

// Arrays on the host of pointers to contiguous tensors on one device.
template <class Real>
struct MADEInverseArgs {
  int32_t device;
  int32_t dim, parameters, matrices;
  int64_t batch;
  const int64_t* width;                         // [matrices + 1]: D, hidden units, D * parameters
  const Real* const* weights;                   // [matrices][out, in]
  const Real* const* biases;                    // [matrices][out] or [B, out]
  const int64_t* const* degrees;                // [matrices][in]
  const Real* const* input_gates;               // [matrices][B, in] or null
  const Real* const* output_gates;              // [matrices][B, out] or null
  int64_t activated, skips, per_sample_biases;  // a bit for every matrix
  Activation activation;
  ElementwiseOptions<Real> transform;
  const Real* y;      // [B, D]
  Real* x;            // [B, D]
  Real* log_abs_det;  // [B]
};

// Bytes of scratch memory on the device; an error of the CUDA runtime is returned as its number.
template <class Real>
int made_inverse_workspace(const MADEInverseArgs<Real>& args, size_t* bytes);

// Enqueues all kernels on `stream` (a cudaStream_t); allocates nothing and waits for nothing.
template <class Real>
int launch_made_inverse(const MADEInverseArgs<Real>& args, void* workspace, void* stream);

}  // namespace genssl::cuda
