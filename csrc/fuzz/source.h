// The bytes of a fuzzer's input as choices, and checks that end the process where they fail.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

// Both fuzzers, libFuzzer and the one of standalone.cpp, call this.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size);

#define REQUIRE(condition)                                                                                             \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition);                                    \
      std::abort();                                                                                                    \
    }                                                                                                                  \
  } while (false)

// A byte a choice, taken from the front, so that a changed byte changes one choice. Where they end, all are 0.
class Source {
public:
  Source(const std::uint8_t *data, std::size_t size) : at_(data), end_(data + size) {}

  bool done() const { return at_ == end_; }
  std::uint8_t byte() { return at_ == end_ ? std::uint8_t{0} : *at_++; }
  // 0 to n - 1; n is at most 256.
  std::size_t below(std::size_t n) { return n < 2 ? 0 : byte() % n; }
  // Once in n.
  bool rarely(std::size_t n) { return below(n) == n - 1; }
  std::string text(std::string_view alphabet, std::size_t least, std::size_t most) {
    std::string out;
    for (std::size_t n = least + below(most - least + 1); n > 0; --n)
      out += alphabet[below(alphabet.size())];
    return out;
  }
  std::string_view rest() {
    std::string_view out(reinterpret_cast<const char *>(at_), static_cast<std::size_t>(end_ - at_));
    at_ = end_;
    return out;
  }

private:
  const std::uint8_t *at_, *end_;
};
