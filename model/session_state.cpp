// A session's sequences apart from evaluation: forked, saved, loaded.
#include <algorithm>
#include <cctype>
#include <cstring>

#include "ggml-lite/file.h"
#include "ggml-lite/hash.h"
#include "model/session.h"

namespace dsv3 {

using lite::corrupt;
using lite::invalid_argument;
using lite::kBlockRows;

std::byte* Session::stream_row(size_t stream, int64_t row) const {
  const lite::Stream& s = streams_[stream];
  return stream_memory_[stream].get() + row * s.width * lite::size_of(s.dtype);
}

// What decides the bits of a row beside the options, in at most 12 letters and digits: the host's path, or with GPUs "cuda"
// and a hash of that and of what lies where.
std::string Session::path() const {
  const std::string host = path_name(options_.device);
  if (options_.device.gpus.empty()) return host;
  lite::Hash hash;
  hash.add(host.data(), host.size());
  const Config& c = model_.config();
  for (int layer = -1; layer < int(c.layers.size()); ++layer) {
    for (int role = 0; role < kRoles; ++role) {
      const int32_t device = layout_->placement.device(layer, Role(role));
      hash.add(&device, sizeof device);
    }
    for (int expert = 0; layer >= 0 && expert < c.layers[size_t(layer)].n_routed_experts; ++expert) {
      const int32_t device = layout_->placement.expert_device(layer, expert);
      hash.add(&device, sizeof device);
    }
  }
  char hex[9];
  std::snprintf(hex, sizeof hex, "%08x", uint32_t(hash.digest64()));
  return lite::str("cuda", hex);
}

int64_t Session::row_bytes() const {
  int64_t bytes = 0;
  for (const lite::Stream& s : streams_) bytes += s.width * lite::size_of(s.dtype);
  return bytes;
}

int64_t Session::cache_bytes_in_use() const {
  return sequences_.blocks_in_use() * kBlockRows * row_bytes();
}

// ---- fork

void Session::fork(int32_t from, int32_t to, int32_t length) {
  sequences_.fork(from, to, length);
  std::copy_n(tokens(from), length, tokens_.begin() + int64_t(to) * options_.context);
}

// What a step writes must be the sequence's own: rows of a block that is not full, and with MTP the row before the
// first new one.
Status Session::own_last_block(int32_t seq) {
  if (sequences_.length(seq) % kBlockRows == 0 && !options_.mtp) return {};
  const auto copy = sequences_.own_last_block(seq);
  if (!copy) return {};
  for (size_t i = 0; i < streams_.size(); ++i) {
    const std::byte* from = stream_row(i, copy->from * kBlockRows);
    std::byte* to = stream_row(i, copy->to * kBlockRows);
    LITE_TRY(backends_[streams_[i].device]->copy(to, from, stream_row(i, kBlockRows) - stream_row(i, 0)));
  }
  return {};
}

// ---- saved sessions

namespace {

constexpr std::string_view kMagic = "DSV3SESS";
constexpr uint32_t kVersion = 2;
constexpr int64_t kPiece = 1 << 20;  // bytes read at a time to be checked

// Then the lengths of the sequences and all their ids (int32), their rows, and the checksum of all that.
struct SavedHeader {
  char magic[8];
  uint32_t version, n_sequences;
  uint64_t bytes;  // of everything, checksum included
  char model_id[32];
  uint32_t attention, rounding, kv, mtp, exact;
  char path[12];       // "ref", or the instruction-set path of the fast backend
  uint64_t row_bytes;  // of one token in all streams
};
static_assert(sizeof(SavedHeader) == 96);
constexpr int64_t kChecksumBytes = sizeof(uint64_t);

template <class T>
std::span<const std::byte> bytes_of(const T& values) {
  return std::as_bytes(std::span(values));
}
template <class T>
std::span<T, 1> one(T& value) {
  return std::span<T, 1>(&value, 1);
}

// The header of a session with these options and no sequences. `path`: what computes its rows.
SavedHeader header_of(const Model& model, const SessionOptions& o, std::string_view path, int64_t row_bytes) {
  SavedHeader h = {};
  std::memcpy(h.magic, kMagic.data(), sizeof h.magic);
  h.version = kVersion;
  const std::string id = model.file().model_id();
  std::memcpy(h.model_id, id.data(), std::min(id.size(), sizeof h.model_id));
  h.attention = o.attention ? 1 + uint32_t(*o.attention) : 0;
  h.rounding = uint32_t(o.rounding);
  h.kv = uint32_t(o.kv);
  h.mtp = o.mtp;
  h.exact = o.exact || o.device.reference;  // which is always
  std::memcpy(h.path, path.data(), std::min(path.size(), sizeof h.path));
  h.row_bytes = uint64_t(row_bytes);
  return h;
}

Status check_header(const SavedHeader& h, const SavedHeader& ours, int64_t bytes) {
  if (std::memcmp(h.magic, ours.magic, sizeof h.magic) != 0)
    return corrupt("it does not begin like a saved session");
  if (h.version != kVersion)
    return lite::unsupported("got version ", h.version, ", expected ", kVersion,
                             "; it was saved by another version of this library");
  if (h.bytes != uint64_t(bytes))
    return corrupt("got ", bytes, " bytes, expected the ", h.bytes, " that it was saved with");
  return {};
}

// A name in the header, whoever wrote it.
template <size_t n>
std::string name_of(const char (&field)[n]) {
  std::string name(field, std::find(field, field + n, '\0'));
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '?';
  return name;
}

// What decides the bits of the cached rows and of everything that comes after them.
Status check_options(const SavedHeader& h, const SavedHeader& ours) {
  if (std::memcmp(h.model_id, ours.model_id, sizeof h.model_id) != 0)
    return invalid_argument("it belongs to the model with id ", name_of(h.model_id), ", and this one's is ",
                            name_of(ours.model_id));
  if (std::memcmp(h.path, ours.path, sizeof h.path) != 0)
    return invalid_argument("it was computed on path ", name_of(h.path), ", and this model on ",
                            name_of(ours.path),
                            ", whose bits differ; open the model with the same (model options backend, isa) "
                            "and place the same on GPUs, or "
                            "evaluate the tokens again");
  const struct {
    const char* option;
    uint32_t saved, ours;
    std::vector<const char*> values;
  } fields[] = {{"attention", h.attention, ours.attention, {"auto", "absorbed", "expanded"}},
                {"gemm", h.rounding, ours.rounding, {"f32", "fp8", "fp8 with scales that are powers of two"}},
                {"kv", h.kv, ours.kv, {"f32", "bf16"}},
                {"mtp", h.mtp, ours.mtp, {"off", "on"}},
                {"exact", h.exact, ours.exact, {"off", "on"}}};
  for (const auto& f : fields) {
    const auto value = [&f](uint32_t v) { return v < f.values.size() ? f.values[v] : "?"; };
    if (f.saved != f.ours)
      return invalid_argument("it was saved with option ", f.option, " ", value(f.saved),
                              ", and this session has ", value(f.ours), "; make the session with the same");
  }
  if (h.row_bytes != ours.row_bytes)
    return corrupt("got ", h.row_bytes, " bytes a token, expected ", ours.row_bytes);
  return {};
}

Status check_checksum(const Source& from, const std::function<bool(int64_t, int64_t)>& progress) {
  lite::Hash hash;
  const int64_t end = from.bytes - kChecksumBytes;
  std::vector<std::byte> piece(size_t(std::min(end, kPiece)));
  for (int64_t at = 0; at < end; at += kPiece) {
    const auto part = std::span(piece).first(size_t(std::min(kPiece, end - at)));
    LITE_TRY(from.read(at, part));
    hash.add(part.data(), part.size());
    if (progress && !progress(at + int64_t(part.size()), end))
      return Status(lite::Code::Cancelled, "cancelled by its progress callback");
  }
  uint64_t checksum = 0;
  LITE_TRY(from.read(end, std::as_writable_bytes(one(checksum))));
  if (checksum != hash.digest64())
    return corrupt("its checksum does not match; some of its bytes have changed");
  return {};
}

}  // namespace

Status replaceable(const std::string& path) {
  auto file = lite::File::open(path);
  if (!file.ok()) return file.status().code() == lite::Code::NotFound ? Status() : file.status();
  char magic[sizeof SavedHeader::magic] = {};
  if (file->bytes() >= int64_t(sizeof magic))
    LITE_TRY(file->read(0, std::as_writable_bytes(std::span(magic))));
  if (file->bytes() == 0 || std::string_view(magic, sizeof magic) == kMagic) return {};
  return invalid_argument(
      "a file is there that is no saved session; choose another name, or remove it first");
}

int64_t Session::saved_bytes() const {
  int64_t n = 0, tokens = 0;
  for (int32_t seq = 0; seq < options_.max_seqs; ++seq)
    if (const int64_t length = sequences_.length(seq)) {
      n = seq + 1;
      tokens += length;
    }
  return int64_t(sizeof(SavedHeader)) + (n + tokens) * int64_t(sizeof(int32_t)) + tokens * row_bytes() +
         kChecksumBytes;
}

Status Session::save(const Sink& to) const {
  lite::Hash hash;
  const auto put = [&](std::span<const std::byte> bytes) {
    hash.add(bytes.data(), bytes.size());
    return to(bytes);
  };
  std::vector<int32_t> lengths;
  for (int32_t seq = 0; seq < options_.max_seqs; ++seq) lengths.push_back(int32_t(sequences_.length(seq)));
  while (!lengths.empty() && lengths.back() == 0) lengths.pop_back();

  SavedHeader h = header_of(model_, options_, path(), row_bytes());
  h.n_sequences = uint32_t(lengths.size());
  h.bytes = uint64_t(saved_bytes());
  LITE_TRY(put(bytes_of(one(h))));
  LITE_TRY(put(bytes_of(lengths)));
  for (size_t seq = 0; seq < lengths.size(); ++seq)
    LITE_TRY(put(bytes_of(std::span(tokens(int32_t(seq)), size_t(lengths[seq])))));
  std::vector<std::byte> rows;
  for (size_t seq = 0; seq < lengths.size(); ++seq)
    for (size_t i = 0; i < streams_.size(); ++i)
      for (int64_t p = 0; p < lengths[seq]; p += kBlockRows) {
        const std::byte* from = stream_row(i, sequences_.row(int32_t(seq), p));
        rows.resize(size_t(stream_row(i, std::min(kBlockRows, lengths[seq] - p)) - stream_row(i, 0)));
        LITE_TRY(backends_[streams_[i].device]->copy(rows.data(), from, int64_t(rows.size())));
        LITE_TRY(put(rows));
      }
  const uint64_t checksum = hash.digest64();
  return to(bytes_of(one(checksum)));
}

// Everything but the rows, whose values may be anything.
Status Session::check_saved(const Source& from, const std::function<bool(int64_t, int64_t)>& progress,
                            std::vector<int32_t>* lengths, std::vector<int32_t>* ids) const {
  SavedHeader h;
  if (from.bytes < int64_t(sizeof h) + kChecksumBytes)
    return corrupt("got ", from.bytes, " bytes, which is too short for a saved session");
  LITE_TRY(from.read(0, std::as_writable_bytes(one(h))));
  const SavedHeader ours = header_of(model_, options_, path(), row_bytes());
  LITE_TRY(check_header(h, ours, from.bytes));
  LITE_TRY(check_checksum(from, progress));
  LITE_TRY(check_options(h, ours));

  // From here on only a file that was made to deceive can be inconsistent; it gets no further.
  if (h.n_sequences > uint32_t(options_.max_seqs))
    return invalid_argument("it has ", h.n_sequences, " sequences and this session ", options_.max_seqs,
                            "; make the session with a larger max_seqs");
  const int64_t int_bytes = sizeof(int32_t), after_header = sizeof h, n = h.n_sequences,
                after_lengths = after_header + n * int_bytes;
  if (after_lengths > from.bytes) return corrupt("its sequences do not fit into its ", from.bytes, " bytes");
  lengths->resize(h.n_sequences);
  LITE_TRY(from.read(after_header, std::as_writable_bytes(std::span(*lengths))));
  int64_t tokens = 0;
  for (const int32_t length : *lengths) {
    if (length < 0) return corrupt("a sequence has a length of ", length);
    if (length > options_.context)
      return invalid_argument("a sequence has ", length, " tokens and this session a context of ",
                              options_.context, "; make the session with a larger one");
    tokens += length;
  }
  const int64_t expected = after_lengths + tokens * (int_bytes + row_bytes()) + kChecksumBytes;
  if (from.bytes != expected)
    return corrupt("got ", from.bytes, " bytes, expected ", expected, " for its ", tokens, " tokens");
  ids->resize(size_t(tokens));
  LITE_TRY(from.read(after_lengths, std::as_writable_bytes(std::span(*ids))));
  for (const int32_t id : *ids)
    if (id < 0 || id >= model_.config().vocab_size)
      return corrupt("got token id ", id, ", expected 0..", model_.config().vocab_size - 1);
  return {};
}

Status Session::load(const Source& from, const std::function<bool(int64_t, int64_t)>& progress) {
  std::vector<int32_t> lengths, ids;
  LITE_TRY(check_saved(from, progress, &lengths, &ids));

  batch_tokens_ = 0;
  wanted_.clear();
  const auto clear = [this] {
    for (int32_t seq = 0; seq < options_.max_seqs; ++seq) sequences_.resize(seq, 0);
  };
  clear();
  int64_t at = int64_t(sizeof(SavedHeader) + (lengths.size() + ids.size()) * sizeof(int32_t));
  const int32_t* id = ids.data();
  std::vector<std::byte> rows;
  const auto read_rows = [&](size_t stream, int32_t seq, int64_t position, int64_t n) -> Status {
    rows.resize(size_t(stream_row(stream, n) - stream_row(stream, 0)));
    LITE_TRY(from.read(at, rows));
    at += int64_t(rows.size());
    std::byte* to = stream_row(stream, sequences_.row(seq, position));
    return backends_[streams_[stream].device]->copy(to, rows.data(), int64_t(rows.size()));
  };
  for (int32_t seq = 0; seq < int32_t(lengths.size()); ++seq) {
    sequences_.resize(seq, lengths[size_t(seq)]);
    std::copy_n(id, lengths[size_t(seq)], tokens_.begin() + int64_t(seq) * options_.context);
    id += lengths[size_t(seq)];
    for (size_t i = 0; i < streams_.size(); ++i)
      for (int64_t p = 0; p < lengths[size_t(seq)]; p += kBlockRows)
        if (Status status = read_rows(i, seq, p, std::min(kBlockRows, lengths[size_t(seq)] - p));
            !status.ok()) {
          clear();
          return status;
        }
  }
  return {};
}

}  // namespace dsv3
