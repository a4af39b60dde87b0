#include "toolprm/matcher.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "automaton.h"
#include "literals.h"

namespace toolprm {

// One accepted token; the tokens before it are its parents.
struct Matcher::Node {
  std::shared_ptr<const Node> parent;
  const State *state = nullptr;
  TokenId token = -1;
  std::uint32_t tokens = 0;
  std::string bytes; // what it wrote
  std::uint32_t end = 0;
  std::uint32_t boundary = 0;
  std::uint32_t calls = 0;
  bool in_call = false; // an argument of the current call is written
  bool stopped = false;
  std::vector<Step> steps;

  // A long chain must not be released by recursion: the first node to go releases the others one after another, each
  // of them only leaves its parent for it. (Other threads may hold nodes of the chain: use_count() would not tell.)
  ~Node() {
    static thread_local std::shared_ptr<const Node> *left = nullptr;
    if (left) {
      *left = std::move(parent);
      return;
    }
    std::shared_ptr<const Node> next = std::move(parent), above;
    left = &above;
    while (next) {
      next.reset();
      next = std::move(above);
    }
    left = nullptr;
  }
};

Matcher::Matcher(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const Vocabulary> vocabulary) {
  if (!grammar || !vocabulary)
    throw std::invalid_argument("a matcher needs a grammar and a vocabulary");
  auto pool = grammar->pool(vocabulary);
  source_ = std::make_shared<const Source>(Source{std::move(grammar), std::move(vocabulary), std::move(pool)});
  auto node = std::make_shared<Node>();
  node->state = this->pool().initial();
  node_ = std::move(node);
}

namespace {

constexpr std::size_t kTriedBytes = 16;
constexpr std::size_t kForcedReadings = 32; // for each byte of a forced run, on average
constexpr std::size_t kMasksAThread = 16;   // to start a thread takes about as long as so many masks

// The key of the member that a step's text ends with; the text begins right after the step before. value: where the
// member's value begins.
std::string member_key(std::string_view text, bool first_of_call, std::uint32_t &value) {
  std::size_t at = 0;
  const auto skip = [&](std::string_view bytes) {
    while (at < text.size() && bytes.find(text[at]) != std::string_view::npos)
      ++at;
    value = static_cast<std::uint32_t>(at);
  };
  if (first_of_call) { // skip what opens the arguments
    at = text.find_first_of("{(");
    at = at == std::string_view::npos ? 0 : at + 1;
  }
  skip(" ,\n\t\r");
  if (at < text.size() && (text[at] == '"' || text[at] == '\'')) {
    std::string key;
    parse_string(text, at, key);
    skip(" :\n\t\r");
    return key;
  }
  const std::size_t start = at;
  at = std::min(text.find('=', at), text.size());
  const std::size_t end = at;
  if (at < text.size())
    ++at;
  skip(" \n\t\r");
  return std::string(text.substr(start, end - start));
}

std::string pointer_token(std::string_view key) {
  std::string out;
  for (char c : key)
    out += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  return out;
}

} // namespace

bool Matcher::read(std::string_view bytes, bool stop, TokenId token, std::vector<Step> *steps) {
  if (node_->stopped)
    return false;
  // Kept between calls: their memory would be asked for at every token.
  static thread_local std::vector<Live> live, next;
  static thread_local std::vector<Event> log;
  static thread_local std::vector<Config> configs;
  StatePool &states = pool();
  live.clear();
  log.clear();
  for (const Config &c : node_->state->configs)
    live.push_back({c, -1});
  std::uint32_t position = node_->end;
  for (char b : bytes) {
    next.clear();
    for (const Live &l : live)
      states.step(l, static_cast<std::uint8_t>(b), position, &log, next);
    if (next.empty())
      return false;
    if (next.size() > 1) {
      std::stable_sort(next.begin(), next.end(), [](const Live &x, const Live &y) { return x.config < y.config; });
      next.erase(
          std::unique(next.begin(), next.end(), [](const Live &x, const Live &y) { return x.config == y.config; }),
          next.end());
      check_ambiguity(next.size());
    }
    live.swap(next);
    ++position;
  }
  if (stop) {
    next.clear();
    for (const Live &l : live)
      states.stop(l, position, &log, next);
    if (next.empty())
      return false;
    live.swap(next);
  }
  auto node = std::make_shared<Node>();
  configs.clear();
  if (!stop)
    for (const Live &l : live)
      configs.push_back(l.config);
  node->state = states.intern(configs);
  node->token = token;
  node->tokens = node_->tokens + 1;
  node->bytes.assign(bytes);
  node->end = position;
  node->boundary = node_->boundary;
  node->calls = node_->calls;
  node->in_call = node_->in_call;
  node->stopped = stop;

  // Where a step ends depends on the text alone, so all live configurations tell the same story.
  std::vector<Event> ended;
  for (std::int32_t e = live.front().events; e >= 0; e = log[static_cast<std::size_t>(e)].previous)
    ended.push_back(log[static_cast<std::size_t>(e)]);
  if (!ended.empty()) {
    std::string written; // from the last boundary on
    written.resize(position - node_->boundary);
    std::copy(bytes.begin(), bytes.end(), written.end() - static_cast<std::ptrdiff_t>(bytes.size()));
    for (const Node *n = node_.get(); n && n->end > node_->boundary; n = n->parent.get())
      for (std::size_t i = n->bytes.size(), at = n->end; i-- > 0 && at-- > node_->boundary;)
        written[at - node_->boundary] = n->bytes[i];
    const bool calls = grammar().program().calls;
    for (auto e = ended.rbegin(); e != ended.rend(); ++e) {
      e->end = std::max(e->end, node->boundary); // steps lie end to end
      Step step{e->kind,
                node->boundary,
                e->end,
                {},
                written.substr(node->boundary - node_->boundary, e->end - node->boundary),
                0};
      std::string call = calls ? "/" + std::to_string(node->calls) : "";
      switch (e->kind) {
      case StepKind::kFuncName:
        step.path = call + "/name";
        node->in_call = false;
        break;
      case StepKind::kArgValue:
        step.path =
            call + (calls ? "/arguments/" : "/") + pointer_token(member_key(step.text, !node->in_call, step.value));
        node->in_call = true;
        break;
      case StepKind::kParamFinish:
        step.path = call + (calls ? "/arguments" : "");
        break;
      case StepKind::kFuncFinish:
        step.path = call;
        ++node->calls;
        node->in_call = false;
        break;
      case StepKind::kTotalFinish:
        break;
      }
      node->boundary = e->end;
      node->steps.push_back(std::move(step));
    }
    if (steps)
      steps->insert(steps->end(), node->steps.begin(), node->steps.end());
  }
  node->parent = node_;
  node_ = std::move(node);
  return true;
}

bool Matcher::accept(TokenId token, std::vector<Step> *steps) {
  if (!vocabulary().contains(token))
    return false;
  if (vocabulary().is_stop(token))
    return read({}, true, token, steps);
  const std::string &bytes = vocabulary().token(token);
  return !bytes.empty() && read(bytes, false, token, steps);
}

bool Matcher::accept_bytes(std::string_view bytes, std::vector<Step> *steps) { return read(bytes, false, -1, steps); }

bool Matcher::finish(std::vector<Step> *steps) { return read({}, true, -1, steps); }

void Matcher::rollback(std::size_t count) {
  if (count > node_->tokens)
    throw std::out_of_range("rollback of " + std::to_string(count) + " tokens, only " + std::to_string(node_->tokens) +
                            " were read");
  for (; count > 0; --count)
    node_ = node_->parent;
}

std::shared_ptr<const Mask> Matcher::mask() const { return pool().mask(*node_->state, vocabulary()); }

bool Matcher::knows_mask() const { return pool().knows_mask(*node_->state); }

void fill_masks(std::span<const Matcher *const> matchers, std::span<std::int32_t> rows, std::size_t threads) {
  const std::size_t width = matchers.empty() ? 0 : rows.size() / matchers.size();
  std::atomic<std::size_t> next = 0;
  std::exception_ptr failure;
  std::mutex failing;
  const auto work = [&] {
    try {
      for (std::size_t i = next++; i < matchers.size(); i = next++)
        matchers[i]->fill_mask(rows.subspan(i * width, width));
    } catch (...) {
      next = matchers.size();
      std::lock_guard<std::mutex> lock(failing);
      failure = std::current_exception();
    }
  };
  std::size_t unknown = 0;
  for (const Matcher *matcher : matchers)
    unknown += static_cast<std::size_t>(!matcher->knows_mask());
  std::vector<std::thread> others;
  for (std::size_t t = 1; t < std::min(threads, unknown / kMasksAThread); ++t)
    others.emplace_back(work);
  work();
  for (std::thread &other : others)
    other.join();
  if (failure)
    std::rethrow_exception(failure);
}

std::vector<TokenId> Matcher::plain_mask() const { return pool().plain_mask(*node_->state, vocabulary()); }

void Matcher::fill_mask(std::span<std::int32_t> row) const { mask()->write(row); }

std::string Matcher::forced_bytes(std::size_t limit) const {
  std::string out;
  const State *state = node_->state;
  // Where the run can be read in many ways at once it is cut where that becomes much work.
  for (std::size_t work = 0; out.size() < limit && work < kForcedReadings * limit; work += state->configs.size()) {
    std::bitset<256> bytes;
    if (pool().allowed(*state, bytes) || bytes.count() != 1)
      break;
    std::size_t byte = bytes._Find_first();
    out += static_cast<char>(byte);
    state = pool().advance(*state, static_cast<std::uint8_t>(byte));
  }
  return out;
}

std::vector<TokenId> Matcher::forced() const {
  const std::string bytes = forced_bytes();
  if (bytes.empty())
    return {};
  std::vector<TokenId> ids = vocabulary().tokenize(bytes);
  // States at the token starts near the end, and behind the run.
  std::vector<std::size_t> starts;
  std::size_t at = 0;
  for (TokenId id : ids) {
    starts.push_back(at);
    at += vocabulary().token(id).size();
  }
  std::size_t look = ids.size() > 4 ? ids.size() - 4 : 0;
  const State *state = node_->state;
  for (char b : bytes)
    state = pool().advance(*state, static_cast<std::uint8_t>(b));
  const TokenTrie &trie = vocabulary().trie();
  for (std::size_t i = look; i < ids.size(); ++i) {
    // Is there a legal token that begins with what is left of the run and goes beyond it?
    std::uint32_t node = 0;
    bool on = true;
    for (std::size_t b = starts[i]; on && b < bytes.size(); ++b) {
      node = trie.child(node, static_cast<std::uint8_t>(bytes[b]));
      on = node != 0;
    }
    if (!on)
      continue;
    std::vector<const State *> path{state};
    for (std::uint32_t n = node + 1; n < trie[node].skip;) {
      std::size_t depth = static_cast<std::size_t>(trie[n].depth - trie[node].depth);
      path.resize(depth);
      const State *next = pool().advance(*path.back(), trie[n].byte);
      if (!next) {
        n = trie[n].skip;
        continue;
      }
      if (!trie.tokens(n).empty()) {
        ids.resize(i);
        return ids;
      }
      path.push_back(next);
      ++n;
    }
  }
  // A byte more can also move a border further back: `"}}` becomes `"}` and `},`. Few bytes can be tried.
  std::bitset<256> next;
  pool().allowed(*state, next);
  if (next.count() <= kTriedBytes)
    for (const auto &[n, b] : trie.edges(0)) // bytes that are tokens
      if (b < 0x80 && next[b] && !trie.tokens(n).empty()) {
        const std::vector<TokenId> longer = vocabulary().tokenize(bytes + static_cast<char>(b));
        ids.erase(std::mismatch(ids.begin(), ids.end(), longer.begin(), longer.end()).first, ids.end());
      }
  return ids;
}

std::uint32_t Matcher::closing_bytes() const { return pool().cost(*node_->state); }

std::string Matcher::closing() const {
  std::string out;
  if (node_->stopped)
    return out;
  const State *state = node_->state;
  while (!pool().complete(*state)) {
    state = pool().cheapest(*state); // other ways to read the text are not followed
    std::uint32_t cost = pool().cost(*state);
    std::bitset<256> bytes;
    pool().allowed(*state, bytes);
    const State *best = nullptr;
    std::uint32_t least = kInfinite;
    std::size_t taken = 0;
    for (std::size_t b = 0; b < 256; ++b) {
      if (!bytes[b])
        continue;
      const State *next = pool().advance(*state, static_cast<std::uint8_t>(b));
      std::uint32_t after = next ? pool().cost(*next) : kInfinite;
      if (after < least) {
        least = after;
        best = next;
        taken = b;
        if (after + 1 == cost)
          break;
      }
    }
    if (!best || least >= cost)
      throw std::logic_error("no way to close the text from here");
    out += static_cast<char>(taken);
    state = best;
  }
  return out;
}

bool Matcher::is_complete() const { return node_->stopped || pool().complete(*node_->state); }
bool Matcher::is_over() const {
  std::bitset<256> bytes;
  return node_->stopped || (pool().allowed(*node_->state, bytes) && bytes.none());
}
bool Matcher::is_stopped() const { return node_->stopped; }
const State *Matcher::state() const { return node_->state; }
std::size_t Matcher::token_count() const { return node_->tokens; }
std::uint32_t Matcher::text_bytes() const { return node_->end; }
std::uint32_t Matcher::boundary() const { return node_->boundary; }

std::string Matcher::text() const {
  std::vector<const Node *> chain;
  for (const Node *n = node_.get(); n; n = n->parent.get())
    chain.push_back(n);
  std::string out;
  out.reserve(node_->end);
  for (auto n = chain.rbegin(); n != chain.rend(); ++n)
    out += (*n)->bytes;
  return out;
}

std::vector<TokenId> Matcher::tokens() const {
  std::vector<TokenId> out;
  for (const Node *n = node_.get(); n; n = n->parent.get())
    if (n->token >= 0)
      out.push_back(n->token);
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<Step> Matcher::steps() const {
  std::vector<const Node *> chain;
  for (const Node *n = node_.get(); n; n = n->parent.get())
    chain.push_back(n);
  std::vector<Step> out;
  for (auto n = chain.rbegin(); n != chain.rend(); ++n)
    out.insert(out.end(), (*n)->steps.begin(), (*n)->steps.end());
  return out;
}

} // namespace toolprm
