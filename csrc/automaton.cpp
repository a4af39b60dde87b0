#include "automaton.h"

#include <algorithm>
#include <bit>

namespace toolprm {

namespace {

// Ways to read one text that are alive at once. Unions of unions can double them at every byte.
constexpr std::size_t kMaxConfigs = 10'000;

bool is_space(std::uint8_t byte) { return byte == ' ' || byte == '\n' || byte == '\t' || byte == '\r'; }

bool test(std::span<const std::uint64_t> set, std::size_t i) { return set[i / 64] >> (i % 64) & 1; }

std::uint32_t add(std::uint32_t a, std::uint32_t b) { return std::min(kInfinite, a + b); }

std::uint32_t times(std::uint32_t n, std::uint32_t cost) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(kInfinite, std::uint64_t{n} * cost));
}

std::size_t mix(std::size_t h, std::size_t v) {
  h ^= v + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
  return h * 0xff51afd7ed558ccdull;
}

// The properties seen, as words.
std::span<const std::uint64_t> seen(const Frame &frame, const ObjectSpec &spec) {
  if (spec.words == 1)
    return {&frame.data, 1};
  const auto *wide = reinterpret_cast<const std::vector<std::uint64_t> *>(frame.data);
  return {wide->data(), wide->size()};
}

std::uint32_t note(std::vector<Event> *log, StepKind kind, std::uint32_t end, std::int32_t previous) {
  log->push_back({kind, end, previous});
  return static_cast<std::uint32_t>(log->size() - 1);
}

} // namespace

void check_ambiguity(std::size_t configs) {
  if (configs > kMaxConfigs)
    throw BudgetError("a text can be read in more than " + std::to_string(kMaxConfigs) +
                      " ways: the alternatives of the schema overlap too much");
}

std::size_t StatePool::FrameHash::operator()(const Frame *f) const {
  std::size_t h = reinterpret_cast<std::uintptr_t>(f->parent);
  h = mix(h, f->ret);
  h = mix(h, static_cast<std::uint32_t>(f->spec));
  h = mix(h, f->data);
  return mix(h, f->count);
}

bool StatePool::FrameEqual::operator()(const Frame *a, const Frame *b) const {
  return a->parent == b->parent && a->ret == b->ret && a->spec == b->spec && a->data == b->data && a->count == b->count;
}

std::size_t StatePool::StateHash::operator()(const State *s) const {
  std::size_t h = s->configs.size();
  for (const Config &c : s->configs) {
    h = mix(h, c.ip);
    h = mix(h, c.aux);
    h = mix(h, c.count);
    h = mix(h, reinterpret_cast<std::uintptr_t>(c.stack));
  }
  return h;
}

std::size_t StatePool::bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return bytes_;
}

const State *StatePool::intern(std::vector<Config> &configs) {
  std::sort(configs.begin(), configs.end());
  configs.erase(std::unique(configs.begin(), configs.end()), configs.end());
  check_ambiguity(configs.size());
  static thread_local State probe; // looking for a state takes no memory
  probe.configs.assign(configs.begin(), configs.end());
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = state_index_.find(&probe);
  if (found != state_index_.end())
    return *found;
  bytes_ += sizeof(State) + configs.size() * sizeof(Config) + 64;
  states_.push_back(probe);
  state_index_.insert(&states_.back());
  return &states_.back();
}

std::uint64_t StatePool::no_properties(const ObjectSpec &spec) {
  if (spec.words == 1)
    return 0;
  std::lock_guard<std::mutex> lock(mutex_);
  return reinterpret_cast<std::uint64_t>(&*wide_sets_.emplace(spec.words, 0).first);
}

std::uint64_t StatePool::with(const Frame &frame, const ObjectSpec &spec, std::size_t property) {
  if (spec.words == 1)
    return frame.data | std::uint64_t{1} << property;
  auto now = seen(frame, spec);
  std::vector<std::uint64_t> set(now.begin(), now.end());
  set[property / 64] |= std::uint64_t{1} << (property % 64);
  std::lock_guard<std::mutex> lock(mutex_);
  auto [at, fresh] = wide_sets_.insert(std::move(set));
  if (fresh)
    bytes_ += spec.words * 8 + 64;
  return reinterpret_cast<std::uint64_t>(&*at);
}

const Frame *StatePool::frame(const Frame *parent, std::uint32_t ret, std::int32_t spec, std::uint64_t data,
                              std::uint32_t count) {
  Frame probe{parent, ret, spec, data, count, parent ? parent->depth + 1 : 1, 0, 0};
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = frame_index_.find(&probe);
    if (found != frame_index_.end())
      return *found;
  }
  // The instruction after a frame belongs to its parent: its cost ends where the parent's costs take over.
  probe.after = cost(Config{ret, 0, 0, parent});
  if (spec == kCallFrame)
    probe.rest = probe.after;
  else if (spec >= 0) {
    const ObjectSpec &object = program_.objects[static_cast<std::size_t>(spec)];
    probe.rest = add(object_cost(program_, object, seen(probe, object), count, false), probe.after);
  } else {
    const ArraySpec &array = program_.arrays[static_cast<std::size_t>(~spec)];
    probe.rest = add(array_cost(program_, array, count, false), probe.after);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = frame_index_.find(&probe);
  if (found != frame_index_.end())
    return *found;
  frames_.push_back(probe);
  frame_index_.insert(&frames_.back());
  bytes_ += sizeof(Frame) + 32;
  return &frames_.back();
}

// ---------------------------------------------------------------------------------------------- costs

std::uint32_t other_key_cost(const ObjectSpec &spec, std::int32_t state, std::int32_t node) {
  const Dfa &dfa = *spec.other_key;
  if (node < 0)
    return dfa.distance(state);
  // Breadth first along the trie: a key leaves it early, however long the names are.
  struct Place {
    std::int32_t state, node;
    std::uint32_t bytes;
  };
  std::uint32_t best = kInfinite;
  std::vector<Place> open{{state, node, 0}};
  for (std::size_t at = 0; at < open.size() && open[at].bytes + 1 < best; ++at) {
    const Place from = open[at];
    for (unsigned b = 0; b < 256; ++b) {
      auto byte = static_cast<std::uint8_t>(b);
      std::int32_t next = dfa.next(from.state, byte);
      if (next < 0 || from.bytes + 1 + dfa.distance(next) >= best)
        continue;
      std::int32_t child = spec.keys.child(static_cast<std::uint32_t>(from.node), byte);
      if (dfa.accepting(next)) {
        if (child < 0 || spec.keys.leaf[static_cast<std::size_t>(child)] < 0)
          best = from.bytes + 1;
      } else if (child < 0) {
        best = from.bytes + 1 + dfa.distance(next);
      } else {
        open.push_back({next, child, from.bytes + 1});
      }
    }
  }
  return best;
}

std::uint32_t other_member_cost(const Program &program, const ObjectSpec &spec, std::int32_t state, std::int32_t node) {
  if (!spec.other_rest.empty())
    return spec.other_rest[static_cast<std::size_t>(state)];
  return add(other_key_cost(spec, state, node), program.code[spec.other_value].cost);
}

std::uint32_t object_cost(const Program &program, const ObjectSpec &spec, std::span<const std::uint64_t> have,
                          std::uint32_t count, bool key_must_follow) {
  std::uint32_t total = program.code[spec.close].cost, missing = 0;
  for (std::size_t w = 0; w < spec.words; ++w)
    for (std::uint64_t left = spec.required[w] & ~have[w]; left; left &= left - 1) {
      total = add(total, spec.member_cost[w * 64 + static_cast<std::size_t>(std::countr_zero(left))]);
      ++missing;
    }
  std::uint32_t members = missing;
  std::uint32_t wanted =
      std::max(spec.min > count + missing ? spec.min - count - missing : 0u, key_must_follow && missing == 0 ? 1u : 0u);
  if (spec.max != kUnbounded && std::uint64_t{count} + missing + wanted > spec.max)
    return kInfinite;
  if (wanted > 0) { // the cheapest members that are not required and still free
    std::vector<std::uint32_t> free;
    for (std::size_t i = 0; i < spec.member_cost.size(); ++i)
      if (test(spec.possible, i) && !test(spec.required, i) && !test(have, i))
        free.push_back(spec.member_cost[i]);
    std::sort(free.begin(), free.end());
    const std::uint32_t other = spec.other_key ? spec.other_cost : kInfinite;
    std::uint32_t taken = 0;
    for (; taken < wanted && taken < free.size() && free[taken] < other; ++taken)
      total = add(total, free[taken]);
    total = add(total, times(wanted - taken, other));
    members += wanted;
  }
  std::uint32_t separators = members - (members > 0 && (count == 0 || key_must_follow) ? 1 : 0);
  return add(total, times(separators, spec.separator_cost));
}

std::uint32_t array_cost(const Program &program, const ArraySpec &spec, std::uint32_t count, bool item_must_follow) {
  std::uint32_t items = std::max(spec.min > count ? spec.min - count : 0u, item_must_follow ? 1u : 0u);
  std::uint32_t total = program.code[spec.close].cost;
  if (items == 0)
    return total;
  if (spec.max != kUnbounded && std::uint64_t{count} + items > spec.max)
    return kInfinite;
  std::uint32_t separators = items - (count == 0 || item_must_follow ? 1 : 0);
  std::uint64_t sum = std::uint64_t{separators} * spec.separator_cost;
  std::uint32_t beyond = items;
  for (std::uint32_t i = count; i < spec.prefix.size() && beyond > 0; ++i, --beyond)
    sum += program.code[spec.prefix[i]].cost;
  if (beyond > 0)
    sum += spec.has_item ? std::uint64_t{beyond} * program.code[spec.item].cost : kInfinite;
  return add(total, static_cast<std::uint32_t>(std::min<std::uint64_t>(sum, kInfinite)));
}

std::uint32_t StatePool::cost(const Config &c) {
  const Instruction &in = program_.code[c.ip];
  const auto ends = [&](std::uint32_t ip) { // from ip to the end of the text
    const Instruction &at = program_.code[ip];
    if (at.cost >= kInfinite)
      return kInfinite;
    if (!c.stack)
      return at.cost;
    switch (at.cost_end) {
    case CostEnd::kLeave:
      return add(at.cost, c.stack->after);
    case CostEnd::kLoop:
      return add(at.cost, c.stack->rest);
    case CostEnd::kKeys: {
      const ObjectSpec &spec = program_.objects[static_cast<std::size_t>(c.stack->spec)];
      return add(add(at.cost, object_cost(program_, spec, seen(*c.stack, spec), c.stack->count, true)), c.stack->after);
    }
    case CostEnd::kItemDone: {
      const ArraySpec &spec = program_.arrays[static_cast<std::size_t>(~c.stack->spec)];
      std::uint32_t count = std::min(c.stack->count + 1, spec.count_cap);
      return add(add(at.cost, array_cost(program_, spec, count, false)), c.stack->after);
    }
    case CostEnd::kItem: {
      const ArraySpec &spec = program_.arrays[static_cast<std::size_t>(~c.stack->spec)];
      return add(add(at.cost, array_cost(program_, spec, c.stack->count, true)), c.stack->after);
    }
    }
    return kInfinite;
  };
  switch (in.op) {
  case Op::kScalar:
    return add(program_.dfas[static_cast<std::size_t>(in.a)]->distance(static_cast<std::int32_t>(c.aux)),
               ends(c.ip + 1));
  case Op::kRepeat: {
    const RepeatSpec &spec = program_.repeats[static_cast<std::size_t>(in.a)];
    std::uint32_t units = spec.min > c.count ? spec.min - c.count : 0;
    std::uint32_t unit = spec.unit->distance(0), local = 0;
    if (c.aux != 0) { // in the middle of a unit, which counts once it is over
      local = spec.unit->distance(static_cast<std::int32_t>(c.aux));
      units -= units > 0 ? 1 : 0;
    }
    return add(add(local, times(units, unit)), ends(c.ip + 1));
  }
  case Op::kNames:
    if (c.aux == 0)
      return ends(c.ip);
    {
      std::uint32_t local = program_.name_sets[static_cast<std::size_t>(in.a)].cost[c.aux];
      // All names end alike, so the frame's share is that of the instruction itself.
      std::uint32_t whole = ends(c.ip);
      return whole >= kInfinite ? kInfinite : add(local, whole - in.cost);
    }
  case Op::kKey:
  case Op::kOtherKey: {
    const ObjectSpec &spec = program_.objects[static_cast<std::size_t>(in.a)];
    auto have = seen(*c.stack, spec);
    if (in.op == Op::kOtherKey) {
      std::uint32_t local =
          other_member_cost(program_, spec, static_cast<std::int32_t>(c.aux), static_cast<std::int32_t>(c.count) - 1);
      std::uint32_t rest = object_cost(program_, spec, have, c.stack->count + 1, false);
      return add(local, add(rest, c.stack->after));
    }
    // The best property below the trie node: its remaining bytes, its value, then the rest of the object.
    std::vector<std::uint64_t> free;
    bool other;
    selectable(*c.stack, spec, free, other);
    std::uint32_t best = kInfinite;
    std::vector<std::pair<std::uint32_t, std::uint32_t>> open{{c.aux, 0}};
    while (!open.empty()) {
      auto [node, bytes] = open.back();
      open.pop_back();
      if (std::int32_t p = spec.keys.leaf[node]; p >= 0) {
        auto property = static_cast<std::size_t>(p);
        if (!test(free, property))
          continue;
        std::vector<std::uint64_t> then(have.begin(), have.end());
        then[property / 64] |= std::uint64_t{1} << (property % 64);
        std::uint32_t rest = object_cost(program_, spec, then, c.stack->count + 1, false);
        best = std::min(best, add(add(bytes, program_.code[spec.value[property]].cost), rest));
      }
      for (std::uint32_t e = spec.keys.child_begin[node]; e < spec.keys.child_begin[node + 1]; ++e)
        open.emplace_back(spec.keys.child_node[e], bytes + 1);
    }
    return add(best, c.stack->after);
  }
  default:
    return ends(c.ip);
  }
}

std::uint32_t StatePool::cost(const State &state) {
  std::uint32_t best = kInfinite;
  for (const Config &c : state.configs)
    best = std::min(best, cost(c));
  return state.configs.empty() ? 0 : best;
}

// ---------------------------------------------------------------------------------------------- reading

void StatePool::selectable(const Frame &f, const ObjectSpec &spec, std::vector<std::uint64_t> &out, bool &other) const {
  auto have = seen(f, spec);
  out.resize(spec.words);
  std::uint32_t missing = 0;
  for (std::size_t w = 0; w < spec.words; ++w) {
    out[w] = spec.possible[w] & ~have[w];
    missing += static_cast<std::uint32_t>(std::popcount(spec.required[w] & ~have[w]));
  }
  // Where only the required ones still fit, nothing else may take their room.
  bool room = spec.max == kUnbounded || spec.max - f.count > missing;
  if (!room)
    for (std::size_t w = 0; w < spec.words; ++w)
      out[w] &= spec.required[w];
  other = room && spec.other_key != nullptr && spec.other_cost < kInfinite;
  if (!too_deep(&f))
    return;
  std::uint32_t most = 0; // what a member may cost
  if (missing == 0 && f.count < spec.min) {
    most = other ? spec.other_cost : kInfinite;
    for (std::size_t i = 0; i < spec.member_cost.size(); ++i)
      if (test(out, i))
        most = std::min(most, spec.member_cost[i]);
  }
  other = other && spec.other_cost <= most;
  for (std::size_t i = 0; i < spec.member_cost.size(); ++i)
    if (!(missing > 0 ? test(spec.required, i) : spec.member_cost[i] <= most))
      out[i / 64] &= ~(std::uint64_t{1} << (i % 64));
}

void StatePool::close(std::uint32_t ip, const Frame *stack, std::uint32_t position, std::int32_t events,
                      std::vector<Event> *log, std::vector<Live> &out) {
  struct Branch {
    std::uint32_t ip;
    const Frame *stack;
    std::int32_t events;
  };
  // Not followed yet (by recursion, nested unions could exhaust the stack). Kept between calls: allocating it anew
  // makes masks 10 % slower.
  static thread_local std::vector<Branch> branches;
  branches.clear();
  const std::size_t before = out.size();
  std::size_t followed = 0;
  bool ends = false; // the branch at hand
  for (;;) {
    if (ends) {
      if (branches.empty())
        return;
      check_ambiguity(std::max(++followed / 8, out.size() - before)); // some branches lead nowhere
      ip = branches.back().ip;
      stack = branches.back().stack;
      events = branches.back().events;
      branches.pop_back();
      ends = false;
    }
    const Instruction &in = program_.code[ip];
    switch (in.op) {
    case Op::kByte:
    case Op::kScalar:
    case Op::kNames:
    case Op::kStop:
    case Op::kAccept:
      out.push_back({{ip, 0, 0, stack}, events});
      ends = true;
      break;
    case Op::kSpace:
      out.push_back({{ip, 0, 0, stack}, events});
      ++ip;
      break;
    case Op::kRepeat: {
      const RepeatSpec &spec = program_.repeats[static_cast<std::size_t>(in.a)];
      if (spec.max > 0)
        out.push_back({{ip, 0, 0, stack}, events});
      ends = spec.min > 0;
      ++ip;
      break;
    }
    case Op::kKey:
    case Op::kOtherKey:
      ends = true; // entered through kObjectKeys only
      break;
    case Op::kJump:
      ip = static_cast<std::uint32_t>(in.a);
      break;
    case Op::kChoice:
      for (std::int32_t i = in.b; i-- > in.a;) {
        std::uint32_t target = program_.targets[static_cast<std::size_t>(i)];
        if (!too_deep(stack) || program_.code[target].cost == in.cost)
          branches.push_back({target, stack, events});
      }
      ends = true;
      break;
    case Op::kCall:
      stack = frame(stack, ip + 1, kCallFrame, 0, 0);
      ip = static_cast<std::uint32_t>(in.a);
      break;
    case Op::kReturn:
      ip = stack->ret;
      stack = stack->parent;
      break;
    case Op::kStep:
      if (log)
        events = static_cast<std::int32_t>(note(
            log, static_cast<StepKind>(in.a), position - std::min(position, static_cast<std::uint32_t>(in.b)), events));
      ++ip;
      break;
    case Op::kEnterObject: {
      const ObjectSpec &spec = program_.objects[static_cast<std::size_t>(in.a)];
      stack = frame(stack, ip + 1, in.a, no_properties(spec), 0);
      ip = spec.entry;
      break;
    }
    case Op::kObjectNext: {
      const ObjectSpec &spec = program_.objects[static_cast<std::size_t>(in.a)];
      auto have = seen(*stack, spec);
      bool done = stack->count >= spec.min;
      for (std::size_t w = 0; done && w < spec.words; ++w)
        done = (spec.required[w] & ~have[w]) == 0;
      std::vector<std::uint64_t> free;
      bool other;
      selectable(*stack, spec, free, other);
      bool more = other || std::any_of(free.begin(), free.end(), [](std::uint64_t w) { return w != 0; });
      more = more && stack->count < spec.max;
      if (done)
        branches.push_back({spec.close, stack, events});
      ip = stack->count == 0 ? spec.keys_at : spec.separator;
      ends = !more;
      break;
    }
    case Op::kObjectKeys: {
      const ObjectSpec &spec = program_.objects[static_cast<std::size_t>(in.a)];
      std::vector<std::uint64_t> free;
      bool other;
      selectable(*stack, spec, free, other);
      if (std::any_of(free.begin(), free.end(), [](std::uint64_t w) { return w != 0; }))
        out.push_back({{spec.key_op, 0, 0, stack}, events});
      if (other)
        out.push_back({{spec.other_op, 0, 1, stack}, events}); // 1: at the root of the trie of keys
      ends = true;
      break;
    }
    case Op::kEnterArray: {
      stack = frame(stack, ip + 1, ~in.a, 0, 0);
      ip = program_.arrays[static_cast<std::size_t>(in.a)].entry;
      break;
    }
    case Op::kArrayNext: {
      const ArraySpec &spec = program_.arrays[static_cast<std::size_t>(in.a)];
      bool more = stack->count < (too_deep(stack) ? spec.min : spec.max) &&
                  (stack->count < spec.prefix.size() || spec.has_item);
      if (more) {
        // An item that can never be completed must not be begun.
        std::uint32_t item = stack->count < spec.prefix.size() ? spec.prefix[stack->count] : spec.item;
        more = program_.code[item].cost < kInfinite;
      }
      if (stack->count >= spec.min)
        branches.push_back({spec.close, stack, events});
      ip = spec.separator;
      if (stack->count == 0)
        ip = spec.prefix.empty() ? spec.item : spec.prefix[0];
      ends = !more;
      break;
    }
    case Op::kArrayItem: {
      const ArraySpec &spec = program_.arrays[static_cast<std::size_t>(in.a)];
      ip = stack->count < spec.prefix.size() ? spec.prefix[stack->count] : spec.item;
      break;
    }
    case Op::kArrayCount: {
      const ArraySpec &spec = program_.arrays[static_cast<std::size_t>(in.a)];
      std::uint32_t count = std::min(stack->count + 1, spec.count_cap);
      stack = frame(stack->parent, stack->ret, stack->spec, 0, count);
      ++ip;
      break;
    }
    }
  }
}

bool StatePool::read(const Config &c, std::int32_t events, std::uint8_t byte, std::uint32_t position,
                     std::vector<Event> *log, std::vector<Live> &out) {
  const Instruction &in = program_.code[c.ip];
  switch (in.op) {
  case Op::kByte:
    if (in.byte == byte)
      close(c.ip + 1, c.stack, position + 1, events, log, out);
    return false;
  case Op::kScalar: {
    const Dfa &dfa = *program_.dfas[static_cast<std::size_t>(in.a)];
    auto state = static_cast<std::int32_t>(c.aux);
    std::int32_t next = dfa.next(state, byte);
    if (next >= 0) {
      if (dfa.eager(next))
        close(c.ip + 1, c.stack, position + 1, events, log, out);
      else
        out.push_back({{c.ip, static_cast<std::uint32_t>(next), 0, c.stack}, events});
    }
    return dfa.accepting(state);
  }
  case Op::kRepeat: {
    const RepeatSpec &spec = program_.repeats[static_cast<std::size_t>(in.a)];
    std::int32_t next = spec.unit->next(static_cast<std::int32_t>(c.aux), byte);
    if (next < 0)
      return false;
    if (!spec.unit->accepting(next)) {
      out.push_back({{c.ip, static_cast<std::uint32_t>(next), c.count, c.stack}, events});
      return false;
    }
    std::uint32_t count = c.count + 1;
    if (spec.max == kUnbounded)
      count = std::min(count, spec.min); // further units change nothing
    if (count < spec.max)
      out.push_back({{c.ip, 0, count, c.stack}, events});
    if (count >= spec.min)
      close(c.ip + 1, c.stack, position + 1, events, log, out);
    return false;
  }
  case Op::kSpace:
    if (is_space(byte))
      close(c.ip, c.stack, position + 1, events, log, out);
    return false;
  case Op::kNames: {
    const KeySet &set = program_.name_sets[static_cast<std::size_t>(in.a)];
    std::int32_t node = set.child(c.aux, byte);
    if (node < 0 || set.cost[static_cast<std::size_t>(node)] >= kInfinite)
      return false;
    std::int32_t leaf = set.leaf[static_cast<std::size_t>(node)];
    if (leaf >= 0)
      close(program_.name_targets[static_cast<std::size_t>(in.a)][static_cast<std::size_t>(leaf)], c.stack,
            position + 1, events, log, out);
    else
      out.push_back({{c.ip, static_cast<std::uint32_t>(node), 0, c.stack}, events});
    return false;
  }
  case Op::kKey: {
    const ObjectSpec &spec = program_.objects[static_cast<std::size_t>(in.a)];
    std::int32_t node = spec.keys.child(c.aux, byte);
    if (node < 0)
      return false;
    static thread_local std::vector<std::uint64_t> free; // asked for at every byte of a key
    bool other;
    selectable(*c.stack, spec, free, other);
    const std::uint64_t *reach = &spec.keys.reach[static_cast<std::size_t>(node) * spec.words];
    bool any = false;
    for (std::size_t w = 0; w < spec.words; ++w)
      any = any || (reach[w] & free[w]) != 0;
    if (!any)
      return false;
    std::int32_t leaf = spec.keys.leaf[static_cast<std::size_t>(node)];
    if (leaf < 0) {
      out.push_back({{c.ip, static_cast<std::uint32_t>(node), 0, c.stack}, events});
      return false;
    }
    auto property = static_cast<std::size_t>(leaf);
    const Frame *f =
        frame(c.stack->parent, c.stack->ret, c.stack->spec, with(*c.stack, spec, property), c.stack->count + 1);
    close(spec.value[property], f, position + 1, events, log, out);
    return false;
  }
  case Op::kOtherKey: {
    const ObjectSpec &spec = program_.objects[static_cast<std::size_t>(in.a)];
    std::int32_t next = spec.other_key->next(static_cast<std::int32_t>(c.aux), byte);
    if (next < 0)
      return false;
    if (!spec.other_rest.empty()) { // several kinds of keys: only towards a value that can be completed
      const std::uint32_t rest = spec.other_rest[static_cast<std::size_t>(next)];
      if (rest >= kInfinite || (too_deep(c.stack) && rest >= spec.other_rest[c.aux]))
        return false;
      const std::int32_t kind = spec.other_kinds[static_cast<std::size_t>(next)];
      if (kind < 0)
        out.push_back({{c.ip, static_cast<std::uint32_t>(next), 0, c.stack}, events});
      else
        enter_other(c, spec.other_values[static_cast<std::size_t>(kind)], position + 1, events, log, out);
      return false;
    }
    std::uint32_t shadow = 0; // trie node + 1
    if (c.count > 0)
      shadow = static_cast<std::uint32_t>(spec.keys.child(c.count - 1, byte) + 1);
    if (!spec.other_key->accepting(next)) {
      out.push_back({{c.ip, static_cast<std::uint32_t>(next), shadow, c.stack}, events});
      return false;
    }
    if (shadow > 0 && spec.keys.leaf[shadow - 1] >= 0)
      return false; // the key of a property: not "other"
    enter_other(c, spec.other_value, position + 1, events, log, out);
    return false;
  }
  default:
    return false;
  }
}

void StatePool::read_after(const Live &live, std::uint8_t byte, std::uint32_t position, std::vector<Event> *log,
                           std::vector<Live> &out) {
  std::vector<Live> open;
  close(live.config.ip + 1, live.config.stack, position, live.events, log, open);
  for (std::size_t i = 0; i < open.size(); ++i) {
    check_ambiguity(i);
    const Live now = open[i];
    if (read(now.config, now.events, byte, position, log, out))
      close(now.config.ip + 1, now.config.stack, position, now.events, log, open);
  }
}

void StatePool::enter_other(const Config &c, std::uint32_t value, std::uint32_t position, std::int32_t events,
                            std::vector<Event> *log, std::vector<Live> &out) {
  const ObjectSpec &spec = program_.objects[static_cast<std::size_t>(program_.code[c.ip].a)];
  // Beyond the bounds on members, how many there are does not matter.
  std::uint32_t bound = spec.max != kUnbounded ? spec.max : std::max(spec.min, 1u);
  const Frame *f = frame(c.stack->parent, c.stack->ret, c.stack->spec, c.stack->data,
                         std::min(c.stack->count + 1, std::max(bound, c.stack->count)));
  close(value, f, position, events, log, out);
}

void StatePool::stop(const Live &live, std::uint32_t position, std::vector<Event> *log, std::vector<Live> &out) {
  std::vector<Live> open{live};
  for (std::size_t i = 0; i < open.size(); ++i) {
    check_ambiguity(i);
    const Live now = open[i];
    if (program_.code[now.config.ip].op == Op::kStop)
      close(now.config.ip + 1, now.config.stack, position, now.events, log, out);
    else if (const Instruction &in = program_.code[now.config.ip];
             in.op == Op::kScalar &&
             program_.dfas[static_cast<std::size_t>(in.a)]->accepting(static_cast<std::int32_t>(now.config.aux)))
      close(now.config.ip + 1, now.config.stack, position, now.events, log, open);
  }
}

void StatePool::add_bytes(const Config &c, std::bitset<256> &bytes) const {
  const Instruction &in = program_.code[c.ip];
  switch (in.op) {
  case Op::kByte:
    bytes.set(in.byte);
    break;
  case Op::kScalar:
    bytes |= program_.dfas[static_cast<std::size_t>(in.a)]->allowed(static_cast<std::int32_t>(c.aux));
    break;
  case Op::kRepeat:
    bytes |= program_.repeats[static_cast<std::size_t>(in.a)].unit->allowed(static_cast<std::int32_t>(c.aux));
    break;
  case Op::kSpace:
    for (char b : {' ', '\n', '\t', '\r'})
      bytes.set(static_cast<std::size_t>(b));
    break;
  case Op::kNames:
    program_.name_sets[static_cast<std::size_t>(in.a)].add_bytes(c.aux, bytes);
    break;
  case Op::kKey:
    program_.objects[static_cast<std::size_t>(in.a)].keys.add_bytes(c.aux, bytes);
    break;
  case Op::kOtherKey:
    bytes |= program_.objects[static_cast<std::size_t>(in.a)].other_key->allowed(static_cast<std::int32_t>(c.aux));
    break;
  default: // the end of the text
    break;
  }
}

bool StatePool::allowed(const State &state, std::bitset<256> &bytes) {
  bool end = false;
  std::vector<Config> open(state.configs);
  while (!open.empty()) {
    Config c = open.back();
    open.pop_back();
    const Instruction &in = program_.code[c.ip];
    switch (in.op) {
    case Op::kStop:
      end = true;
      break;
    case Op::kNames:
    case Op::kKey:
    case Op::kOtherKey: { // an edge may lead to names that are taken
      std::bitset<256> edges;
      add_bytes(c, edges);
      std::vector<Live> next;
      for (std::size_t b = edges._Find_first(); b < 256; b = edges._Find_next(b)) {
        next.clear();
        step({c, -1}, static_cast<std::uint8_t>(b), 0, nullptr, next);
        if (!next.empty())
          bytes.set(b);
      }
      break;
    }
    default:
      add_bytes(c, bytes);
      if (in.op == Op::kScalar &&
          program_.dfas[static_cast<std::size_t>(in.a)]->accepting(static_cast<std::int32_t>(c.aux))) {
        std::vector<Live> after;
        close(c.ip + 1, c.stack, 0, -1, nullptr, after);
        for (const Live &l : after)
          open.push_back(l.config);
        check_ambiguity(open.size());
      }
    }
  }
  return end;
}

bool StatePool::complete(const State &state) {
  std::vector<Live> out;
  for (const Config &c : state.configs) {
    const Instruction &in = program_.code[c.ip];
    if (in.op == Op::kStop || in.op == Op::kScalar)
      stop({c, -1}, 0, nullptr, out);
  }
  return !out.empty();
}

const State *StatePool::initial() {
  std::vector<Live> out;
  close(program_.start, nullptr, 0, -1, nullptr, out);
  std::vector<Config> configs;
  for (const Live &l : out)
    configs.push_back(l.config);
  return intern(configs);
}

const State *StatePool::cheapest(const State &state) {
  if (state.configs.size() <= 1)
    return &state;
  // All of them: one that may go on or be over costs as much as what comes after it, and only the latter reads that.
  std::vector<Config> best;
  std::uint32_t least = kInfinite;
  for (const Config &c : state.configs) {
    const std::uint32_t own = cost(c);
    if (own < least)
      best.clear();
    if (own <= least)
      best.push_back(c);
    least = std::min(least, own);
  }
  return intern(best);
}

const State *StatePool::advance(const State &state, std::uint8_t byte) {
  std::vector<Live> out;
  for (const Config &c : state.configs)
    step({c, -1}, byte, 0, nullptr, out);
  if (out.empty())
    return nullptr;
  std::vector<Config> configs;
  for (const Live &l : out)
    configs.push_back(l.config);
  return intern(configs);
}

} // namespace toolprm
