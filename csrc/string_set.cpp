#include "string_set.h"

#include <algorithm>
#include <compare>
#include <map>
#include <string_view>
#include <utility>

#include "toolprm/grammar.h"

namespace toolprm {

namespace {

// A state by what can follow. States that are equal so accept the same rests.
struct State {
  bool accepting = false;
  std::vector<std::pair<std::uint8_t, std::int32_t>> ways; // bytes, ascending, and the numbers of their states
  auto operator<=>(const State &) const = default;
};

} // namespace

// In order, the trie of the strings grows at one end only, and what is left behind has all its ways on (Daciuk, Mihov,
// Watson and Watson, Incremental construction of minimal acyclic finite-state automata, 2000, section 3).
Table strings_table(std::vector<std::string> strings, std::size_t most_nodes) {
  std::sort(strings.begin(), strings.end());
  strings.erase(std::unique(strings.begin(), strings.end()), strings.end());

  std::map<State, std::int32_t> numbers;
  std::vector<const State *> states;
  std::vector<State> growing(1); // the nodes along the last string
  std::string_view last;
  const auto leave = [&](std::size_t depth) {
    while (growing.size() > depth) {
      const auto [at, fresh] = numbers.emplace(std::move(growing.back()), static_cast<std::int32_t>(states.size()));
      if (fresh)
        states.push_back(&at->first);
      growing.pop_back();
      if (!growing.empty())
        growing.back().ways.emplace_back(static_cast<std::uint8_t>(last[growing.size() - 1]), at->second);
    }
  };
  std::size_t nodes = 1;
  for (const std::string &string : strings) {
    const auto differ = std::mismatch(last.begin(), last.end(), string.begin(), string.end()).first;
    const auto common = static_cast<std::size_t>(differ - last.begin());
    nodes += string.size() - common;
    if (nodes > most_nodes)
      throw BudgetError("the strings' trie has more than " + std::to_string(most_nodes) + " nodes");
    leave(common + 1);
    growing.resize(string.size() + 1);
    growing.back().accepting = true;
    last = string;
  }
  leave(0);

  std::vector<std::int32_t> rank(states.size(), -1);
  std::vector<const State *> order{states.back()}; // the start was left last
  rank.back() = 0;
  for (std::size_t s = 0; s < order.size(); ++s)
    for (const auto &[byte, number] : order[s]->ways)
      if (std::int32_t &found = rank[static_cast<std::size_t>(number)]; found < 0) {
        found = static_cast<std::int32_t>(order.size());
        order.push_back(states[static_cast<std::size_t>(number)]);
      }
  Table table{std::vector<std::int32_t>(order.size() * 256, -1), std::vector<std::uint8_t>(order.size())};
  for (std::size_t s = 0; s < order.size(); ++s) {
    table.accepting[s] = order[s]->accepting ? 1 : 0;
    for (const auto &[byte, number] : order[s]->ways)
      table.transitions[s * 256 + byte] = rank[static_cast<std::size_t>(number)];
  }
  return table;
}

} // namespace toolprm
