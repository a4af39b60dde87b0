// canonical_value(): whatever the bytes, its result is its own canonical spelling, and white space around changes none.
#include "source.h"
#include "toolprm/matcher.h"

using namespace toolprm;

namespace {

constexpr std::string_view kParts[] = {"\"",  "'",     "{",      "}",    "[",       "]",        "(",      ")", ",",
                                       ":",   "true",  "False",  "null", "None",    "1",        "-",      ".", "e",
                                       "\\u", "\\x",   "\\U",    "d83d", "\\ude00", "\\",       "0",      "9", " ",
                                       "\n",  "1e308", "1e-320", "+",    "abc",     "\xc3\xa9", "\\u0061"};

void check(const std::string &text) {
  const std::string canonical = canonical_value(text);
  REQUIRE(canonical_value(canonical) == canonical);
  if (canonical != text) // it was read
    REQUIRE(canonical_value(" \n" + text + "\t ") == canonical);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  Source source(data, size);
  std::string text;
  if (source.below(2) == 0)
    text = source.rest();
  else
    while (!source.done())
      text += kParts[source.below(std::size(kParts))];
  check(text);
  check('"' + text + '"');
  check("[" + text + "]");
  check("{\"a\": " + text + ", \"b\": 1}");
  return 0;
}
