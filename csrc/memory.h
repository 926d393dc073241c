// Aligned memory for kernels, without PyTorch.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace genssl {

// Uninitialised memory that starts on a cache line, so that no register of weights straddles two.
template <class T>
class AlignedBuffer {
 public:
  T* reserve(int64_t count) {
    if (count > capacity_) {
      memory_.reset(static_cast<T*>(::operator new(count * sizeof(T), kAlignment)));
      capacity_ = count;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(T* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<T, Delete> memory_;
  int64_t capacity_ = 0;
};

// Scratch memory of the calling thread, kept between calls: fresh memory costs a page fault every
// 4 KiB.
template <class T>
T* thread_scratch(int64_t count) {
  thread_local AlignedBuffer<T> buffer;
  return buffer.reserve(count);
}

}  // namespace genssl
