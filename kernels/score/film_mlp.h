// A whole residual FiLM-MLP score network: x[B, dim] and a time per sample -> y[B, dim].
//
//   e   = silu(W_embed2 silu(W_embed1 time_embedding(t))) + class_embedding[label]
//   h   = W_in x + b_in
//   h  <- h + silu((1 + gamma) (W h + c) + beta),   [gamma, beta] = W_film e,   for every block
//   y   = W_out h + b_out
//
// A condition is what e, gamma and beta depend on: a time, or a time and a label. Each is embedded
// once, however many samples share it. With a table, gamma and beta are computed once per
// condition, too; without one (as many conditions as samples) they are computed per block of
// samples, where they stay in cache.
#pragma once

#include <stdint.h>

#include "kernels/common/isa.h"

namespace genssl {

template <class T>
struct FilmMLPNetwork {
  int64_t dim, hidden, blocks, embed, time_dim;
  const T *w_in, *b_in;          // [hidden, dim], [hidden]
  const T *w, *c;                // [blocks, hidden, hidden], [blocks, hidden]
  const T* w_film;               // [blocks, 2, hidden, embed], gamma first
  const T *w_embed1, *w_embed2;  // [embed, time_dim], [embed, embed]
  const T *w_out, *b_out;        // [dim, hidden], [dim]
  const T* class_embedding;      // [classes, embed], read where there are labels
  const T* frequencies;          // [time_dim / 2]
  bool sin_first;
  T* trunk_panels;  // packing of w_in, w and w_out, or null: packed as they are used
  T* film_panels;   // packing of w_film, or null
};

template <class T>
struct FilmMLPConditions {
  const T* times;         // [count]
  const int64_t* labels;  // [count] or null
  T* embeddings;          // [count, embed]
  T* table;               // [count, table_stride] or null
  int64_t count;
};

template <class T>
struct FilmMLPArgs {
  FilmMLPNetwork<T> network;
  FilmMLPConditions<T> conditions;
  const int64_t* condition;  // [B]: each sample's
  const T* x;                // [B, dim]
  T* y;                      // [B, dim]
};

// Sizes in elements of T that depend on the instruction set.
struct FilmMLPSizes {
  int64_t trunk_panels, trunk_size;  // how many panels, and what their packing takes
  int64_t film_panels, film_size;
  int64_t table_stride;  // gamma and beta of all blocks for one condition
  int64_t workspace;     // scratch memory of one thread
};

}  // namespace genssl

GENSSL_DECLARE_KERNEL(template <class T> FilmMLPSizes, film_mlp_sizes,
                      (const FilmMLPNetwork<T>& network))
// Packs panels [begin, end): those of the trunk come first, then those of w_film.
GENSSL_DECLARE_KERNEL(template <class T> void, film_mlp_pack,
                      (const FilmMLPNetwork<T>& network, int64_t begin, int64_t end))
// Embeddings of conditions [begin, end).
GENSSL_DECLARE_KERNEL(template <class T> void, film_mlp_embed,
                      (const FilmMLPNetwork<T>& network, const FilmMLPConditions<T>& conditions,
                       int64_t begin, int64_t end, T* workspace))
// Panels [begin, end) of w_film times the embeddings of all conditions: columns of the table.
GENSSL_DECLARE_KERNEL(template <class T> void, film_mlp_tabulate,
                      (const FilmMLPNetwork<T>& network, const FilmMLPConditions<T>& conditions,
                       int64_t begin, int64_t end, T* workspace))
// The network for samples [begin, end).
GENSSL_DECLARE_KERNEL(template <class T> void, film_mlp,
                      (const FilmMLPArgs<T>& args, int64_t begin, int64_t end, T* workspace))
