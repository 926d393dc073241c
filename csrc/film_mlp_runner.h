// Runs the FiLM-MLP kernels on the host in their order: packing, conditions, samples. Without
// PyTorch, so that the dispatcher's operations and the plans of the native module share it; each
// includes its own parallel.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/memory.h"
#include "kernels/integrate/film_mlp_sample.h"
#include "kernels/score/film_mlp.h"

namespace genssl {

// What a network computes before its samples. Kept between calls: fresh memory costs a page fault
// every 4 KiB, which for a small batch is more than the arithmetic.
template <class T>
struct FilmMLPMemory {
  AlignedBuffer<T> trunk, film, embeddings, table;
};

template <class T>
FilmMLPMemory<T>& thread_memory() {
  thread_local FilmMLPMemory<T> memory;
  return memory;
}

template <class T>
class FilmMLPRunner {
 public:
  // `classes` is the number of rows of network.class_embedding.
  FilmMLPRunner(const FilmMLPNetwork<T>& network, int64_t classes, FilmMLPMemory<T>& memory)
      : memory_(memory),
        network_(network),
        classes_(classes),
        sizes_(GENSSL_DISPATCH(film_mlp_sizes<T>)(network)) {
    network_.trunk_panels = network_.film_panels = nullptr;
  }

  // Forgets the packed weights; the next call packs them again.
  void refresh() { network_.trunk_panels = network_.film_panels = nullptr; }

  // y[batch, dim] = network(x[batch, dim], times), with one shared time or `batch` of them; labels
  // may be null.
  void forward(const T* x, const T* times, bool shared_time, const int64_t* labels, int64_t batch,
               T* y) {
    if (batch == 0) return;
    if (shared_time) {
      share_conditions({times, times + 1}, labels, batch);
    } else {
      own_conditions(times, labels, batch);
    }
    const int64_t count = static_cast<int64_t>(times_.size());
    prepare(count <= kFewConditions || 2 * count <= batch);
    const FilmMLPArgs<T> args{network_, conditions_, condition_.data(), x, y};
    parallel_for(0, batch, sample_grain(1), [&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(film_mlp<T>)(args, begin, end, thread_scratch<T>(sizes_.workspace));
    });
  }

  // All rows of a table [num_rows, columns] for args.batch samples. The caller fills in what
  // describes the sampler: num_states, num_predictions, clip, noise, seed, step, first_sample,
  // batch, x and y.
  void sample(FilmMLPSampleArgs<T> args, const double* table, int64_t num_rows,
              const int64_t* labels) {
    const int64_t columns = args.num_states + args.num_predictions + 6;
    if (args.batch == 0) return;
    const std::vector<T> coefficients(table, table + num_rows * columns);
    std::vector<T> times;
    for (int64_t row = 0; row < num_rows; ++row)
      times.push_back(coefficients[(row + 1) * columns - 1]);
    share_conditions(times, labels, args.batch);
    prepare(true);  // a row's conditions number at most as many as its samples
    args.network = network_;
    args.conditions = conditions_;
    args.conditions_per_row = num_rows ? conditions_.count / num_rows : 0;
    args.condition = condition_.data();
    args.coefficients = coefficients.data();
    args.num_rows = num_rows;
    const int64_t scratch = GENSSL_DISPATCH(film_mlp_sample_workspace<T>)(args);
    parallel_for(0, args.batch, sample_grain(num_rows), [&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(film_mlp_sample<T>)(args, begin, end, thread_scratch<T>(scratch));
    });
  }

 private:
  // What is worth a thread: about 20 microseconds.
  static constexpr int64_t kGrainMultiplications = 1 << 20;
  static constexpr int64_t kGrainElements = 1 << 16;
  static constexpr int64_t kGrainSamples = 4;
  static constexpr int64_t kFewConditions = 96;       // one block of samples
  static constexpr int64_t kTableElements = 1 << 26;  // 256 MiB of fp32

  void check_label(int64_t label) const {
    if (label >= 0 && label < classes_) return;
    throw std::invalid_argument("labels: expected 0 to " + std::to_string(classes_ - 1) + ", got " +
                                std::to_string(label));
  }

  // Every time with every label that occurs: [times, labels].
  void share_conditions(const std::vector<T>& times, const int64_t* labels, int64_t batch) {
    condition_.assign(batch, 0);
    times_.clear();
    labels_.clear();
    std::vector<int64_t> occurring, position(labels ? classes_ : 0, -1);
    for (int64_t i = 0; labels && i < batch; ++i) {
      check_label(labels[i]);
      if (position[labels[i]] < 0) {
        position[labels[i]] = static_cast<int64_t>(occurring.size());
        occurring.push_back(labels[i]);
      }
      condition_[i] = position[labels[i]];
    }
    for (const T time : times) {
      times_.insert(times_.end(), labels ? occurring.size() : 1, time);
      labels_.insert(labels_.end(), occurring.begin(), occurring.end());
    }
  }

  // A condition for every sample.
  void own_conditions(const T* times, const int64_t* labels, int64_t batch) {
    times_.assign(times, times + batch);
    labels_.assign(labels, labels ? labels + batch : labels);
    for (const int64_t label : labels_) check_label(label);
    condition_.resize(batch);
    for (int64_t i = 0; i < batch; ++i) condition_[i] = i;
  }

  // Packs what is not packed yet, and computes embeddings and, where it is worth it and fits, the
  // table.
  void prepare(bool worth_a_table) {
    const int64_t count = static_cast<int64_t>(times_.size());
    const int64_t table_size = count * sizes_.table_stride;
    const bool tabulate = worth_a_table && table_size <= kTableElements;
    conditions_ = {times_.data(), labels_.empty() ? nullptr : labels_.data(),
                   memory_.embeddings.reserve(count * network_.embed), nullptr, count};
    pack(!tabulate);
    const int64_t embed_work = network_.embed * (network_.embed + network_.time_dim);
    parallel_for(0, count, grain(kGrainMultiplications, embed_work),
                 [&](int64_t begin, int64_t end) {
                   GENSSL_DISPATCH(film_mlp_embed<T>)(network_, conditions_, begin, end,
                                                      thread_scratch<T>(sizes_.workspace));
                 });
    if (!tabulate) return;
    conditions_.table = memory_.table.reserve(table_size);
    const int64_t panel_work = sizes_.film_size / std::max<int64_t>(sizes_.film_panels, 1);
    parallel_for(0, sizes_.film_panels, grain(kGrainElements, panel_work),
                 [&](int64_t begin, int64_t end) {
                   GENSSL_DISPATCH(film_mlp_tabulate<T>)(network_, conditions_, begin, end,
                                                         thread_scratch<T>(sizes_.workspace));
                 });
  }

  void pack(bool film) {
    const int64_t begin = network_.trunk_panels ? sizes_.trunk_panels : 0;
    const bool packs_film = film && network_.film_panels == nullptr;
    const int64_t end = sizes_.trunk_panels + (packs_film ? sizes_.film_panels : 0);
    network_.trunk_panels = memory_.trunk.reserve(sizes_.trunk_size);
    if (packs_film) network_.film_panels = memory_.film.reserve(sizes_.film_size);
    const int64_t panel_work = sizes_.trunk_size / sizes_.trunk_panels;
    parallel_for(begin, end, grain(kGrainElements, panel_work), [&](int64_t first, int64_t last) {
      GENSSL_DISPATCH(film_mlp_pack<T>)(network_, first, last);
    });
  }

  // How many items of so much work each are worth a thread.
  static int64_t grain(int64_t worth, int64_t work) {
    return std::max<int64_t>(1, worth / std::max<int64_t>(work, 1));
  }

  // sizes_.trunk_size counts the multiplications of one sample, sizes_.film_size those of its
  // condition.
  int64_t sample_grain(int64_t rows) const {
    const int64_t work = rows * (sizes_.trunk_size + (conditions_.table ? 0 : sizes_.film_size));
    return std::max(kGrainSamples, grain(kGrainMultiplications, work));
  }

  FilmMLPMemory<T>& memory_;
  FilmMLPNetwork<T> network_;
  FilmMLPConditions<T> conditions_;
  int64_t classes_;
  FilmMLPSizes sizes_;
  std::vector<T> times_;
  std::vector<int64_t> labels_, condition_;
};

}  // namespace genssl
