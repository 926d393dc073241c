// Philox4x32-10 and the maps from its words to random numbers, one lane at a time.
//
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//
//   key     = (seed low, seed high)
//   counter = (block, step, sample low, sample high)
//   element e of a sample uses word e mod 4 of block e div 4
//
//   uniform    u = (word + 0.5) 2^-32, rounded to fp32: (0, 1]
//   normal     words (0, 1) and (2, 3) give r cos a and r sin a with r^2 = -2 ln u_first, a = 2 pi
//   u_second rademacher +1 where the top bit is 0, -1 where it is 1
//
// The vector and the Triton versions evaluate the same polynomials in the same order, so that
// integer streams are identical on every backend and normals agree to 4 ulp.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/common/host_device.h"

namespace genssl::GENSSL_ISA {

constexpr uint32_t kPhiloxMultiply0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiply1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// ln(1 + f) = f - f^2/2 + f^3 P(f) for 1 + f in [sqrt(1/2), sqrt(2)), highest power first.
#define GENSSL_LOG_COEFFICIENTS                                                                  \
  {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,  -1.2420140846e-1f, 1.4249322787e-1f, \
   -1.6668057665e-1f, 2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f}
constexpr float kLn2High = 0.693359375f;
constexpr float kLn2Low = -2.12194440e-4f;

// sin(pi f / 2) = f S(f^2) and cos(pi f / 2) = 1 + f^2 C(f^2) for |f| <= 1/2, highest power first.
#define GENSSL_SIN_COEFFICIENTS \
  {1.6044118e-4f, -4.6817541e-3f, 7.9692626e-2f, -6.4596409e-1f, 1.5707963f}
#define GENSSL_COS_COEFFICIENTS \
  {-2.5202042e-5f, 9.1926027e-4f, -2.0863480e-2f, 2.5366950e-1f, -1.2337006f}

struct PhiloxBlock {
  uint32_t word[4];
};

GENSSL_HOST_DEVICE inline PhiloxBlock philox4x32_10(uint64_t seed, uint32_t block, uint32_t step,
                                                    uint64_t sample) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = block, c1 = step;
  uint32_t c2 = static_cast<uint32_t>(sample), c3 = static_cast<uint32_t>(sample >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiply0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiply1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

GENSSL_HOST_DEVICE inline float uniform_from_word(uint32_t word) {
  return (static_cast<float>(word) + 0.5f) * 0x1p-32f;
}

GENSSL_HOST_DEVICE inline float rademacher_from_word(uint32_t word) {
  return (word >> 31) ? -1.0f : 1.0f;
}

// ln u for normal u > 0.
GENSSL_HOST_DEVICE inline float log_of_uniform(float u) {
  constexpr float P[9] = GENSSL_LOG_COEFFICIENTS;
  uint32_t bits;
  memcpy(&bits, &u, sizeof bits);
  bits += 0x3f800000u - 0x3f3504f3u;
  const float exponent = static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
  bits = (bits & 0x007fffffu) + 0x3f3504f3u;
  float mantissa;
  memcpy(&mantissa, &bits, sizeof mantissa);
  const float f = mantissa - 1.0f, square = f * f;
  float p = P[0];
  for (int i = 1; i < 9; ++i) p = fmaf(p, f, P[i]);
  float tail = (f * square) * p;
  tail = fmaf(exponent, kLn2Low, tail);
  tail = fmaf(-0.5f, square, tail);
  return fmaf(exponent, kLn2High, f + tail);
}

// cos and sin of 2 pi u for u in [0, 1]; the reduction to |f| <= 1/2 quarter turns is exact.
GENSSL_HOST_DEVICE inline void sincos_of_turn(float u, float* cosine, float* sine) {
  constexpr float S[5] = GENSSL_SIN_COEFFICIENTS;
  constexpr float C[5] = GENSSL_COS_COEFFICIENTS;
  const float quarter_turns = 4.0f * u;
  const float nearest = floorf(quarter_turns + 0.5f);
  const float f = quarter_turns - nearest, square = f * f;
  float s = S[0], c = C[0];
  for (int i = 1; i < 5; ++i) {
    s = fmaf(s, square, S[i]);
    c = fmaf(c, square, C[i]);
  }
  s = s * f;
  c = fmaf(c, square, 1.0f);
  const int quadrant = static_cast<int>(nearest);
  const float first = (quadrant & 1) ? s : c;
  const float second = (quadrant & 1) ? c : s;
  *cosine = ((quadrant + 1) & 2) ? -first : first;
  *sine = (quadrant & 2) ? -second : second;
}

// The two normals of a pair of words.
GENSSL_HOST_DEVICE inline void normals_from_words(uint32_t first, uint32_t second, float* z0,
                                                  float* z1) {
  const float radius = sqrtf(-2.0f * log_of_uniform(uniform_from_word(first)));
  float cosine, sine;
  sincos_of_turn(uniform_from_word(second), &cosine, &sine);
  *z0 = radius * cosine;
  *z1 = radius * sine;
}

// The four normals of one block.
GENSSL_HOST_DEVICE inline void normals_from_block(const PhiloxBlock& block, float z[4]) {
  normals_from_words(block.word[0], block.word[1], &z[0], &z[1]);
  normals_from_words(block.word[2], block.word[3], &z[2], &z[3]);
}

}  // namespace genssl::GENSSL_ISA
