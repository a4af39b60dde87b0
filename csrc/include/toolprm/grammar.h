// A grammar of function calls (or of one JSON value) over bytes: built once, immutable, shared by all matchers.
//
// Scalars are finite automata; around them a pushdown automaton handles literals, choices by name, objects with
// properties in any order, arrays, recursion and the marks that end a step.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "toolprm/export.h"
#include "toolprm/vocabulary.h"

namespace toolprm {

// The kinds of decisions inside a call (arXiv 2510.14703, section 3).
enum class StepKind : std::uint8_t { kFuncName, kArgValue, kParamFinish, kFuncFinish, kTotalFinish };

TOOLPRM_API const char *step_kind_name(StepKind kind);

inline constexpr std::uint32_t kInfinite = std::numeric_limits<std::uint32_t>::max() / 4;
inline constexpr std::uint32_t kUnbounded = std::numeric_limits<std::uint32_t>::max();

// A limit was reached: the instructions of a grammar, the ways to read a text, or the tokens of an answer.
struct TOOLPRM_API BudgetError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// No text satisfies the grammar, or a rule refers to itself without reading anything.
struct TOOLPRM_API ImpossibleGrammar : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Bytes that are no serialised grammar: cut off, damaged, of another version of the format, or made to mislead.
struct TOOLPRM_API MalformedGrammar : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A byte automaton of a scalar value, trimmed: from every state an accepting one can be reached.
class TOOLPRM_API Dfa {
public:
  // transitions: states x 256, -1 where there is none; accepting: one flag a state; state 0 is the start.
  // Throws std::invalid_argument for sizes or targets that do not fit.
  Dfa(std::span<const std::int32_t> transitions, std::span<const std::uint8_t> accepting);

  std::int32_t next(std::int32_t state, std::uint8_t byte) const {
    return next_[static_cast<std::size_t>(state) * classes_ + class_of_[byte]];
  }
  bool accepting(std::int32_t state) const { return accepting_[static_cast<std::size_t>(state)]; }
  // The value is over as soon as this state is reached. Numbers are not: the next byte might be one more digit.
  bool eager(std::int32_t state) const { return eager_[static_cast<std::size_t>(state)]; }
  std::uint32_t distance(std::int32_t state) const { return distance_[static_cast<std::size_t>(state)]; }
  const std::bitset<256> &allowed(std::int32_t state) const { return allowed_[static_cast<std::size_t>(state)]; }
  // Many bytes can be read in the state, or after the only one that can: a walk would see much of a vocabulary, whose
  // own masks are used instead.
  bool broad(std::int32_t state) const { return broad_[static_cast<std::size_t>(state)]; }
  std::size_t states() const { return accepting_.size(); }
  // Some state leads back to the start.
  bool returns() const { return returns_; }

private:
  std::array<std::uint16_t, 256> class_of_{};
  std::size_t classes_ = 0;
  std::vector<std::int32_t> next_;
  std::vector<std::uint8_t> accepting_, eager_, broad_;
  std::vector<std::uint32_t> distance_;
  std::vector<std::bitset<256>> allowed_;
  bool returns_ = false;
};

struct Program;       // the compiled automaton: private to the core
struct GrammarSource; // what it was compiled from: private to the core
class StatePool;      // its interned states: private to the core
using NodeId = std::int32_t;

// Compile budget, see GrammarBuilder.
inline constexpr std::size_t kMaxInstructions = 4'000'000;
// About how much memory a grammar's interned states may take before they are begun anew.
inline constexpr std::size_t kPoolBytes = std::size_t{256} << 20;

// What GrammarBuilder::build() makes. Immutable but for its pools of states; safe to share between threads.
class TOOLPRM_API Grammar {
public:
  Grammar(std::unique_ptr<const Program> program, std::unique_ptr<const GrammarSource> source, std::size_t pool_bytes);
  ~Grammar();

  // The grammar as bytes, for another process or for later: what it was built from, without a vocabulary. Equal
  // grammars that were built alike give equal bytes. The format has a version, and each release says which ones it
  // reads (docs/sdk.md).
  std::vector<std::byte> serialize() const;
  // Builds the grammar that the bytes hold; masks, steps and paths are those of the one that was serialised. Automata
  // that are alive in this process already are used again, and with them what vocabularies know of their masks.
  // Throws MalformedGrammar where the bytes are not what serialize() writes of a grammar whose texts all end with the
  // stop token, and BudgetError where they ask for more
  // than max_instructions (16 for each state of an automaton, 64 within one): safe for bytes from anywhere.
  static std::shared_ptr<const Grammar> deserialize(std::span<const std::byte> data,
                                                    std::size_t max_instructions = kMaxInstructions,
                                                    std::size_t pool_bytes = kPoolBytes);

  const Program &program() const { return *program_; }
  // States are interned in a pool that all matchers with this vocabulary share. When it holds more than pool_bytes,
  // matchers made from then on get a fresh one; the old pool goes with its last matcher.
  std::shared_ptr<StatePool> pool(const std::shared_ptr<const Vocabulary> &vocabulary) const;
  // Size of the compiled automaton.
  std::size_t instructions() const;
  // Fewest bytes of a complete text.
  std::uint32_t shortest() const;

private:
  std::unique_ptr<const Program> program_;
  std::unique_ptr<const GrammarSource> source_;
  std::size_t pool_bytes_;
  mutable std::mutex mutex_;
  mutable std::vector<std::pair<std::weak_ptr<const Vocabulary>, std::shared_ptr<StatePool>>> pools_;
};

// Puts a grammar together bottom-up. Each call returns the id of a node for use in later calls; a node may be used in
// several places. Not thread-safe.
//
//   GrammarBuilder b;
//   NodeId yes = b.literal("yes"), no = b.literal("no");
//   auto grammar = b.build(b.sequence({b.choice({yes, no}), b.stop()}), false);
//
// Where a text can be read in two ways at once, both must have ended the same steps: what marks their ends must be
// decided by the bytes so far.
//
// All of them throw std::invalid_argument for ids that are not of earlier calls and for automata that are missing, and
// BudgetError for nodes nested more than kMaxNesting deep (recursion goes through rules) or more nodes than
// max_instructions.
class TOOLPRM_API GrammarBuilder {
public:
  static constexpr std::uint32_t kMaxNesting = 1000;

  struct Property {
    // The key as it may be written, with quotes (or a trailing `=`): at least one; no spelling of the object begins
    // another.
    std::vector<std::string> spellings;
    NodeId value; // what follows the key, separator included
    bool required;
  };
  // open, then members in any order with separators between them, then close. No property comes twice.
  struct Object {
    NodeId open, separator, close;
    std::vector<Property> properties;
    // Keys that are not among the properties, never empty; null: none allowed. A key ends as soon as the automaton
    // accepts.
    std::shared_ptr<const Dfa> other_key;
    NodeId other_value = -1;                 // what follows such a key
    std::uint32_t min = 0, max = kUnbounded; // members
    bool arguments = false;                  // each member ends an ARG_VALUE step
    // Instead of other_value, several of them: which one follows says, for each state of other_key that accepts, its
    // place in other_kinds. The automaton then has to leave out the keys of the properties by itself.
    std::vector<NodeId> other_values = {};
    std::vector<std::int32_t> other_kinds = {}; // one a state; -1 where the state does not accept
  };
  // open, then items with separators between them, then close.
  struct Array {
    NodeId open, separator, close;
    std::vector<NodeId> prefix; // the first items, one each
    NodeId item = -1;           // -1: nothing after the prefix
    std::uint32_t min = 0, max = kUnbounded;
  };

  // max_instructions: compile budget, about one a byte of literals and a few for each other node; the tries of names
  // and keys count too.
  explicit GrammarBuilder(std::size_t max_instructions = kMaxInstructions) : limit_(max_instructions) {}

  NodeId literal(std::string bytes);
  // Bytes that the automaton accepts. Where more than one length does, each is tried.
  NodeId scalar(std::shared_ptr<const Dfa> dfa);
  // min to max repetitions of a prefix-free, never empty unit (characters of a string).
  // Throws ImpossibleGrammar where min is more than max.
  NodeId repeat(std::shared_ptr<const Dfa> unit, std::uint32_t min, std::uint32_t max);
  NodeId sequence(std::vector<NodeId> parts);
  // One of the options; without any, nothing.
  NodeId choice(std::vector<NodeId> options);
  // One of a prefix-free set of names, followed by its own node. build() throws where nothing can follow one.
  NodeId names(std::vector<std::pair<std::string, NodeId>> entries);
  NodeId object(Object object);
  NodeId array(Array array);
  // A step of this kind ends here, back bytes before the last byte read (not before the end of the step before it).
  NodeId step(StepKind kind, std::uint32_t back = 0);
  // Any run of JSON white space.
  NodeId space();
  // The text may end here, and must: only steps may follow.
  NodeId stop();
  // A rule may be used before it is defined, and by itself: recursion.
  NodeId declare_rule(std::string label);
  void define_rule(NodeId rule, NodeId body);

  // calls: the text is a list of calls, paths start with the index of the call.
  // Throws BudgetError past max_instructions; ImpossibleGrammar where no finite text is legal or a rule comes back to
  // itself without reading a byte; std::invalid_argument for rules without a body and names that begin another.
  std::shared_ptr<const Grammar> build(NodeId root, bool calls, std::size_t pool_bytes = kPoolBytes) const;

private:
  friend class Compiler;
  friend struct GrammarSource;
  struct Node;
  NodeId add(Node node, std::span<const NodeId> children);
  std::size_t limit_;
  std::vector<std::shared_ptr<Node>> nodes_;
};

} // namespace toolprm
