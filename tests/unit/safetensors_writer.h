// Safetensors files for tests: from tensors, or from a header written by hand.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ggml-lite/json.h"
#include "tests/unit/temp_dir.h"

struct RawTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

using RawTensors = std::map<std::string, RawTensor>;

inline std::string safetensors_of(const std::string& header, const std::string& data) {
  std::string length;
  for (int i = 0; i < 8; ++i) length += char(uint64_t(header.size()) >> (8 * i));
  return length + header + data;
}

inline std::string safetensors_of(const RawTensors& tensors) {
  lite::Json header{lite::Json::Object()};
  header.set("__metadata__", lite::Json::Object{{"format", "pt"}});
  std::string data;
  for (const auto& [name, t] : tensors) {
    lite::Json::Array shape;
    for (const int64_t n : t.shape) shape.emplace_back(n);
    const int64_t begin = int64_t(data.size());
    data += t.bytes;
    header.set(name, lite::Json::Object{{"dtype", t.dtype},
                                        {"shape", shape},
                                        {"data_offsets", lite::Json::Array{begin, int64_t(data.size())}}});
  }
  std::string text = header.dump();
  while (text.size() % 8) text += ' ';
  return safetensors_of(text, data);
}
