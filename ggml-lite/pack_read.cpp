// Opening a packed file. Nothing in it is believed: the index has its checksum, and then every number in it
// is compared with what the format's own rules say it must be, so that no offset is used that was only read.
#include <sys/mman.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "ggml-lite/file.h"
#include "ggml-lite/pack.h"
#include "ggml-lite/pack_format.h"

namespace lite {

using namespace pack;

namespace {

constexpr const char* kGetAgain = "; get the file again";

// A file mapped as a whole, read-only.
struct Mapped {
  explicit Mapped(File f) : file(std::move(f)) {}
  Mapped(Mapped&& other) noexcept : file(std::move(other.file)), map(std::exchange(other.map, nullptr)) {}
  ~Mapped() {
    if (map) ::munmap(map, size_t(file.bytes()));
  }
  File file;
  std::byte* map = nullptr;
};

}  // namespace

struct PackFile::Impl {
  explicit Impl(std::string opened) : path(std::move(opened)) {}

  std::string path;           // as it was opened
  std::vector<Mapped> files;  // the first has the index
  std::vector<PackPart> parts;
  std::byte* map = nullptr;  // of the first file
  Header header;             // of the first file
  Json json;
  std::vector<std::string> section_names;
  std::vector<std::string_view> sections;
  std::vector<Item> items;
  std::vector<ExtentInfo> extents;
  std::vector<uint32_t> by_place;      // items that are no aliases, by extent and offset
  std::vector<uint32_t> extent_begin;  // [extents + 1] positions in by_place

  Status open();
  Status open_file(uint32_t i);
  static Result<Header> read_header(const File& file);
  Status read_index();
  Status read_extents();
  Status read_tensors();
  Status read_tensor(const TensorRecord& r, uint64_t name_offset);
  Status read_aliases();
  Status check_places();
  Status read_sections(uint64_t name_offset);
  Status check_gaps() const;
  Status check_model_id() const;

  std::span<const std::byte> bytes_of(const Part& part) const {
    return {map + part.offset, size_t(part.bytes)};
  }
  std::string_view text_of(const Part& part) const {
    return {reinterpret_cast<const char*>(map + part.offset), size_t(part.bytes)};
  }
  template <class Record>
  Record record(const Part& part, size_t i) const {
    Record r;
    std::memcpy(&r, map + part.offset + i * sizeof r, sizeof r);
    return r;
  }
  template <class Record>
  size_t count(const Part& part) const {
    return part.bytes / sizeof(Record);
  }
  uint64_t tensor_name_bytes = 0;
};

// The file at `path`, then all others by its name: every one must be there and of this model.
Status PackFile::Impl::open() {
  LITE_ASSIGN(File opened, File::open(path));
  auto first = read_header(opened);
  if (!first.ok()) return first.status().in("open " + path);
  const uint32_t own = first->file_index, count = first->file_count;
  auto base = base_path(path, own, count);
  if (!base.ok()) return base.status().in("open " + path);
  header = *first;
  for (uint32_t i = 0; i < count; ++i) {
    const std::string name = part_path(*base, i, count);
    auto file = i == own ? Result<File>(std::move(opened)) : File::open(name);
    if (!file.ok())
      return Status(file.status().code(), str("open ", path, ": it is file ", own + 1, " of ", count,
                                              ", and all must lie in one folder: ", file.status().message()));
    parts.push_back({name, file->bytes()});
    files.emplace_back(std::move(*file));
    LITE_TRY(open_file(i).in("open " + name));
  }
  map = files[0].map;
  const Status index = read_index();
  if (index.code() == Code::Corrupt)
    return corrupt("open ", parts[0].path, ": ", index.message(), "; get the file again, or convert again");
  return index.in("open " + parts[0].path);
}

// One of the files: its header, and everything before its data if it is not the first.
Status PackFile::Impl::open_file(uint32_t i) {
  Mapped& mapped = files[i];
  LITE_ASSIGN(const Header h, read_header(mapped.file));
  if (h.file_count != header.file_count || std::memcmp(h.model_id, header.model_id, sizeof h.model_id) != 0)
    return corrupt("it belongs to another model than ", path, "; get all ", header.file_count,
                   " files again");
  if (h.file_index != i)
    return corrupt("it is file ", h.file_index + 1, ", expected ", i + 1,
                   "; files were renamed: give them their names again");
  void* address =
      ::mmap(nullptr, size_t(mapped.file.bytes()), PROT_READ, MAP_SHARED, mapped.file.descriptor(), 0);
  if (address == MAP_FAILED) return errno_status("map", errno);
  mapped.map = static_cast<std::byte*>(address);
  const uint64_t checksum = index_checksum({mapped.map, size_t(h.data_offset)});
  if (checksum != h.index_checksum)
    return corrupt("index: got checksum ", std::hex, checksum, ", expected ", h.index_checksum,
                   "; the file is damaged; get it again");
  if (i == 0) {
    header = h;
  } else if (h.data_offset != uint64_t(kPage) || std::any_of(mapped.map + sizeof h, mapped.map + kPage,
                                                             [](std::byte b) { return b != std::byte{0}; })) {
    return corrupt("header: got an index, which only the first file has; get the file again");
  }
  return {};
}

Status PackFile::Impl::read_index() {
  if (header.tensors.bytes % sizeof(TensorRecord) || header.extents.bytes % sizeof(ExtentRecord) ||
      header.sections.bytes % sizeof(SectionRecord))
    return corrupt("header: a table's size is not that of whole records");
  if (count<TensorRecord>(header.tensors) >= kNoAlias) return corrupt("header: too many tensors");
  LITE_ASSIGN(json, Json::parse(text_of(header.json), "the JSON block"));
  if (!json.object()) return corrupt("the JSON block: got ", json.type_name(), ", expected an object");
  LITE_TRY(read_extents());
  LITE_TRY(read_tensors());
  LITE_TRY(read_aliases());
  LITE_TRY(check_places());
  LITE_TRY(read_sections(tensor_name_bytes));
  LITE_TRY(check_gaps());
  return check_model_id();
}

// The header by itself: what can be said before anything else of the file is read.
Result<Header> PackFile::Impl::read_header(const File& file) {
  char start[24] = {};
  LITE_TRY(file.read(
      0, std::as_writable_bytes(std::span(start).first(std::min<size_t>(sizeof start, file.bytes())))));
  if (is_lfs_pointer({start, sizeof start}))
    return corrupt("it is a git-lfs pointer, not the file itself; try \"git lfs pull\" in its folder");
  if (!std::string_view(start, sizeof start).starts_with(kMagic))
    return corrupt("it does not start with \"", kMagic,
                   "\", so it is not a packed file; try \"dsv3-convert\" on the checkpoint's folder");
  Header h;
  if (file.bytes() < int64_t(sizeof h))
    return corrupt("got ", file.bytes(), " bytes; the file is cut off: get it again");
  LITE_TRY(file.read(0, std::as_writable_bytes(std::span(&h, 1))));
  if (h.version != kVersion)
    return unsupported("got version ", h.version, ", expected ", kVersion,
                       "; try the program that made the file, or convert again");
  if (h.header_bytes != sizeof h)
    return corrupt("header: got ", h.header_bytes, " bytes, expected ", sizeof h, kGetAgain);
  if (h.file_bytes != uint64_t(file.bytes()))
    return corrupt("got ", file.bytes(), " bytes, expected ", h.file_bytes,
                   "; the file is cut off or has something appended; get it again");
  if (h.file_index >= h.file_count || h.file_count > kMaxFiles)
    return corrupt("header: it is file ", h.file_index, " of ", h.file_count,
                   ", expected an index below a count of at most ", kMaxFiles, kGetAgain);

  for (const Part* part : {&h.json, &h.names, &h.tensors, &h.extents, &h.sections, &h.section_data})
    if (part->bytes > h.file_bytes || part->bytes > uint64_t(kMaxIndex))
      return corrupt("header: an index part has ", part->bytes, " bytes, more than the file can hold",
                     kGetAgain);
  Header expected = h;
  place_parts(&expected);
  if (std::memcmp(&expected, &h, sizeof h) != 0)
    return corrupt("header: the index parts do not lie where their sizes put them", kGetAgain);
  if (h.data_offset > h.file_bytes || h.data_offset > uint64_t(kMaxIndex))
    return corrupt("header: the data starts at byte ", h.data_offset, ", expected at most ", h.file_bytes,
                   kGetAgain);
  if (std::any_of(std::begin(h.reserved), std::end(h.reserved), [](uint8_t b) { return b != 0; }))
    return corrupt("header: reserved bytes are not zero", kGetAgain);
  return h;
}

// Extents follow each other, from where a file's data begin to its end, and then in the next file.
Status PackFile::Impl::read_extents() {
  extents.reserve(count<ExtentRecord>(header.extents));
  uint32_t file = 0;
  uint64_t end = header.data_offset;
  for (size_t i = 0; i < count<ExtentRecord>(header.extents); ++i) {
    const auto r = record<ExtentRecord>(header.extents, i);
    if (i > 0 && r.file == file + 1 && r.file < parts.size() && end == uint64_t(parts[file].bytes)) {
      ++file;
      end = kPage;
    }
    if (r.file != file || r.reserved != 0)
      return corrupt("extent ", i, ": got file ", r.file, " and a reserved field of ", r.reserved,
                     ", expected ", file, " and 0");
    const uint64_t left = uint64_t(parts[file].bytes) - end;
    if (r.offset != end) return corrupt("extent ", i, ": got offset ", r.offset, ", expected ", end);
    if (r.bytes == 0 || r.bytes % kPage || r.bytes > left)
      return corrupt("extent ", i, ": got ", r.bytes, " bytes, expected a multiple of ", kPage, " up to ",
                     left);
    end += r.bytes;
    extents.push_back({int64_t(r.offset), int64_t(r.bytes), r.checksum, r.file});
  }
  if (file + 1 != parts.size() || end != uint64_t(parts[file].bytes))
    return corrupt("the extents end at byte ", end, " of file ", file + 1, ", expected ", parts.back().bytes,
                   " of file ", parts.size());
  return {};
}

Status PackFile::Impl::read_tensors() {
  items.reserve(count<TensorRecord>(header.tensors));
  for (size_t i = 0; i < count<TensorRecord>(header.tensors); ++i) {
    const auto r = record<TensorRecord>(header.tensors, i);
    LITE_TRY(read_tensor(r, tensor_name_bytes));
    tensor_name_bytes += r.name_bytes;
  }
  return {};
}

// The record's own fields; where it lies is compared in check_places(), or with its target's if it is an
// alias.
Status PackFile::Impl::read_tensor(const TensorRecord& r, uint64_t name_offset) {
  const size_t i = items.size();
  if (r.name_offset != name_offset || r.name_bytes > header.names.bytes - name_offset)
    return corrupt("tensor ", i, ": its name does not lie where the names before it end");
  PackEntry e;
  e.name = text_of(header.names).substr(r.name_offset, r.name_bytes);
  if (const Status s = check_name(e.name); !s.ok()) return corrupt("tensor ", i, ": ", s.message());
  const auto refuse = [&](const auto&... why) { return corrupt("tensor \"", e.name, "\": ", why...); };
  if (i > 0 && !(items[i - 1].entry.name < e.name)) return refuse("the names are not in order, each once");

  auto dtype = dtype_from_code(r.dtype);
  if (!dtype.ok()) return dtype.status().in("tensor \"" + e.name + "\"");
  e.dtype = *dtype;
  if (r.flags & ~kScaled)
    return unsupported("tensor \"", e.name, "\": unknown flags ", int(r.flags), "; try a newer version");
  if (r.rank < 1 || r.rank > Tensor::kMaxRank) return refuse("got rank ", int(r.rank), ", expected 1 to 4");
  e.shape.resize(r.rank);
  for (int d = 0; d < Tensor::kMaxRank; ++d) {
    if (d < r.rank)
      e.shape[size_t(d)] = int64_t(std::min<uint64_t>(r.shape[d], INT64_MAX));
    else if (r.shape[d] != 1)
      return refuse("a dimension beyond its rank is not 1");
  }
  if (r.flags & kScaled) {
    auto scale_dtype = dtype_from_code(r.scale_dtype);
    if (!scale_dtype.ok()) return scale_dtype.status().in("tensor \"" + e.name + "\": scales");
    e.scaled = true;
    e.scale_dtype = *scale_dtype;
    e.block_rows = r.block_rows;
    e.block_cols = r.block_cols;
  } else if (r.scale_dtype || r.block_rows || r.block_cols || r.scale_offset || r.scale_bytes) {
    return refuse("it has no scales, but fields of scales are not zero");
  }
  if (const Status s = e.check_but_name(); !s.ok()) return corrupt(s.message());
  if (r.data_bytes != uint64_t(e.data_bytes()) || r.scale_bytes != uint64_t(e.scale_bytes()))
    return refuse("got ", r.data_bytes, " bytes and ", r.scale_bytes, " of scales, expected ", e.data_bytes(),
                  " and ", e.scale_bytes());
  if (r.extent >= extents.size()) return refuse("it lies in extent ", r.extent, " of ", extents.size());

  Item& item = items.emplace_back();
  item.extent = int32_t(r.extent);
  item.entry = std::move(e);
  return {};
}

Status PackFile::Impl::read_aliases() {
  for (size_t i = 0; i < items.size(); ++i) {
    auto r = record<TensorRecord>(header.tensors, i);
    if (r.alias_of == kNoAlias) continue;
    const std::string& name = items[i].entry.name;
    if (r.alias_of >= items.size())
      return corrupt("alias \"", name, "\": its target ", r.alias_of, " does not exist");
    const auto target = record<TensorRecord>(header.tensors, r.alias_of);
    if (target.alias_of != kNoAlias) return corrupt("alias \"", name, "\": its target is an alias itself");
    items[i].alias_of = int32_t(r.alias_of);
    r.alias_of = kNoAlias;
    r.name_offset = target.name_offset;
    r.name_bytes = target.name_bytes;
    if (std::memcmp(&r, &target, sizeof r) != 0)
      return corrupt("alias \"", name, "\": it differs from its target \"",
                     items[items[i].alias_of].entry.name, "\"");
  }
  return {};
}

// Every extent's tensors lie one after the other as place_in_extent() says, so none overlap and none stick
// out.
Status PackFile::Impl::check_places() {
  // First by extent, counted; then each extent's few by offset.
  extent_begin.assign(extents.size() + 1, 0);
  for (const Item& item : items)
    if (item.alias_of < 0) ++extent_begin[size_t(item.extent) + 1];
  std::partial_sum(extent_begin.begin(), extent_begin.end(), extent_begin.begin());
  by_place.resize(extent_begin.back());
  std::vector<uint32_t> next(extent_begin.begin(), extent_begin.end() - 1);
  for (size_t i = 0; i < items.size(); ++i)
    if (items[i].alias_of < 0) by_place[next[size_t(items[i].extent)]++] = uint32_t(i);
  const auto data_offset = [&](uint32_t i) { return record<TensorRecord>(header.tensors, i).data_offset; };
  for (size_t extent = 0; extent < extents.size(); ++extent) {
    size_t at = extent_begin[extent];
    const size_t last = extent_begin[extent + 1];
    if (at == last) return corrupt("extent ", extent, ": no tensor lies in it");
    std::sort(by_place.begin() + ptrdiff_t(at), by_place.begin() + ptrdiff_t(last),
              [&](uint32_t a, uint32_t b) { return data_offset(a) < data_offset(b); });
    int64_t end = 0;
    for (; at < last; ++at) {
      const PackEntry& e = items[by_place[at]].entry;
      const auto r = record<TensorRecord>(header.tensors, by_place[at]);
      auto place = place_in_extent(e, &end);
      if (!place.ok() || end > extents[extent].bytes)
        return corrupt("tensor \"", e.name, "\": it does not fit its extent of ", extents[extent].bytes,
                       " bytes");
      if (r.data_offset != uint64_t(place->data_offset) || r.scale_offset != uint64_t(place->scale_offset))
        return corrupt("tensor \"", e.name, "\": got offsets ", r.data_offset, " and ", r.scale_offset,
                       ", expected ", place->data_offset, " and ", place->scale_offset);
    }
  }

  for (size_t i = 0; i < items.size(); ++i) {
    Item& item = items[i];
    const PackEntry& e = item.entry;
    const auto r = record<TensorRecord>(header.tensors, i);
    std::byte* base = files[extents[item.extent].file].map + extents[item.extent].offset;
    item.tensor = e.view(base + r.data_offset, base + r.scale_offset);
  }
  return {};
}

Status PackFile::Impl::read_sections(uint64_t name_offset) {
  const Part& data = header.section_data;
  uint64_t end = 0;  // in section_data, of the sections so far
  for (size_t i = 0; i < count<SectionRecord>(header.sections); ++i) {
    const auto r = record<SectionRecord>(header.sections, i);
    if (r.name_offset != name_offset || r.name_bytes > header.names.bytes - name_offset || r.reserved != 0)
      return corrupt("section ", i, ": its name does not lie where the names before it end");
    const std::string_view name = text_of(header.names).substr(r.name_offset, r.name_bytes);
    if (const Status s = check_section_name(name); !s.ok()) return corrupt("section ", i, ": ", s.message());
    if (i > 0 && !(section_names.back() < name))
      return corrupt("section \"", name, "\": the names are not in order, each once");
    const uint64_t offset = uint64_t(round_up(int64_t(end), kAlign));
    if (offset > data.bytes || r.offset != data.offset + offset || r.bytes > data.bytes - offset)
      return corrupt("section \"", name, "\": it does not lie where the sections before it end");
    end = offset + r.bytes;
    name_offset += r.name_bytes;
    section_names.emplace_back(name);
    sections.push_back(text_of(data).substr(offset, r.bytes));
  }
  if (end != data.bytes) return corrupt("the sections end at byte ", end, ", expected ", data.bytes);
  if (name_offset != header.names.bytes)
    return corrupt("the names end at byte ", name_offset, ", expected ", header.names.bytes);
  return {};
}

// What lies between the parts and between the sections is zero, so that a file's content has one form only.
Status PackFile::Impl::check_gaps() const {
  uint64_t end = sizeof(Header);
  const auto zero_up_to = [&](uint64_t offset) {
    return std::all_of(map + end, map + offset, [](std::byte b) { return b == std::byte{0}; });
  };
  bool ok = true;
  for (const Part* part : {&header.json, &header.names, &header.tensors, &header.extents, &header.sections}) {
    ok = ok && zero_up_to(part->offset);
    end = part->offset + part->bytes;
  }
  for (const std::string_view& section : sections) {
    const uint64_t offset = uint64_t(reinterpret_cast<const std::byte*>(section.data()) - map);
    ok = ok && zero_up_to(offset);
    end = offset + section.size();
  }
  if (!ok || !zero_up_to(header.data_offset)) return corrupt("index: bytes between its parts are not zero");
  return {};
}

Status PackFile::Impl::check_model_id() const {
  const auto id = hash_model(text_of(header.json), bytes_of(header.tensors),
                             text_of(header.names).substr(0, tensor_name_bytes), bytes_of(header.extents));
  if (std::memcmp(id.data(), header.model_id, id.size()) != 0)
    return corrupt("header: the model id is not that of the index");
  return {};
}

bool looks_packed(const std::string& path) {
  char start[kMagic.size()];
  auto file = File::open(path);
  return file.ok() && file->read(0, std::as_writable_bytes(std::span(start))).ok() &&
         std::string_view(start, sizeof start) == kMagic;
}

std::optional<PackPlace> packed_place(const std::string& path) {
  const auto file = File::open(path);
  Header h = {};
  if (!file.ok() || file->bytes() < int64_t(sizeof h) ||
      !file->read(0, std::as_writable_bytes(std::span(&h, 1))).ok() ||
      std::string_view(h.magic, sizeof h.magic) != kMagic || h.file_count > kMaxFiles ||
      h.file_index >= h.file_count)
    return {};
  return PackPlace{h.file_index, h.file_count};
}

PackFile::PackFile() = default;
PackFile::PackFile(PackFile&&) noexcept = default;
PackFile& PackFile::operator=(PackFile&&) noexcept = default;
PackFile::~PackFile() = default;

Result<PackFile> PackFile::open(const std::string& path) {
  PackFile pack;
  pack.impl_ = std::make_unique<Impl>(path);
  LITE_TRY(pack.impl_->open());
  return pack;
}

const std::string& PackFile::path() const {
  return impl_->path;
}
const std::vector<PackPart>& PackFile::parts() const {
  return impl_->parts;
}
int64_t PackFile::file_bytes() const {
  return std::accumulate(parts().begin(), parts().end(), int64_t(0),
                         [](int64_t sum, const PackPart& part) { return sum + part.bytes; });
}
const Json& PackFile::json() const {
  return impl_->json;
}
const std::vector<std::string>& PackFile::section_names() const {
  return impl_->section_names;
}
const std::vector<PackFile::Item>& PackFile::items() const {
  return impl_->items;
}
const std::vector<PackFile::ExtentInfo>& PackFile::extents() const {
  return impl_->extents;
}

std::string PackFile::model_id() const {
  std::string hex;
  for (const uint8_t byte : impl_->header.model_id)
    for (const int digit : {byte >> 4, byte & 15}) hex += "0123456789abcdef"[digit];
  return hex;
}

const std::string_view* PackFile::section(std::string_view name) const {
  const std::vector<std::string>& names = impl_->section_names;
  const auto at = std::lower_bound(names.begin(), names.end(), name);
  return at != names.end() && *at == name ? &impl_->sections[size_t(at - names.begin())] : nullptr;
}

const PackFile::Item* PackFile::find(std::string_view name, const Item* near) const {
  const std::vector<Item>& items = impl_->items;
  const auto before = [](const Item& item, std::string_view n) { return item.entry.name < n; };
  auto low = items.begin(), high = items.end();
  if (near) {  // from there in steps that double, down to what is before the name and up to what is not
    low = high = items.begin() + (near - items.data());
    for (ptrdiff_t step = 1; low != items.begin() && !before(*low, name); step *= 2)
      low -= std::min(step, low - items.begin());
    for (ptrdiff_t step = 1; high != items.end() && before(*high, name); step *= 2)
      high += std::min(step, items.end() - high);
  }
  const auto at = std::lower_bound(low, high, name, before);
  return at != items.end() && at->entry.name == name ? &*at : nullptr;
}

std::vector<std::string_view> PackFile::tensors_of_extent(int32_t extent) const {
  std::vector<std::string_view> names;
  for (uint32_t i = impl_->extent_begin[size_t(extent)]; i < impl_->extent_begin[size_t(extent) + 1]; ++i)
    names.push_back(impl_->items[impl_->by_place[i]].entry.name);
  return names;
}

Status PackFile::read(int32_t extent, int64_t from, std::span<std::byte> to) const {
  const ExtentInfo& e = impl_->extents[size_t(extent)];
  if (from < 0 || from > e.bytes || int64_t(to.size()) > e.bytes - from)
    return invalid_argument("read ", path(), ": extent ", extent, ": bytes ", from, " to ",
                            from + int64_t(to.size()), " of ", e.bytes);
  return impl_->files[e.file].file.read(e.offset + from, to);
}

}  // namespace lite
