// The compiled form of a grammar and its interned states. Private to the core.
#pragma once

#include <bitset>
#include <deque>
#include <mutex>
#include <set>
#include <tuple>
#include <unordered_set>

#include "toolprm/grammar.h"
#include "toolprm/mask.h"

namespace toolprm {

enum class Op : std::uint8_t {
  // these read a byte
  kByte,     // byte
  kScalar,   // a: dfa; aux: its state
  kRepeat,   // a: repeat; aux: state of the unit, count: units read
  kSpace,    // white space, any number
  kNames,    // a: key set; aux: its trie node
  kKey,      // a: object; aux: trie node of its keys
  kOtherKey, // a: object; aux: state of the key's dfa, count: trie node that the key would be at, 0 when off the trie
  kStop,     // reads the stop token
  // these do not
  kAccept,
  kJump,        // a: target
  kChoice,      // a, b: range in targets
  kCall,        // a: entry of the rule
  kReturn,      // leaves the innermost frame
  kStep,        // a: kind, b: bytes back
  kEnterObject, // a: object
  kObjectNext,  // a: object; the loop point
  kObjectKeys,  // a: object; a key must follow
  kEnterArray,  // a: array
  kArrayNext,   // a: array; the loop point
  kArrayItem,   // a: array; an item must follow
  kArrayCount,  // a: array; an item was read
};

// Where the static cost of an instruction ends: what the frame adds to it from there on.
enum class CostEnd : std::uint8_t { kLeave, kLoop, kKeys, kItem, kItemDone };

struct Instruction {
  Op op;
  std::uint8_t byte = 0;
  CostEnd cost_end = CostEnd::kLeave;
  std::int32_t a = 0, b = 0;
  std::uint32_t cost = kInfinite; // fewest bytes from here to cost_end
};

// A byte trie with outcomes at its leaves; keys are prefix-free.
struct KeySet {
  std::vector<std::uint32_t> child_begin; // nodes + 1
  std::vector<std::uint8_t> child_byte;   // edges of a node, ascending
  std::vector<std::uint32_t> child_node;  // child of an edge
  std::vector<std::int32_t> leaf;         // outcome, -1 inside
  std::vector<std::uint32_t> cost;        // names only: fewest bytes through the best leaf to the end
  std::vector<std::uint64_t> reach;       // objects only: words per node, outcomes below
  explicit KeySet(const std::vector<std::pair<std::string, std::int32_t>> &keys);
  std::int32_t child(std::uint32_t node, std::uint8_t byte) const {
    for (std::uint32_t e = child_begin[node]; e < child_begin[node + 1]; ++e)
      if (child_byte[e] == byte)
        return static_cast<std::int32_t>(child_node[e]);
    return -1;
  }
  // The bytes on the edges out of a node.
  void add_bytes(std::uint32_t node, std::bitset<256> &bytes) const {
    for (std::uint32_t e = child_begin[node]; e < child_begin[node + 1]; ++e)
      bytes.set(child_byte[e]);
  }
  std::size_t size() const { return leaf.size(); }
};

struct RepeatSpec {
  std::shared_ptr<const Dfa> unit;
  std::uint32_t min, max;
  std::int32_t end; // the byte that must follow the last unit and cannot begin one; -1 where there is no such byte
};

struct ObjectSpec {
  ObjectSpec(KeySet k, std::size_t w) : keys(std::move(k)), words(w) {}
  KeySet keys;
  std::size_t words;                    // 64-bit words of a property set
  std::vector<std::uint32_t> value;     // entry of each property's value
  std::vector<std::uint32_t> key_bytes; // shortest spelling of each key
  std::vector<std::uint64_t> required;
  std::vector<std::uint64_t> possible; // properties whose value can be completed
  std::shared_ptr<const Dfa> other_key;
  std::uint32_t other_value = 0, other_key_bytes = kInfinite;
  // Where other keys are of several kinds: entry of each kind's value, the kind by accepting state, the edges of the
  // automaton (to, from), and by state the fewest bytes of the rest of the key and its value.
  std::vector<std::uint32_t> other_values;
  std::vector<std::int32_t> other_kinds;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> other_edges;
  std::vector<std::uint32_t> other_rest;
  std::uint32_t min = 0, max = kUnbounded;
  std::uint32_t entry = 0, separator = 0, keys_at = 0, close = 0, key_op = 0, other_op = 0;
  std::uint32_t separator_cost = 0, other_cost = kInfinite, cheapest = kInfinite;
  std::vector<std::uint32_t> member_cost; // key and value of each property
};

struct ArraySpec {
  std::vector<std::uint32_t> prefix;
  std::uint32_t item = 0;
  bool has_item = false;
  std::uint32_t min = 0, max = kUnbounded;
  std::uint32_t entry = 0, separator = 0, close = 0, separator_cost = 0;
  std::uint32_t count_cap = 0; // counts from here on behave alike
};

struct Program {
  std::vector<Instruction> code;
  std::vector<std::uint32_t> targets;
  std::vector<std::shared_ptr<const Dfa>> dfas;
  std::vector<RepeatSpec> repeats;
  std::vector<KeySet> name_sets;
  std::vector<std::vector<std::uint32_t>> name_targets;
  std::vector<ObjectSpec> objects;
  std::vector<ArraySpec> arrays;
  std::uint32_t start = 0;
  bool calls = true;
};

// Fewest bytes that complete an object of which these properties (count members in all) are written.
// key_must_follow: a separator was written, so a key comes next.
std::uint32_t object_cost(const Program &program, const ObjectSpec &spec, std::span<const std::uint64_t> seen,
                          std::uint32_t count, bool key_must_follow);
// Fewest bytes that end a key which is none of the properties': state is its dfa's, node where it is in the trie of
// their keys, -1 off it.
std::uint32_t other_key_cost(const ObjectSpec &spec, std::int32_t state, std::int32_t node);
// Fewest bytes of the rest of such a key and of what follows it.
std::uint32_t other_member_cost(const Program &program, const ObjectSpec &spec, std::int32_t state, std::int32_t node);
std::uint32_t array_cost(const Program &program, const ArraySpec &spec, std::uint32_t count, bool item_must_follow);

// One activation of a rule, an object or an array. Immutable and interned: equal frames are equal pointers.
struct Frame {
  const Frame *parent;
  std::uint32_t ret;   // where to go on after it
  std::int32_t spec;   // object index, ~array index, or kCallFrame
  std::uint64_t data;  // properties seen: the bits, or the address of an interned wide set
  std::uint32_t count; // members or items so far (as far as they matter)
  std::uint32_t depth; // frames below, itself included
  std::uint32_t after; // fewest bytes from ret to the end of the text
  std::uint32_t rest;  // fewest bytes from the loop point of this frame to the end of the text
};
// Frames; deeper values break the JSON parsers that read them next. From here on only the shortest way to the end is
// offered, so that whatever is open can be closed.
inline constexpr std::uint32_t kMaxDepth = 256;
inline bool too_deep(const Frame *stack) { return stack && stack->depth >= kMaxDepth; }
inline constexpr std::int32_t kCallFrame = std::numeric_limits<std::int32_t>::max();

struct Config {
  std::uint32_t ip, aux, count;
  const Frame *stack;
  friend bool operator==(const Config &, const Config &) = default;
  friend bool operator<(const Config &x, const Config &y) {
    return std::tie(x.ip, x.aux, x.count, x.stack) < std::tie(y.ip, y.aux, y.count, y.stack);
  }
};

struct State {
  std::vector<Config> configs; // sorted; empty: the text is over
  mutable std::shared_ptr<const Mask> mask;
};

// A configuration on its way through a token, with the steps that it ended (a list in an event log, newest first).
struct Live {
  Config config;
  std::int32_t events = -1;
};

struct Event {
  StepKind kind;
  std::uint32_t end;
  std::int32_t previous;
};

// Throws BudgetError for more configurations than a text may keep alive.
void check_ambiguity(std::size_t configs);

// The states and frames of a program, for one vocabulary. Grows as texts go new ways; shared by threads: a State or
// Frame that it gave out lives and stays the same as long as the pool does.
class StatePool {
public:
  explicit StatePool(const Program &program) : program_(program) {}
  StatePool(const StatePool &) = delete;

  const State *initial();
  const State *intern(std::vector<Config> &configs);
  std::size_t bytes() const;

  // All configurations that can read a byte (or the stop token) from ip without reading anything before.
  // position: bytes of text so far; log: where ended steps are noted, or null.
  // Throws BudgetError, as step(), stop() and all that read with them do, where a text can be read in too many ways.
  void close(std::uint32_t ip, const Frame *stack, std::uint32_t position, std::int32_t events, std::vector<Event> *log,
             std::vector<Live> &out);
  // Reads one byte; appends what is left of the configuration to out.
  void step(const Live &live, std::uint8_t byte, std::uint32_t position, std::vector<Event> *log,
            std::vector<Live> &out) {
    const Live now = live; // a copy: live may lie in out
    if (read(now.config, now.events, byte, position, log, out))
      read_after(now, byte, position, log, out);
  }
  // Reads the stop token.
  void stop(const Live &live, std::uint32_t position, std::vector<Event> *log, std::vector<Live> &out);

  // Bytes that can come next; returns whether the text may also end here.
  bool allowed(const State &state, std::bitset<256> &bytes);
  bool complete(const State &state);
  // Fewest bytes to a complete text.
  std::uint32_t cost(const Config &config);
  std::uint32_t cost(const State &state);
  // The state with no other configurations than those that complete the text with the fewest bytes.
  const State *cheapest(const State &state);
  const State *advance(const State &state, std::uint8_t byte);

  // The legal tokens; kept with the state.
  std::shared_ptr<const Mask> mask(const State &state, const Vocabulary &vocabulary);
  bool knows_mask(const State &state) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return state.mask != nullptr;
  }
  // The same found the slow way, by reading the bytes of all tokens: what mask() is checked against.
  std::vector<TokenId> plain_mask(const State &state, const Vocabulary &vocabulary);
  const Program &program() const { return program_; }

private:
  class MaskBuilder; // in masks.cpp
  // Reads one byte as a part of what the configuration is in; returns whether that may also have ended before the byte.
  bool read(const Config &config, std::int32_t events, std::uint8_t byte, std::uint32_t position,
            std::vector<Event> *log, std::vector<Live> &out);
  // Ends the values of configurations and reads the byte with what comes after them.
  void read_after(const Live &live, std::uint8_t byte, std::uint32_t position, std::vector<Event> *log,
                  std::vector<Live> &out);
  const Frame *frame(const Frame *parent, std::uint32_t ret, std::int32_t spec, std::uint64_t data,
                     std::uint32_t count);
  std::uint64_t no_properties(const ObjectSpec &spec);
  std::uint64_t with(const Frame &frame, const ObjectSpec &spec, std::size_t property);
  // Properties that may be chosen now; other: whether a key outside them may.
  void selectable(const Frame &frame, const ObjectSpec &spec, std::vector<std::uint64_t> &out, bool &other) const;
  // The bytes that a configuration can read, and perhaps some that it cannot.
  void add_bytes(const Config &config, std::bitset<256> &bytes) const;
  // Behind a key that is not declared, at the value that follows it.
  void enter_other(const Config &config, std::uint32_t value, std::uint32_t position, std::int32_t events,
                   std::vector<Event> *log, std::vector<Live> &out);

  struct FrameHash {
    std::size_t operator()(const Frame *f) const;
  };
  struct FrameEqual {
    bool operator()(const Frame *a, const Frame *b) const;
  };
  struct StateHash {
    std::size_t operator()(const State *s) const;
  };
  struct StateEqual {
    bool operator()(const State *a, const State *b) const { return a->configs == b->configs; }
  };

  const Program &program_;
  mutable std::mutex mutex_;
  std::deque<Frame> frames_;
  std::unordered_set<const Frame *, FrameHash, FrameEqual> frame_index_;
  std::deque<State> states_;
  std::unordered_set<const State *, StateHash, StateEqual> state_index_;
  std::set<std::vector<std::uint64_t>> wide_sets_;
  std::size_t bytes_ = 0;
};

} // namespace toolprm
