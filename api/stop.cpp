// The C API of stop texts.
#include "text/stop.h"

#include "api/handles.h"

using namespace dsv3::api;
using dsv3::Status;
using dsv3::StopMatcher;

struct dsv3_stop {
  StopMatcher matcher;
};

dsv3_status dsv3_stop_new(const char* const* texts, const size_t* n_bytes, int32_t n, dsv3_stop** stop) {
  return call([&]() -> Status {
    if (!stop) return null_argument("dsv3_stop_new", "stop");
    LITE_TRY(in_range("dsv3_stop_new", "n", n, 0, StopMatcher::kMaxTexts));
    if (n > 0 && !texts) return null_argument("dsv3_stop_new", "texts");
    if (n > 0 && !n_bytes) return null_argument("dsv3_stop_new", "n_bytes");
    std::vector<std::string> copies;
    for (int32_t i = 0; i < n; ++i) {
      if (!texts[i]) return null_argument("dsv3_stop_new", "texts[i]");
      if (n_bytes[i] > StopMatcher::kMaxBytes)
        return lite::invalid_argument("dsv3_stop_new: n_bytes[", i, "]: got ", n_bytes[i],
                                      ", expected at most ", StopMatcher::kMaxBytes);
      copies.emplace_back(texts[i], n_bytes[i]);
    }
    LITE_ASSIGN(StopMatcher matcher, StopMatcher::create(std::move(copies)));
    *stop = new dsv3_stop{std::move(matcher)};
    return {};
  });
}

void dsv3_stop_free(dsv3_stop* stop) {
  delete stop;
}

dsv3_status dsv3_stop_add(dsv3_stop* stop, const char* text, size_t n_bytes, const char** shown,
                          size_t* n_shown, int* stopped) {
  return call([&]() -> Status {
    if (!stop) return null_argument("dsv3_stop_add", "stop");
    if (!text && n_bytes) return null_argument("dsv3_stop_add", "text");
    LITE_TRY(readable("dsv3_stop_add", "n_bytes", n_bytes));
    if (!shown) return null_argument("dsv3_stop_add", "shown");
    if (!n_shown) return null_argument("dsv3_stop_add", "n_shown");
    if (!stopped) return null_argument("dsv3_stop_add", "stopped");
    const std::string_view view = stop->matcher.add(std::string_view(text ? text : "", n_bytes));
    *shown = view.data();
    *n_shown = view.size();
    *stopped = stop->matcher.stopped();
    return {};
  });
}

dsv3_status dsv3_stop_finish(dsv3_stop* stop, const char** shown, size_t* n_shown) {
  return call([&]() -> Status {
    if (!stop) return null_argument("dsv3_stop_finish", "stop");
    if (!shown) return null_argument("dsv3_stop_finish", "shown");
    if (!n_shown) return null_argument("dsv3_stop_finish", "n_shown");
    const std::string_view view = stop->matcher.finish();
    *shown = view.data();
    *n_shown = view.size();
    return {};
  });
}
