// What the files of the C API share: the handles, and the border where errors become codes.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3.h"
#include "model/model.h"
#include "model/session.h"
#include "text/sampler.h"
#include "text/tokenizer.h"

namespace dsv3::api {

// A message for one line of bounded length, whatever names it quotes: control characters become \xNN, and a long text is
// cut.
std::string one_line(std::string_view text);

}  // namespace dsv3::api

struct dsv3_tokenizer {
  dsv3::Tokenizer tokenizer;
};

struct dsv3_model {
  std::unique_ptr<dsv3::Model> model;
  std::string id;
  dsv3_log log = nullptr;
  void* log_user = nullptr;
  std::atomic<int> sessions = 0;
  dsv3::Device device;

  // Read at the first need: a run from given ids needs no tokenizer.
  mutable std::mutex text_lock;
  mutable bool text_read = false;
  mutable dsv3::Status text_status;
  mutable std::unique_ptr<dsv3_tokenizer> tokenizer;  // null: text_status says why
  std::vector<int32_t> end_ids;                       // of config.json and generation_config.json
  dsv3::Sampling sampling;

  void info(const std::string& text, dsv3_log_level level) const {
    if (log) log(log_user, level, dsv3::api::one_line(text).c_str());
  }
};

struct dsv3_session {
  dsv3_model* owner;
  std::unique_ptr<dsv3::Session> session;
  std::vector<float> masked;  // [vocab_size], for dsv3_sample
  std::vector<dsv3::LogitBias> logit_bias;
  dsv3::SampleScratch scratch;
  dsv3_session_stats stats;  // the counters; what the sequences hold is looked up
};

namespace dsv3::api {

// An error becomes the calling thread's dsv3_last_error(); gives its code.
dsv3_status report(const Status& status);
dsv3_status report(const std::exception& exception);

// Runs the body of an API call; nothing is thrown past it.
template <class Body>
dsv3_status call(const Body& body) noexcept {
  try {
    return report(body());
  } catch (const std::exception& e) {
    return report(e);
  }
}

inline Status null_argument(const char* function, const char* name) {
  return lite::invalid_argument(function, ": argument \"", name, "\" is null");
}

// A path of the caller.
inline Status check_path(const char* function, const char* path) {
  if (!path) return null_argument(function, "path");
  if (!*path) return lite::invalid_argument(function, ": argument \"path\" is empty");
  return {};
}

// How much of the caller's memory may be read: a negative number, or bytes that nobody has, read as a size are more.
constexpr size_t kMostReadable = INT32_MAX, kMostSaved = size_t(1) << 47;
inline Status readable(const char* function, const char* name, size_t n, size_t most = kMostReadable) {
  if (n <= most) return {};
  return lite::invalid_argument(function, ": argument \"", name, "\": got ", n, ", expected at most ", most);
}

// An option struct of any age as today's: fields it does not have are zero, fields we do not know must be
// zero.
template <class T>
Status read_options(const char* name, const T* given, T* options) {
  *options = {};
  if (!given) return {};
  const size_t size = given->struct_size;
  if (size < sizeof(uint32_t) || size > 4096)
    return lite::invalid_argument(name, ": struct_size is ", size, ", expected sizeof(", name,
                                  ") = ", sizeof(T));
  std::memcpy(options, given, std::min(size, sizeof(T)));
  for (size_t i = sizeof(T); i < size; ++i)
    if (reinterpret_cast<const unsigned char*>(given)[i] != 0)
      return lite::unsupported(name, ": an option at byte ", i, " is newer than this library");
  return {};
}

// The fields that the caller's struct, of any age, has room for.
template <class T>
Status write_struct(const char* name, T value, T* out) {
  const uint32_t size = out->struct_size;
  if (size < sizeof(uint32_t) || size > 4096)
    return lite::invalid_argument(name, ": struct_size is ", size, ", expected sizeof(", name,
                                  ") = ", sizeof(T));
  value.struct_size = size;
  std::memcpy(out, &value, std::min<size_t>(size, sizeof(T)));
  return {};
}

// Copies n items under the convention of tokenize and detokenize.
template <class T>
void copy_out(const T* from, size_t n, T* to, size_t capacity, size_t* n_out) {
  if (const size_t fits = std::min(n, capacity)) std::memcpy(to, from, fits * sizeof(T));
  *n_out = n;
}

// What a caller in C has put into an enum may be any number, and in C++ must not be read as the enum then.
template <class Enum>
int32_t number_of(const Enum& value) {
  int32_t number;
  static_assert(sizeof value == sizeof number);
  std::memcpy(&number, &value, sizeof number);
  return number;
}

// "WHAT: option: got 3, expected 0..2" unless it is in range.
Status in_range(const char* what, const char* option, int64_t got, int64_t smallest, int64_t largest);

std::function<bool(int64_t, int64_t)> progress_function(dsv3_progress progress, void* user);

dsv3_task task_of(const Config& config);

// What options mean for a model, defaults filled in.
Result<dsv3::SessionOptions> session_options(const dsv3_model& model, const dsv3_session_options* given);

// Null: text_status says why.
const dsv3_tokenizer* tokenizer_of(const dsv3_model& model);

}  // namespace dsv3::api
