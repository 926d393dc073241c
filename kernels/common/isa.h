// Choice of instruction set at load time. GENSSL_ISA=avx512|avx2|baseline in the environment
// overrides it.
#pragma once

#include <stdint.h>

namespace genssl {

enum class Isa { baseline, avx2, avx512 };

// The instruction set in use: the best that this machine supports, or the one asked for.
Isa current_isa();
const char* isa_name(Isa isa);

}  // namespace genssl

#define GENSSL_DECLARE_KERNEL(result, name, parameters) \
  namespace genssl::avx512 {                            \
  result name parameters;                               \
  }                                                     \
  namespace genssl::avx2 {                              \
  result name parameters;                               \
  }                                                     \
  namespace genssl::baseline {                          \
  result name parameters;                               \
  }

#if defined(__x86_64__)
#define GENSSL_DISPATCH(name)                                                 \
  (::genssl::current_isa() == ::genssl::Isa::avx512 ? &::genssl::avx512::name \
   : ::genssl::current_isa() == ::genssl::Isa::avx2 ? &::genssl::avx2::name   \
                                                    : &::genssl::baseline::name)
#else
#define GENSSL_DISPATCH(name) (&::genssl::baseline::name)
#endif
