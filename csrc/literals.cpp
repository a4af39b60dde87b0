#include "literals.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <iomanip>
#include <locale>
#include <sstream>
#include <utility>
#include <vector>

#include "toolprm/matcher.h"

namespace toolprm {

namespace {

constexpr int kMaxNesting = 512;

void append_utf8(std::uint32_t c, std::string &out) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xc0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xe0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (c & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3f));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (c & 0x3f));
  }
}

bool parse_hex(std::string_view text, std::size_t at, std::size_t digits, std::uint32_t &out) {
  if (at + digits > text.size())
    return false;
  auto [end, error] = std::from_chars(text.data() + at, text.data() + at + digits, out, 16);
  return error == std::errc() && end == text.data() + at + digits;
}

class Canonical {
public:
  explicit Canonical(std::string_view text) : text_(text) {}

  bool run(std::string &out) {
    space();
    if (!value(out, 0))
      return false;
    space();
    return at_ == text_.size();
  }

private:
  void space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])))
      ++at_;
  }

  bool literal(std::string_view word) {
    if (text_.substr(at_, word.size()) != word)
      return false;
    at_ += word.size();
    return true;
  }

  static void quote(const std::string &value, std::string &out) {
    out += '"';
    for (char c : value) {
      if (c == '"' || c == '\\')
        out += '\\';
      out += c;
    }
    out += '"';
  }

  bool value(std::string &out, int depth) {
    if (depth > kMaxNesting || at_ >= text_.size())
      return false;
    char c = text_[at_];
    if (c == '"' || c == '\'') {
      std::string s;
      if (!parse_string(text_, at_, s))
        return false;
      quote(s, out);
      return true;
    }
    if (c == '{')
      return object(out, depth);
    if (c == '[' || c == '(')
      return array(out, depth);
    for (auto [word, canonical] : {std::pair{"true", "true"},
                                   {"True", "true"},
                                   {"false", "false"},
                                   {"False", "false"},
                                   {"null", "null"},
                                   {"None", "null"}})
      if (literal(word)) {
        out += canonical;
        return true;
      }
    return number(out);
  }

  bool object(std::string &out, int depth) {
    std::vector<std::pair<std::string, std::string>> members;
    ++at_;
    space();
    while (at_ < text_.size() && text_[at_] != '}') {
      std::string key, quoted, member;
      if (!members.empty()) {
        if (!literal(","))
          return false;
        space();
      }
      if (at_ >= text_.size() || (text_[at_] != '"' && text_[at_] != '\'') || !parse_string(text_, at_, key))
        return false;
      space();
      if (!literal(":"))
        return false;
      space();
      if (!value(member, depth + 1))
        return false;
      quote(key, quoted);
      members.emplace_back(std::move(quoted), std::move(member));
      space();
    }
    if (at_ >= text_.size())
      return false;
    ++at_;
    std::stable_sort(members.begin(), members.end(), [](const auto &a, const auto &b) { return a.first < b.first; });
    out += '{';
    for (std::size_t i = 0; i < members.size(); ++i) {
      // The last of equal keys counts, as in every JSON parser.
      if (i + 1 < members.size() && members[i].first == members[i + 1].first)
        continue;
      if (out.back() != '{')
        out += ',';
      out += members[i].first + ':' + members[i].second;
    }
    out += '}';
    return true;
  }

  bool array(std::string &out, int depth) {
    char close = text_[at_] == '[' ? ']' : ')';
    ++at_;
    space();
    out += '[';
    for (bool first = true; at_ < text_.size() && text_[at_] != close; first = false) {
      if (!first) {
        if (!literal(","))
          return false;
        space();
        if (at_ < text_.size() && text_[at_] == close) // (1,)
          break;
        out += ',';
      }
      if (!value(out, depth + 1))
        return false;
      space();
    }
    if (at_ >= text_.size())
      return false;
    ++at_;
    out += ']';
    return true;
  }

  bool number(std::string &out) {
    std::size_t start = at_;
    bool integral = true;
    while (at_ < text_.size() && (std::isdigit(static_cast<unsigned char>(text_[at_])) || text_[at_] == '-' ||
                                  text_[at_] == '+' || text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E')) {
      integral = integral && (std::isdigit(static_cast<unsigned char>(text_[at_])) || text_[at_] == '-');
      ++at_;
    }
    std::string digits(text_.substr(start, at_ - start));
    if (digits.empty())
      return false;
    if (integral) {
      out += digits == "-0" ? "0" : digits;
      return true;
    }
    // 1.50, 15e-1 and 1.5 are one value, and so are 2.0 and 2.
    std::istringstream in(digits); // not strtod, whose decimal point is that of the process's locale
    in.imbue(std::locale::classic());
    double number = 0;
    in >> number; // out of range: the largest of its sign
    if ((in.fail() && number == 0) || in.peek() != std::istringstream::traits_type::eof())
      return false;
    std::ostringstream text;
    text.imbue(std::locale::classic());
    if (number == static_cast<double>(static_cast<long long>(std::clamp(number, -1e15, 1e15))))
      text << static_cast<long long>(number);
    else
      text << std::setprecision(17) << number;
    out += text.str();
    return true;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

} // namespace

bool parse_string(std::string_view text, std::size_t &at, std::string &out) {
  const char quote = text[at++];
  while (at < text.size() && text[at] != quote) {
    char c = text[at++];
    if (c != '\\') {
      out += c;
      continue;
    }
    if (at >= text.size())
      return false;
    c = text[at++];
    std::uint32_t code = 0;
    std::size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits) {
      if (!parse_hex(text, at, digits, code))
        return false;
      if (code > 0x10ffff)
        return false;
      at += digits;
      std::uint32_t low = 0;
      if (code >= 0xd800 && code < 0xdc00 && text.substr(at, 2) == "\\u" && parse_hex(text, at + 2, 4, low) &&
          low >= 0xdc00 && low < 0xe000) {
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        at += 6;
      }
      append_utf8(code, out);
      continue;
    }
    switch (c) {
    case 'n':
      out += '\n';
      break;
    case 't':
      out += '\t';
      break;
    case 'r':
      out += '\r';
      break;
    case 'b':
      out += '\b';
      break;
    case 'f':
      out += '\f';
      break;
    default:
      out += c;
    }
  }
  if (at >= text.size())
    return false;
  ++at;
  return true;
}

std::string canonical_value(std::string_view text) {
  std::string out;
  return Canonical(text).run(out) ? out : std::string(text);
}

} // namespace toolprm
