// Matchers of random grammars: in every state that a random walk comes to, the mask is what accepting each token says,
// what is forced or closes the text is legal, and forks and rollbacks lead back to where they came from.
#include <algorithm>
#include <set>

#include "random_grammar.h"
#include "toolprm/matcher.h"

using namespace toolprm;

namespace {

constexpr std::size_t kMostSteps = 24;

// A matcher and what it has to be: the states and texts after each token.
struct Walk {
  Matcher matcher;
  std::vector<std::pair<const State *, std::string>> before;
};

void check_steps(const Matcher &m) {
  const std::string text = m.text();
  REQUIRE(m.text_bytes() == text.size());
  std::uint32_t end = 0;
  for (const Step &step : m.steps()) {
    REQUIRE(step.start == end && step.end >= step.start && step.end <= text.size());
    REQUIRE(step.text == text.substr(step.start, step.end - step.start));
    REQUIRE(step.value <= step.text.size());
    end = step.end;
  }
  REQUIRE(m.boundary() == end);
}

void check_mask(const Matcher &m) {
  const Vocabulary &vocabulary = m.vocabulary();
  const auto mask = m.mask();
  std::vector<std::int32_t> row(vocabulary.words() + 1, 0x55555555);
  m.fill_mask(row);
  REQUIRE(row.back() == 0);
  std::uint32_t count = 0;
  for (std::size_t i = 0; i < vocabulary.words() * 32; ++i) {
    const auto token = static_cast<TokenId>(i);
    Matcher fork(m);
    const bool legal = fork.accept(token);
    REQUIRE(mask->legal(token) == legal);
    REQUIRE((static_cast<std::uint32_t>(row[i / 32]) >> (i % 32) & 1) == (legal ? 1u : 0u));
    count += legal ? 1 : 0;
    if (!legal) {
      REQUIRE(fork.state() == m.state() && fork.token_count() == m.token_count());
      continue;
    }
    fork.rollback(1);
    REQUIRE(fork.state() == m.state() && fork.text_bytes() == m.text_bytes() && !fork.is_stopped());
  }
  REQUIRE(mask->count == count);
  const std::vector<TokenId> plain = m.plain_mask();
  REQUIRE(plain.size() == count && std::all_of(plain.begin(), plain.end(), [&](TokenId t) { return mask->legal(t); }));
}

void check_next_bytes(const Matcher &m) {
  std::string legal;
  const std::uint32_t cost = m.closing_bytes();
  REQUIRE(cost < kInfinite); // whatever is legal can be completed
  for (unsigned b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    Matcher fork(m);
    if (!fork.accept_bytes({&byte, 1}))
      continue;
    legal += byte;
    const std::uint32_t after = fork.closing_bytes();
    REQUIRE(after < kInfinite && after + 1 >= cost);
  }
  Matcher fork(m);
  const bool complete = fork.finish();
  REQUIRE(complete == m.is_complete());
  REQUIRE(m.is_over() == (complete && legal.empty()));
  REQUIRE(complete == (cost == 0));
  REQUIRE(complete || !legal.empty());
  const std::string forced = m.forced_bytes(64);
  REQUIRE(forced.empty() == (complete || legal.size() != 1));
  REQUIRE(forced.empty() || forced[0] == legal[0]);
  if (!forced.empty())
    REQUIRE(Matcher(m).accept_bytes(forced));
}

void check_ends(const Matcher &m) {
  if (m.closing_bytes() <= 2000) { // longer ones take long to write
    const std::string closing = m.closing();
    REQUIRE(closing.size() == m.closing_bytes());
    Matcher fork(m);
    REQUIRE(fork.accept_bytes(closing) && fork.is_complete() && fork.finish());
    check_steps(fork);
  }
  std::vector<TokenId> forced;
  try {
    forced = m.forced();
  } catch (const std::invalid_argument &) { // no token writes a byte
  }
  Matcher fork(m);
  std::string written;
  for (TokenId token : forced) {
    REQUIRE(fork.accept(token));
    written += m.vocabulary().token(token);
  }
  REQUIRE(m.forced_bytes().starts_with(written));
}

// checked: states that were seen before; what can follow depends on nothing else.
void check(const Walk &walk, std::set<const State *> &checked) {
  const Matcher &m = walk.matcher;
  if (static const bool trace = std::getenv("TOOLPRM_FUZZ_TRACE") != nullptr; trace)
    std::fprintf(stderr, "at '%s'\n", m.text().c_str());
  REQUIRE(m.token_count() == walk.before.size());
  check_steps(m);
  if (m.is_stopped()) {
    check_mask(m);
    REQUIRE(m.is_complete() && m.is_over() && m.closing().empty() && m.forced().empty());
    return;
  }
  if (!checked.insert(m.state()).second)
    return;
  check_mask(m);
  check_next_bytes(m);
  check_ends(m);
}

// Reads text at once and byte by byte: both come to one state, or neither to any.
bool read(Walk &walk, const std::string &text) {
  const Matcher before = walk.matcher;
  Matcher slow = before;
  bool legal = true;
  for (std::size_t i = 0; legal && i < text.size(); ++i)
    legal = slow.accept_bytes({text.data() + i, 1});
  std::vector<Step> steps;
  REQUIRE(walk.matcher.accept_bytes(text, &steps) == (legal && !before.is_stopped()));
  if (!legal || before.is_stopped()) {
    REQUIRE(steps.empty() && walk.matcher.state() == before.state());
    return false;
  }
  REQUIRE(slow.state() == walk.matcher.state() && slow.text() == walk.matcher.text());
  REQUIRE(before.text() + text == slow.text());
  walk.before.emplace_back(before.state(), before.text());
  return true;
}

void act(Source &source, std::vector<Walk> &walks, std::set<const State *> &checked) {
  const std::size_t which = source.below(walks.size());
  Walk &walk = walks[which];
  Matcher &m = walk.matcher;
  const auto remember = [&] { walk.before.emplace_back(m.state(), m.text()); };
  switch (source.below(10)) {
  case 0: { // any token, legal or not
    const TokenId token = static_cast<TokenId>(source.below(m.vocabulary().size() + 2)) - 1;
    const Matcher before = m;
    if (m.accept(token))
      walk.before.emplace_back(before.state(), before.text());
    else
      REQUIRE(m.state() == before.state());
    break;
  }
  case 1:
    if (walks.size() < 4)
      walks.push_back(Walk(walk));
    return;
  case 2:
  case 3: {
    const std::size_t back = source.below(walk.before.size() + 1);
    m.rollback(back);
    if (back > 0) {
      const auto &[state, text] = walk.before[walk.before.size() - back];
      REQUIRE(m.state() == state && m.text() == text && !m.is_stopped());
      walk.before.resize(walk.before.size() - back);
    }
    bool refused = false;
    try {
      m.rollback(walk.before.size() + 1);
    } catch (const std::out_of_range &) {
      refused = true;
    }
    REQUIRE(refused);
    break;
  }
  case 4:
    read(walk, source.text(kAlphabet, 0, 3));
    break;
  case 5:
    read(walk, m.forced_bytes(source.byte()));
    break;
  case 6: {
    const std::uint32_t cost = m.closing_bytes();
    if (cost > 0 && cost < 200)
      REQUIRE(read(walk, m.closing().substr(0, source.below(cost))));
    break;
  }
  default: { // a legal token
    std::vector<TokenId> legal;
    const auto mask = m.mask();
    for (std::size_t i = 0; i < m.vocabulary().size(); ++i)
      if (mask->legal(static_cast<TokenId>(i)))
        legal.push_back(static_cast<TokenId>(i));
    if (legal.empty())
      return;
    const TokenId token = legal[source.below(legal.size())];
    remember();
    REQUIRE(m.accept(token));
    REQUIRE(m.tokens().back() == token);
    break;
  }
  }
  check(walks[which], checked);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  Source source(data, size);
  try {
    const auto vocabulary = random_vocabulary(source, !source.rarely(8));
    const auto grammar = RandomGrammar::make(source);
    std::vector<Walk> walks{{Matcher(grammar, vocabulary), {}}};
    REQUIRE(walks[0].matcher.closing_bytes() == grammar->shortest());
    std::set<const State *> checked; // its pool lives as long as the walks
    check(walks[0], checked);
    for (std::size_t n = 0; n < kMostSteps && !source.done(); ++n)
      act(source, walks, checked);
  } catch (const BudgetError &) {
  } catch (const ImpossibleGrammar &) {
  } catch (const std::invalid_argument &) {
  }
  return 0;
}
