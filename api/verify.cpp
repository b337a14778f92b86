// The C API's verification: a packed file by its path, no model needed.
#include "api/handles.h"
#include "ggml-lite/pack.h"

using namespace dsv3::api;
using lite::Status;

dsv3_status dsv3_verify(const char* path, const dsv3_verify_options* options) {
  return call([&]() -> Status {
    LITE_TRY(check_path("dsv3_verify", path));
    dsv3_verify_options o;
    LITE_TRY(read_options("dsv3_verify_options", options, &o));
    LITE_ASSIGN(const lite::PackFile file, lite::PackFile::open(path));
    return file.verify(progress_function(o.progress, o.progress_user), [&](const std::string& line) {
      if (o.damage) o.damage(o.damage_user, DSV3_LOG_WARNING, line.c_str());
    });
  });
}
