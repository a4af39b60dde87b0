// The automaton of a finite set of byte strings: the values of an enumeration. Private to the core.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace toolprm {

// A deterministic automaton whose start is state 0.
struct Table {
  std::vector<std::int32_t> transitions; // states x 256, -1 where there is none
  std::vector<std::uint8_t> accepting;   // one flag a state
};

// The smallest automaton of exactly these strings, its states numbered breadth-first; one state that accepts nothing
// where there are none. Throws BudgetError where their trie has more than most_nodes nodes.
Table strings_table(std::vector<std::string> strings, std::size_t most_nodes);

} // namespace toolprm
