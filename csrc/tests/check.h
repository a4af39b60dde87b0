// Checks for unit tests: each prints what failed and goes on, and report() gives main's exit status.
//
//   int main() {
//     CHECK(list.empty());
//     CHECK_EQ(list.size(), 3u);
//     CHECK_THROWS(list.at(9), std::out_of_range);
//     return check::report();
//   }
#pragma once

#include <cstdio>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>

namespace check {

inline int failures = 0;
inline int checks = 0;

inline void record(bool passed, const char *file, int line, const std::string &message) {
  ++checks;
  if (passed)
    return;
  ++failures;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, message.c_str());
}

template <typename T>
concept Printable = requires(std::ostream &out, const T &value) { out << value; };

// A value as text for a message: itself, the elements of a range, or its size in bytes where it cannot be printed.
template <typename T> std::string show(const T &value) {
  std::ostringstream out;
  if constexpr (std::is_enum_v<T>) {
    out << static_cast<long long>(value);
  } else if constexpr (std::is_convertible_v<T, std::string>) {
    out << '"' << std::string(value) << '"';
  } else if constexpr (sizeof(T) == 1 && std::is_integral_v<T>) {
    out << static_cast<int>(value); // a byte is a number here, not a character
  } else if constexpr (Printable<T>) {
    out << value;
  } else if constexpr (requires { value.begin(), value.end(); }) {
    out << '[';
    const char *comma = "";
    for (const auto &item : value) {
      out << comma << show(item);
      comma = ", ";
    }
    out << ']';
  } else {
    out << "<" << sizeof(T) << " bytes>";
  }
  return out.str();
}

template <typename A, typename B> bool equal(const A &a, const B &b) {
  if constexpr (std::is_integral_v<A> && std::is_integral_v<B>)
    return std::cmp_equal(+a, +b); // by value: 3 equals 3u, and -1 never equals 4294967295u
  else
    return a == b;
}

template <typename A, typename B> void equals(const A &a, const B &b, const char *text, const char *file, int line) {
  bool same = equal(a, b);
  record(same, file, line, same ? std::string() : std::string(text) + ": " + show(a) + " is not " + show(b));
}

// Prints the count and returns the exit status of the test: 0 where every check passed. No check at all is a failure.
inline int report() {
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 && checks > 0 ? 0 : 1;
}

} // namespace check

#define CHECK(condition) ::check::record(static_cast<bool>(condition), __FILE__, __LINE__, #condition " is false")

#define CHECK_EQ(actual, expected) ::check::equals((actual), (expected), #actual, __FILE__, __LINE__)

#define CHECK_THROWS(expression, type)                                                                                 \
  do {                                                                                                                 \
    bool thrown = false;                                                                                               \
    try {                                                                                                              \
      static_cast<void>(expression);                                                                                   \
    } catch (const type &) {                                                                                           \
      thrown = true;                                                                                                   \
    }                                                                                                                  \
    ::check::record(thrown, __FILE__, __LINE__, #expression " throws no " #type);                                      \
  } while (false)
