#include "convert/provenance.h"

#include "version.h"

namespace dsv3 {

using lite::Json;

Json Provenance::json() const {
  Json out{Json::Object()};
  out.set("converter", "dsv3-convert " DSV3_VERSION_TEXT);
  out.set("dtype", dtype ? lite::info(*dtype).name : "keep");
  if (f8_head) out.set("head", lite::info(lite::DType::F8_E4M3).name);
  if (!fused.empty()) out.set("fused", Json::Array(fused.begin(), fused.end()));
  if (!dropped.empty()) out.set("dropped", Json::Array(dropped.begin(), dropped.end()));
  return out;
}

lite::Result<Provenance> read_provenance(const lite::PackFile& file) {
  Provenance out;
  const std::string_view* text = file.section(kProvenance);
  if (!text) return out;
  LITE_ASSIGN(const Json json, Json::parse_file(*text, lite::str(file.path(), ": ", kProvenance)));
  const auto damaged = [&](const char* what) {
    return lite::corrupt("open ", file.path(), ": ", kProvenance, ": ", what,
                         " is not what it should be; get the file or convert it again");
  };
  if (!json.object()) return damaged("the whole");
  if (const Json* dtype = json.find("dtype")) {
    if (!dtype->string()) return damaged("dtype");
    if (*dtype->string() != "keep") {
      const auto type = lite::dtype_from_name(*dtype->string());
      if (!type.ok()) return damaged("dtype");
      out.dtype = *type;
    }
  }
  if (const Json* head = json.find("head")) {
    if (!head->string()) return damaged("head");
    out.f8_head = *head->string() == lite::info(lite::DType::F8_E4M3).name;
  }
  const std::pair<const char*, std::vector<std::string>*> lists[] = {{"fused", &out.fused},
                                                                     {"dropped", &out.dropped}};
  for (const auto& [member, list] : lists) {
    const Json* names = json.find(member);
    if (!names) continue;
    if (!names->array()) return damaged(member);
    for (const Json& name : *names->array()) {
      if (!name.string()) return damaged(member);
      list->push_back(*name.string());
    }
  }
  return out;
}

}  // namespace dsv3
