// In which order the units of a masked autoregressive network are computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace genssl {

// One vector for every layer: the input, the hidden layers, and the parameters, which follow the
// order of the input.
class MADESchedule {
 public:
  std::vector<std::vector<int64_t>> order;  // [units]: the given place of the i-th unit
  std::vector<std::vector<int64_t>> end;    // [steps + 1]: units before a step
  std::vector<int64_t> block_step;          // [blocks + 1]: the first step of a block

  // degrees[layer][units] of the input and the hidden layers.
  explicit MADESchedule(const std::vector<std::vector<int64_t>>& degrees) {
    const std::vector<int64_t> steps = find_steps(degrees);
    for (const auto& layer : degrees) sort_layer(layer, steps);
    order.push_back(order[0]);
    end.push_back(end[0]);
    cut_into_blocks(static_cast<int64_t>(steps.size()));
  }

  int64_t blocks() const { return static_cast<int64_t>(block_step.size()) - 1; }

 private:
  // Units of a layer in a block, where one step has not more: enough to fill tiles between steps.
  static constexpr int64_t kBlockUnits = 32;

  // Degrees up to the largest of an input: nothing depends on units above.
  static std::vector<int64_t> find_steps(const std::vector<std::vector<int64_t>>& degrees) {
    std::vector<int64_t> steps;
    for (const auto& layer : degrees) steps.insert(steps.end(), layer.begin(), layer.end());
    std::sort(steps.begin(), steps.end());
    steps.erase(std::unique(steps.begin(), steps.end()), steps.end());
    const int64_t last = *std::max_element(degrees[0].begin(), degrees[0].end());
    steps.erase(std::upper_bound(steps.begin(), steps.end(), last), steps.end());
    return steps;
  }

  void sort_layer(const std::vector<int64_t>& degrees, const std::vector<int64_t>& steps) {
    std::vector<int64_t> places(degrees.size()), sorted(degrees), ends{0};
    std::iota(places.begin(), places.end(), 0);
    std::stable_sort(places.begin(), places.end(),
                     [&](int64_t a, int64_t b) { return degrees[a] < degrees[b]; });
    std::sort(sorted.begin(), sorted.end());
    for (const int64_t step : steps) {
      ends.push_back(std::upper_bound(sorted.begin(), sorted.end(), step) - sorted.begin());
    }
    order.push_back(std::move(places));
    end.push_back(std::move(ends));
  }

  void cut_into_blocks(int64_t steps) {
    block_step.push_back(0);
    for (int64_t step = 1; step < steps; ++step) {
      const auto is_full = [&](const std::vector<int64_t>& ends) {
        return ends[step + 1] - ends[block_step.back()] > kBlockUnits;
      };
      if (std::any_of(end.begin(), end.end(), is_full)) block_step.push_back(step);
    }
    block_step.push_back(steps);
  }
};

}  // namespace genssl
