// The block pool: what sequences wrote stays theirs through forks, and every block comes back.
#include <set>
#include <utility>

#include "check.h"
#include "grammars.h"
#include "toolprm/block_pool.h"

using namespace toolprm;

namespace {

// A sequence beside what it must hold.
struct Sequence {
  KvSequence kv;
  std::vector<int> tokens;
};

// The tensors behind a pool.
class Memory {
public:
  explicit Memory(std::int32_t block_size, std::int32_t capacity = 0)
      : pool(std::make_shared<BlockPool>(block_size, capacity)) {}

  void append(Sequence &s, std::size_t count) {
    std::vector<std::int32_t> slots;
    std::vector<SlotCopy> copies;
    const std::int32_t needed = s.kv.needed(count), before = pool->in_use();
    s.kv.append(count, slots, copies);
    CHECK_EQ(pool->in_use() - before, needed);
    slots_.resize(static_cast<std::size_t>(pool->blocks() * pool->block_size()), -1);
    CHECK(copies.size() <= 1);
    for (const SlotCopy &copy : copies) {
      CHECK(copy.count > 0 && copy.count < pool->block_size());
      for (std::int32_t i = 0; i < copy.count; ++i)
        at(copy.target + i) = at(copy.source + i);
    }
    CHECK_EQ(slots.size(), count);
    for (std::int32_t slot : slots) {
      at(slot) = next_;
      s.tokens.push_back(next_++);
    }
  }

  void check(const Sequence &s) {
    const std::int32_t size = pool->block_size();
    const std::vector<std::int32_t> blocks = s.kv.blocks();
    CHECK_EQ(s.kv.length(), s.tokens.size());
    CHECK_EQ(blocks.size(), (s.tokens.size() + static_cast<std::size_t>(size) - 1) / static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < s.tokens.size(); ++i) {
      const auto place = static_cast<std::int32_t>(i);
      CHECK_EQ(at(blocks[static_cast<std::size_t>(place / size)] * size + place % size), s.tokens[i]);
    }
  }

  std::shared_ptr<BlockPool> pool;

private:
  int &at(std::int32_t slot) { return slots_.at(static_cast<std::size_t>(slot)); }
  std::vector<int> slots_;
  int next_ = 0;
};

void forks_keep_what_they_wrote() {
  std::mt19937 random(seed());
  for (const std::int32_t size : {1, 2, 4, 16}) {
    Memory memory(size);
    std::vector<Sequence> live;
    std::size_t most = 0;
    for (int i = 0; i < 2000; ++i) {
      const std::size_t pick = live.empty() ? 0 : below(random, live.size());
      switch (live.empty() ? 0 : below(random, 6)) {
      case 0:
        live.push_back({KvSequence(memory.pool), {}});
        break;
      case 1:
        if (live.size() < 40)
          live.push_back(Sequence(live[pick])); // a fork
        break;
      case 2:
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(pick));
        break;
      case 3:
        live[pick] = live[below(random, live.size())]; // by assignment, also to itself
        break;
      default:
        memory.append(live[pick], below(random, 2 * static_cast<std::size_t>(size) + 2));
      }
      std::set<std::int32_t> used;
      for (Sequence &s : live) {
        memory.check(s);
        for (std::int32_t block : s.kv.blocks())
          used.insert(block);
      }
      CHECK_EQ(memory.pool->in_use(), used.size());
      most = std::max(most, used.size());
      CHECK(memory.pool->blocks() > memory.pool->in_use());
      CHECK(memory.pool->blocks() <= static_cast<std::int32_t>(most) + 1); // freed blocks were used again
      CHECK(used.count(0) == 0);                                           // nobody's
    }
    live.clear();
    CHECK_EQ(memory.pool->blocks(), 1);
    CHECK_EQ(memory.pool->in_use(), 0);
  }
}

void a_fork_copies_at_most_one_partial_block() {
  Memory memory(4);
  Sequence parent{KvSequence(memory.pool), {}};
  memory.append(parent, 6);
  std::vector<Sequence> forks(8, parent);
  CHECK_EQ(memory.pool->in_use(), 2);
  for (Sequence &fork : forks)
    memory.append(fork, 1);
  memory.append(parent, 1); // the last one writes where all began
  CHECK_EQ(memory.pool->in_use(), 2 + 8);
  for (const Sequence &fork : forks) {
    memory.check(fork);
    CHECK_EQ(fork.kv.blocks()[0], parent.kv.blocks()[0]);
  }
  memory.check(parent);
  // At a block's border nothing is copied.
  memory.append(parent, 1);
  Sequence fork = parent;
  std::vector<std::int32_t> slots;
  std::vector<SlotCopy> copies;
  fork.kv.append(3, slots, copies);
  CHECK(copies.empty() && slots.size() == 3);
  fork.kv.append(0, slots, copies);
  CHECK_EQ(slots.size(), 3u);
}

void a_full_pool_refuses_and_changes_nothing() {
  Memory memory(4, 3);
  Sequence parent{KvSequence(memory.pool), {}};
  memory.append(parent, 6);
  Sequence fork = parent;
  CHECK_EQ(fork.kv.needed(2), 1);
  CHECK_EQ(fork.kv.needed(3), 2);
  std::vector<std::int32_t> slots;
  std::vector<SlotCopy> copies;
  CHECK_THROWS(fork.kv.append(3, slots, copies), OutOfBlocks);
  CHECK(slots.empty() && copies.empty());
  CHECK_EQ(memory.pool->in_use(), 2);
  memory.append(fork, 2);
  CHECK_EQ(memory.pool->available(), 0);
  CHECK_THROWS(memory.pool->allocate(), OutOfBlocks);
  memory.check(parent);
  memory.check(fork);
}

// Runs are adjacent, tight where they can be, and never overlap; holes that touch become one.
void runs_are_adjacent_blocks() {
  std::mt19937 random(seed() + 7);
  constexpr std::int32_t kCapacity = 200;
  BlockPool pool(16, kCapacity);
  std::vector<BlockRun> live;
  std::vector<bool> used(kCapacity + 1, false);
  const auto largest_hole = [&] {
    std::int32_t best = 0, here = 0;
    for (std::size_t b = 1; b < used.size(); ++b)
      best = std::max(best, here = used[b] ? 0 : here + 1);
    return best;
  };
  for (int i = 0; i < 5000; ++i) {
    if (live.empty() || below(random, 5) < 3) {
      const auto wanted = static_cast<std::int32_t>(1 + below(random, 30));
      const std::int32_t hole = largest_hole();
      const BlockRun run = pool.allocate_run(wanted);
      CHECK_EQ(run.count, std::min(wanted, hole));
      for (std::int32_t b = run.first; b < run.first + run.count; ++b) {
        CHECK(b >= 1 && b <= kCapacity && !used[static_cast<std::size_t>(b)]);
        used[static_cast<std::size_t>(b)] = true;
      }
      if (run.count > 0)
        live.push_back(run);
    } else {
      const std::size_t pick = below(random, live.size());
      BlockRun run = live[pick];
      const auto part = static_cast<std::int32_t>(1 + below(random, static_cast<std::size_t>(run.count)));
      pool.release({run.first, part}); // a part of a run may go by itself
      for (std::int32_t b = run.first; b < run.first + part; ++b)
        used[static_cast<std::size_t>(b)] = false;
      if (part < run.count)
        live[pick] = {run.first + part, run.count - part};
      else
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(pick));
    }
    CHECK_EQ(pool.in_use(), std::count(used.begin(), used.end(), true));
  }
}

void moved_sequences_own_nothing() {
  Memory memory(4);
  Sequence a{KvSequence(memory.pool), {}};
  memory.append(a, 5);
  KvSequence b(std::move(a.kv));
  CHECK_EQ(b.length(), 5);
  CHECK_EQ(memory.pool->in_use(), 2);
  KvSequence c(memory.pool);
  c = std::move(b);
  CHECK_EQ(c.length(), 5);
  c = KvSequence(memory.pool);
  CHECK_EQ(memory.pool->in_use(), 0);
}

void blocks_have_slots() {
  CHECK_THROWS(BlockPool(0), std::invalid_argument);
  CHECK_THROWS(BlockPool(-4), std::invalid_argument);
  CHECK_THROWS(BlockPool(16, -1), std::invalid_argument);
  CHECK_THROWS(BlockPool(16, std::numeric_limits<std::int32_t>::max() / 16), std::invalid_argument);
  CHECK_EQ(BlockPool(1).capacity(), std::numeric_limits<std::int32_t>::max() - 1);
}

} // namespace

int main() {
  forks_keep_what_they_wrote();
  a_fork_copies_at_most_one_partial_block();
  a_full_pool_refuses_and_changes_nothing();
  runs_are_adjacent_blocks();
  moved_sequences_own_nothing();
  blocks_have_slots();
  return check::report();
}
