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
  explicit Memory(std::int32_t block_size) : pool(std::make_shared<BlockPool>(block_size)) {}

  void append(Sequence &s, std::size_t count) {
    std::vector<std::int32_t> slots;
    std::vector<SlotCopy> copies;
    s.kv.append(count, slots, copies);
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
    CHECK_EQ(s.kv.length(), s.tokens.size());
    CHECK_EQ(s.kv.blocks().size(),
             (s.tokens.size() + static_cast<std::size_t>(size) - 1) / static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < s.tokens.size(); ++i) {
      const auto place = static_cast<std::int32_t>(i);
      CHECK_EQ(at(s.kv.blocks()[static_cast<std::size_t>(place / size)] * size + place % size), s.tokens[i]);
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
        used.insert(s.kv.blocks().begin(), s.kv.blocks().end());
      }
      CHECK_EQ(memory.pool->in_use(), used.size());
      most = std::max(most, used.size());
      CHECK(memory.pool->blocks() >= memory.pool->in_use());
    }
    CHECK_EQ(memory.pool->blocks(), most); // freed blocks were used again
    live.clear();
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
}

} // namespace

int main() {
  forks_keep_what_they_wrote();
  a_fork_copies_at_most_one_partial_block();
  moved_sequences_own_nothing();
  blocks_have_slots();
  return check::report();
}
