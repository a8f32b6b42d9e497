// Writes JSON: all that the catalogue needs, a few lines.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace foveate::json {

class Writer {
 public:
  Writer& open(char bracket) {
    separate();
    text_ += bracket;
    fresh_ = true;
    return *this;
  }
  Writer& close(char bracket) {
    text_ += bracket;
    fresh_ = false;
    return *this;
  }
  Writer& key(std::string_view name) {
    value(name);
    text_ += ':';
    fresh_ = true;
    return *this;
  }
  Writer& value(std::string_view s) {
    separate();
    text_ += '"';
    for (const char c : s) {
      if (c == '"' || c == '\\') {
        (text_ += '\\') += c;
      } else if (static_cast<unsigned char>(c) < 0x20) {
        char escape[8];
        std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
        text_ += escape;
      } else {
        text_ += c;
      }
    }
    text_ += '"';
    return *this;
  }
  Writer& value(const char* s) { return value(std::string_view(s)); }
  Writer& value(const std::string& s) { return value(std::string_view(s)); }
  Writer& value(bool b) { return raw(b ? "true" : "false"); }
  Writer& value(int64_t i) { return raw(std::to_string(i)); }
  template <class T> Writer& pair(std::string_view name, const T& v) { return key(name).value(v); }
  template <class T> Writer& list(const std::vector<T>& items) {
    open('[');
    for (const auto& item : items) value(item);
    return close(']');
  }
  const std::string& text() const { return text_; }

 private:
  Writer& raw(std::string_view s) {
    separate();
    text_ += s;
    return *this;
  }
  void separate() {
    if (!fresh_) text_ += ',';
    fresh_ = false;
  }
  std::string text_;
  bool fresh_ = true;
};

}  // namespace foveate::json
