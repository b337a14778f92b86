// The C API of a session's sequences: lengths, forks, and sessions saved and loaded.
#include "api/handles.h"
#include "ggml-lite/file.h"

using namespace dsv3::api;
using dsv3::Status;

int32_t dsv3_seq_length(const dsv3_session* session, int32_t seq) {
  if (!session || seq < 0 || seq >= session->session->options().max_seqs) return -1;
  return int32_t(session->session->sequences().length(seq));
}

static Status truncate(const char* function, dsv3_session* session, int32_t seq, int32_t length) {
  if (!session) return null_argument(function, "session");
  LITE_TRY(in_range(function, "sequence", seq, 0, session->session->options().max_seqs - 1));
  LITE_TRY(in_range(function, "length", length, 0, dsv3_seq_length(session, seq)));
  session->session->sequences().resize(seq, length);
  return {};
}

dsv3_status dsv3_seq_truncate(dsv3_session* session, int32_t seq, int32_t length) {
  return call([&] { return truncate("dsv3_seq_truncate", session, seq, length); });
}

dsv3_status dsv3_seq_free(dsv3_session* session, int32_t seq) {
  return call([&] { return truncate("dsv3_seq_free", session, seq, 0); });
}

const int32_t* dsv3_seq_tokens(const dsv3_session* session, int32_t seq) {
  return dsv3_seq_length(session, seq) < 0 ? nullptr : session->session->tokens(seq);
}

dsv3_status dsv3_seq_fork(dsv3_session* session, int32_t from, int32_t to, int32_t length) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_seq_fork", "session");
    const int32_t last = session->session->options().max_seqs - 1;
    LITE_TRY(in_range("dsv3_seq_fork", "sequence from", from, 0, last));
    LITE_TRY(in_range("dsv3_seq_fork", "sequence to", to, 0, last));
    if (from == to) return lite::invalid_argument("dsv3_seq_fork: from and to are both sequence ", to);
    LITE_TRY(in_range("dsv3_seq_fork", "length", length, 0, dsv3_seq_length(session, from)));
    session->session->fork(from, to, length);
    return {};
  });
}

// ---- saved sessions

dsv3_status dsv3_session_save(const dsv3_session* session, void* bytes, size_t capacity, size_t* n_bytes) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_session_save", "session");
    if (!bytes && capacity) return null_argument("dsv3_session_save", "bytes");
    if (!n_bytes) return null_argument("dsv3_session_save", "n_bytes");
    const size_t size = size_t(session->session->saved_bytes());
    if (capacity >= size) {
      std::byte* to = static_cast<std::byte*>(bytes);
      LITE_TRY(session->session->save([&to](std::span<const std::byte> piece) -> Status {
        to = std::copy(piece.begin(), piece.end(), to);
        return {};
      }));
    }
    *n_bytes = size;
    return {};
  });
}

dsv3_status dsv3_session_load(dsv3_session* session, const void* bytes, size_t n_bytes) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_session_load", "session");
    if (!bytes) return null_argument("dsv3_session_load", "bytes");
    LITE_TRY(readable("dsv3_session_load", "n_bytes", n_bytes, kMostSaved));
    const auto read = [bytes](int64_t offset, std::span<std::byte> to) -> Status {
      if (!to.empty()) std::memcpy(to.data(), static_cast<const std::byte*>(bytes) + offset, to.size());
      return {};
    };
    return session->session->load({int64_t(n_bytes), read}, {}).in("load session");
  });
}

dsv3_status dsv3_session_save_file(const dsv3_session* session, const char* path) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_session_save_file", "session");
    LITE_TRY(check_path("dsv3_session_save_file", path));
    const std::string what = lite::str("save session ", path);
    LITE_TRY(dsv3::replaceable(path).in(what));
    auto file = lite::NewFile::create(path);
    if (!file.ok()) return file.status().in(what);
    const auto append = [&file](std::span<const std::byte> piece) { return file->append(piece); };
    LITE_TRY(session->session->save(append).in(what));
    return file->finish().in(what);
  });
}

dsv3_status dsv3_session_load_file(dsv3_session* session, const char* path, dsv3_progress progress,
                                   void* progress_user) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_session_load_file", "session");
    LITE_TRY(check_path("dsv3_session_load_file", path));
    const std::string what = lite::str("load session ", path);
    auto file = lite::File::open(path);
    if (!file.ok()) return file.status().in(what);
    const auto read = [&file](int64_t offset, std::span<std::byte> to) { return file->read(offset, to); };
    return session->session->load({file->bytes(), read}, progress_function(progress, progress_user)).in(what);
  });
}
