#include "ggml-lite/cpu/product.h"

#include <algorithm>

namespace lite::cpu {
namespace {

constexpr int64_t kDepth =
    1024;  // columns of a panel: with kPanelRows rows of bf16 a quarter of a second-level cache
constexpr int64_t kBlockTokens = 64;  // rows of activations that meet a panel before the next ones

// Calls use(first, n, scale row or null) for the stretches of rows [first, first + n) that share their scales.
template <class Use>
void each_scale_row(const Tensor& w, int64_t first, int64_t n, int64_t most, Use&& use) {
  const Scale& s = w.scale;
  for (int64_t end = first + n; first < end; first += n) {
    n = std::min(most, end - first);
    const std::byte* grid = nullptr;
    if (s.data) {
      const int64_t block = (s.row0 + first) / s.block_rows;
      n = std::min(n, (block + 1) * s.block_rows - s.row0 - first);
      grid = s.data + block * s.row_stride;
    }
    use(first, n, grid);
  }
}

// Calls use(column, n, scale) for the stretches of columns [column, column + n) that share a scale; 1 without scales.
template <class Use>
void each_scale(const Tensor& w, const std::byte* grid, int64_t column, int64_t n, Use&& use) {
  const Scale& s = w.scale;
  for (const int64_t end = column + n; column < end; column += n) {
    n = end - column;
    float scale = 1;
    if (grid) {
      const int64_t block = (s.col0 + column) / s.block_cols;
      n = std::min(n, (block + 1) * s.block_cols - s.col0 - column);
      decode(s.dtype, grid + block * size_of(s.dtype), &scale, 1);
    }
    use(column, n, scale);
  }
}

const std::byte* at(const Tensor& w, int64_t row, int64_t column) {
  return w.data + row * w.stride[0] + column * size_of(w.dtype);
}

bool has_bf16_products(const Arithmetic& a, const Tensor& w) {
  return a.k->gemm_bf16 && !a.exact && (w.dtype == DType::F8_E4M3 || w.dtype == DType::BF16);
}

}  // namespace

Elem elem_of(DType dtype) {
  switch (dtype) {
    case DType::BF16: return Elem::Bf16;
    case DType::F16: return Elem::F16;
    case DType::F8_E4M3: return Elem::F8;
    default: return Elem::F32;
  }
}

int64_t ProductScratch::bytes(int64_t columns) {
  const int64_t decode = round_up(columns, 64) * (1 + kGemvTokens) * int64_t(sizeof(float));
  return decode + (kPanelRows + kBlockTokens) * kDepth * int64_t(sizeof(float));
}

ProductScratch::ProductScratch(std::byte* memory, int64_t columns) {
  row = reinterpret_cast<float*>(memory);
  prepared = row + round_up(columns, 64);
  panel = reinterpret_cast<std::byte*>(prepared + kGemvTokens * round_up(columns, 64));
  block = panel + kPanelRows * kDepth * int64_t(sizeof(float));
}

void decode_product(const Arithmetic& a, const Tensor& w, int64_t first, int64_t n, const float* const* x,
                    int64_t tokens, float* y, int64_t y_stride, ProductScratch& scratch) {
  const Elem type = elem_of(w.dtype);
  const int64_t columns = w.shape[1];
  each_scale_row(w, first, n, n, [&](int64_t from, int64_t count, const std::byte* grid) {
    for (int64_t t0 = 0; t0 < tokens; t0 += kGemvTokens) {
      const int64_t group = std::min(kGemvTokens, tokens - t0);
      for (int64_t t = 0; t < group; ++t) {
        const float* row = x[t0 + t];
        if (grid) {
          each_scale(w, grid, 0, columns, [&](int64_t c, int64_t width, float scale) {
            a.k->to_f32(Elem::F32, row + c, scale, scratch.row + c, width);
          });
          row = scratch.row;
        }
        a.k->gemv_prepare(type, row, columns, t, group, scratch.prepared);
      }
      a.k->gemv(type, at(w, from, 0), w.stride[0], count, columns, scratch.prepared, group,
                y + t0 * y_stride + from - first, y_stride);
    }
  });
}

void decode_panel(const Kernels& k, const Tensor& w, int64_t first, int64_t n, int64_t column, int64_t count,
                  float* to) {
  each_scale_row(w, first, n, n, [&](int64_t from, int64_t rows, const std::byte* grid) {
    each_scale(w, grid, column, count, [&](int64_t c, int64_t width, float scale) {
      for (int64_t i = from; i < from + rows; ++i)
        k.to_f32(elem_of(w.dtype), at(w, i, c), scale, to + (i - first) * count + c - column, width);
    });
  });
}

void prompt_product(const Arithmetic& a, const Tensor& w, int64_t first, int64_t n, const float* const* x,
                    int64_t tokens, float* y, int64_t y_stride, ProductScratch& scratch, bool f32) {
  const bool bf16 = has_bf16_products(a, w) && !f32;
  const int64_t columns = w.shape[1], depth = bf16 ? kDepth : kDepth / 2;
  each_scale_row(w, first, n, kPanelRows, [&](int64_t from, int64_t count, const std::byte* grid) {
    const void* b[kPanelRows];
    const void* rows[kBlockTokens];
    for (int64_t k0 = 0; k0 < columns; k0 += depth) {
      const int64_t k = std::min(depth, columns - k0);
      // The panel: [count][k], bf16 codes or f32 values.
      if (!bf16) decode_panel(*a.k, w, from, count, k0, k, reinterpret_cast<float*>(scratch.panel));
      for (int64_t i = 0; i < count; ++i) {
        if (bf16 && w.dtype == DType::BF16) {
          b[i] = at(w, from + i, k0);
        } else if (bf16) {
          uint16_t* to = reinterpret_cast<uint16_t*>(scratch.panel) + i * k;
          a.k->f8_to_bf16(reinterpret_cast<const uint8_t*>(at(w, from + i, k0)), to, k);
          b[i] = to;
        } else {
          b[i] = reinterpret_cast<float*>(scratch.panel) + i * k;
        }
      }
      for (int64_t t0 = 0; t0 < tokens; t0 += kBlockTokens) {
        const int64_t m = std::min(kBlockTokens, tokens - t0);
        float* to = y + t0 * y_stride + from - first;
        for (int64_t t = 0; t < m; ++t) {
          const float* row = x[t0 + t];
          if (!bf16) {
            rows[t] = row + k0;
            continue;
          }
          uint16_t* half = reinterpret_cast<uint16_t*>(scratch.block) + t * k;
          each_scale(w, grid, k0, k, [&](int64_t c, int64_t width, float scale) {
            a.k->to_bf16(row + c, scale, half + c - k0, width);
          });
          rows[t] = half;
        }
        if (bf16)
          a.k->gemm_bf16(reinterpret_cast<const uint16_t* const*>(rows), m,
                         reinterpret_cast<const uint16_t* const*>(b), count, k, to, y_stride, k0 > 0);
        else
          a.k->gemm_f32(reinterpret_cast<const float* const*>(rows), m,
                        reinterpret_cast<const float* const*>(b), count, k, to, y_stride, k0 > 0);
      }
    }
  });
}

}  // namespace lite::cpu
