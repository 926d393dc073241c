// The FiLM-MLP for one block of samples, whose activations stay in the second level cache through
// all layers. Shared by film_mlp and film_mlp_sample.
#pragma once

#include "kernels/common/linear.h"
#include "kernels/common/math.h"
#include "kernels/score/film_mlp.h"

namespace genssl::GENSSL_ISA {

// Scratch memory of one thread, cut into its parts.
template <class T>
struct FilmMLPScratch {
  T *activations, *next, *embeddings, *film, *panels;
  int64_t activation_stride, embedding_stride, size;

  GENSSL_INLINE FilmMLPScratch(const FilmMLPNetwork<T>& network, T* workspace) {
    const int64_t depth =
        larger(larger(network.dim, network.hidden), larger(network.embed, network.time_dim));
    activation_stride =
        row_stride<T>(larger(network.hidden, larger(network.embed, network.time_dim)));
    embedding_stride = row_stride<T>(network.embed);
    activations = workspace;
    next = activations + kMaxBlockRows * activation_stride;
    embeddings = next + kMaxBlockRows * activation_stride;
    film = embeddings + kMaxBlockRows * embedding_stride;
    panels = film + kMaxBlockRows * 2 * kPanelColumns<T>;
    size = panels + panel_scratch_size<T>(depth) - workspace;
  }
};

template <class T>
GENSSL_INLINE T* offset_or_null(T* panels, int64_t offset) {
  return panels == nullptr ? nullptr : panels + offset;
}

// Matrix 0 of the trunk is w_in, blocks + 1 is w_out, those between are w.
template <class T>
GENSSL_INLINE Matrix<T> trunk_matrix(const FilmMLPNetwork<T>& network, int64_t index) {
  const int64_t dim = network.dim, hidden = network.hidden;
  if (index == 0) return {network.w_in, network.trunk_panels, hidden, dim};
  const int64_t offset = packed_size<T>(hidden, dim) + (index - 1) * packed_size<T>(hidden, hidden);
  const T* panels = offset_or_null(network.trunk_panels, offset);
  if (index > network.blocks) return {network.w_out, panels, dim, hidden};
  return {network.w + (index - 1) * hidden * hidden, panels, hidden, hidden};
}

// Matrix 2 b gives gamma of block b, 2 b + 1 its beta.
template <class T>
GENSSL_INLINE Matrix<T> film_matrix(const FilmMLPNetwork<T>& network, int64_t index) {
  const int64_t hidden = network.hidden, embed = network.embed;
  const T* panels = offset_or_null(network.film_panels, index * packed_size<T>(hidden, embed));
  return {network.w_film + index * hidden * embed, panels, hidden, embed};
}

template <class T>
GENSSL_INLINE int64_t film_columns(const FilmMLPNetwork<T>& network) {
  return count_panels<T>(network.hidden) * kPanelColumns<T>;
}

// gamma of sample r's column n lies at rows[r][first + n], beta `beta` further.
template <class T>
struct FilmRows {
  const T* rows[kMaxBlockRows];
  int64_t beta;
};

// target = h + silu((1 + gamma) (W h + bias) + beta) for one group of panels.
template <class T>
inline void film_panels(const T* h, int64_t stride, int64_t rows, const Matrix<T>& matrix,
                        int64_t panel, int count, const T* bias, const FilmRows<T>& film,
                        int64_t first, T* target, T* panels) {
  multiply_panels(
      h, stride, rows, matrix, panel, count, panels,
      [&](int64_t row, int tile, int64_t column, const T* product) {
        const auto activate = [&](int64_t r, int64_t n, int64_t lanes, Vec<T> value) {
          const T* gamma = film.rows[r] + first + n;
          const Vec<T> scale = Vec<T>(T(1)) + Vec<T>::load(gamma);
          const Vec<T> inner =
              fma(scale, value + load_lanes(bias + n, lanes), Vec<T>::load(gamma + film.beta));
          (Vec<T>::load(h + r * stride + n) + silu(inner)).store(target + r * stride + n);
        };
        for_each_register<T>(row, tile, column, matrix.columns, product, activate);
      });
}

// One residual block whose gamma and beta lie in the table.
template <class T>
inline void tabulated_block(const FilmMLPNetwork<T>& network, int64_t block, int64_t rows,
                            const FilmRows<T>& film, FilmMLPScratch<T>& scratch) {
  const Matrix<T> matrix = trunk_matrix(network, block + 1);
  const int64_t num_panels = count_panels<T>(network.hidden);
  for (int64_t panel = 0; panel < num_panels;) {
    const int count = panels_at_a_time(rows, num_panels - panel);
    film_panels(scratch.activations, scratch.activation_stride, rows, matrix, panel, count,
                network.c + block * network.hidden, film, 2 * block * film_columns(network),
                scratch.next, scratch.panels);
    panel += count;
  }
}

// One residual block whose gamma and beta are computed, a panel at a time, from the samples'
// embeddings.
template <class T>
inline void embedded_block(const FilmMLPNetwork<T>& network, int64_t block, int64_t rows,
                           const FilmRows<T>& film, FilmMLPScratch<T>& scratch) {
  constexpr int width = kPanelColumns<T>;
  const Matrix<T> matrix = trunk_matrix(network, block + 1);
  for (int64_t panel = 0; panel < count_panels<T>(network.hidden); ++panel) {
    for (int part = 0; part < 2; ++part) {
      const auto keep = [&](int64_t row, int tile, int64_t, const T* product) {
        for (int r = 0; r < tile; ++r) {
          T* target = scratch.film + (2 * (row + r) + part) * width;
          memcpy(target, product + r * width, width * sizeof(T));
        }
      };
      multiply_panels(scratch.embeddings, scratch.embedding_stride, rows,
                      film_matrix(network, 2 * block + part), panel, 1, scratch.panels, keep);
    }
    film_panels(scratch.activations, scratch.activation_stride, rows, matrix, panel, 1,
                network.c + block * network.hidden, film, -panel * width, scratch.next,
                scratch.panels);
  }
}

// Points `film` at the conditions of a block's samples, or collects their embeddings.
// Condition `offset` + condition[r] is the one of sample r.
template <class T>
inline void gather_conditions(const FilmMLPNetwork<T>& network,
                              const FilmMLPConditions<T>& conditions, const int64_t* condition,
                              int64_t offset, int64_t rows, FilmRows<T>& film,
                              FilmMLPScratch<T>& scratch) {
  const int64_t columns = film_columns(network);
  film.beta = conditions.table ? columns : kPanelColumns<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t index = offset + condition[r];
    if (conditions.table) {
      film.rows[r] = conditions.table + index * 2 * network.blocks * columns;
      continue;
    }
    film.rows[r] = scratch.film + r * 2 * kPanelColumns<T>;
    memcpy(scratch.embeddings + r * scratch.embedding_stride,
           conditions.embeddings + index * network.embed, network.embed * sizeof(T));
  }
}

// y[rows, dim] = network(x[rows, dim]).
template <class T>
inline void run_block(const FilmMLPNetwork<T>& network, bool tabulated, const FilmRows<T>& film,
                      const T* x, int64_t rows, T* y, FilmMLPScratch<T> scratch) {
  const int64_t stride = scratch.activation_stride;
  linear(x, network.dim, rows, trunk_matrix(network, 0), network.b_in, scratch.activations, stride,
         scratch.panels);
  for (int64_t block = 0; block < network.blocks; ++block) {
    (tabulated ? tabulated_block<T> : embedded_block<T>)(network, block, rows, film, scratch);
    T* const finished = scratch.next;
    scratch.next = scratch.activations;
    scratch.activations = finished;
  }
  linear(scratch.activations, stride, rows, trunk_matrix(network, network.blocks + 1),
         network.b_out, y, network.dim, scratch.panels);
}

}  // namespace genssl::GENSSL_ISA
