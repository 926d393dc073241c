// All steps of a sampler whose model is a FiLM-MLP: for every row of a coefficient table
//
//   output       = film_mlp(x, time of the row)
//   prediction_0 = clamp(d_0 x + d_1 output, -clip, clip)
//   x           <- sum_j a_j state_j + sum_j b_j prediction_j + e output + c noise
//
// with state_0 = x and older states and predictions kept inside. Same bits as film_mlp and
// sampler_step.
#pragma once

#include "kernels/score/film_mlp.h"

namespace genssl {

template <class T>
struct FilmMLPSampleArgs {
  FilmMLPNetwork<T> network;
  FilmMLPConditions<T> conditions;  // [num_rows, conditions_per_row]
  int64_t conditions_per_row;
  const int64_t* condition;  // [batch]: each sample's, within a row
  const T* coefficients;     // [num_rows, num_states + num_predictions + 6]
  int64_t num_rows, num_states, num_predictions;
  T clip;          // NaN: that of the row
  const T* noise;  // [num_rows, batch, dim], or null: drawn
  uint64_t seed, first_sample;
  uint32_t step;  // counter of row 0's noise
  int64_t batch;
  const T* x;  // [batch, dim]
  T* y;        // [batch, dim]
};

}  // namespace genssl

// Elements of scratch memory of one thread.
GENSSL_DECLARE_KERNEL(template <class T> int64_t, film_mlp_sample_workspace,
                      (const FilmMLPSampleArgs<T>& args))
// Every row of the table for samples [begin, end). The embeddings and the table of the conditions,
// and the packed panels, are those of film_mlp.h.
GENSSL_DECLARE_KERNEL(template <class T> void, film_mlp_sample,
                      (const FilmMLPSampleArgs<T>& args, int64_t begin, int64_t end, T* workspace))
