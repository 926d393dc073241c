#include "kernels/coupling/affine_coupling.h"

#include "kernels/common/element.h"
#include "kernels/coupling/affine_vec.h"

namespace genssl::GENSSL_ISA {
namespace {

template <class Element>
constexpr bool is_number = false;
template <>
constexpr bool is_number<float> = true;
template <>
constexpr bool is_number<double> = true;

template <class T>
AffineOptions<T> options_as(const AffineOptions<double>& options) {
  return {options.clamp, T(options.limit), T(options.offset), T(options.min_scale),
          options.shift_first};
}

// A tile of one array: the array itself, or numbers made from it.
template <class Element>
struct Buffer {
  alignas(64) Number<Element> numbers[kAffineTile];
  alignas(64) Element elements[is_number<Element> ? 1 : kAffineTile];
};

template <class Element>
const Number<Element>* as_numbers(const Element* source, int64_t count, Buffer<Element>& buffer) {
  if constexpr (is_number<Element>) {
    return source;
  } else {
    for_each_register<Element>(0, count, [&](auto lanes) GENSSL_INLINE_LAMBDA {
      lanes.read(source).store(buffer.numbers + lanes.index);
    });
    return buffer.numbers;
  }
}

template <class Element>
void copy_strided(const Element* source, int64_t stride, int64_t count, Element* target) {
  if (stride == 1) {
    memcpy(target, source, count * sizeof(Element));
  } else if (stride == 2) {
    for (int64_t i = 0; i < count; ++i) target[i] = source[2 * i];
  } else {
    for (int64_t i = 0; i < count; ++i) target[i] = source[i * stride];
  }
}

// Transformed elements [begin, end) of one sample, brought together in `target`.
template <class Element>
void gather(const AffineCouplingArgs& args, const ParameterView& view, const Element* row,
            int64_t begin, int64_t end, Element* target) {
  while (begin < end) {
    const int64_t i = begin % args.inner, left = args.inner - i;
    const int64_t count = left < end - begin ? left : end - begin;
    const Element* source = row + begin / args.inner * view.outer_stride + i * view.inner_stride;
    copy_strided(source, view.inner_stride, count, target);
    target += count;
    begin += count;
  }
}

template <class Element>
GENSSL_INLINE const Number<Element>* read_parameter(const AffineCouplingArgs& args,
                                                    const ParameterView& view, int64_t sample,
                                                    int64_t begin, int64_t end,
                                                    Buffer<Element>& buffer) {
  if (!view.data) return nullptr;
  const Element* row = static_cast<const Element*>(view.data) + sample * view.sample_stride;
  if (view.inner_stride == 1 && args.inner == args.end - args.begin) {
    return as_numbers(row + begin, end - begin, buffer);
  }
  if constexpr (is_number<Element>) {
    gather(args, view, row, begin, end, buffer.numbers);
    return buffer.numbers;
  } else {
    gather(args, view, row, begin, end, buffer.elements);
    return as_numbers(buffer.elements, end - begin, buffer);
  }
}

// Where the results of a tile go: their place, or a buffer that write_back empties.
template <class Element>
Number<Element>* result_of(Element* target, Buffer<Element>& buffer) {
  if constexpr (is_number<Element>) return target;
  if constexpr (!is_number<Element>) return buffer.numbers;
}
template <class Element>
void write_back(const Buffer<Element>& buffer, int64_t count, Element* target) {
  if constexpr (!is_number<Element>) {
    for_each_register<Element>(0, count, [&](auto lanes) GENSSL_INLINE_LAMBDA {
      lanes.write(target, Lanes<Element>::load(buffer.numbers + lanes.index));
    });
  }
}

template <class T>
GENSSL_INLINE typename Vec<T>::Mask read_mask(const uint8_t* mask, WholeRegister<T> lanes) {
  typedef uint8_t Bytes __attribute__((vector_size(Vec<T>::size)));
  Bytes bytes;
  memcpy(&bytes, mask + lanes.index, sizeof bytes);
  return __builtin_convertvector(bytes, typename Vec<T>::Mask) != 0;
}
template <class T>
GENSSL_INLINE typename Vec<T>::Mask read_mask(const uint8_t* mask, PartialRegister<T> lanes) {
  uint8_t bytes[Vec<T>::size] = {};
  memcpy(bytes, mask + lanes.index, lanes.count);
  return read_mask(bytes, WholeRegister<T>{0});
}

// The value where the tile has elements that are transformed, otherwise 0.
template <class T>
GENSSL_INLINE Vec<T> keep(Vec<T> value, WholeRegister<T>) {
  return value;
}
template <class T>
GENSSL_INLINE Vec<T> keep(Vec<T> value, PartialRegister<T> lanes) {
  T numbers[Vec<T>::size];
  value.store(numbers);
  return Vec<T>::load(numbers, lanes.count);
}

// The sum of the lanes, in pairs.
template <class T>
GENSSL_INLINE T sum(Vec<T> value) {
  using Lanes = typename Vec<T>::Mask;
  Lanes lane;
  for (int i = 0; i < Vec<T>::size; ++i) lane[i] = i;
  for (int width = Vec<T>::size / 2; width > 0; width /= 2) {
    value = value + Vec<T>(__builtin_shuffle(value.value, lane ^ width));
  }
  return value[0];
}

template <class T>
struct Tile {
  int64_t count;
  const T *x, *shift, *log_scale;
  const uint8_t* mask;
  T* y;
  bool streaming;
};

// Transforms a tile; returns the sum of its log-derivatives. Log-scales are bounded in a pass of
// their own: two short chains of arithmetic leave the processor more registers to overlap than one
// long chain does.
template <Clamp clamp, bool inverse, class T>
GENSSL_INLINE T transform_tile(const AffineOptions<T>& shared_options, Tile<T> tile) {
  const AffineOptions<T> options = shared_options;
  constexpr Clamp second = bounds_log_scale<clamp> ? Clamp::none : clamp;
  alignas(64) T bounded[bounds_log_scale<clamp> ? kAffineTile : 1];
  if constexpr (bounds_log_scale<clamp>) {
    for_each_register<T>(0, tile.count, [&](auto lanes) GENSSL_INLINE_LAMBDA {
      lanes.write(bounded, bounded_log_scale<clamp>(options, lanes.read(tile.log_scale)));
    });
    tile.log_scale = bounded;
  }
  Vec<T> total(T(0));
  for_each_register<T>(0, tile.count, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    const Vec<T> x = lanes.read(tile.x), zero(T(0));
    const Vec<T> a = clamp == Clamp::additive ? zero : lanes.read(tile.log_scale);
    Transformed<T> result =
        affine_transform<second, inverse>(options, x, lanes.read(tile.shift), a);
    if (tile.mask) {
      const auto transformed = read_mask<T>(tile.mask, lanes);
      result = {select(transformed, result.value, x),
                select(transformed, result.log_derivative, zero)};
    }
    if (tile.streaming) {
      lanes.write_streaming(tile.y, result.value);
    } else {
      lanes.write(tile.y, result.value);
    }
    total = total + keep(result.log_derivative, lanes);
  });
  return sum(total);
}

template <class Element>
struct Buffers {
  Buffer<Element> x, shift, log_scale, y;
};

template <class Element>
GENSSL_INLINE void copy_kept(const AffineCouplingArgs& args, const Element* source,
                             Element* target) {
  if (args.begin > 0) memcpy(target, source, args.begin * sizeof(Element));
  const int64_t after = args.elements - args.end;
  if (after > 0) memcpy(target + args.end, source + args.end, after * sizeof(Element));
}

template <Clamp clamp, bool inverse, class Element>
double transform_sample(const AffineCouplingArgs& args,
                        const AffineOptions<Number<Element>>& options, int64_t sample,
                        Buffers<Element>& buffers) {
  const Element* x = static_cast<const Element*>(args.x) + sample * args.elements;
  Element* y = static_cast<Element*>(args.y) + sample * args.elements;
  copy_kept(args, x, y);
  double log_abs_det = 0;
  const int64_t count = args.end - args.begin;
  for (int64_t first = 0; first < count; first += kAffineTile) {
    const int64_t next = first + kAffineTile < count ? first + kAffineTile : count;
    Element* target = y + args.begin + first;
    const Tile<Number<Element>> tile{
        next - first,
        as_numbers(x + args.begin + first, next - first, buffers.x),
        read_parameter(args, args.shift, sample, first, next, buffers.shift),
        read_parameter(args, args.log_scale, sample, first, next, buffers.log_scale),
        args.mask ? args.mask + first : nullptr,
        result_of(target, buffers.y),
        args.streaming};
    log_abs_det += transform_tile<clamp, inverse>(options, tile);
    write_back(buffers.y, next - first, target);
  }
  return log_abs_det;
}

template <class Element>
void transform_samples(const AffineCouplingArgs& args, int64_t begin, int64_t end) {
  Buffers<Element> buffers;
  const auto options = options_as<Number<Element>>(args.options);
  auto* log_abs_det = static_cast<Number<Element>*>(args.log_abs_det);
  with_clamp(args.options.clamp, [&]<Clamp clamp>() {
    for (int64_t sample = begin; sample < end; ++sample) {
      log_abs_det[sample] = Number<Element>(
          args.inverse ? transform_sample<clamp, true>(args, options, sample, buffers)
                       : transform_sample<clamp, false>(args, options, sample, buffers));
    }
  });
  if (args.streaming) finish_streaming();
}

template <class T>
struct BackwardTile {
  int64_t count;
  const T *x, *shift, *log_scale, *grad_y;
  const uint8_t* mask;
  T grad_log_abs_det;
  T *grad_x, *grad_shift, *grad_log_scale;
};

// With f the factor and g the gradient of y: x has g f; the shift has g f where it is multiplied,
// else g, negative for the inverse; a has (g f z + grad_log_abs_det) d(log f)/da, where z is what f
// multiplies.
template <Clamp clamp, bool inverse, class T>
GENSSL_INLINE void backward_tile(const AffineOptions<T>& shared_options, BackwardTile<T> tile) {
  const AffineOptions<T> options = shared_options;
  const bool shift_is_multiplied = inverse != options.shift_first;
  for_each_register<T>(0, tile.count, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    const Vec<T> x = lanes.read(tile.x), shift = lanes.read(tile.shift), zero(T(0));
    const Vec<T> a = clamp == Clamp::additive ? zero : lanes.read(tile.log_scale);
    const Vec<T> grad_y = lanes.read(tile.grad_y);
    const Vec<T> grad = grad_y * affine_factor<clamp, inverse>(options, a).value;
    const Vec<T> multiplied = !shift_is_multiplied ? x : inverse ? x - shift : x + shift;
    const Vec<T> to_shift = shift_is_multiplied ? grad : grad_y;
    Vec<T> grads[] = {grad, inverse ? -to_shift : to_shift,
                      fma(grad, multiplied, Vec<T>(tile.grad_log_abs_det)) *
                          affine_slope<clamp, inverse>(options, a)};
    if (tile.mask) {
      const auto transformed = read_mask<T>(tile.mask, lanes);
      grads[0] = select(transformed, grads[0], grad_y);
      grads[1] = select(transformed, grads[1], zero);
      grads[2] = select(transformed, grads[2], zero);
    }
    lanes.write(tile.grad_x, grads[0]);
    lanes.write(tile.grad_shift, grads[1]);
    if (clamp != Clamp::additive) lanes.write(tile.grad_log_scale, grads[2]);
  });
}

template <class Element>
struct BackwardBuffers {
  Buffer<Element> x, shift, log_scale, grad_y, grad_x, grad_shift, grad_log_scale;
};

template <Clamp clamp, bool inverse, class Element>
void backward_sample(const AffineCouplingBackwardArgs& args,
                     const AffineOptions<Number<Element>>& options, int64_t sample,
                     BackwardBuffers<Element>& buffers) {
  using T = Number<Element>;
  const AffineCouplingArgs& forward = args.forward;
  const int64_t row = sample * forward.elements, count = forward.end - forward.begin;
  const Element* x = static_cast<const Element*>(forward.x) + row;
  const Element* grad_y = static_cast<const Element*>(args.grad_y) + row;
  Element* grad_x = static_cast<Element*>(args.grad_x) + row;
  Element* grad_shift = static_cast<Element*>(args.grad_shift) + sample * count;
  Element* grad_log_scale = static_cast<Element*>(args.grad_log_scale) + sample * count;
  copy_kept(forward, grad_y, grad_x);
  for (int64_t first = 0; first < count; first += kAffineTile) {
    const int64_t next = first + kAffineTile < count ? first + kAffineTile : count;
    const int64_t size = next - first, offset = forward.begin + first;
    const BackwardTile<T> tile{
        size,
        as_numbers(x + offset, size, buffers.x),
        read_parameter(forward, forward.shift, sample, first, next, buffers.shift),
        read_parameter(forward, forward.log_scale, sample, first, next, buffers.log_scale),
        as_numbers(grad_y + offset, size, buffers.grad_y),
        forward.mask ? forward.mask + first : nullptr,
        static_cast<const T*>(args.grad_log_abs_det)[sample],
        result_of(grad_x + offset, buffers.grad_x),
        result_of(grad_shift + first, buffers.grad_shift),
        result_of(grad_log_scale + first, buffers.grad_log_scale)};
    backward_tile<clamp, inverse>(options, tile);
    write_back(buffers.grad_x, size, grad_x + offset);
    write_back(buffers.grad_shift, size, grad_shift + first);
    if (clamp != Clamp::additive) {
      write_back(buffers.grad_log_scale, size, grad_log_scale + first);
    }
  }
}

template <class Element>
void backward_samples(const AffineCouplingBackwardArgs& args, int64_t begin, int64_t end) {
  BackwardBuffers<Element> buffers;
  const auto options = options_as<Number<Element>>(args.forward.options);
  with_clamp(args.forward.options.clamp, [&]<Clamp clamp>() {
    for (int64_t sample = begin; sample < end; ++sample) {
      if (args.forward.inverse) {
        backward_sample<clamp, true>(args, options, sample, buffers);
      } else {
        backward_sample<clamp, false>(args, options, sample, buffers);
      }
    }
  });
}

}  // namespace

void affine_coupling(const AffineCouplingArgs& args, int64_t begin, int64_t end) {
  with_element(args.type, [&]<class Element>() { transform_samples<Element>(args, begin, end); });
}

void affine_coupling_backward(const AffineCouplingBackwardArgs& args, int64_t begin, int64_t end) {
  with_element(args.forward.type,
               [&]<class Element>() { backward_samples<Element>(args, begin, end); });
}

}  // namespace genssl::GENSSL_ISA
