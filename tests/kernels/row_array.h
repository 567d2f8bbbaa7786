// Rows of heads on the device, in either order of heads and rows.
#pragma once
#include <limits>
#include <memory>

#include "kernels/entropy_attention.h"
#include "tests/kernels/testing.h"

namespace isentrope::testing {

// The checker is slow, and its plain twin compares values: with it fewer cases run, and no value is compared.
#if !defined(__CUDACC__)
constexpr bool kChecked = simt::kInstrumented;
#else
constexpr bool kChecked = false;
#endif

// [B, heads, rows, columns], or [B, rows, heads, columns] with a gap of NaN between the rows.
template <class T>
class RowArray {
 public:
  RowArray(bool rows_first, int64_t batch, int64_t heads, int64_t rows, int64_t columns, const char* name)
      : batch_(batch), heads_(heads), rows_(rows), columns_(columns) {
    const int64_t width = columns == 1 ? 1 : columns + (rows_first ? 8 : 0);
    strides = rows_first ? kernels::HeadStrides{rows * heads * width, width, heads * width}
                         : kernels::HeadStrides{heads * rows * width, rows * width, width};
    buffer_ = std::make_unique<DeviceBuffer<T>>(batch * heads * rows * width, name);
  }
  RowArray(bool rows_first, int64_t batch, int64_t heads, int64_t rows, int64_t columns, const char* name,
           const std::vector<double>& values)
      : RowArray(rows_first, batch, heads, rows, columns, name) {
    std::vector<T> stored(buffer_->size(), convert<T>({std::numeric_limits<double>::quiet_NaN()})[0]);
    const std::vector<T> converted = convert<T>(values);
    each([&](int64_t n, int64_t place) { stored[place] = converted[n]; });
    buffer_->write(stored);
  }
  std::vector<T> read() {
    const std::vector<T> stored = buffer_->read();
    std::vector<T> values(batch_ * heads_ * rows_ * columns_);
    each([&](int64_t n, int64_t place) { values[n] = stored[place]; });
    return values;
  }
  T* data() { return buffer_->data(); }

  kernels::HeadStrides strides;

 private:
  template <class Function>
  void each(Function function) {
    int64_t n = 0;
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t h = 0; h < heads_; ++h)
        for (int64_t t = 0; t < rows_; ++t)
          for (int64_t d = 0; d < columns_; ++d)
            function(n++, b * strides.batch + h * strides.head + t * strides.row + d);
  }
  int64_t batch_, heads_, rows_, columns_;
  std::unique_ptr<DeviceBuffer<T>> buffer_;
};

}  // namespace isentrope::testing
