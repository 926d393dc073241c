// The tasks of all rounds of pairs.h, for as many threads as come.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/contrast/pairs.h"

namespace genssl {

// Hands out tasks in the order of the rounds. A task waits only for those before it that share a
// block of rows with it, not for its whole round: what is added to a block is added in the same
// order as with a barrier after each round, and nobody waits for the slowest thread. A task that
// others wait for has been taken, so that any number of threads comes to the end.
class PairQueue {
 public:
  struct Task {
    BlockPair pair;
    int64_t row, column;            // its blocks, numbered together
    int64_t row_turn, column_turn;  // how many tasks have them before
  };

  explicit PairQueue(const PairShape& shape)
      : shape_(shape),
        row_blocks_(pair_blocks(shape.rows, shape.row_block)),
        taken_(row_blocks_ + (shape.gram ? 0 : pair_blocks(shape.columns, shape.column_block))),
        done_(taken_.size()) {}

  // Returns false when all tasks have been taken; else the task can run.
  bool take(Task& task) {
    if (!next(task)) return false;
    wait_for(task.row, task.row_turn);
    wait_for(task.column, task.column_turn);
    return true;
  }

  void finish(const Task& task) {
    done_[task.row].store(task.row_turn + 1, std::memory_order_release);
    done_[task.column].store(task.column_turn + 1, std::memory_order_release);
  }

 private:
  bool next(Task& task) {
    const std::lock_guard<std::mutex> lock(mutex_);
    do {
      while (round_ < pair_rounds(shape_) && number_ == pair_tasks(shape_, round_)) {
        ++round_;
        number_ = 0;
      }
      if (round_ == pair_rounds(shape_)) return false;
    } while (!pair_of_task(shape_, round_, number_++, task.pair));
    task.row = task.pair.row;
    task.column = task.pair.column + (shape_.gram ? 0 : row_blocks_);
    task.row_turn = taken_[task.row]++;
    task.column_turn = task.column == task.row ? task.row_turn : taken_[task.column]++;
    return true;
  }

  void wait_for(int64_t block, int64_t turn) const {
    while (done_[block].load(std::memory_order_acquire) != turn) std::this_thread::yield();
  }

  const PairShape shape_;
  const int64_t row_blocks_;
  std::mutex mutex_;
  int64_t round_ = 0, number_ = 0;
  std::vector<int64_t> taken_;
  std::vector<std::atomic<int64_t>> done_;
};

}  // namespace genssl
