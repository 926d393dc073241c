// What CUDA C++ kernels share: the seam between nvcc and the execution on the CPU, asynchronous
// copies, scalars of a type known only at run time, and the launch.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "kernels/common/cuda_on_cpu.h"
#endif

#include "kernels/common/array.h"

namespace genssl::cuda {

inline int64_t element_bytes(ElementType type) {
  return type == ElementType::float64 ? 8 : type == ElementType::float32 ? 4 : 2;
}

__device__ inline float half_to_float(uint16_t bits) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(bits));
#else
  return static_cast<float>(__builtin_bit_cast(_Float16, bits));
#endif
}

__device__ inline uint16_t float_to_half(float value) {
#if defined(__CUDACC__)
  return __half_as_ushort(__float2half_rn(value));
#else
  return __builtin_bit_cast(uint16_t, static_cast<_Float16>(value));
#endif
}

__device__ inline float bfloat16_to_float(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

__device__ inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <typename Real>
__device__ Real load(const Array& array, int64_t index) {
  switch (array.type) {
    case ElementType::float64:
      return static_cast<Real>(static_cast<const double*>(array.data)[index]);
    case ElementType::float16:
      return half_to_float(static_cast<const uint16_t*>(array.data)[index]);
    case ElementType::bfloat16:
      return bfloat16_to_float(static_cast<const uint16_t*>(array.data)[index]);
    default:
      return static_cast<const float*>(array.data)[index];
  }
}

template <typename Real>
__device__ void store(void* data, ElementType type, int64_t index, Real value) {
  switch (type) {
    case ElementType::float64:
      static_cast<double*>(data)[index] = value;
      break;
    case ElementType::float16:
      static_cast<uint16_t*>(data)[index] = float_to_half(static_cast<float>(value));
      break;
    case ElementType::bfloat16:
      static_cast<uint16_t*>(data)[index] = float_to_bfloat16(static_cast<float>(value));
      break;
    default:
      static_cast<float*>(data)[index] = static_cast<float>(value);
  }
}

// Sixteen bytes from global to shared memory without passing through registers. They are visible to
// the thread that copied them after wait_copies, to its block after the barrier that follows.
__device__ inline void copy_async(void* shared, const void* global) {
#if defined(__CUDACC__)
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
  cuda_on_cpu::async_copy(shared, global, 16);
#endif
}

__device__ inline void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_on_cpu::async_commit();
#endif
}

// Waits for all groups of copies of this thread but the latest `pending`.
template <int pending>
__device__ void wait_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#else
  cuda_on_cpu::async_wait(pending);
#endif
}

__device__ inline void* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
#else
  return cuda_on_cpu::dynamic_shared();
#endif
}

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
};

// Launches and returns the error of the launch itself; never waits for the kernel.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   Arguments... arguments) {
#if defined(__CUDACC__)
  constexpr size_t kSharedBytesWithoutAsking = 48 * 1024;
  if (shape.shared_bytes > kSharedBytesWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<shape.grid, shape.block, shape.shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
#else
  static_cast<void>(stream);
  cuda_on_cpu::launch(kernel, shape.grid, shape.block, shape.shared_bytes, false, arguments...);
  return cudaSuccess;
#endif
}

}  // namespace genssl::cuda
