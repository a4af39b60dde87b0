// Which KV-cache blocks belong to whom: reference counts, copy-on-write, no tensors.
//
// A slot is a token's place in the tensors behind a pool: block * block_size + offset in the block.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <vector>

#include "toolprm/chain.h"
#include "toolprm/export.h"

namespace toolprm {

// A run of slots whose keys and values must be copied, in all layers, before the next forward pass.
struct SlotCopy {
  std::int32_t source, target, count;
};

// Adjacent blocks.
struct BlockRun {
  std::int32_t first = 0, count = 0;
};

// A pool has no block left.
struct TOOLPRM_API OutOfBlocks : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Hands out blocks of block_size slots. Block 0 is nobody's: what must point somewhere without a meaning points there.
// Not thread-safe: its owner (the search) is entered by one thread at a time.
class TOOLPRM_API BlockPool {
public:
  // capacity: most blocks in use at once, 0 for as many as slots can be numbered.
  // Throws std::invalid_argument for a block_size below 1, a negative capacity, or one whose slots have no numbers.
  explicit BlockPool(std::int32_t block_size, std::int32_t capacity = 0);

  // The lowest free block. Throws OutOfBlocks.
  std::int32_t allocate();
  // Up to most adjacent blocks: the tightest hole that holds them all, else the largest one; none where none is free.
  BlockRun allocate_run(std::int32_t most);
  void release(BlockRun run);

  std::int32_t block_size() const { return block_size_; }
  std::int32_t capacity() const { return capacity_; }
  std::int32_t in_use() const { return in_use_; }
  std::int32_t available() const { return capacity_ - in_use_; }
  // Blocks that the tensors behind the pool must hold: one more than the highest that is in use.
  std::int32_t blocks() const;

private:
  using Holes = std::map<std::int32_t, std::int32_t>; // first block -> count
  BlockRun take(Holes::iterator hole, std::int32_t count);
  std::int32_t block_size_, capacity_;
  std::int32_t in_use_ = 0;
  Holes holes_;
};

// The tokens that one row wrote after its prompt. A copy is a fork: it shares all blocks, at the cost of a pointer.
// Its blocks go back to the pool with the last sequence that holds them. Thread-safe as little as the pool.
class TOOLPRM_API KvSequence {
public:
  KvSequence() = default; // belongs to no pool: append() must not be called
  explicit KvSequence(std::shared_ptr<BlockPool> pool) : pool_(std::move(pool)) {}

  // Fresh blocks that appending count tokens takes at most.
  std::int32_t needed(std::size_t count) const;
  // Makes room for count tokens and appends their slots. A partly filled block that is shared is copied first: at most
  // one copy is appended, of what was written before this call. Throws OutOfBlocks, and changes nothing.
  void append(std::size_t count, std::vector<std::int32_t> &slots, std::vector<SlotCopy> &copies);
  std::int32_t length() const { return length_; }
  // In the order of the tokens; the last one may be partly filled.
  std::vector<std::int32_t> blocks() const;

private:
  // A block in use.
  class Block {
  public:
    explicit Block(std::shared_ptr<BlockPool> pool) : pool_(std::move(pool)), id_(pool_->allocate()) {}
    Block(Block &&other) noexcept : pool_(std::move(other.pool_)), id_(other.id_) {}
    Block &operator=(Block &&) = delete;
    ~Block() {
      if (pool_)
        pool_->release({id_, 1});
    }
    std::int32_t id() const { return id_; }

  private:
    std::shared_ptr<BlockPool> pool_;
    std::int32_t id_;
  };
  std::shared_ptr<BlockPool> pool_;
  Chain<Block> blocks_;
  std::int32_t length_ = 0;
};

} // namespace toolprm
