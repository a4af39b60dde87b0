#include "toolprm/grammar.h"

#include <algorithm>
#include <functional>
#include <map>
#include <queue>

#include "automaton.h"
#include "grammar_node.h"

namespace toolprm {

namespace {
constexpr std::size_t kBroadState = 40; // bytes
}

const char *step_kind_name(StepKind kind) {
  switch (kind) {
  case StepKind::kFuncName:
    return "FUNC_NAME";
  case StepKind::kArgValue:
    return "ARG_VALUE";
  case StepKind::kParamFinish:
    return "PARAM_FINISH";
  case StepKind::kFuncFinish:
    return "FUNC_FINISH";
  case StepKind::kTotalFinish:
    return "TOTAL_FINISH";
  }
  return "";
}

// ---------------------------------------------------------------------------------------------- Dfa

Dfa::Dfa(std::span<const std::int32_t> transitions, std::span<const std::uint8_t> accepting)
    : accepting_(accepting.begin(), accepting.end()) {
  const std::size_t n = accepting.size();
  if (n == 0 || transitions.size() != n * 256)
    throw std::invalid_argument("transitions must be states x 256");
  for (std::int32_t t : transitions)
    if (t < -1 || t >= static_cast<std::int32_t>(n))
      throw std::invalid_argument("a transition leads outside the states");

  // Bytes that no state tells apart share a column.
  std::map<std::vector<std::int32_t>, std::uint16_t> columns;
  std::vector<std::int32_t> column(n);
  std::vector<std::vector<std::int32_t>> kept;
  for (std::size_t b = 0; b < 256; ++b) {
    std::size_t alike = 0;
    while (b > 0 && alike < n && transitions[alike * 256 + b] == transitions[alike * 256 + b - 1])
      ++alike;
    if (alike == n) { // as its neighbour, which most are: no look-up
      class_of_[b] = class_of_[b - 1];
      continue;
    }
    for (std::size_t s = 0; s < n; ++s)
      column[s] = transitions[s * 256 + b];
    auto [at, fresh] = columns.emplace(column, static_cast<std::uint16_t>(kept.size()));
    if (fresh)
      kept.push_back(column);
    class_of_[b] = at->second;
  }
  classes_ = kept.size();
  next_.resize(n * classes_);
  for (std::size_t k = 0; k < classes_; ++k)
    for (std::size_t s = 0; s < n; ++s)
      next_[s * classes_ + k] = kept[k][s];

  allowed_.resize(n);
  std::vector<std::uint8_t> by_digit(n, 0);
  for (std::size_t s = 0; s < n; ++s)
    for (std::size_t b = 0; b < 256; ++b)
      if (std::int32_t t = transitions[s * 256 + b]; t >= 0) {
        allowed_[s].set(b);
        if (b >= '0' && b <= '9')
          by_digit[static_cast<std::size_t>(t)] = 1;
      }
  eager_.resize(n);
  for (std::size_t s = 0; s < n; ++s)
    eager_[s] = accepting_[s] && allowed_[s].none() && !by_digit[s];

  broad_.resize(n);
  for (std::size_t s = 0; s < n; ++s) {
    const std::size_t count = allowed_[s].count();
    const auto after = count == 1 ? transitions[s * 256 + allowed_[s]._Find_first()] : -1;
    broad_[s] = count > kBroadState || (after >= 0 && allowed_[static_cast<std::size_t>(after)].count() > kBroadState);
  }

  // Fewest bytes to an accepting state, backwards from all of them at once.
  std::vector<std::vector<std::int32_t>> into(n);
  for (std::size_t s = 0; s < n; ++s)
    for (std::size_t k = 0; k < classes_; ++k)
      if (std::int32_t t = kept[k][s]; t >= 0)
        into[static_cast<std::size_t>(t)].push_back(static_cast<std::int32_t>(s));
  returns_ = !into[0].empty();
  distance_.assign(n, kInfinite);
  std::queue<std::size_t> open;
  for (std::size_t s = 0; s < n; ++s)
    if (accepting_[s]) {
      distance_[s] = 0;
      open.push(s);
    }
  while (!open.empty()) {
    std::size_t s = open.front();
    open.pop();
    for (std::int32_t p : into[s])
      if (distance_[static_cast<std::size_t>(p)] == kInfinite) {
        distance_[static_cast<std::size_t>(p)] = distance_[s] + 1;
        open.push(static_cast<std::size_t>(p));
      }
  }
  for (std::uint32_t d : distance_)
    if (d == kInfinite)
      throw std::invalid_argument("a state of the automaton leads nowhere: trim it first");
}

// ---------------------------------------------------------------------------------------------- KeySet

KeySet::KeySet(const std::vector<std::pair<std::string, std::int32_t>> &keys) {
  std::vector<std::map<std::uint8_t, std::uint32_t>> children(1);
  leaf.push_back(-1);
  for (const auto &[text, outcome] : keys) {
    if (text.empty())
      throw std::invalid_argument("a name is empty");
    std::uint32_t node = 0;
    for (char c : text) {
      if (leaf[node] >= 0)
        throw std::invalid_argument("a name begins with another name: " + text);
      auto [at, fresh] = children[node].emplace(static_cast<std::uint8_t>(c), static_cast<std::uint32_t>(leaf.size()));
      if (fresh) {
        children.emplace_back();
        leaf.push_back(-1);
        at = children[node].find(static_cast<std::uint8_t>(c));
      }
      node = at->second;
    }
    if (leaf[node] >= 0 || !children[node].empty())
      throw std::invalid_argument("a name is given twice, or begins another: " + text);
    leaf[node] = outcome;
  }
  child_begin.push_back(0);
  for (const auto &edges : children) {
    for (const auto &[byte, node] : edges) {
      child_byte.push_back(byte);
      child_node.push_back(node);
    }
    child_begin.push_back(static_cast<std::uint32_t>(child_byte.size()));
  }
}

// ---------------------------------------------------------------------------------------------- builder

namespace {

void check_dfa(const std::shared_ptr<const Dfa> &dfa) {
  if (!dfa)
    throw std::invalid_argument("an automaton is missing");
}

// The same automaton, which never goes on from where it accepts.
std::shared_ptr<const Dfa> up_to_acceptance(std::shared_ptr<const Dfa> dfa) {
  const std::size_t n = dfa->states();
  std::vector<std::uint8_t> accepting(n);
  bool goes_on = false;
  for (std::size_t s = 0; s < n; ++s) {
    const auto state = static_cast<std::int32_t>(s);
    accepting[s] = dfa->accepting(state) ? 1 : 0;
    goes_on = goes_on || (accepting[s] && dfa->allowed(state).any());
  }
  if (!goes_on)
    return dfa;
  std::vector<std::int32_t> next(n * 256, -1);
  for (std::size_t s = 0; s < n; ++s)
    if (!accepting[s])
      for (unsigned b = 0; b < 256; ++b)
        next[s * 256 + b] = dfa->next(static_cast<std::int32_t>(s), static_cast<std::uint8_t>(b));
  return std::make_shared<const Dfa>(next, accepting);
}

// The same automaton, whose start is never come back to: state 0 then says that a unit has not begun.
std::shared_ptr<const Dfa> with_own_start(std::shared_ptr<const Dfa> dfa) {
  if (!dfa->returns())
    return dfa;
  const std::size_t n = dfa->states();
  std::vector<std::int32_t> next((n + 1) * 256);
  std::vector<std::uint8_t> accepting(n + 1);
  for (std::size_t s = 0; s <= n; ++s) {
    const auto from = static_cast<std::int32_t>(s < n ? s : 0);
    accepting[s] = dfa->accepting(from) ? 1 : 0;
    for (unsigned b = 0; b < 256; ++b) {
      const std::int32_t to = dfa->next(from, static_cast<std::uint8_t>(b));
      next[s * 256 + b] = to == 0 ? static_cast<std::int32_t>(n) : to;
    }
  }
  return std::make_shared<const Dfa>(next, accepting);
}

} // namespace

NodeId GrammarBuilder::add(Node node, std::span<const NodeId> children) {
  for (NodeId child : children) {
    if (child < 0 || static_cast<std::size_t>(child) >= nodes_.size())
      throw std::invalid_argument("there is no node " + std::to_string(child) + " yet");
    node.depth = std::max(node.depth, nodes_[static_cast<std::size_t>(child)]->depth + 1);
  }
  if (node.depth > kMaxNesting) // the compiler goes down the nodes by recursion
    throw BudgetError("the grammar is nested more than " + std::to_string(kMaxNesting) + " deep");
  if (nodes_.size() >= limit_)
    throw BudgetError("the grammar has more than " + std::to_string(limit_) + " nodes");
  nodes_.push_back(std::make_shared<Node>(std::move(node)));
  return static_cast<NodeId>(nodes_.size() - 1);
}

NodeId GrammarBuilder::literal(std::string bytes) {
  Node node(Node::Kind::kLiteral);
  node.text = std::move(bytes);
  return add(std::move(node), {});
}

NodeId GrammarBuilder::scalar(std::shared_ptr<const Dfa> dfa) {
  check_dfa(dfa);
  Node node(Node::Kind::kScalar);
  node.dfa = std::move(dfa);
  return add(std::move(node), {});
}

NodeId GrammarBuilder::repeat(std::shared_ptr<const Dfa> unit, std::uint32_t min, std::uint32_t max) {
  check_dfa(unit);
  if (unit->accepting(0))
    throw std::invalid_argument("the repeated unit may be empty");
  if (min > max)
    throw ImpossibleGrammar("at least " + std::to_string(min) + " and at most " + std::to_string(max));
  Node node(Node::Kind::kRepeat);
  node.dfa = with_own_start(std::move(unit));
  node.min = min;
  node.max = max;
  return add(std::move(node), {});
}

NodeId GrammarBuilder::sequence(std::vector<NodeId> parts) {
  Node node(Node::Kind::kSequence);
  node.parts = std::move(parts);
  return add(node, node.parts);
}

NodeId GrammarBuilder::choice(std::vector<NodeId> options) {
  Node node(Node::Kind::kChoice);
  node.parts = std::move(options);
  return add(node, node.parts);
}

NodeId GrammarBuilder::names(std::vector<std::pair<std::string, NodeId>> entries) {
  Node node(Node::Kind::kNames);
  node.entries = std::move(entries);
  std::vector<NodeId> children;
  for (const auto &[text, next] : node.entries)
    children.push_back(next);
  return add(std::move(node), children);
}

NodeId GrammarBuilder::object(Object object) {
  std::vector<NodeId> children{object.open, object.separator, object.close};
  for (const Property &property : object.properties) {
    if (property.spellings.empty())
      throw std::invalid_argument("a property has no spelling");
    children.push_back(property.value);
  }
  if (object.other_key) {
    if (object.other_key->accepting(0))
      throw std::invalid_argument("the key of an object may be empty");
    object.other_key = up_to_acceptance(std::move(object.other_key));
    if (object.other_values.empty())
      children.push_back(object.other_value);
  }
  if (!object.other_values.empty()) {
    check_dfa(object.other_key);
    if (object.other_kinds.size() != object.other_key->states())
      throw std::invalid_argument("each state of the other keys' automaton needs its kind");
    for (std::size_t s = 0; s < object.other_kinds.size(); ++s) {
      const std::int32_t kind = object.other_kinds[s];
      const bool known = kind >= 0 && static_cast<std::size_t>(kind) < object.other_values.size();
      if (object.other_key->accepting(static_cast<std::int32_t>(s)) ? !known : kind != -1)
        throw std::invalid_argument("a state of the other keys' automaton has the wrong kind");
    }
    children.insert(children.end(), object.other_values.begin(), object.other_values.end());
  }
  Node node(Node::Kind::kObject);
  node.object = std::make_shared<const Object>(std::move(object));
  return add(std::move(node), children);
}

NodeId GrammarBuilder::array(Array array) {
  std::vector<NodeId> children{array.open, array.separator, array.close};
  children.insert(children.end(), array.prefix.begin(), array.prefix.end());
  if (array.item != -1)
    children.push_back(array.item);
  Node node(Node::Kind::kArray);
  node.array = std::make_shared<const Array>(std::move(array));
  return add(std::move(node), children);
}

NodeId GrammarBuilder::step(StepKind kind, std::uint32_t back) {
  Node node(Node::Kind::kStep);
  node.step = kind;
  node.min = back;
  return add(std::move(node), {});
}

NodeId GrammarBuilder::space() { return add(Node(Node::Kind::kSpace), {}); }

NodeId GrammarBuilder::stop() { return add(Node(Node::Kind::kStop), {}); }

NodeId GrammarBuilder::declare_rule(std::string label) {
  Node node(Node::Kind::kRule);
  node.text = std::move(label);
  return add(std::move(node), {});
}

void GrammarBuilder::define_rule(NodeId rule, NodeId body) {
  const auto known = [&](NodeId id) { return id >= 0 && static_cast<std::size_t>(id) < nodes_.size(); };
  if (!known(rule) || !known(body) || nodes_[static_cast<std::size_t>(rule)]->kind != Node::Kind::kRule)
    throw std::invalid_argument("a rule and its body must be nodes of this builder");
  nodes_[static_cast<std::size_t>(rule)]->parts = {body};
}

// Lays the nodes out as instructions, each rule once.
class Compiler {
public:
  using Node = GrammarBuilder::Node;
  Compiler(const GrammarBuilder &builder) : builder_(builder) {}

  std::unique_ptr<Program> run(NodeId root, bool calls) {
    p_->calls = calls;
    p_->start = here();
    emit(root);
    op(Op::kAccept);
    segments_.push_back({0, here(), {}});
    while (!pending_.empty()) { // rules met on the way
      NodeId rule = pending_.front();
      pending_.pop();
      const Node &node = *builder_.nodes_[static_cast<std::size_t>(rule)];
      if (node.parts.empty())
        throw std::invalid_argument("rule " + node.text + " is not defined");
      const std::uint32_t entry = here();
      rule_segment_[rule] = segments_.size();
      emit(node.parts[0]);
      op(Op::kReturn);
      segments_.push_back({entry, here(), {}});
    }
    std::size_t segment = 0;
    for (auto [ip, rule] : calls_) { // in the order of the code
      const std::size_t callee = rule_segment_.at(rule);
      p_->code[ip].a = static_cast<std::int32_t>(segments_[callee].begin);
      while (ip >= segments_[segment].end)
        ++segment;
      segments_[segment].callees.push_back(callee);
    }
    cost();
    check_progress();
    bool possible = p_->code[p_->start].cost < kInfinite;
    for (const auto &targets : p_->name_targets) // a name that nothing can follow is a mistake, not a lesser choice
      for (std::uint32_t target : targets)
        possible = possible && p_->code[target].cost < kInfinite;
    if (!possible)
      throw ImpossibleGrammar("no finite value satisfies it");
    return std::move(p_);
  }

private:
  std::uint32_t here() const { return static_cast<std::uint32_t>(p_->code.size()); }

  std::uint32_t op(Op op, std::int32_t a = 0, std::int32_t b = 0, std::uint8_t byte = 0) {
    if (p_->code.size() >= builder_.limit_)
      throw BudgetError("the grammar needs more than " + std::to_string(builder_.limit_) + " instructions");
    Instruction in{};
    in.op = op;
    in.a = a;
    in.b = b;
    in.byte = byte;
    p_->code.push_back(in);
    return here() - 1;
  }

  // What takes room or time without being an instruction.
  void charge(std::size_t work) {
    charged_ += work;
    if (p_->code.size() + charged_ > builder_.limit_)
      throw BudgetError("the grammar needs more than " + std::to_string(builder_.limit_) + " instructions");
  }

  void emit(NodeId id) {
    const Node &node = *builder_.nodes_.at(static_cast<std::size_t>(id));
    switch (node.kind) {
    case Node::Kind::kLiteral:
      for (char c : node.text)
        op(Op::kByte, 0, 0, static_cast<std::uint8_t>(c));
      break;
    case Node::Kind::kScalar: {
      auto [at, fresh] = dfa_ids_.emplace(node.dfa.get(), static_cast<std::int32_t>(p_->dfas.size()));
      if (fresh)
        p_->dfas.push_back(node.dfa);
      op(Op::kScalar, at->second);
      break;
    }
    case Node::Kind::kRepeat:
      p_->repeats.push_back({node.dfa, node.min, node.max, -1});
      op(Op::kRepeat, static_cast<std::int32_t>(p_->repeats.size() - 1));
      break;
    case Node::Kind::kSequence:
      for (NodeId part : node.parts)
        emit(part);
      charge(1); // sequences of empty sequences could double without end
      break;
    case Node::Kind::kChoice: {
      std::uint32_t choice = op(Op::kChoice);
      std::vector<std::uint32_t> entries, jumps;
      for (NodeId part : node.parts) {
        entries.push_back(here());
        emit(part);
        jumps.push_back(op(Op::kJump));
      }
      for (std::uint32_t jump : jumps)
        p_->code[jump].a = static_cast<std::int32_t>(here());
      p_->code[choice].a = static_cast<std::int32_t>(p_->targets.size());
      p_->targets.insert(p_->targets.end(), entries.begin(), entries.end());
      p_->code[choice].b = static_cast<std::int32_t>(p_->targets.size());
      break;
    }
    case Node::Kind::kNames: {
      std::vector<std::pair<std::string, std::int32_t>> keys;
      std::vector<std::uint32_t> targets, jumps;
      std::uint32_t names = op(Op::kNames);
      std::map<NodeId, std::int32_t> placed; // spellings of one name share what follows
      for (const auto &[text, next] : node.entries) {
        auto [at, fresh] = placed.emplace(next, static_cast<std::int32_t>(targets.size()));
        if (fresh) {
          targets.push_back(here());
          emit(next);
          jumps.push_back(op(Op::kJump));
        }
        keys.emplace_back(text, at->second);
      }
      for (std::uint32_t jump : jumps)
        p_->code[jump].a = static_cast<std::int32_t>(here());
      p_->code[names].a = static_cast<std::int32_t>(p_->name_sets.size());
      p_->name_sets.emplace_back(keys);
      charge(p_->name_sets.back().size());
      p_->name_targets.push_back(std::move(targets));
      break;
    }
    case Node::Kind::kObject:
      emit_object(*node.object);
      break;
    case Node::Kind::kArray:
      emit_array(*node.array);
      break;
    case Node::Kind::kStep:
      op(Op::kStep, static_cast<std::int32_t>(node.step), static_cast<std::int32_t>(node.min));
      break;
    case Node::Kind::kSpace:
      op(Op::kSpace);
      break;
    case Node::Kind::kStop:
      op(Op::kStop);
      break;
    case Node::Kind::kRule:
      if (queued_.insert(id).second)
        pending_.push(id);
      calls_.emplace_back(op(Op::kCall), id);
      break;
    }
  }

  void emit_object(const GrammarBuilder::Object &object) {
    emit(object.open);
    const auto id = static_cast<std::int32_t>(p_->objects.size());
    std::vector<std::pair<std::string, std::int32_t>> keys;
    for (std::size_t i = 0; i < object.properties.size(); ++i)
      for (const std::string &spelling : object.properties[i].spellings)
        keys.emplace_back(spelling, static_cast<std::int32_t>(i));
    const std::size_t words = std::max<std::size_t>(1, (object.properties.size() + 63) / 64);
    ObjectSpec spec(KeySet(keys), words);
    charge(spec.keys.size() * words);
    p_->objects.emplace_back(KeySet({}), words); // its place: the values may hold objects too
    op(Op::kEnterObject, id);
    std::uint32_t skip = op(Op::kJump);

    spec.required.assign(words, 0);
    spec.possible.assign(words, 0);
    spec.other_key = object.other_key;
    spec.min = object.min;
    spec.max = object.max;
    spec.entry = op(Op::kObjectNext, id);
    spec.separator = here();
    emit(object.separator);
    spec.keys_at = op(Op::kObjectKeys, id);
    spec.key_op = op(Op::kKey, id);
    spec.other_op = op(Op::kOtherKey, id);
    spec.close = here();
    emit(object.close);
    op(Op::kReturn);
    const auto member = [&](NodeId value) {
      std::uint32_t at = here();
      emit(value);
      if (object.arguments)
        op(Op::kStep, static_cast<std::int32_t>(StepKind::kArgValue));
      op(Op::kJump, static_cast<std::int32_t>(spec.entry));
      return at;
    };
    for (std::size_t i = 0; i < object.properties.size(); ++i) {
      const auto &property = object.properties[i];
      std::size_t bytes = property.spellings.at(0).size();
      for (const std::string &spelling : property.spellings)
        bytes = std::min(bytes, spelling.size());
      spec.key_bytes.push_back(static_cast<std::uint32_t>(bytes));
      spec.value.push_back(member(property.value));
      if (property.required)
        spec.required[i / 64] |= std::uint64_t{1} << (i % 64);
    }
    if (object.other_key && object.other_values.empty()) {
      spec.other_value = member(object.other_value);
      spec.other_key_bytes = other_key_cost(spec, 0, 0);
    }
    for (NodeId value : object.other_values)
      spec.other_values.push_back(member(value));
    if (!object.other_values.empty()) {
      spec.other_kinds = object.other_kinds;
      spec.other_edges = backward_edges(*spec.other_key);
      spec.other_rest.assign(spec.other_kinds.size(), kInfinite);
    }
    // Which properties lie below a node of the trie; children have larger numbers than their parents.
    spec.keys.reach.assign(spec.keys.size() * words, 0);
    for (std::size_t node = spec.keys.size(); node-- > 0;) {
      std::uint64_t *reach = &spec.keys.reach[node * words];
      if (std::int32_t p = spec.keys.leaf[node]; p >= 0)
        reach[p / 64] |= std::uint64_t{1} << (p % 64);
      for (std::uint32_t e = spec.keys.child_begin[node]; e < spec.keys.child_begin[node + 1]; ++e)
        for (std::size_t w = 0; w < words; ++w)
          reach[w] |= spec.keys.reach[spec.keys.child_node[e] * words + w];
    }
    p_->code[skip].a = static_cast<std::int32_t>(here());
    p_->objects[static_cast<std::size_t>(id)] = std::move(spec);
  }

  void emit_array(const GrammarBuilder::Array &array) {
    emit(array.open);
    const auto id = static_cast<std::int32_t>(p_->arrays.size());
    p_->arrays.emplace_back();
    op(Op::kEnterArray, id);
    std::uint32_t skip = op(Op::kJump);
    ArraySpec spec;
    spec.min = array.min;
    spec.max = array.max;
    spec.has_item = array.item >= 0;
    spec.entry = op(Op::kArrayNext, id);
    spec.separator = here();
    emit(array.separator);
    op(Op::kArrayItem, id);
    spec.close = here();
    emit(array.close);
    op(Op::kReturn);
    const auto item = [&](NodeId value) {
      std::uint32_t at = here();
      emit(value);
      op(Op::kArrayCount, id);
      op(Op::kJump, static_cast<std::int32_t>(spec.entry));
      return at;
    };
    for (NodeId value : array.prefix)
      spec.prefix.push_back(item(value));
    if (spec.has_item)
      spec.item = item(array.item);
    std::uint32_t prefix = static_cast<std::uint32_t>(array.prefix.size());
    spec.count_cap = array.max != kUnbounded ? array.max : std::max({array.min, prefix, 1u});
    if (!spec.has_item && array.max == kUnbounded)
      spec.count_cap = std::max(prefix, array.min);
    p_->code[skip].a = static_cast<std::int32_t>(here());
    p_->arrays[static_cast<std::size_t>(id)] = std::move(spec);
  }

  // The root and the rules, so that those called come before their callers as far as recursion lets them.
  std::vector<std::size_t> callees_first() const {
    std::vector<std::size_t> order;
    std::vector<std::uint8_t> met(segments_.size(), 0);
    std::vector<std::pair<std::size_t, std::size_t>> path{{0, 0}};
    met[0] = 1;
    while (!path.empty()) {
      auto &[segment, at] = path.back();
      if (at == segments_[segment].callees.size()) {
        order.push_back(segment);
        path.pop_back();
        continue;
      }
      const std::size_t next = segments_[segment].callees[at++];
      if (!met[next]) {
        met[next] = 1;
        path.emplace_back(next, 0);
      }
    }
    return order;
  }

  // Fewest bytes from each instruction to the point where its frame takes over, by relaxation: recursion may need
  // several rounds, code without it one, and another to see that nothing changes.
  void cost() {
    auto &code = p_->code;
    const auto set = [&](std::size_t ip, std::uint32_t cost, CostEnd end) {
      Instruction &in = code[ip];
      cost = std::min(cost, kInfinite);
      bool better = cost < in.cost;
      if (better) {
        in.cost = cost;
        in.cost_end = end;
      }
      return better;
    };
    std::vector<std::uint32_t> order; // within a rule from the end to the start: values come after what holds them
    order.reserve(code.size());
    for (std::size_t segment : callees_first())
      for (std::uint32_t ip = segments_[segment].end; ip-- > segments_[segment].begin;)
        order.push_back(ip);
    std::size_t work = 0;
    for (bool changed = true; changed;) {
      changed = false;
      work += code.size();
      if (work > 64 * builder_.limit_)
        throw BudgetError("the rules of the grammar refer to each other in too many ways");
      for (std::size_t ip : order) {
        const Instruction in = code[ip];
        const auto then = [&](std::uint64_t local, std::size_t next) {
          changed |= set(ip, static_cast<std::uint32_t>(std::min<std::uint64_t>(kInfinite, local + code[next].cost)),
                         code[next].cost_end);
        };
        switch (in.op) {
        case Op::kByte:
          then(1, ip + 1);
          break;
        case Op::kScalar:
          then(p_->dfas[static_cast<std::size_t>(in.a)]->distance(0), ip + 1);
          break;
        case Op::kRepeat: {
          const RepeatSpec &spec = p_->repeats[static_cast<std::size_t>(in.a)];
          then(std::uint64_t{spec.min} * spec.unit->distance(0), ip + 1);
          break;
        }
        case Op::kSpace:
        case Op::kStop:
        case Op::kStep:
          then(0, ip + 1);
          break;
        case Op::kJump:
          then(0, static_cast<std::size_t>(in.a));
          break;
        case Op::kChoice:
          for (std::int32_t i = in.a; i < in.b; ++i)
            then(0, p_->targets[static_cast<std::size_t>(i)]);
          break;
        case Op::kNames: {
          KeySet &set_of = p_->name_sets[static_cast<std::size_t>(in.a)];
          const auto &targets = p_->name_targets[static_cast<std::size_t>(in.a)];
          set_of.cost.assign(set_of.size(), kInfinite);
          CostEnd end = CostEnd::kLeave;
          for (std::size_t node = set_of.size(); node-- > 0;) {
            if (set_of.leaf[node] >= 0) {
              const Instruction &target = code[targets[static_cast<std::size_t>(set_of.leaf[node])]];
              set_of.cost[node] = target.cost;
              if (target.cost < kInfinite)
                end = target.cost_end;
            }
            for (std::uint32_t e = set_of.child_begin[node]; e < set_of.child_begin[node + 1]; ++e)
              set_of.cost[node] = std::min(set_of.cost[node], set_of.cost[set_of.child_node[e]] + 1);
            set_of.cost[node] = std::min(set_of.cost[node], kInfinite);
          }
          changed |= set(ip, set_of.cost[0], end);
          break;
        }
        case Op::kKey:
        case Op::kOtherKey:
          break;
        case Op::kAccept:
        case Op::kReturn:
          changed |= set(ip, 0, CostEnd::kLeave);
          break;
        case Op::kObjectNext:
        case Op::kArrayNext:
          changed |= set(ip, 0, CostEnd::kLoop);
          break;
        case Op::kObjectKeys:
          changed |= set(ip, 0, CostEnd::kKeys);
          break;
        case Op::kArrayCount:
          changed |= set(ip, 0, CostEnd::kItemDone);
          break;
        case Op::kArrayItem:
          changed |= set(ip, 0, CostEnd::kItem);
          break;
        case Op::kCall:
          then(code[static_cast<std::size_t>(in.a)].cost, ip + 1);
          break;
        case Op::kEnterObject: {
          ObjectSpec &spec = p_->objects[static_cast<std::size_t>(in.a)];
          refresh(spec);
          then(object_cost(*p_, spec, std::vector<std::uint64_t>(spec.words, 0), 0, false), ip + 1);
          break;
        }
        case Op::kEnterArray: {
          ArraySpec &spec = p_->arrays[static_cast<std::size_t>(in.a)];
          spec.separator_cost = code[spec.separator].cost;
          then(array_cost(*p_, spec, 0, false), ip + 1);
          break;
        }
        }
      }
    }
    // What can never be completed is never offered.
    for (Instruction &in : code)
      if (in.op == Op::kChoice) {
        std::int32_t kept = in.a;
        for (std::int32_t i = in.a; i < in.b; ++i)
          if (code[p_->targets[static_cast<std::size_t>(i)]].cost < kInfinite)
            p_->targets[static_cast<std::size_t>(kept++)] = p_->targets[static_cast<std::size_t>(i)];
        in.b = kept;
      }
    for (std::size_t ip = 0; ip + 1 < code.size(); ++ip)
      if (code[ip].op == Op::kRepeat && code[ip + 1].op == Op::kByte) {
        RepeatSpec &spec = p_->repeats[static_cast<std::size_t>(code[ip].a)];
        if (spec.unit->next(0, code[ip + 1].byte) < 0)
          spec.end = code[ip + 1].byte;
      }
  }

  void refresh(ObjectSpec &spec) {
    const auto &code = p_->code;
    spec.separator_cost = code[spec.separator].cost;
    spec.other_cost = kInfinite;
    if (!spec.other_values.empty()) {
      rest_of_other_keys(spec);
      spec.other_cost = spec.other_rest[0];
    } else if (spec.other_key) {
      spec.other_cost = std::min(kInfinite, spec.other_key_bytes + code[spec.other_value].cost);
    }
    spec.member_cost.assign(spec.value.size(), kInfinite);
    for (std::size_t i = 0; i < spec.value.size(); ++i) {
      spec.member_cost[i] = std::min(kInfinite, spec.key_bytes[i] + code[spec.value[i]].cost);
      if (spec.member_cost[i] < kInfinite)
        spec.possible[i / 64] |= std::uint64_t{1} << (i % 64);
    }
  }

  static std::vector<std::pair<std::uint32_t, std::uint32_t>> backward_edges(const Dfa &dfa) {
    std::vector<std::pair<std::uint32_t, std::uint32_t>> edges;
    for (std::size_t s = 0; s < dfa.states(); ++s)
      for (unsigned b = 0; b < 256; ++b)
        if (std::int32_t t = dfa.next(static_cast<std::int32_t>(s), static_cast<std::uint8_t>(b)); t >= 0)
          edges.emplace_back(static_cast<std::uint32_t>(t), static_cast<std::uint32_t>(s));
    std::sort(edges.begin(), edges.end());
    edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
    return edges;
  }

  // From the states that accept, at the cost of what follows them, backwards by Dijkstra's algorithm.
  void rest_of_other_keys(ObjectSpec &spec) const {
    using Place = std::pair<std::uint32_t, std::uint32_t>; // cost, state
    std::priority_queue<Place, std::vector<Place>, std::greater<>> open;
    spec.other_rest.assign(spec.other_kinds.size(), kInfinite);
    for (std::size_t s = 0; s < spec.other_kinds.size(); ++s)
      if (spec.other_kinds[s] >= 0) {
        const std::uint32_t value = spec.other_values[static_cast<std::size_t>(spec.other_kinds[s])];
        spec.other_rest[s] = p_->code[value].cost;
        open.emplace(spec.other_rest[s], static_cast<std::uint32_t>(s));
      }
    while (!open.empty()) {
      const auto [cost, state] = open.top();
      open.pop();
      if (cost > spec.other_rest[state] || cost >= kInfinite)
        continue;
      auto edge = std::lower_bound(spec.other_edges.begin(), spec.other_edges.end(), Place{state, 0});
      for (; edge != spec.other_edges.end() && edge->first == state; ++edge)
        if (cost + 1 < spec.other_rest[edge->second]) {
          spec.other_rest[edge->second] = cost + 1;
          open.emplace(cost + 1, edge->second);
        }
    }
  }

  // A rule that comes back to itself without reading a byte would never end.
  void check_progress() {
    enum : std::uint8_t { kNew, kOpen, kDone };
    std::vector<std::uint8_t> mark(p_->code.size(), kNew);
    std::vector<std::pair<std::uint32_t, std::size_t>> path;
    std::vector<std::vector<std::uint32_t>> edges;
    const auto silent = [&](std::uint32_t ip) {
      const Instruction &in = p_->code[ip];
      std::vector<std::uint32_t> next;
      switch (in.op) {
      case Op::kJump:
        next = {static_cast<std::uint32_t>(in.a)};
        break;
      case Op::kChoice:
        next.assign(p_->targets.begin() + in.a, p_->targets.begin() + in.b);
        break;
      case Op::kCall:
        next = {static_cast<std::uint32_t>(in.a)};
        if (p_->code[static_cast<std::size_t>(in.a)].cost == 0)
          next.push_back(ip + 1);
        break;
      case Op::kStep:
      case Op::kSpace:
        next = {ip + 1};
        break;
      case Op::kScalar:
        if (p_->dfas[static_cast<std::size_t>(in.a)]->accepting(0))
          next = {ip + 1};
        break;
      case Op::kRepeat:
        if (p_->repeats[static_cast<std::size_t>(in.a)].min == 0)
          next = {ip + 1};
        break;
      case Op::kEnterObject: {
        const ObjectSpec &spec = p_->objects[static_cast<std::size_t>(in.a)];
        next = {spec.entry};
        if (object_cost(*p_, spec, std::vector<std::uint64_t>(spec.words, 0), 0, false) == 0)
          next.push_back(ip + 1);
        break;
      }
      case Op::kObjectNext: // keys are never empty
        next = {p_->objects[static_cast<std::size_t>(in.a)].close,
                p_->objects[static_cast<std::size_t>(in.a)].separator};
        break;
      case Op::kEnterArray: {
        const ArraySpec &spec = p_->arrays[static_cast<std::size_t>(in.a)];
        next = {spec.entry};
        if (array_cost(*p_, spec, 0, false) == 0)
          next.push_back(ip + 1);
        break;
      }
      case Op::kArrayItem: {
        const ArraySpec &spec = p_->arrays[static_cast<std::size_t>(in.a)];
        next = spec.prefix;
        if (spec.has_item)
          next.push_back(spec.item);
        break;
      }
      case Op::kArrayCount: { // not the loop point: from here on items come after separators
        const ArraySpec &spec = p_->arrays[static_cast<std::size_t>(in.a)];
        next = {spec.separator, spec.close};
        break;
      }
      case Op::kArrayNext: {
        const ArraySpec &spec = p_->arrays[static_cast<std::size_t>(in.a)];
        next = {spec.close};
        if (spec.has_item || !spec.prefix.empty())
          next.push_back(spec.prefix.empty() ? spec.item : spec.prefix[0]);
        break;
      }
      default:
        break;
      }
      return next;
    };
    for (std::uint32_t root = 0; root < p_->code.size(); ++root) {
      if (mark[root] != kNew)
        continue;
      path.assign(1, {root, 0});
      edges.assign(1, silent(root));
      mark[root] = kOpen;
      while (!path.empty()) {
        auto &[ip, at] = path.back();
        if (at == edges.back().size()) {
          mark[ip] = kDone;
          path.pop_back();
          edges.pop_back();
          continue;
        }
        std::uint32_t next = edges.back()[at++];
        if (mark[next] == kOpen)
          throw ImpossibleGrammar("a reference leads back to itself before any text is written");
        if (mark[next] == kNew) {
          mark[next] = kOpen;
          path.emplace_back(next, 0);
          edges.push_back(silent(next));
        }
      }
    }
  }

  const GrammarBuilder &builder_;
  std::unique_ptr<Program> p_ = std::make_unique<Program>();
  std::map<const Dfa *, std::int32_t> dfa_ids_;
  std::set<NodeId> queued_;
  std::queue<NodeId> pending_;
  std::map<NodeId, std::size_t> rule_segment_;
  std::vector<std::pair<std::uint32_t, NodeId>> calls_; // ascending by instruction
  struct Segment {                                      // the code of the root or of a rule
    std::uint32_t begin, end;
    std::vector<std::size_t> callees;
  };
  std::vector<Segment> segments_;
  std::size_t charged_ = 0;
};

std::shared_ptr<const Grammar> GrammarBuilder::build(NodeId root, bool calls, std::size_t pool_bytes) const {
  if (root < 0 || static_cast<std::size_t>(root) >= nodes_.size())
    throw std::invalid_argument("there is no node " + std::to_string(root));
  auto program = Compiler(*this).run(root, calls); // first: it finds what is wrong with the nodes
  return std::make_shared<const Grammar>(std::move(program), GrammarSource::of(*this, root, calls), pool_bytes);
}

// ---------------------------------------------------------------------------------------------- Grammar

Grammar::Grammar(std::unique_ptr<const Program> program, std::unique_ptr<const GrammarSource> source,
                 std::size_t pool_bytes)
    : program_(std::move(program)), source_(std::move(source)), pool_bytes_(pool_bytes) {}

Grammar::~Grammar() = default;

std::shared_ptr<StatePool> Grammar::pool(const std::shared_ptr<const Vocabulary> &vocabulary) const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::erase_if(pools_, [](const auto &entry) { return entry.first.expired(); });
  auto found =
      std::find_if(pools_.begin(), pools_.end(), [&](const auto &entry) { return entry.first.lock() == vocabulary; });
  if (found == pools_.end())
    found = pools_.insert(pools_.end(), {vocabulary, std::make_shared<StatePool>(*program_)});
  else if (found->second->bytes() > pool_bytes_)
    found->second = std::make_shared<StatePool>(*program_);
  return found->second;
}

std::size_t Grammar::instructions() const { return program_->code.size(); }

std::uint32_t Grammar::shortest() const { return program_->code[program_->start].cost; }

} // namespace toolprm
