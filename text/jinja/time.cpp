// strftime_now: the caller's time, with the C locale's names whatever locale the program has.
#include <array>
#include <cstdio>

#include "text/jinja/runtime.h"

namespace dsv3::jinja {

using lite::invalid_argument;

namespace {

constexpr std::array<const char*, 7> kDays = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                              "Thursday", "Friday", "Saturday"};
constexpr std::array<const char*, 12> kMonths = {"January",   "February", "March",    "April",
                                                 "May",       "June",     "July",     "August",
                                                 "September", "October",  "November", "December"};

struct Civil {
  int64_t year;
  int month, day, weekday, day_of_year;  // month and day_of_year from 0, weekday from Sunday
  int hour, minute, second;
};

bool is_leap(int64_t year) {
  return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
}

Civil civil(int64_t seconds) {
  Civil c = {};
  int64_t days = seconds / 86400, rest = seconds % 86400;
  if (rest < 0) rest += 86400, --days;
  c.hour = int(rest / 3600), c.minute = int(rest / 60 % 60), c.second = int(rest % 60);
  c.weekday = int(((days + 4) % 7 + 7) % 7);  // 1970-01-01 was a Thursday
  c.year = 1970;
  const auto length = [](int64_t year) { return 365 + is_leap(year); };
  for (; days >= length(c.year); ++c.year) days -= length(c.year);
  c.day_of_year = int(days);
  static constexpr int kLengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  for (;; ++c.month) {
    const int n = kLengths[c.month] + (c.month == 1 && is_leap(c.year));
    if (days < n) break;
    days -= n;
  }
  c.day = int(days) + 1;
  return c;
}

// A number with its width; the flag "-" leaves the zeros out.
std::string digits(int64_t value, int width, bool bare) {
  char out[32];
  std::snprintf(out, sizeof out, "%0*lld", bare ? 1 : width, static_cast<long long>(value));
  return out;
}

}  // namespace

Result<Value> format_time(Runtime& r, const Text& format) {
  if (!r.now) return invalid_argument("strftime_now: the caller gave no time");
  if (r.now->seconds < 0 || r.now->seconds > 253402300799)
    return invalid_argument("strftime_now: ", r.now->seconds, " seconds are not in the years 1970 to 9999");
  const Civil c = civil(r.now->seconds);
  const std::string& f = format.bytes();
  std::string out;
  for (size_t at = 0; at < f.size(); ++at) {
    if (f[at] != '%' || at + 1 == f.size()) {
      out += f[at];
      continue;
    }
    const bool bare = f[at + 1] == '-' && at + 2 < f.size();
    at += bare ? 2 : 1;
    switch (f[at]) {
      case 'A': out += kDays[size_t(c.weekday)]; break;
      case 'a': out += std::string(kDays[size_t(c.weekday)]).substr(0, 3); break;
      case 'B': out += kMonths[size_t(c.month)]; break;
      case 'b': out += std::string(kMonths[size_t(c.month)]).substr(0, 3); break;
      case 'd': out += digits(c.day, 2, bare); break;
      case 'H': out += digits(c.hour, 2, bare); break;
      case 'I': out += digits((c.hour + 11) % 12 + 1, 2, bare); break;
      case 'j': out += digits(c.day_of_year + 1, 3, bare); break;
      case 'M': out += digits(c.minute, 2, bare); break;
      case 'm': out += digits(c.month + 1, 2, bare); break;
      case 'p': out += c.hour < 12 ? "AM" : "PM"; break;
      case 'S': out += digits(c.second, 2, bare); break;
      case 'Y': out += digits(c.year, 4, bare); break;
      case 'y': out += digits(c.year % 100, 2, bare); break;
      case '%': out += '%'; break;
      default: return invalid_argument("strftime_now: \"%", f[at], "\" is not supported");
    }
  }
  Text text;
  text.append(out, format.is_trusted());
  return make_text(std::move(text), &r.budget);
}

}  // namespace dsv3::jinja
