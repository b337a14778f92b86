// The kernels, written once over a vector type V; each instruction-set file supplies its V and instantiates them.
//
// V has: kLanes; kRegisters (of the machine); Reg; zero, set1, load, store, load_first(p, n) with zeros behind,
// store_first(p, r, n); add, mul, div, fma(a, b, c) = a b + c; max and min, the second operand if one is NaN;
// select_negative(x, a, b): a where x < 0, else b; sum4(a, b, c, d, out): the sum of each, in a fixed tree;
// load_as<Elem>(p) and load_first_as<Elem>(p, n), F8 as value / 256; round(x) to an integer; times_two_to(x, integer). Every file defines
// LITE_CPU_PATH, the namespace its instances live in, so that no two paths share a symbol.
#pragma once

#include "ggml-lite/cpu/kernels.h"

namespace lite::cpu::LITE_CPU_PATH {

constexpr int64_t bytes_of(Elem type) {
  return type == Elem::F32 ? 4 : type == Elem::F8 ? 1 : 2;
}

template <class V>
float sum_of(typename V::Reg r) {
  float out[4];
  V::sum4(r, r, r, r, out);
  return out[0];
}

// The sums of N registers, four at a time.
template <class V, int N>
void sums_of(const typename V::Reg* r, float* out) {
  int i = 0;
  for (; i + 4 <= N; i += 4) V::sum4(r[i], r[i + 1], r[i + 2], r[i + 3], out + i);
  for (; i < N; ++i) out[i] = sum_of<V>(r[i]);
}

// A value used `times` times. Compilers fold a load into every instruction that uses it, and loads, not products, are
// then what a loop waits for.
template <class Reg>
inline Reg in_register(Reg r, int times) {
#if defined(__x86_64__)
  if (times > 1) asm("" : "+v"(r));
#endif
  return r;
}

// ---- products of weight rows with a few tokens

// How gemv reads a type's weights: kStep of them at a time into a Raw, from which part_of<i>(raw) makes register i of
// kParts. arrange() lays 64 activations out in the order of those registers.
template <class V, Elem type>
struct InOrder {
  static constexpr int kStep = V::kLanes, kParts = 1;
  using Raw = typename V::Reg;
  static Raw load(const char* p) { return V::template load_as<type>(p); }
  static Raw load_first(const char* p, int64_t n) { return V::template load_first_as<type>(p, n); }
  template <int part>
  static typename V::Reg part_of(Raw raw) {
    return raw;
  }
  static void arrange(const float* from, float* to) {
    const typename V::Reg factor = V::set1(type == Elem::F8 ? 256 : 1);  // what load() leaves out
    for (int i = 0; i < 64; i += V::kLanes) V::store(to + i, V::mul(V::load(from + i), factor));
  }
};

// Registers `part`.. of a step, with T tokens whose values lie 64 apart.
template <class V, class D, int R, int T, int part>
inline void gemv_step(const typename D::Raw (&raw)[R], const float* x, typename V::Reg (&sum)[R][T]) {
  if constexpr (part < D::kParts) {
    typename V::Reg weight[R];
    for (int r = 0; r < R; ++r) weight[r] = D::template part_of<part>(raw[r]);
    for (int t = 0; t < T; ++t) {
      const typename V::Reg xt = in_register(V::load(x + t * 64 + part * V::kLanes), R);
      for (int r = 0; r < R; ++r) sum[r][t] = V::fma(weight[r], xt, sum[r][t]);
    }
    gemv_step<V, D, R, T, part + 1>(raw, x, sum);
  }
}

// R weight rows with T tokens, all lanes along k: R x T sums stay in registers.
template <class V, class D, Elem type, int R, int T>
void gemv_block(const char* w, int64_t w_stride, int64_t k, const float* x, float* y, int64_t y_stride,
                bool add) {
  typename V::Reg sum[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sum[r][t] = V::zero();
  typename D::Raw raw[R];
  for (; k >= 64; k -= 64, w += 64 * bytes_of(type), x += 64 * T) {
    // The rows after these: short rows end before the machine has seen where they lead.
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < bytes_of(type); ++i) __builtin_prefetch(w + (R + r) * w_stride + i * 64);
    for (int i = 0; i < 64; i += D::kStep) {
      for (int r = 0; r < R; ++r) raw[r] = D::load(w + r * w_stride + i * bytes_of(type));
      gemv_step<V, D, R, T, 0>(raw, x + i, sum);
    }
  }
  for (int i = 0; i < k; i += D::kStep) {
    const int64_t n = k - i < D::kStep ? k - i : D::kStep;
    for (int r = 0; r < R; ++r) raw[r] = D::load_first(w + r * w_stride + i * bytes_of(type), n);
    gemv_step<V, D, R, T, 0>(raw, x + i, sum);
  }
  float sums[R * T];
  sums_of<V, R * T>(&sum[0][0], sums);
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t)
      y[t * y_stride + r] = add ? y[t * y_stride + r] + sums[r * T + t] : sums[r * T + t];
}

template <class V, class D, Elem type, int T>
void gemv_tokens(const char* w, int64_t w_stride, int64_t n, int64_t k, const float* x, float* y,
                 int64_t y_stride, bool add) {
  // As many rows as registers allow: each row is a stream of memory, and a token's values are loaded once for all.
  constexpr int R = V::kRegisters >= 32 ? (T <= 3 ? 4 : T <= 5 ? 3 : 2) : (T <= 2 ? 4 : T <= 4 ? 2 : 1);
  int64_t o = 0;
  for (; o + R <= n; o += R)
    gemv_block<V, D, type, R, T>(w + o * w_stride, w_stride, k, x, y + o, y_stride, add);
  for (; o < n; ++o) gemv_block<V, D, type, 1, T>(w + o * w_stride, w_stride, k, x, y + o, y_stride, add);
}

template <class V, class D, Elem type, int T = 1>
void gemv_of(const char* w, int64_t w_stride, int64_t n, int64_t k, const float* x, int64_t tokens, float* y,
             int64_t y_stride, bool add) {
  if constexpr (T < kGemvTokens)
    if (tokens > T) return gemv_of<V, D, type, T + 1>(w, w_stride, n, k, x, tokens, y, y_stride, add);
  gemv_tokens<V, D, type, T>(w, w_stride, n, k, x, y, y_stride, add);
}

template <class V, template <class, Elem> class Reader>
void gemv(Elem type, const void* w, int64_t w_stride, int64_t n, int64_t k, const float* x, int64_t tokens,
          float* y, int64_t y_stride, bool add) {
  const char* const from = static_cast<const char*>(w);
  switch (type) {
    case Elem::F32:
      return gemv_of<V, Reader<V, Elem::F32>, Elem::F32>(from, w_stride, n, k, x, tokens, y, y_stride, add);
    case Elem::Bf16:
      return gemv_of<V, Reader<V, Elem::Bf16>, Elem::Bf16>(from, w_stride, n, k, x, tokens, y, y_stride, add);
    case Elem::F16:
      return gemv_of<V, Reader<V, Elem::F16>, Elem::F16>(from, w_stride, n, k, x, tokens, y, y_stride, add);
    case Elem::F8:
      return gemv_of<V, Reader<V, Elem::F8>, Elem::F8>(from, w_stride, n, k, x, tokens, y, y_stride, add);
  }
}

template <class V, class D>
void prepare(const float* from, int64_t k, int64_t t, int64_t tokens, float* x) {
  for (x += t * 64; k > 0; k -= 64, from += 64, x += 64 * tokens) {
    if (k >= 64) {
      D::arrange(from, x);
    } else {
      alignas(64) float last[64] = {};
      for (int64_t i = 0; i < k; ++i) last[i] = from[i];
      D::arrange(last, x);
    }
  }
}

template <class V, template <class, Elem> class Reader>
void gemv_prepare(Elem type, const float* from, int64_t k, int64_t t, int64_t tokens, float* x) {
  switch (type) {
    case Elem::F32: return prepare<V, Reader<V, Elem::F32>>(from, k, t, tokens, x);
    case Elem::Bf16: return prepare<V, Reader<V, Elem::Bf16>>(from, k, t, tokens, x);
    case Elem::F16: return prepare<V, Reader<V, Elem::F16>>(from, k, t, tokens, x);
    case Elem::F8: return prepare<V, Reader<V, Elem::F8>>(from, k, t, tokens, x);
  }
}

// ---- products of many rows

// An operand type's multiply-accumulate: D::kStep values of T at a time into one Reg of V.
template <class V>
struct F32Dot {
  using T = float;
  using Reg = typename V::Reg;
  static constexpr int kStep = V::kLanes;
  static Reg load(const float* p) { return V::load(p); }
  static Reg load_first(const float* p, int64_t n) { return V::load_first(p, n); }
  static Reg fma(Reg a, Reg b, Reg c) { return V::fma(a, b, c); }
};

template <class V, class D, int M, int N>
void gemm_block(const typename D::T* const* a, const typename D::T* const* b, int64_t k, float* c,
                int64_t c_stride, bool add) {
  typename V::Reg sum[M][N];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) sum[i][j] = V::zero();
  int64_t p = 0;
  for (; p + D::kStep <= k; p += D::kStep) {
    typename D::Reg bj[N];
    for (int j = 0; j < N; ++j) bj[j] = D::load(b[j] + p);
    for (int i = 0; i < M; ++i) {
      const typename D::Reg ai = in_register(D::load(a[i] + p), N);
      for (int j = 0; j < N; ++j) sum[i][j] = D::fma(ai, bj[j], sum[i][j]);
    }
  }
  if (p < k) {
    typename D::Reg bj[N];
    for (int j = 0; j < N; ++j) bj[j] = D::load_first(b[j] + p, k - p);
    for (int i = 0; i < M; ++i) {
      const typename D::Reg ai = D::load_first(a[i] + p, k - p);
      for (int j = 0; j < N; ++j) sum[i][j] = D::fma(ai, bj[j], sum[i][j]);
    }
  }
  float sums[M * N];
  sums_of<V, M * N>(&sum[0][0], sums);
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j)
      c[i * c_stride + j] = add ? c[i * c_stride + j] + sums[i * N + j] : sums[i * N + j];
}

// M or fewer rows of a, N or fewer of b.
template <class V, class D, int M, int N>
void gemm_edge(const typename D::T* const* a, int64_t m, const typename D::T* const* b, int64_t n, int64_t k,
               float* c, int64_t c_stride, bool add) {
  if constexpr (M > 1)
    if (m < M) return gemm_edge<V, D, M - 1, N>(a, m, b, n, k, c, c_stride, add);
  if constexpr (N > 1)
    if (n < N) return gemm_edge<V, D, M, N - 1>(a, m, b, n, k, c, c_stride, add);
  gemm_block<V, D, M, N>(a, b, k, c, c_stride, add);
}

template <class V, class D>
void gemm(const typename D::T* const* a, int64_t m, const typename D::T* const* b, int64_t n, int64_t k,
          float* c, int64_t c_stride, bool add) {
  // N rows of b stay in the first cache while all rows of a pass by.
  constexpr int M = V::kRegisters >= 32 ? 5 : 2, N = 4;
  for (int64_t j = 0; j < n; j += N)
    for (int64_t i = 0; i < m; i += M)
      gemm_edge<V, D, M, N>(a + i, m - i, b + j, n - j, k, c + i * c_stride + j, c_stride, add);
}

// ---- sums of rows

template <class V, Elem type, int M, int N>
void accumulate_block(const float* a, int64_t a_stride, const char* b, int64_t b_stride, int64_t k, float* y,
                      int64_t y_stride) {
  typename V::Reg sum[M][N];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) sum[i][j] = V::load(y + i * y_stride + j * V::kLanes);
  for (int64_t p = 0; p < k; ++p) {
    typename V::Reg bj[N];
    for (int j = 0; j < N; ++j)
      bj[j] = V::template load_as<type>(b + p * b_stride + j * V::kLanes * bytes_of(type));
    for (int i = 0; i < M; ++i) {
      const typename V::Reg ai = V::set1(a[i * a_stride + p]);
      for (int j = 0; j < N; ++j) sum[i][j] = V::fma(ai, bj[j], sum[i][j]);
    }
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) V::store(y + i * y_stride + j * V::kLanes, sum[i][j]);
}

template <class V, Elem type>
void accumulate_rest(const float* a, const char* b, int64_t b_stride, int64_t k, float* y, int64_t n) {
  typename V::Reg sum = V::load_first(y, n);
  for (int64_t p = 0; p < k; ++p)
    sum = V::fma(V::set1(a[p]), V::template load_first_as<type>(b + p * b_stride, n), sum);
  V::store_first(y, sum, n);
}

template <class V, Elem type>
void accumulate_of(const float* a, int64_t a_stride, int64_t m, const char* b, int64_t b_stride, int64_t k,
                   float* y, int64_t y_stride, int64_t n) {
  constexpr int M = 4, N = V::kRegisters >= 32 ? 4 : 2;
  constexpr int64_t kWidth = N * V::kLanes;
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    int64_t i = 0;
    for (; i + M <= m; i += M)
      accumulate_block<V, type, M, N>(a + i * a_stride, a_stride, b + j * bytes_of(type), b_stride, k,
                                      y + i * y_stride + j, y_stride);
    for (; i < m; ++i)
      accumulate_block<V, type, 1, N>(a + i * a_stride, a_stride, b + j * bytes_of(type), b_stride, k,
                                      y + i * y_stride + j, y_stride);
  }
  for (; j < n; j += V::kLanes)
    for (int64_t i = 0; i < m; ++i)
      accumulate_rest<V, type>(a + i * a_stride, b + j * bytes_of(type), b_stride, k, y + i * y_stride + j,
                               n - j < V::kLanes ? n - j : V::kLanes);
}

template <class V>
void accumulate(Elem type, const float* a, int64_t a_stride, int64_t m, const void* b, int64_t b_stride,
                int64_t k, float* y, int64_t y_stride, int64_t n) {
  const char* const from = static_cast<const char*>(b);
  if (type == Elem::Bf16)
    accumulate_of<V, Elem::Bf16>(a, a_stride, m, from, b_stride, k, y, y_stride, n);
  else
    accumulate_of<V, Elem::F32>(a, a_stride, m, from, b_stride, k, y, y_stride, n);
}

// ---- one value at a time

template <class V, class Body>
void each(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) body(i, int64_t(V::kLanes));
  if (i < n) body(i, n - i);
}

template <class V, Elem type>
void to_f32_of(const char* from, float factor, float* to, int64_t n) {
  const typename V::Reg f = V::set1(factor);
  each<V>(n, [&](int64_t i, int64_t count) {
    V::store_first(to + i, V::mul(V::template load_first_as<type>(from + i * bytes_of(type), count), f),
                   count);
  });
}

template <class V>
void to_f32(Elem type, const void* from, float factor, float* to, int64_t n) {
  const char* const p = static_cast<const char*>(from);
  switch (type) {
    case Elem::F32: return to_f32_of<V, Elem::F32>(p, factor, to, n);
    case Elem::Bf16: return to_f32_of<V, Elem::Bf16>(p, factor, to, n);
    case Elem::F16: return to_f32_of<V, Elem::F16>(p, factor, to, n);
    case Elem::F8: return to_f32_of<V, Elem::F8>(p, factor * 256, to, n);
  }
}

// exp(x) for x <= 0: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2], the Taylor series to the
// seventh power, whose remainder there is below 6e-9.
template <class V>
typename V::Reg exp_negative(typename V::Reg x) {
  x = V::max(V::set1(-87.0f), x);  // below, exp leaves the normal numbers; at -87 it is 1.6e-38
  const typename V::Reg n = V::round(V::mul(x, V::set1(1.44269504f)));
  // ln 2 in two parts, the first with few bits: n times it is exact.
  typename V::Reg r = V::fma(n, V::set1(-0.693145752f), x);
  r = V::fma(n, V::set1(-1.42860677e-6f), r);
  typename V::Reg p = V::set1(1.0f / 5040);
  p = V::fma(p, r, V::set1(1.0f / 720));
  p = V::fma(p, r, V::set1(1.0f / 120));
  p = V::fma(p, r, V::set1(1.0f / 24));
  p = V::fma(p, r, V::set1(1.0f / 6));
  p = V::fma(p, r, V::set1(0.5f));
  p = V::fma(p, r, V::set1(1.0f));
  p = V::fma(p, r, V::set1(1.0f));
  return V::times_two_to(p, n);
}

template <class V>
float exp_sum(float* x, float top, int64_t n) {
  typename V::Reg sum = V::zero();
  const typename V::Reg minus_top = V::set1(-top);
  each<V>(n, [&](int64_t i, int64_t count) {
    const typename V::Reg e = exp_negative<V>(V::add(V::load_first(x + i, count), minus_top));
    V::store_first(x + i, e, count);
    sum = V::add(sum, V::load_first(x + i, count));  // the lanes behind the end hold exp(-top)
  });
  return sum_of<V>(sum);
}

template <class V>
float max_of(const float* x, int64_t n) {
  float top = -__builtin_inff();
  typename V::Reg best = V::set1(top);
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) best = V::max(V::load(x + i), best);
  float lanes[V::kLanes];
  V::store(lanes, best);
  for (const float lane : lanes) top = lane > top ? lane : top;
  for (; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

template <class V>
void scale(float* x, float factor, int64_t n) {
  const typename V::Reg f = V::set1(factor);
  each<V>(n, [&](int64_t i, int64_t count) {
    V::store_first(x + i, V::mul(V::load_first(x + i, count), f), count);
  });
}

// silu(g) u = g u / (1 + exp(-g)); with e = exp(-|g|): 1 / (1 + e) for g >= 0, else e / (1 + e).
template <class V>
void silu_mul(const float* gate, const float* up, float* y, int64_t n) {
  const typename V::Reg one = V::set1(1.0f);
  each<V>(n, [&](int64_t i, int64_t count) {
    const typename V::Reg g = V::load_first(gate + i, count), minus = V::mul(g, V::set1(-1.0f));
    // The square of the root: near zero it runs out into the subnormal numbers as exp does.
    const typename V::Reg root = exp_negative<V>(V::mul(V::min(g, minus), V::set1(0.5f)));
    const typename V::Reg e = V::mul(root, root);
    const typename V::Reg top = V::select_negative(g, e, one);
    const typename V::Reg sigmoid = V::div(top, V::add(one, e));
    V::store_first(y + i, V::mul(V::mul(g, sigmoid), V::load_first(up + i, count)), count);
  });
}

// ---- ceilings

template <class V>
int64_t f32_rounds(int64_t n) {
  constexpr int kChains =
      V::kRegisters >= 32 ? 24 : 12;  // independent sums: more than latency times throughput
  typename V::Reg sum[kChains], x = V::set1(1);
  for (auto& s : sum) s = V::zero();
  for (int64_t i = 0; i < n; ++i) {
    x = in_register(x, 2);
    for (auto& s : sum) s = V::fma(x, x, s);
  }
  float out = 0;
  for (auto& s : sum) out += sum_of<V>(s);
  // The sums are n each until f32 cannot count on; used, so that they are computed.
  return out < 0 ? 0 : n * kChains * V::kLanes;
}

template <class V>
uint32_t read_rows(const void* p, int64_t row) {
  constexpr int kRows = 8;
  const char* const from = static_cast<const char*>(p);
  typename V::Reg all[kRows];
  for (auto& r : all) r = V::zero();
  for (int64_t i = 0; i < row; i += V::kLanes * 4)
    for (int j = 0; j < kRows; ++j)
      all[j] = V::add(all[j], V::load(reinterpret_cast<const float*>(from + j * row + i)));
  float out = 0;
  for (auto& r : all) out += sum_of<V>(r);
  return uint32_t(out != 0);
}

// The table of a path without bf16 arithmetic.
template <class V, template <class, Elem> class Reader>
constexpr Kernels f32_kernels() {
  Kernels k = {};
  k.gemv = gemv<V, Reader>;
  k.gemv_prepare = gemv_prepare<V, Reader>;
  k.gemm_f32 = gemm<V, F32Dot<V>>;
  k.accumulate = accumulate<V>;
  k.to_f32 = to_f32<V>;
  k.exp_sum = exp_sum<V>;
  k.max = max_of<V>;
  k.scale = scale<V>;
  k.silu_mul = silu_mul<V>;
  k.f32_rounds = f32_rounds<V>;
  k.read_rows = read_rows<V>;
  return k;
}

}  // namespace lite::cpu::LITE_CPU_PATH
