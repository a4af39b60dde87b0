// Serialised grammars: whatever the bytes, they are refused, or hold a grammar that says the same when it is serialised
// again; and every grammar that can be built comes back as it was.
#include "../tests/sealed.h"
#include "random_grammar.h"
#include "toolprm/matcher.h"

using namespace toolprm;

namespace {

constexpr std::size_t kBudget = 50'000, kMostSteps = 16;

// The head that all of them have.
std::vector<std::byte> head() {
  static const std::vector<std::byte> bytes = [] {
    GrammarBuilder b;
    auto out = b.build(b.stop(), false)->serialize();
    out.resize(kHead);
    return out;
  }();
  return bytes;
}

std::shared_ptr<const Grammar> from_bytes(std::string_view body) {
  std::vector<std::byte> bytes = head();
  for (char c : body)
    bytes.push_back(static_cast<std::byte>(c));
  return Grammar::deserialize(sealed(std::move(bytes)), kBudget);
}

void walk_alike(Source &source, Matcher a, Matcher b) {
  const Vocabulary &vocabulary = a.vocabulary();
  std::vector<std::int32_t> row(vocabulary.words()), same(row);
  for (std::size_t n = 0; n < kMostSteps && !a.is_stopped(); ++n) {
    a.fill_mask(row);
    b.fill_mask(same);
    REQUIRE(row == same);
    REQUIRE(a.closing_bytes() == b.closing_bytes() && a.is_complete() == b.is_complete());
    std::vector<TokenId> legal;
    for (std::size_t i = 0; i < vocabulary.size(); ++i)
      if (has_bit(row, static_cast<TokenId>(i)))
        legal.push_back(static_cast<TokenId>(i));
    if (legal.empty())
      return;
    const TokenId token = legal[source.below(std::min<std::size_t>(legal.size(), 256))];
    std::vector<Step> steps, as;
    REQUIRE(a.accept(token, &steps) && b.accept(token, &as) && steps.size() == as.size());
    for (std::size_t s = 0; s < steps.size(); ++s)
      REQUIRE(steps[s].kind == as[s].kind && steps[s].end == as[s].end && steps[s].path == as[s].path);
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  Source source(data, size);
  try {
    const bool built = source.below(3) == 0;
    Source choices(data, built ? size : std::min<std::size_t>(size, 32));
    const auto vocabulary = random_vocabulary(choices, true);
    const auto grammar = built ? RandomGrammar::make(source) : from_bytes(source.rest());
    const auto bytes = grammar->serialize();
    // A text that can be read in too many ways is no reason to refuse a grammar; any other error is wrong here.
    std::shared_ptr<const Grammar> again;
    try {
      again = Grammar::deserialize(bytes);
    } catch (const MalformedGrammar &) {
      REQUIRE(false);
    }
    REQUIRE(again->instructions() == grammar->instructions() && again->shortest() == grammar->shortest());
    walk_alike(choices, Matcher(grammar, vocabulary), Matcher(again, vocabulary));
  } catch (const BudgetError &) {
  } catch (const ImpossibleGrammar &) {
  } catch (const std::invalid_argument &) {
  }
  return 0;
}
