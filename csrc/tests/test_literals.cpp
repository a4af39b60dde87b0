// canonical_value(): equal values get one spelling, different ones different spellings.
#include <clocale>

#include "check.h"
#include "grammars.h"

using namespace toolprm;

namespace {

void equal(const std::vector<std::string> &spellings) {
  for (const std::string &s : spellings)
    CHECK_EQ(canonical_value(s), canonical_value(spellings[0]));
}

void different(const std::vector<std::string> &spellings) {
  for (std::size_t i = 0; i < spellings.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      if (canonical_value(spellings[i]) == canonical_value(spellings[j]))
        check::record(false, __FILE__, __LINE__, spellings[i] + " is taken for " + spellings[j]);
  CHECK(true);
}

void numbers() {
  equal({"1.5", "1.50", "15e-1", "0.15E+1", " 1.5 "});
  equal({"2", "2.0", "20e-1", "2e0"});
  equal({"0", "-0", "0.0", "-0.0", "0e5"});
  equal({"1e400", "1e500"}); // no float tells them apart
  different({"1", "-1", "1.5", "1.25", "10", "1e10", "0.1", "0.10000000000000003", "12345678901234567890",
             "12345678901234567891"});
}

void numbers_are_read_the_same_in_every_locale() {
  const std::string before = canonical_value("1.5");
  bool set = false;
  for (const char *name : {"de_DE.UTF-8", "de_DE.utf8", "de_DE", "fr_FR.UTF-8", "fr_FR"})
    set = set || std::setlocale(LC_ALL, name) != nullptr;
  if (!set)
    std::printf("no locale with a decimal comma is installed\n");
  CHECK_EQ(canonical_value("1.5"), before);
  CHECK(canonical_value("1.5") != canonical_value("1.7"));
  std::setlocale(LC_ALL, "C");
}

void strings() {
  equal({R"("a")", R"('a')", R"("\u0061")", R"('\x61')", R"("\U00000061")"});
  equal({R"("é")", R"("\u00e9")", R"("\u00E9")"});
  equal({R"("😀")", R"("\ud83d\ude00")", R"('\U0001f600')"});
  equal({R"("/")", R"("\/")"});
  equal({"\"\\n\"", "'\\n'", "\"\n\""});
  different({R"("a")", R"("b")", R"("")", R"("\\n")", R"("\n")", R"("a\"")", R"("\ud83d")", "1", R"("1")", "null",
             R"("null")"});
}

void values_of_two_languages() {
  equal({"true", "True"});
  equal({"false", "False"});
  equal({"null", "None"});
  equal({"[1, 2]", "[1,2]", "(1, 2)", "[ 1 , 2.0 ]"});
  equal({R"({"a": 1, "b": [true]})", R"({"b":[True],"a":1.0})", "{'b': (True,), 'a': 1}",
         R"({ "a" : 1 , "b" : [ true ] })"});
  equal({R"({"a": 1, "a": 2})", R"({"a": 2})"}); // the last of equal keys counts
  different({"[]", "{}", "[[]]", "[1, 2]", "[2, 1]", R"({"a": 1})", R"({"a": 2})", R"({"b": 1})", R"([{"a": 1}])",
             "[1]", "1"});
}

void what_is_no_value_stays() {
  for (const char *text :
       {"", " ", "abc", "[1", "[1 2]", "{\"a\"}", "{\"a\": }", "{a: 1}", "\"open", "\"\\", "\"\\u12\"",
        "\"\\U00110000\"", "\"\\UFFFFFFFF\"", "1 2", "--1.", "1.5e", "[1]]", "truee", "+"})
    CHECK_EQ(canonical_value(text), std::string(text));
}

void deep_values_do_not_exhaust_the_stack() {
  for (const char *open : {"[", "(", "{\"a\":"}) {
    std::string text;
    for (int i = 0; i < 100'000; ++i)
      text += open;
    CHECK_EQ(canonical_value(text), text);
  }
}

std::string random_value(std::mt19937 &random, int depth, bool other) {
  // Two spellings of one value by the same numbers.
  switch (below(random, depth > 0 ? 6 : 4)) {
  case 0:
    return below(random, 2) ? (other ? "True" : "true") : (other ? "None" : "null");
  case 1: {
    const std::string digits = std::to_string(below(random, 1000));
    return other ? digits + ".0" : digits;
  }
  case 2: {
    const std::string text = random_text(random, "abc", 0, 4);
    std::string out;
    for (char c : text)
      out += other ? "\\u006" + std::string(1, static_cast<char>('1' + (c - 'a'))) : std::string(1, c);
    return '"' + out + '"';
  }
  case 3:
    return std::string(other ? "-0.5e0" : "-0.50");
  case 4: {
    std::string out = other ? "( " : "[";
    const std::size_t n = below(random, 4);
    for (std::size_t i = 0; i < n; ++i)
      out += std::string(i > 0 ? "," : "") + random_value(random, depth - 1, other);
    return out + (other ? " )" : "]");
  }
  default: {
    std::vector<std::string> members;
    const std::size_t n = below(random, 4);
    for (std::size_t i = 0; i < n; ++i)
      members.push_back((other ? "'k" : "\"k") + std::to_string(i) + (other ? "' : " : "\": ") +
                        random_value(random, depth - 1, other));
    if (other)
      std::reverse(members.begin(), members.end());
    std::string out = "{";
    for (std::size_t i = 0; i < n; ++i)
      out += (i > 0 ? ", " : "") + members[i];
    return out + "}";
  }
  }
}

void random_values() {
  std::mt19937 seeds(seed());
  for (int i = 0; i < 2000; ++i) {
    const auto number = static_cast<std::uint32_t>(seeds());
    std::mt19937 a(number), b(number);
    const std::string x = random_value(a, 3, false), y = random_value(b, 3, true);
    if (canonical_value(x) != canonical_value(y))
      check::record(false, __FILE__, __LINE__, x + " is not taken for " + y);
    CHECK_EQ(canonical_value(canonical_value(x)), canonical_value(x));
  }
}

} // namespace

int main() {
  numbers();
  numbers_are_read_the_same_in_every_locale();
  strings();
  values_of_two_languages();
  what_is_no_value_stays();
  deep_values_do_not_exhaust_the_stack();
  random_values();
  return check::report();
}
