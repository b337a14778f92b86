// Text in columns.
#pragma once

#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

namespace tools {

// Lines of cells in columns; under a head line numbers stand to the right, words to the left.
class Table {
 public:
  Table() = default;
  explicit Table(std::vector<std::string> head) : lines_({std::move(head)}), has_head_(true) {}

  void add(std::vector<std::string> cells) { lines_.push_back(std::move(cells)); }

  std::string str() const {
    std::vector<size_t> width;
    for (const auto& cells : lines_)
      for (size_t i = 0; i < cells.size(); ++i) {
        if (i == width.size()) width.push_back(0);
        width[i] = std::max(width[i], cells[i].size());
      }
    std::string out;
    for (const auto& cells : lines_) {
      std::string line = " ";
      for (size_t i = 0; i < cells.size(); ++i) {
        const std::string padding(width[i] - cells[i].size(), ' ');
        const bool number = has_head_ && !cells[i].empty() &&
                            (cells[i][0] == '~' || std::isdigit(static_cast<unsigned char>(cells[i][0])));
        line += " " + (number ? padding + cells[i] : cells[i] + padding) + " ";
      }
      out += line.erase(line.find_last_not_of(' ') + 1) + "\n";
    }
    return out;
  }

 private:
  std::vector<std::vector<std::string>> lines_;
  bool has_head_ = false;
};

}  // namespace tools
