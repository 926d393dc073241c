// Names that let one header serve CPU objects, CUDA C++ and CUDA C++ executed on the CPU.
#pragma once

#if defined(__CUDACC__) || defined(GENSSL_CUDA_ON_CPU)
#define GENSSL_HOST_DEVICE __host__ __device__
#else
#define GENSSL_HOST_DEVICE
#endif

// CPU objects are compiled once per instruction set, each in its own namespace: an inline function
// shared between them could be emitted with AVX-512 and then run on a machine that lacks it.
#ifndef GENSSL_ISA
#define GENSSL_ISA portable
#endif
