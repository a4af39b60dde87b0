// A grammar as bytes: a head (magic, version of the format, size and CRC-32 of what follows), then the automata, then
// the nodes that a GrammarBuilder is given to make it anew, children before what holds them. What the compiler makes of
// the nodes is not in it, so that whatever is read goes through the builder's own checks, and the core may change how
// it compiles without a new format. All numbers after the head are LEB128, at most 32 bits.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <string_view>
#include <unordered_map>

#include "grammar_node.h"

namespace toolprm {

namespace {

using Kind = GrammarSource::Kind;

// The first byte is no text, and the last ones change where somebody converts line ends.
constexpr std::string_view kMagic("\xffTPRM\r\n\n", 8);
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kHead = 8 + 4 + 4 + 4;
// Instructions that a state of an automaton counts as, when it is read and for each object whose other keys it reads
// (the builder looks at all of them). One automaton may have a quarter of what all have: it takes 3 KiB a state while
// it is built, some 200 MB by default, and at most 1 KiB afterwards.
constexpr std::size_t kStatePrice = 16;

constexpr auto kCrcTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit)
      value = value & 1 ? 0xedb88320u ^ (value >> 1) : value >> 1;
    table[i] = value;
  }
  return table;
}();

// CRC-32 as in IEEE 802.3, gzip and PNG.
std::uint32_t crc32(std::string_view bytes) {
  std::uint32_t crc = ~0u;
  for (char c : bytes)
    crc = kCrcTable[(crc ^ static_cast<std::uint8_t>(c)) & 0xff] ^ (crc >> 8);
  return ~crc;
}

// ---------------------------------------------------------------------------------------------- writing

void put_number(std::string &out, std::size_t value) {
  for (; value >= 0x80; value >>= 7)
    out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put_word(std::string &out, std::uint32_t value) { // little-endian
  for (int shift = 0; shift < 32; shift += 8)
    out += static_cast<char>(value >> shift & 0xff);
}

// Runs of equal values, as pairs of a length and a value.
template <class Value> void put_runs(std::string &out, std::size_t count, Value value) {
  for (std::size_t from = 0, to; from < count; from = to) {
    for (to = from + 1; to < count && value(to) == value(from); ++to)
      ;
    put_number(out, to - from);
    put_number(out, value(from));
  }
}

// The classes of bytes, and for each state whether it accepts and where each class leads.
std::string to_bytes(const Dfa &dfa) {
  std::map<std::vector<std::int32_t>, std::size_t> columns;
  std::array<std::size_t, 256> class_of{};
  std::vector<std::uint8_t> firsts; // a byte of each class
  for (std::size_t b = 0; b < 256; ++b) {
    std::vector<std::int32_t> column(dfa.states());
    for (std::size_t s = 0; s < dfa.states(); ++s)
      column[s] = dfa.next(static_cast<std::int32_t>(s), static_cast<std::uint8_t>(b));
    const auto [at, fresh] = columns.emplace(std::move(column), firsts.size());
    class_of[b] = at->second;
    if (fresh)
      firsts.push_back(static_cast<std::uint8_t>(b));
  }
  std::string out;
  put_number(out, dfa.states());
  put_runs(out, 256, [&](std::size_t b) { return class_of[b]; });
  for (std::size_t s = 0; s < dfa.states(); ++s) {
    const auto state = static_cast<std::int32_t>(s);
    out += dfa.accepting(state) ? '\1' : '\0';
    put_runs(out, firsts.size(),
             [&](std::size_t k) { return static_cast<std::size_t>(dfa.next(state, firsts[k]) + 1); });
  }
  return out;
}

// ---------------------------------------------------------------------------------------------- reading

class Reader {
public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}

  std::uint8_t byte() {
    if (left_.empty())
      throw MalformedGrammar("it ends early");
    const auto value = static_cast<std::uint8_t>(left_.front());
    left_.remove_prefix(1);
    return value;
  }
  std::uint32_t number() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 35; shift += 7) {
      const std::uint8_t next = byte();
      value |= std::uint64_t{next & 0x7fu} << shift;
      if (next < 0x80 && value <= std::numeric_limits<std::uint32_t>::max())
        return static_cast<std::uint32_t>(value);
    }
    throw MalformedGrammar("a number has more than 32 bits");
  }
  // A number below a bound.
  std::uint32_t below(std::size_t bound, const char *what) {
    const std::uint32_t value = number();
    if (value >= bound)
      throw MalformedGrammar(std::string(what) + " " + std::to_string(value) + " is out of range");
    return value;
  }
  // Of things that take a byte or more each.
  std::size_t count() {
    const std::uint32_t value = number();
    if (value > left_.size())
      throw MalformedGrammar("a count of " + std::to_string(value) + " is out of range");
    return value;
  }
  std::string text() {
    const std::size_t size = count();
    std::string out(left_.substr(0, size));
    left_.remove_prefix(size);
    return out;
  }
  bool flag() { return below(2, "a flag of") == 1; }
  // As put_runs() writes them.
  template <class Use> void runs(std::size_t count, std::size_t bound, Use use) {
    for (std::size_t from = 0; from < count;) {
      const std::size_t run = below(count - from + 1, "a run of");
      if (run == 0)
        throw MalformedGrammar("a run is empty");
      const std::uint32_t value = below(bound, "a value of");
      for (const std::size_t end = from + run; from < end; ++from)
        use(from, value);
    }
  }
  std::string_view left() const { return left_; }

private:
  std::string_view left_;
};

// The automata that live, by their bytes. What a vocabulary knows of the masks of strings and numbers goes by
// automaton: grammars that are read one after another share it only where they share those.
class LivingAutomata {
public:
  std::shared_ptr<const Dfa> find(const std::string &bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto at = known_.find(bytes);
    return at == known_.end() ? nullptr : at->second.lock();
  }
  void add(std::string bytes, const std::shared_ptr<const Dfa> &dfa) {
    std::lock_guard<std::mutex> lock(mutex_);
    known_.insert_or_assign(std::move(bytes), dfa);
    if (known_.size() < clear_at_)
      return;
    std::erase_if(known_, [](const auto &entry) { return entry.second.expired(); });
    clear_at_ = 2 * known_.size() + 64;
  }

private:
  std::mutex mutex_;
  std::unordered_map<std::string, std::weak_ptr<const Dfa>> known_;
  std::size_t clear_at_ = 64;
};

void charge(std::size_t &budget, std::size_t states) {
  if (states > budget)
    throw BudgetError("the automata of the grammar have more states than max_instructions allows");
  budget -= states;
}

// budget: in states, of all that is read of a grammar; most: of this automaton.
std::shared_ptr<const Dfa> read_automaton(Reader &in, std::size_t &budget, std::size_t most) {
  static LivingAutomata living;
  const std::string_view from = in.left();
  const std::size_t states = in.number();
  charge(most, states);
  charge(budget, states);
  std::array<std::uint32_t, 256> class_of{};
  std::size_t classes = 0;
  in.runs(256, 256, [&](std::size_t b, std::uint32_t k) {
    class_of[b] = k;
    classes = std::max<std::size_t>(classes, k + 1);
  });
  std::vector<std::uint8_t> accepting;
  std::vector<std::uint32_t> to; // states x classes, 0 where there is no edge
  for (std::size_t s = 0; s < states; ++s) {
    accepting.push_back(in.flag() ? 1 : 0);
    in.runs(classes, states + 1, [&](std::size_t, std::uint32_t target) { to.push_back(target); });
  }
  std::string bytes(from.substr(0, from.size() - in.left().size()));
  if (auto known = living.find(bytes))
    return known;
  std::vector<std::int32_t> next(states * 256);
  for (std::size_t s = 0; s < states; ++s)
    for (std::size_t b = 0; b < 256; ++b)
      next[s * 256 + b] = static_cast<std::int32_t>(to[s * classes + class_of[b]]) - 1;
  auto dfa = std::make_shared<const Dfa>(next, accepting);
  living.add(std::move(bytes), dfa);
  return dfa;
}

// Whether a text ends with the stop token, and only there: a builder's caller sees to it, bytes have to be asked. Nodes
// that must be alike in it (the options of a choice, the last part of a sequence and the whole) are one group.
class Ends {
public:
  // Of the next node; parts: its children, in order. Rules come later.
  void add(Kind kind, const std::vector<NodeId> &parts) {
    const std::size_t self = groups_.size();
    groups_.push_back(self);
    bool only_steps = kind == Kind::kStep || kind == Kind::kSequence;
    if (kind == Kind::kStop) {
      join(self, kStops);
    } else if (kind == Kind::kChoice || kind == Kind::kNames) {
      for (NodeId part : parts)
        join(self, place(part));
    } else if (kind == Kind::kSequence) {
      std::size_t end = kGoesOn; // of the parts from the last one on: steps may follow a stop token
      for (std::size_t i = parts.size(); i-- > 0;) {
        if (only_steps && only_steps_[static_cast<std::size_t>(parts[i])])
          continue;
        if (std::exchange(only_steps, false))
          end = place(parts[i]);
        else
          join(place(parts[i]), kGoesOn);
      }
      join(self, end);
    } else if (kind != Kind::kRule) {
      join(self, kGoesOn);
      for (NodeId part : parts)
        join(place(part), kGoesOn);
    }
    only_steps_.push_back(only_steps);
  }
  void define_rule(NodeId rule, NodeId body) { join(place(rule), place(body)); }
  void check(NodeId root) {
    join(place(root), kStops);
    if (find(kGoesOn) == find(kStops))
      throw MalformedGrammar("its texts do not end with the stop token, or go on behind it");
  }

private:
  static constexpr std::size_t kGoesOn = 0, kStops = 1, kFirst = 2;
  static std::size_t place(NodeId id) { return static_cast<std::size_t>(id) + kFirst; }
  std::size_t find(std::size_t at) {
    while (groups_[at] != at)
      at = groups_[at] = groups_[groups_[at]];
    return at;
  }
  void join(std::size_t a, std::size_t b) { groups_[find(a)] = find(b); }

  std::vector<std::size_t> groups_{kGoesOn, kStops};
  std::vector<bool> only_steps_; // by node
};

// Gives a builder the nodes again, in their order.
class Rebuilder {
public:
  Rebuilder(Reader &in, std::size_t max_instructions)
      : in_(in), builder_(max_instructions), states_(max_instructions / kStatePrice) {
    for (std::size_t n = in_.count(); n > 0; --n)
      automata_.push_back(read_automaton(in_, states_, max_instructions / kStatePrice / 4));
  }

  std::shared_ptr<const Grammar> run(std::size_t pool_bytes) {
    std::vector<NodeId> rules;
    for (std::size_t n = in_.count(); n > 0; --n) {
      const auto kind = static_cast<Kind>(in_.below(kKinds, "a kind of node"));
      children_.clear();
      const NodeId made = node(kind);
      ends_.add(kind, children_);
      if (kind == Kind::kRule)
        rules.push_back(made);
    }
    for (NodeId rule : rules) {
      const NodeId body = id();
      builder_.define_rule(rule, body);
      ends_.define_rule(rule, body);
    }
    const NodeId root = id();
    const bool calls = in_.flag();
    if (!in_.left().empty())
      throw MalformedGrammar("something follows it");
    auto grammar = builder_.build(root, calls, pool_bytes);
    ends_.check(root);
    return grammar;
  }

private:
  static constexpr std::size_t kKinds = static_cast<std::size_t>(Kind::kRule) + 1;

  NodeId id() {
    children_.push_back(static_cast<NodeId>(in_.below(std::numeric_limits<NodeId>::max(), "a node")));
    return children_.back();
  }
  NodeId id_or_none() {
    const auto value = static_cast<NodeId>(in_.below(std::numeric_limits<NodeId>::max(), "a node")); // 0: none
    if (value > 0)
      children_.push_back(value - 1);
    return value - 1;
  }
  std::vector<NodeId> ids() {
    std::vector<NodeId> out(in_.count());
    for (NodeId &one : out)
      one = id();
    return out;
  }
  std::shared_ptr<const Dfa> automaton() { return automata_[in_.below(automata_.size(), "an automaton")]; }

  NodeId node(Kind kind) {
    switch (kind) {
    case Kind::kLiteral:
      return builder_.literal(in_.text());
    case Kind::kScalar:
      return builder_.scalar(automaton());
    case Kind::kRepeat: {
      auto unit = automaton();
      if (unit->returns()) // the builder would copy it for each repeat
        throw MalformedGrammar("a repeated unit comes back to its start");
      const std::uint32_t min = in_.number(), max = in_.number();
      return builder_.repeat(std::move(unit), min, max);
    }
    case Kind::kSequence:
      return builder_.sequence(ids());
    case Kind::kChoice:
      return builder_.choice(ids());
    case Kind::kNames: {
      std::vector<std::pair<std::string, NodeId>> entries(in_.count());
      for (auto &[text, next] : entries) {
        text = in_.text();
        next = id();
      }
      return builder_.names(std::move(entries));
    }
    case Kind::kObject:
      return object();
    case Kind::kArray: {
      GrammarBuilder::Array array;
      array.open = id();
      array.separator = id();
      array.close = id();
      array.prefix = ids();
      array.item = id_or_none();
      array.min = in_.number();
      array.max = in_.number();
      return builder_.array(std::move(array));
    }
    case Kind::kStep: {
      const auto step = static_cast<StepKind>(in_.below(5, "a kind of step"));
      return builder_.step(step, in_.number());
    }
    case Kind::kSpace:
      return builder_.space();
    case Kind::kStop:
      return builder_.stop();
    case Kind::kRule:
      return builder_.declare_rule("");
    }
    return -1;
  }

  NodeId object() {
    GrammarBuilder::Object object;
    object.open = id();
    object.separator = id();
    object.close = id();
    object.properties.resize(in_.count());
    for (GrammarBuilder::Property &property : object.properties) {
      property.spellings.resize(in_.count());
      for (std::string &spelling : property.spellings)
        spelling = in_.text();
      property.value = id();
      property.required = in_.flag();
    }
    object.min = in_.number();
    object.max = in_.number();
    object.arguments = in_.flag();
    if (in_.flag()) {
      object.other_key = automaton();
      charge(states_, object.other_key->states());
      object.other_value = id_or_none();
      object.other_values = ids();
      if (object.other_value != -1 && !object.other_values.empty())
        throw MalformedGrammar("an object has one value for other keys, and several");
      if (!object.other_values.empty())
        for (std::size_t s = object.other_key->states(); s > 0; --s)
          object.other_kinds.push_back(static_cast<std::int32_t>(in_.below(object.other_values.size() + 1, "a kind")) -
                                       1);
    }
    return builder_.object(std::move(object));
  }

  Reader &in_;
  GrammarBuilder builder_;
  std::size_t states_; // that may still be read
  Ends ends_;
  std::vector<NodeId> children_; // of the node that is being read
  std::vector<std::shared_ptr<const Dfa>> automata_;
};

} // namespace

// Writes the nodes that a root leads to.
class GrammarSource::Writer {
public:
  Writer(const GrammarBuilder &builder, GrammarSource &source) : nodes_(builder.nodes_), source_(source) {}

  void run(NodeId root, bool calls) {
    find(root);
    std::string &out = source_.nodes;
    put_number(out, order_.size());
    std::vector<const Node *> rules;
    for (NodeId id : order_) {
      const Node &node = *nodes_[static_cast<std::size_t>(id)];
      put_number(out, static_cast<std::size_t>(node.kind));
      put(node);
      if (node.kind == Kind::kRule)
        rules.push_back(&node);
    }
    for (const Node *rule : rules)
      put_id(rule->parts[0]);
    put_id(root);
    put_number(out, calls ? 1 : 0);
    out.shrink_to_fit();
  }

private:
  // The ids of all that root leads to, ascending: children have smaller ones than what holds them.
  void find(NodeId root) {
    number_.assign(nodes_.size(), -1);
    std::vector<NodeId> open{root};
    while (!open.empty()) {
      const NodeId id = open.back();
      open.pop_back();
      if (std::exchange(number_[static_cast<std::size_t>(id)], 0) == 0)
        continue;
      const Node &node = *nodes_[static_cast<std::size_t>(id)];
      open.insert(open.end(), node.parts.begin(), node.parts.end());
      for (const auto &[text, next] : node.entries)
        open.push_back(next);
      if (node.object) {
        const GrammarBuilder::Object &object = *node.object;
        open.insert(open.end(), {object.open, object.separator, object.close});
        for (const auto &property : object.properties)
          open.push_back(property.value);
        if (object.other_key && object.other_values.empty())
          open.push_back(object.other_value);
        open.insert(open.end(), object.other_values.begin(), object.other_values.end());
      }
      if (node.array) {
        open.insert(open.end(), {node.array->open, node.array->separator, node.array->close});
        open.insert(open.end(), node.array->prefix.begin(), node.array->prefix.end());
        if (node.array->item != -1)
          open.push_back(node.array->item);
      }
    }
    for (std::size_t id = 0; id < number_.size(); ++id)
      if (number_[id] == 0) {
        number_[id] = static_cast<std::int32_t>(order_.size());
        order_.push_back(static_cast<NodeId>(id));
      }
  }

  void put(const Node &node) {
    std::string &out = source_.nodes;
    switch (node.kind) {
    case Kind::kLiteral:
      put_text(node.text);
      break;
    case Kind::kScalar:
      put_automaton(node.dfa);
      break;
    case Kind::kRepeat:
      put_automaton(node.dfa);
      put_number(out, node.min);
      put_number(out, node.max);
      break;
    case Kind::kSequence:
    case Kind::kChoice:
      put_ids(node.parts);
      break;
    case Kind::kNames:
      put_number(out, node.entries.size());
      for (const auto &[text, next] : node.entries) {
        put_text(text);
        put_id(next);
      }
      break;
    case Kind::kObject:
      put(*node.object);
      break;
    case Kind::kArray:
      for (NodeId id : {node.array->open, node.array->separator, node.array->close})
        put_id(id);
      put_ids(node.array->prefix);
      put_id_or_none(node.array->item);
      put_number(out, node.array->min);
      put_number(out, node.array->max);
      break;
    case Kind::kStep:
      put_number(out, static_cast<std::size_t>(node.step));
      put_number(out, node.min);
      break;
    case Kind::kSpace:
    case Kind::kStop:
    case Kind::kRule: // its body comes behind all nodes
      break;
    }
  }

  void put(const GrammarBuilder::Object &object) {
    std::string &out = source_.nodes;
    for (NodeId id : {object.open, object.separator, object.close})
      put_id(id);
    put_number(out, object.properties.size());
    for (const auto &property : object.properties) {
      put_number(out, property.spellings.size());
      for (const std::string &spelling : property.spellings)
        put_text(spelling);
      put_id(property.value);
      put_number(out, property.required ? 1 : 0);
    }
    put_number(out, object.min);
    put_number(out, object.max);
    put_number(out, object.arguments ? 1 : 0);
    put_number(out, object.other_key ? 1 : 0);
    if (!object.other_key)
      return;
    put_automaton(object.other_key);
    put_id_or_none(object.other_values.empty() ? object.other_value : -1);
    put_ids(object.other_values);
    if (!object.other_values.empty())
      for (std::int32_t kind : object.other_kinds)
        put_number(out, static_cast<std::size_t>(kind + 1));
  }

  void put_text(const std::string &text) {
    put_number(source_.nodes, text.size());
    source_.nodes += text;
  }
  void put_id(NodeId id) { put_number(source_.nodes, static_cast<std::size_t>(number_[static_cast<std::size_t>(id)])); }
  void put_id_or_none(NodeId id) {
    put_number(source_.nodes, id == -1 ? 0 : static_cast<std::size_t>(number_[static_cast<std::size_t>(id)] + 1));
  }
  void put_ids(const std::vector<NodeId> &ids) {
    put_number(source_.nodes, ids.size());
    for (NodeId id : ids)
      put_id(id);
  }
  void put_automaton(const std::shared_ptr<const Dfa> &dfa) {
    const auto [at, fresh] = automata_.emplace(dfa.get(), source_.automata.size());
    if (fresh)
      source_.automata.push_back(dfa);
    put_number(source_.nodes, at->second);
  }

  const std::vector<std::shared_ptr<Node>> &nodes_;
  GrammarSource &source_;
  std::vector<std::int32_t> number_; // by id: in the order of writing; -1 where it is left out
  std::vector<NodeId> order_;
  std::unordered_map<const Dfa *, std::size_t> automata_;
};

std::unique_ptr<const GrammarSource> GrammarSource::of(const GrammarBuilder &builder, NodeId root, bool calls) {
  auto source = std::make_unique<GrammarSource>();
  Writer(builder, *source).run(root, calls);
  return source;
}

std::vector<std::byte> Grammar::serialize() const {
  std::string body;
  put_number(body, source_->automata.size());
  for (const auto &dfa : source_->automata)
    body += to_bytes(*dfa);
  body += source_->nodes;
  std::string out(kMagic);
  put_word(out, kVersion);
  put_word(out, static_cast<std::uint32_t>(body.size()));
  put_word(out, crc32(body));
  out += body;
  std::vector<std::byte> bytes(out.size());
  std::memcpy(bytes.data(), out.data(), out.size());
  return bytes;
}

std::shared_ptr<const Grammar> Grammar::deserialize(std::span<const std::byte> data, std::size_t max_instructions,
                                                    std::size_t pool_bytes) {
  const std::string_view bytes(reinterpret_cast<const char *>(data.data()), data.size());
  const auto word = [&](std::size_t at) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i)
      value |= std::uint32_t{static_cast<std::uint8_t>(bytes[at + i])} << (8 * i);
    return value;
  };
  if (!bytes.starts_with(kMagic))
    throw MalformedGrammar("the bytes are no serialised grammar: they do not begin as one");
  if (bytes.size() < kHead)
    throw MalformedGrammar("the serialised grammar is cut off: its head is not whole");
  if (word(8) != kVersion)
    throw MalformedGrammar("the serialised grammar is of version " + std::to_string(word(8)) +
                           " of the format, and this core reads version " + std::to_string(kVersion) +
                           ": write it with a release that fits");
  const std::string_view body = bytes.substr(kHead);
  if (word(12) != body.size())
    throw MalformedGrammar("the serialised grammar should have " + std::to_string(word(12)) +
                           " bytes after its head, and has " + std::to_string(body.size()));
  if (word(16) != crc32(body))
    throw MalformedGrammar("the serialised grammar is damaged: its checksum is another");
  try {
    Reader in(body);
    return Rebuilder(in, max_instructions).run(pool_bytes);
  } catch (const std::invalid_argument &error) { // the builder's words on what is wrong, or the reader's
    throw MalformedGrammar(std::string("the serialised grammar cannot be used: ") + error.what());
  } catch (const ImpossibleGrammar &error) {
    throw MalformedGrammar(std::string("the serialised grammar cannot be used: ") + error.what());
  }
}

} // namespace toolprm
