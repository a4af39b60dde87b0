// Several threads at once over one grammar and one vocabulary, with matchers of their own that share states, masks and
// the texts that they forked from. Most of what can go wrong here shows under ThreadSanitizer only.
#include <atomic>
#include <thread>

#include "check.h"
#include "grammars.h"

using namespace toolprm;

namespace {

using Ids = std::vector<TokenId>;

constexpr int kThreads = 4;

void run(const std::function<void(int)> &body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back(body, t);
  for (std::thread &thread : threads)
    thread.join();
}

// What a walk sees, to be compared with what others see.
struct Seen {
  std::string text;
  std::vector<Ids> masks;
  std::vector<std::string> closings;
  bool operator==(const Seen &) const = default;
};

// Random tokens from a matcher on.
Seen walk(Matcher m, std::uint32_t number) {
  std::mt19937 random(number);
  Seen seen;
  std::vector<Matcher> forks;
  for (int i = 0; i < 40; ++i) {
    std::vector<std::int32_t> row(m.vocabulary().words());
    m.fill_mask(row);
    Ids legal;
    for (std::size_t id = 1; id < m.vocabulary().size(); ++id)
      if (bit(row.data(), id))
        legal.push_back(static_cast<TokenId>(id));
    seen.masks.push_back(legal);
    seen.closings.push_back(m.closing());
    if (m.closing_bytes() != seen.closings.back().size() || legal.empty())
      break;
    static_cast<void>(m.forced());
    static_cast<void>(m.accept(legal[below(random, legal.size())]));
    if (below(random, 4) == 0)
      forks.push_back(m);
    if (!forks.empty() && below(random, 4) == 0) {
      m = forks.back();
      forks.pop_back();
    }
  }
  seen.text = m.text();
  return seen;
}

void threads_see_what_one_sees() {
  std::mt19937 random(seed());
  for (int round = 0; round < 6; ++round) {
    const bool values = round % 2 != 0;
    const auto vocabulary = values ? random_vocabulary(random, 200) : call_vocabulary();
    GrammarBuilder b;
    const NodeId rule = b.declare_rule("value");
    GrammarBuilder::Object object{b.literal("{"), b.literal(","), b.literal("}"), {}, quoted_dfa("ab"), rule};
    b.define_rule(rule, b.choice({b.scalar(digits_dfa("12")), b.scalar(quoted_dfa("ab12{}[], ")), b.object(object),
                                  b.array({b.literal("["), b.literal(","), b.literal("]"), {}, rule})}));
    const auto grammar = values ? b.build(b.sequence({rule, b.stop()}), false, 5'000) // pools are begun anew
                                : calls_grammar();
    const std::uint32_t base = seed();
    std::vector<std::vector<Seen>> seen(kThreads);
    run([&](int t) {
      for (std::uint32_t i = 0; i < 15; ++i) // half of the walks are the same in all threads
        seen[static_cast<std::size_t>(t)].push_back(
            walk(Matcher(grammar, vocabulary), base + (i % 2 ? i : i + 1000 * static_cast<std::uint32_t>(t))));
    });
    for (int t = 0; t < kThreads; ++t)
      for (std::uint32_t i = 0; i < 15; ++i)
        CHECK(seen[static_cast<std::size_t>(t)][i] ==
              walk(Matcher(grammar, vocabulary), base + (i % 2 ? i : i + 1000 * static_cast<std::uint32_t>(t))));
  }
}

// Forks of one long text, dropped by all threads at the same time: each node of it goes with whoever holds it last.
void shared_texts_are_released_once() {
  std::mt19937 random(seed());
  const auto vocabulary = random_vocabulary(random, 60);
  GrammarBuilder b;
  const auto grammar = b.build(b.sequence({b.scalar(digits_dfa("12")), b.stop()}), false);
  for (int round = 0; round < 20; ++round) {
    auto start = std::make_unique<Matcher>(grammar, vocabulary);
    for (int i = 0; i < 2'000; ++i)
      start->accept_bytes("1");
    std::vector<std::unique_ptr<Matcher>> forks;
    for (int t = 0; t < kThreads; ++t)
      forks.push_back(std::make_unique<Matcher>(*start));
    start.reset();
    std::atomic<int> ready = 0;
    run([&](int t) {
      std::unique_ptr<Matcher> mine = std::move(forks[static_cast<std::size_t>(t)]);
      mine->rollback(static_cast<std::size_t>(100 * t));
      ++ready;
      while (ready < kThreads)
        std::this_thread::yield();
      const std::size_t length = mine->text().size();
      mine->rollback(500);
      if (length != mine->text().size() + 500)
        std::abort();
      mine.reset();
    });
  }
  CHECK(true);
}

void a_vocabulary_serves_all_threads() {
  std::mt19937 random(seed());
  std::atomic<int> asked = 0;
  std::vector<std::string> tokens{"<stop>", "a", "b", "ab"};
  const Vocabulary vocabulary(tokens, {0}, [&](std::string_view) {
    ++asked;
    return Ids{};
  });
  const auto dfa = quoted_dfa("ab");
  std::vector<std::string> texts;
  for (int i = 0; i < 200; ++i)
    texts.push_back(random_text(random, "ab", 1, 12));
  std::vector<int> wrong(kThreads, 0);
  run([&](int t) {
    for (int pass = 0; pass < 5; ++pass)
      for (const std::string &text : texts) {
        std::string spelled;
        for (TokenId id : vocabulary.tokenize(text))
          spelled += vocabulary.token(id);
        wrong[static_cast<std::size_t>(t)] += spelled != text;
        const auto mask = vocabulary.scalar_mask(pass == 2 ? quoted_dfa("a") : dfa, 1);
        wrong[static_cast<std::size_t>(t)] += !bit(mask->inside->data(), 1);
      }
  });
  for (int w : wrong)
    CHECK_EQ(w, 0);
  CHECK(asked >= 1);
}

} // namespace

int main() {
  threads_see_what_one_sees();
  shared_texts_are_released_once();
  a_vocabulary_serves_all_threads();
  return check::report();
}
