// Whether pieces of memory still hold what they held: weights can change without PyTorch counting
// it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "csrc/native/packed_networks.h"

namespace genssl {
namespace {

// Address and bytes.
using Piece = std::pair<uintptr_t, int64_t>;

class Contents {
 public:
  explicit Contents(const std::vector<Piece>& pieces)
      : whole_(pieces), samples_(samples_of(pieces)) {}

  // everything: compares all bytes, and otherwise some of each piece, hardly more than its first
  // miss.
  bool unchanged(bool everything) const {
    return everything ? whole_.unchanged() : samples_.unchanged();
  }

 private:
  class Copy {
   public:
    explicit Copy(std::vector<Piece> pieces) : pieces_(std::move(pieces)) {
      for (const auto& [begin, bytes] : pieces_) {
        const auto* data = pointer<const char>(begin);
        bytes_.insert(bytes_.end(), data, data + bytes);
      }
    }

    bool unchanged() const {
      const char* copy = bytes_.data();
      for (const auto& [begin, bytes] : pieces_) {
        if (std::memcmp(pointer<const char>(begin), copy, bytes) != 0) return false;
        copy += bytes;
      }
      return true;
    }

   private:
    std::vector<Piece> pieces_;
    std::vector<char> bytes_;
  };

  // A line of cache at the beginning, at the end and at two places between.
  static std::vector<Piece> samples_of(const std::vector<Piece>& pieces) {
    constexpr int64_t samples = 4, line = 64;
    std::vector<Piece> found;
    for (const auto& [begin, bytes] : pieces) {
      if (bytes <= samples * line) {
        found.emplace_back(begin, bytes);
        continue;
      }
      for (int64_t i = 0; i < samples; ++i) {
        found.emplace_back(begin + (bytes - line) * i / (samples - 1), line);
      }
    }
    return found;
  }

  Copy whole_, samples_;
};

}  // namespace

void bind_contents(pybind11::module_& module) {
  namespace py = pybind11;
  py::class_<Contents>(module, "Contents", "Whether pieces of memory still hold what they held.")
      .def(py::init<const std::vector<Piece>&>(), py::arg("pieces"))
      .def("unchanged", &Contents::unchanged, py::arg("everything"));
}

}  // namespace genssl
