// Parameters that lie together for each element, as rows with a lane for each.
//
// A register collects 16 bytes of every fourth (double: second) lane, one load or insertion each;
// so many registers as 16 bytes have numbers are then transposed within their 16 bytes. Against
// squares of whole registers this halves the shuffles and rounds the number of parameters up to 4,
// not 16.
#pragma once

#include "kernels/common/vec.h"

namespace genssl::GENSSL_ISA {

template <class T>
constexpr int kPieceSize = 16 / static_cast<int>(sizeof(T));

// The register of the 16 bytes at begin[0] + offset, begin[kPieceSize] + offset, ...
template <class T>
GENSSL_INLINE Vec<T> load_pieces(const T* const* begin, int64_t offset) {
  const auto piece = [&](int i) {
    return reinterpret_cast<const float*>(begin[i * kPieceSize<T>] + offset);
  };
#if defined(__AVX512F__)
  __m512 result = _mm512_castps128_ps512(_mm_loadu_ps(piece(0)));
  result = _mm512_insertf32x4(result, _mm_loadu_ps(piece(1)), 1);
  result = _mm512_insertf32x4(result, _mm_loadu_ps(piece(2)), 2);
  result = _mm512_insertf32x4(result, _mm_loadu_ps(piece(3)), 3);
  return Vec<T>((typename Vec<T>::Native)result);
#elif defined(__AVX2__)
  __m256 result = _mm256_castps128_ps256(_mm_loadu_ps(piece(0)));
  result = _mm256_insertf128_ps(result, _mm_loadu_ps(piece(1)), 1);
  return Vec<T>((typename Vec<T>::Native)result);
#else
  return Vec<T>::load(reinterpret_cast<const T*>(piece(0)));
#endif
}

// Transposes kPieceSize registers within their 16 bytes.
template <class T>
GENSSL_INLINE void transpose_pieces(Vec<T> (&rows)[kPieceSize<T>]) {
  constexpr int size = Vec<T>::size;
#pragma GCC unroll 2
  for (int block = 1; block < kPieceSize<T>; block *= 2) {
    typename Vec<T>::Mask low, high;
    for (int lane = 0; lane < size; ++lane) {
      low[lane] = (lane & block) ? lane - block + size : lane;
      high[lane] = (lane & block) ? lane + size : lane + block;
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPieceSize<T>; ++i) {
      if (i & block) continue;
      const auto upper = rows[i].value, lower = rows[i + block].value;
      rows[i] = Vec<T>(__builtin_shuffle(upper, lower, low));
      rows[i + block] = Vec<T>(__builtin_shuffle(upper, lower, high));
    }
  }
}

// rows[j] = parameter j of each lane, for `count` rounded up to kPieceSize; a lane's parameters
// begin at begin[lane].
template <class T>
GENSSL_INLINE void load_parameters(const T* const (&begin)[Vec<T>::size], int64_t count, T* rows) {
  for (int64_t j = 0; j < count; j += kPieceSize<T>) {
    Vec<T> pieces[kPieceSize<T>];
#pragma GCC unroll 4
    for (int i = 0; i < kPieceSize<T>; ++i) pieces[i] = load_pieces<T>(begin + i, j);
    transpose_pieces<T>(pieces);
#pragma GCC unroll 4
    for (int i = 0; i < kPieceSize<T>; ++i) pieces[i].store(rows + (j + i) * Vec<T>::size);
  }
}

}  // namespace genssl::GENSSL_ISA
