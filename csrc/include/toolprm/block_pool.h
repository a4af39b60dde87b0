// Which KV-cache blocks belong to whom: reference counts, copy-on-write, no tensors.
//
// A slot is a token's place in the tensors behind a pool: block * block_size + offset in the block.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace toolprm {

// A run of slots whose keys and values must be copied, in all layers, before the next forward pass.
struct SlotCopy {
  std::int32_t source, target, count;
};

// Hands out blocks of block_size slots. Not thread-safe: its owner (the search) is entered by one thread at a time.
class BlockPool {
public:
  // Throws std::invalid_argument for a block_size below 1.
  explicit BlockPool(std::int32_t block_size);

  // A free block, with one reference: the one released last, or a new one. Never fails for want of blocks.
  std::int32_t allocate();
  // One more reference to a block in use.
  void retain(std::int32_t block) { ++references_[static_cast<std::size_t>(block)]; }
  // One reference less; without any the block is free again.
  void release(std::int32_t block);
  // More than one sequence refers to it: nobody may write into it.
  bool shared(std::int32_t block) const { return references_[static_cast<std::size_t>(block)] > 1; }
  std::int32_t block_size() const { return block_size_; }
  // Blocks that the tensors behind the pool must hold: the most that were ever in use at once.
  std::int32_t blocks() const { return static_cast<std::int32_t>(references_.size()); }
  std::int32_t in_use() const { return in_use_; }

private:
  std::int32_t block_size_;
  std::int32_t in_use_ = 0;
  std::vector<std::int32_t> references_; // by block; 0: free
  std::vector<std::int32_t> free_;
};

// The tokens that one row wrote after its shared prefix. A copy is a fork: it shares all blocks. Its blocks go back to
// the pool with it. Thread-safe as little as the pool.
class KvSequence {
public:
  KvSequence() = default; // belongs to no pool: append() must not be called
  explicit KvSequence(std::shared_ptr<BlockPool> pool) : pool_(std::move(pool)) {}
  KvSequence(const KvSequence &other);
  KvSequence(KvSequence &&other) noexcept;
  KvSequence &operator=(KvSequence other) noexcept;
  ~KvSequence();

  // Makes room for count tokens and appends their slots. A partly filled block that is shared is copied first: at most
  // one copy is appended, of what was written before this call.
  void append(std::size_t count, std::vector<std::int32_t> &slots, std::vector<SlotCopy> &copies);
  std::int32_t length() const { return length_; }
  // In the order of the tokens; the last one may be partly filled.
  const std::vector<std::int32_t> &blocks() const { return blocks_; }

private:
  std::shared_ptr<BlockPool> pool_;
  std::vector<std::int32_t> blocks_;
  std::int32_t length_ = 0;
};

} // namespace toolprm
