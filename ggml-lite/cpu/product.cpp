#include "ggml-lite/cpu/product.h"

#include <algorithm>

namespace lite::cpu {
namespace {

constexpr int64_t kDepth =
    1024;  // columns of a panel: with kPanelRows rows of bf16 a quarter of a second-level cache
// Columns that the weights of a decode step meet at once: with 8 rows of activations 64 KiB, which stay in the second-level cache.
constexpr int64_t kDecodeDepth = 2048;
constexpr int64_t kBlockTokens = 64;  // rows of activations that meet a panel before the next ones
// On the matrix unit: columns of a panel, with kTileRows rows of bf16 two thirds of a first-level cache; rows of
// activations whose sums are kept until all columns are done.
constexpr int64_t kTileDepth = 256, kTileTokens = 512;

// Of a row of activations in a decode step.
int64_t decode_places(int64_t columns) {
  return std::min(kDecodeDepth, round_up(columns, 64));
}

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

// Whether every block of 128 columns, counted from the first, has one scale.
bool scales_by_128(const Tensor& w) {
  return !w.scale.data || (w.scale.col0 % kScaleColumns == 0 && w.scale.block_cols % kScaleColumns == 0);
}

bool has_f16_products(const Arithmetic& a, const Tensor& w) {
  return a.k->gemv_f16 && !a.exact && w.dtype == DType::F8_E4M3 && scales_by_128(w);
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
  const int64_t decode = decode_places(columns) * (1 + kGemvTokens) * int64_t(sizeof(float));
  const int64_t blocks = ceil_div(columns, kScaleColumns) * kGemvTokens;
  const int64_t in_f16 = blocks * (kScaleColumns * int64_t(sizeof(uint16_t)) + 2 * int64_t(sizeof(float)));
  static_assert(kTileRows * kTileDepth * sizeof(uint16_t) + kTileRows * kTileTokens * sizeof(float) <=
                kPanelRows * kDepth * sizeof(float));
  return decode + (kPanelRows + kBlockTokens) * kDepth * int64_t(sizeof(float)) + in_f16;
}

ProductScratch::ProductScratch(std::byte* memory, int64_t columns) {
  row = reinterpret_cast<float*>(memory);
  prepared = row + decode_places(columns);
  panel = reinterpret_cast<std::byte*>(prepared + kGemvTokens * decode_places(columns));
  block = panel + kPanelRows * kDepth * int64_t(sizeof(float));
  const int64_t blocks = ceil_div(columns, kScaleColumns) * kGemvTokens;
  halves = reinterpret_cast<uint16_t*>(block + kBlockTokens * kDepth * int64_t(sizeof(float)));
  own_factor = reinterpret_cast<float*>(halves + blocks * kScaleColumns);
  factor = own_factor + blocks;
}

// Up to kGemvTokens rows.
void f16_product(const Arithmetic& a, const Tensor& w, int64_t first, int64_t n, const float* const* x,
                 int64_t tokens, float* y, int64_t y_stride, ProductScratch& s) {
  const int64_t columns = w.shape[1];
  if (s.n_held != tokens || s.held_columns != columns || !std::equal(x, x + tokens, s.held)) {
    for (int64_t t = 0; t < tokens; ++t)
      a.k->gemv_f16_prepare(x[t], columns, t, tokens, s.halves, s.own_factor);
    std::copy_n(x, tokens, s.held);
    s.n_held = tokens;
    s.held_columns = columns;
  }
  each_scale_row(w, first, n, n, [&](int64_t from, int64_t count, const std::byte* grid) {
    each_scale(w, grid, 0, columns, [&](int64_t column, int64_t width, float scale) {
      for (int64_t b = column / kScaleColumns; b < ceil_div(column + width, kScaleColumns); ++b)
        for (int64_t t = 0; t < tokens; ++t) s.factor[b * tokens + t] = s.own_factor[b * tokens + t] * scale;
    });
    a.k->gemv_f16(reinterpret_cast<const uint8_t*>(at(w, from, 0)), w.stride[0], count, columns, s.halves,
                  s.factor, tokens, y + from - first, y_stride);
  });
}

void decode_product(const Arithmetic& a, const Tensor& w, int64_t first, int64_t n, const float* const* x,
                    int64_t tokens, float* y, int64_t y_stride, ProductScratch& scratch, bool f32) {
  if (has_f16_products(a, w) && !f32) {
    for (int64_t t = 0; t < tokens; t += kGemvTokens)
      f16_product(a, w, first, n, x + t, std::min(kGemvTokens, tokens - t), y + t * y_stride, y_stride,
                  scratch);
    return;
  }
  const Elem type = elem_of(w.dtype);
  const int64_t columns = w.shape[1];
  each_scale_row(w, first, n, n, [&](int64_t from, int64_t count, const std::byte* grid) {
    for (int64_t t0 = 0; t0 < tokens; t0 += kGemvTokens) {
      const int64_t group = std::min(kGemvTokens, tokens - t0);
      for (int64_t k0 = 0; k0 < columns; k0 += kDecodeDepth) {
        const int64_t k = std::min(kDecodeDepth, columns - k0);
        for (int64_t t = 0; t < group; ++t) {
          const float* row = x[t0 + t] + k0;
          if (grid) {
            each_scale(w, grid, k0, k, [&](int64_t c, int64_t width, float scale) {
              a.k->to_f32(Elem::F32, x[t0 + t] + c, scale, scratch.row + c - k0, width);
            });
            row = scratch.row;
          }
          a.k->gemv_prepare(type, row, k, t, group, scratch.prepared);
        }
        a.k->gemv(type, at(w, from, k0), w.stride[0], count, k, scratch.prepared, group,
                  y + t0 * y_stride + from - first, y_stride, k0 > 0);
      }
    }
  });
}

int64_t decode_rows(int64_t rows, int threads) {
  int64_t n = kPanelRows;
  while (n > 8 && rows < n * threads * 8) n /= 2;
  return n;
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

bool tiles_take(const Arithmetic& a, const Tensor& w, bool f32) {
  return a.k->tiles.product && !f32 && has_bf16_products(a, w) && scales_by_128(w);
}

int64_t packed_group(int64_t columns) {
  return ceil_div(columns, kTileColumns) * kTile * kTileColumns;
}

int64_t packed_rows(int64_t tokens, int64_t columns) {
  return ceil_div(tokens, kTile) * packed_group(columns);
}

void pack_rows(const Arithmetic& a, const float* const* x, int64_t tokens, int64_t columns, uint16_t* to) {
  for (int64_t t = 0; t < tokens; t += kTile, to += packed_group(columns))
    a.k->tiles.pack(x + t, std::min(kTile, tokens - t), columns, to);
}

void tile_product(const Arithmetic& a, const Tensor& w, int64_t first, int64_t n, const uint16_t* x,
                  int64_t tokens, float* y, int64_t y_stride, ProductScratch& scratch) {
  const int64_t columns = w.shape[1], group = packed_group(columns);
  uint16_t* const panel = reinterpret_cast<uint16_t*>(scratch.panel);  // [kTileRows][kTileDepth]
  float* const sums =
      reinterpret_cast<float*>(scratch.panel + kTileRows * kTileDepth * int64_t(sizeof(uint16_t)));
  each_scale_row(w, first, n, kTileRows, [&](int64_t from, int64_t count, const std::byte* grid) {
    for (int64_t t0 = 0; t0 < tokens; t0 += kTileTokens) {
      const int64_t m = std::min(kTileTokens, tokens - t0), groups = ceil_div(m, kTile);
      for (int64_t k0 = 0; k0 < columns; k0 += kTileDepth) {
        const int64_t k = std::min(kTileDepth, columns - k0);
        for (int64_t i = 0; i < count; ++i) {
          const std::byte* const row = at(w, from + i, k0);
          uint16_t* const to = panel + i * kTileDepth;
          if (w.dtype == DType::BF16)
            std::copy_n(reinterpret_cast<const uint16_t*>(row), k, to);
          else
            a.k->f8_to_bf16(reinterpret_cast<const uint8_t*>(row), to, k);
          std::fill(to + k, to + round_up(k, kTileColumns), uint16_t(0));
          // The next columns come while these are multiplied.
          const int64_t next = std::min(kTileDepth, columns - k0 - k) * size_of(w.dtype);
          for (int64_t c = 0; c < next; c += 64) __builtin_prefetch(row + k * size_of(w.dtype) + c);
        }
        float scale[kTileDepth / kScaleColumns];
        each_scale(w, grid, k0, k, [&](int64_t column, int64_t width, float value) {
          std::fill(scale + (column - k0) / kScaleColumns,
                    scale + ceil_div(column - k0 + width, kScaleColumns), value);
        });
        a.k->tiles.product(panel, kTileDepth * int64_t(sizeof(uint16_t)), count,
                           x + t0 / kTile * group + k0 * kTile, group, groups, k, scale, sums, k0 > 0);
      }
      a.k->tiles.transpose(sums, groups * kTile, count, m, y + t0 * y_stride + from - first, y_stride);
    }
  });
}

}  // namespace lite::cpu
