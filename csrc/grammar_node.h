// What a grammar is put together from. Private to the core.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "toolprm/grammar.h"

namespace toolprm {

struct GrammarBuilder::Node {
  // Their order stays: serialised grammars hold these numbers.
  enum class Kind {
    kLiteral,
    kScalar,
    kRepeat,
    kSequence,
    kChoice,
    kNames,
    kObject,
    kArray,
    kStep,
    kSpace,
    kStop,
    kRule
  };
  explicit Node(Kind k) : kind(k) {}
  Kind kind;
  std::string text; // literal, or the label of a rule
  std::shared_ptr<const Dfa> dfa;
  std::uint32_t min = 0, max = 0;
  std::vector<NodeId> parts;
  std::vector<std::pair<std::string, NodeId>> entries;
  std::shared_ptr<const Object> object;
  std::shared_ptr<const Array> array;
  StepKind step = StepKind::kFuncName;
  std::uint32_t depth = 1;
};

// What a grammar was built from, as Grammar::serialize() writes it: the nodes in their binary form, which is a
// hundredth of what they take, and the automata that they number.
struct GrammarSource {
  using Node = GrammarBuilder::Node;
  using Kind = Node::Kind;

  std::string nodes;
  std::vector<std::shared_ptr<const Dfa>> automata;

  // Of all that root leads to.
  static std::unique_ptr<const GrammarSource> of(const GrammarBuilder &builder, NodeId root, bool calls);

private:
  class Writer;
};

} // namespace toolprm
