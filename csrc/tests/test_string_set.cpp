// strings_table(): accepts exactly the strings, with no state too many.
#include <random>
#include <set>

#include "../string_set.h"
#include "check.h"
#include "toolprm/grammar.h"

using namespace toolprm;

namespace {

std::size_t states(const Table &table) { return table.accepting.size(); }

// The texts that lead from a state to acceptance: all of them, since the automaton has no circles.
std::set<std::string> rests(const Table &table, std::int32_t state) {
  std::set<std::string> found;
  if (table.accepting[static_cast<std::size_t>(state)])
    found.insert("");
  for (std::size_t byte = 0; byte < 256; ++byte)
    if (const std::int32_t next = table.transitions[static_cast<std::size_t>(state) * 256 + byte]; next >= 0)
      for (const std::string &rest : rests(table, next))
        found.insert(std::string(1, static_cast<char>(byte)) + rest);
  return found;
}

void check_exact(const std::vector<std::string> &strings) {
  const Table table = strings_table(strings, 1'000);
  CHECK(rests(table, 0) == std::set<std::string>(strings.begin(), strings.end()));
  std::set<std::set<std::string>> different;
  std::int32_t most = 0; // states come in the order in which a search breadth-first meets them
  for (std::size_t s = 0; s < states(table); ++s) {
    different.insert(rests(table, static_cast<std::int32_t>(s)));
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::int32_t next = table.transitions[s * 256 + byte];
      CHECK(next <= most + 1);
      most = std::max(most, next);
    }
  }
  CHECK_EQ(different.size(), states(table));
}

void plain_sets() {
  check_exact({""});
  check_exact({"a", "a", "ab", ""});
  check_exact({"\"celsius\"", "\"kelvin\"", "\"fahrenheit\""});
  check_exact({"\xff", "\x7f", std::string(1, '\0')});
  CHECK_EQ(states(strings_table({"abc", "xbc"}, 100)), 4u);
  CHECK_EQ(states(strings_table({}, 100)), 1u);
  CHECK(!strings_table({}, 100).accepting[0]);
}

void random_sets() {
  const unsigned seed = std::random_device{}();
  std::printf("strings of seed %u\n", seed);
  std::mt19937 random(seed);
  for (int turn = 0; turn < 300; ++turn) {
    std::vector<std::string> strings(1 + random() % 8);
    for (std::string &string : strings)
      for (std::size_t length = random() % 6; string.size() < length;)
        string += "ab\xff"[random() % 3];
    check_exact(strings);
  }
}

void budget() {
  CHECK_EQ(states(strings_table({"abc", "abd"}, 5)), 4u);
  CHECK_THROWS(strings_table({"abc", "abd"}, 4), BudgetError);
}

} // namespace

int main() {
  plain_sets();
  random_sets();
  budget();
  return check::report();
}
