// The prefix cache: prompts share what they begin with, keep what they wrote, and give their blocks back.
#include <map>
#include <set>

#include "check.h"
#include "grammars.h"
#include "toolprm/prefix_cache.h"

using namespace toolprm;

namespace {

using Ids = std::vector<TokenId>;

struct Held {
  PrefixCache::Lease lease;
  Ids tokens;
};

// The tensors behind a pool, and the prompts that are in use.
struct World {
  World(std::int32_t block_size, std::int32_t capacity, std::int32_t idle)
      : pool(std::make_shared<BlockPool>(block_size, capacity)), cache(std::make_shared<PrefixCache>(pool, idle)) {}

  // Reads the next part of a prompt; returns how many tokens.
  std::int32_t fill(Held &held, std::int32_t most) {
    const std::int32_t before = held.lease.filled(), count = std::min(most, held.lease.size() - before);
    std::vector<std::int32_t> slots;
    held.lease.fill(count, slots);
    CHECK_EQ(slots.size(), static_cast<std::size_t>(count));
    for (std::int32_t i = 0; i < count; ++i)
      memory[slots[static_cast<std::size_t>(i)]] = held.tokens[static_cast<std::size_t>(before + i)];
    CHECK_EQ(held.lease.filled(), before + count);
    return count;
  }

  void check(const Held &held, std::int32_t count) {
    Ids read;
    for (const Segment &segment : held.lease.segments(count))
      for (std::int32_t i = 0; i < segment.count; ++i) {
        CHECK(segment.slot + i >= pool->block_size());
        read.push_back(memory[segment.slot + i]);
      }
    CHECK_EQ(read, Ids(held.tokens.begin(), held.tokens.begin() + count));
  }

  std::shared_ptr<BlockPool> pool;
  std::shared_ptr<PrefixCache> cache;
  std::map<std::int32_t, TokenId> memory;
};

Held acquire(World &world, Ids tokens) {
  auto lease = world.cache->acquire(tokens);
  CHECK(lease.has_value());
  return {std::move(*lease), std::move(tokens)};
}

Ids numbers(std::size_t count, TokenId from = 0) {
  Ids out;
  for (std::size_t i = 0; i < count; ++i)
    out.push_back(from + static_cast<TokenId>(i));
  return out;
}

Ids joined(Ids a, const Ids &b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

void what_prompts_begin_with_is_held_once() {
  World w(4, 100, 50);
  Held first = acquire(w, numbers(18)); // 5 blocks, the last half full
  CHECK_EQ(w.pool->in_use(), 5);
  CHECK_EQ(w.fill(first, 7), 7);
  Held second = acquire(w, joined(numbers(10), numbers(5, 100))); // shares 8 tokens: whole blocks
  CHECK_EQ(w.pool->in_use(), 5 + 2);
  CHECK_EQ(second.lease.filled(), 7);
  CHECK_EQ(w.fill(second, 100), 8);
  CHECK_EQ(first.lease.filled(), 8); // the second one read a token for both
  CHECK_EQ(w.fill(first, 100), 10);
  w.check(first, 18);
  w.check(second, 15);
  CHECK(first.lease.segments(8) == second.lease.segments(8));
  // The same again costs nothing, and neither does a beginning of it but for its partly filled block.
  Held third = acquire(w, numbers(18));
  CHECK_EQ(third.lease.filled(), 18);
  CHECK_EQ(w.pool->in_use(), 7);
  Held fourth = acquire(w, numbers(6));
  CHECK_EQ(w.pool->in_use(), 8);
  CHECK_EQ(fourth.lease.filled(), 4);
  // A longer one shares all whole blocks.
  Held fifth = acquire(w, numbers(30));
  CHECK_EQ(fifth.lease.filled(), 16);
  Held nothing = acquire(w, {});
  CHECK_EQ(nothing.lease.filled(), 0);
  CHECK_EQ(nothing.lease.size(), 0);
  CHECK(nothing.lease.segments(0).empty());
}

void idle_prompts_go_by_age_and_limit() {
  World w(4, 8, 8);
  const auto read = [&](const Ids &tokens) {
    Held held = acquire(w, tokens);
    w.fill(held, 100);
  };
  read(numbers(8)); // two blocks each
  read(numbers(8, 100));
  read(numbers(8, 200));
  CHECK_EQ(w.cache->idle(), 6);
  read(numbers(8));                         // used again
  Held held = acquire(w, numbers(16, 300)); // takes the two that are free, and those used least recently
  CHECK_EQ(w.pool->available(), 0);
  CHECK_EQ(acquire(w, numbers(8)).lease.filled(), 8);
  CHECK(!w.cache->acquire(numbers(20, 500)).has_value());
  CHECK_EQ(acquire(w, numbers(8)).lease.filled(),
           8); // what could not be had took nothing away... but its own idle ones
  held = {};
  CHECK_EQ(w.cache->idle(), 4); // it was never read
  w.cache->clear();
  CHECK_EQ(w.pool->in_use(), 0);

  World none(4, 8, 0);
  {
    Held a = acquire(none, numbers(8));
    none.fill(a, 8);
    CHECK_EQ(acquire(none, numbers(8)).lease.filled(), 8);
  }
  CHECK_EQ(none.pool->in_use(), 0);
}

void any_prompts_keep_what_they_wrote() {
  std::mt19937 random(seed());
  for (int round = 0; round < 40; ++round) {
    const auto size = static_cast<std::int32_t>(1 + below(random, 5));
    World w(size, static_cast<std::int32_t>(20 + below(random, 60)), static_cast<std::int32_t>(below(random, 60)));
    std::vector<Held> live;
    for (int i = 0; i < 300; ++i) {
      switch (below(random, 4)) {
      case 0: {
        Ids tokens; // of a small alphabet, so that many begin alike
        for (std::size_t k = below(random, 40); k > 0; --k)
          tokens.push_back(static_cast<TokenId>(below(random, 20) == 0));
        if (auto lease = w.cache->acquire(tokens))
          live.push_back({std::move(*lease), std::move(tokens)});
        break;
      }
      case 1:
        if (!live.empty())
          live.erase(live.begin() + static_cast<std::ptrdiff_t>(below(random, live.size())));
        break;
      case 2:
        if (!live.empty())
          w.fill(live[below(random, live.size())], static_cast<std::int32_t>(1 + below(random, 20)));
        break;
      default:
        w.cache->make_room(static_cast<std::int32_t>(below(random, 20)));
      }
      std::set<std::int32_t> used;
      for (const Held &held : live) {
        w.check(held, held.lease.filled());
        for (const Segment &segment : held.lease.segments(held.lease.size()))
          for (std::int32_t slot = segment.slot; slot < segment.slot + segment.count; ++slot)
            used.insert(slot / size);
      }
      CHECK_EQ(w.pool->in_use() - w.cache->idle(), static_cast<std::int32_t>(used.size()));
    }
    live.clear();
    CHECK_EQ(w.pool->in_use(), w.cache->idle());
    w.cache->clear();
    CHECK_EQ(w.pool->in_use(), 0);
  }
}

} // namespace

int main() {
  what_prompts_begin_with_is_held_once();
  idle_prompts_go_by_age_and_limit();
  any_prompts_keep_what_they_wrote();
  return check::report();
}
