#include "convert/reader.h"

#include <algorithm>

#include "convert/recode.h"

namespace dsv3 {
namespace {

using lite::DType;
using lite::kScaleBlock;

constexpr int64_t kPiece = int64_t(1) << 20;           // bytes read at once: they stay in a core's cache
constexpr int64_t kRecodeElements = int64_t(1) << 20;  // re-encoded at once, or a strip of 128 rows

// Which element of the checkpoint's tensor is no number, or does not fit.
Status bad_element(const Slice& slice, int64_t index, const std::string& why) {
  const lite::DType dtype = slice.dtype;
  index += slice.from / lite::size_of(dtype);
  std::string place = lite::str("element ", index);
  const std::vector<int64_t>& shape = slice.tensor.entry->shape;
  if (shape.size() == 2) place += lite::str(" (row ", index / shape[1], ", column ", index % shape[1], ")");
  if (shape.size() == 3)
    place += lite::str(" (expert ", index / shape[2] / shape[1], ", row ", index / shape[2] % shape[1],
                       ", column ", index % shape[2], ")");
  return lite::corrupt("convert ", slice.tensor.file().path(), ": tensor \"", slice.tensor.entry->name,
                       "\": ", place, " ", why);
}

}  // namespace

Status TensorReader::read(const Planned& t, const Sink& sink) {
  scales_.resize(t.scale ? size_t(t.scale->bytes) : 0);
  if (t.scale) LITE_TRY(read_piece(*t.scale, 0, scales_));
  return t.entry.dtype == t.data.dtype ? copy(t, sink) : recode_matrix(t, sink);
}

// The next piece of a tensor, with the progress it means, without NaN and infinity.
Status TensorReader::read_piece(const Slice& slice, int64_t at, std::span<std::byte> to) {
  LITE_TRY(slice.read(at, to));
  const int64_t size = lite::size_of(slice.dtype);
  const int64_t found = first_non_finite(slice.dtype, to.data(), int64_t(to.size()) / size);
  if (found >= 0)
    return bad_element(slice, at / size + found,
                       "is NaN or infinite; the weights are damaged: get the file again");
  return progress_(int64_t(to.size()));
}

// As it is: elements, then scales.
Status TensorReader::copy(const Planned& t, const Sink& sink) {
  for (int64_t at = 0; at < t.data.bytes; at += kPiece) {
    piece_.resize(size_t(std::min(kPiece, t.data.bytes - at)));
    LITE_TRY(read_piece(t.data, at, piece_));
    LITE_TRY(sink(piece_));
  }
  return sink(scales_);
}

// A matrix in another type, some multiple of 128 rows at a time.
Status TensorReader::recode_matrix(const Planned& t, const Sink& sink) {
  const int64_t rows = t.info->shape[0], cols = t.info->shape[1], size = lite::size_of(t.data.dtype);
  const DType to = t.entry.dtype;
  const int64_t step = std::max<int64_t>(1, kRecodeElements / cols / kScaleBlock) * kScaleBlock;
  const int64_t grid_row = lite::ceil_div(cols, kScaleBlock);
  new_scales_.resize(to == DType::F8_E4M3 ? size_t(lite::ceil_div(rows, kScaleBlock) * grid_row) : 0);
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t n = std::min(step, rows - row), first = row * cols, block = row / kScaleBlock * grid_row;
    piece_.resize(size_t(n * cols * size));
    recoded_.resize(size_t(n * cols * lite::size_of(to)));
    LITE_TRY(read_piece(t.data, first * size, piece_));
    const DType scale_dtype = t.scale ? t.scale->dtype : DType::F32;
    const std::byte* scales = t.scale ? scales_.data() + block * lite::size_of(scale_dtype) : nullptr;
    float* new_scales = new_scales_.empty() ? nullptr : new_scales_.data() + block;
    recode({t.data.dtype, n, cols, piece_.data(), scales, scale_dtype}, to, recoded_.data(), new_scales,
           &scratch_);
    const int64_t found = first_non_finite(to, recoded_.data(), n * cols);
    if (found >= 0)
      return bad_element(t.data, first + found,
                         lite::str("does not fit ", lite::info(to).name, "; try another --dtype"));
    LITE_TRY(sink(recoded_));
  }
  return sink(std::as_bytes(std::span(new_scales_)));
}

}  // namespace dsv3
