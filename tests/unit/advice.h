// What every message about bad input must have.
#pragma once

#include <doctest/doctest.h>
#include <regex>
#include <string>

// Whether a message says, after what is wrong, what to do about it.
inline bool has_advice(const std::string& message) {
  static const std::regex advice(
      "[;:?,] (or "
      ")?(try|get|Get|give|keep|remove|leave|convert|move|put|take|choose|free|wait|rename|finish|end|"
      "download|"
      "save|let) ");
  return std::regex_search(message + " ", advice);
}
