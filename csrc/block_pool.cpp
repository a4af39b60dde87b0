#include "toolprm/block_pool.h"

#include <algorithm>
#include <iterator>
#include <string>

namespace toolprm {

BlockPool::BlockPool(std::int32_t block_size, std::int32_t capacity) : block_size_(block_size), capacity_(capacity) {
  if (block_size < 1)
    throw std::invalid_argument("a block must have at least one slot, not " + std::to_string(block_size));
  const std::int32_t most = std::numeric_limits<std::int32_t>::max() / block_size - 1;
  if (capacity < 0 || capacity > most)
    throw std::invalid_argument("a pool of blocks of " + std::to_string(block_size) + " slots can have 1 to " +
                                std::to_string(most) + " blocks, not " + std::to_string(capacity));
  if (capacity_ == 0)
    capacity_ = most;
  holes_.emplace(1, capacity_);
}

BlockRun BlockPool::take(Holes::iterator hole, std::int32_t count) {
  const auto [first, size] = *hole;
  const auto after = holes_.erase(hole);
  if (size > count)
    holes_.emplace_hint(after, first + count, size - count);
  in_use_ += count;
  return {first, count};
}

std::int32_t BlockPool::allocate() {
  if (holes_.empty())
    throw OutOfBlocks("all " + std::to_string(capacity_) + " blocks are in use");
  return take(holes_.begin(), 1).first;
}

BlockRun BlockPool::allocate_run(std::int32_t most) {
  auto best = holes_.end();
  for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
    if (best == holes_.end() ||
        (best->second < most ? hole->second > best->second : hole->second >= most && hole->second < best->second))
      best = hole;
  }
  if (best == holes_.end() || most < 1)
    return {};
  return take(best, std::min(most, best->second));
}

std::int32_t BlockPool::blocks() const {
  if (holes_.empty())
    return capacity_ + 1;
  const auto [first, count] = *holes_.rbegin();
  return first + count == capacity_ + 1 ? first : capacity_ + 1;
}

void BlockPool::release(BlockRun run) {
  if (run.count == 0)
    return;
  in_use_ -= run.count;
  auto after = holes_.lower_bound(run.first);
  if (after != holes_.end() && run.first + run.count == after->first) {
    run.count += after->second;
    after = holes_.erase(after);
  }
  if (after != holes_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == run.first) {
      before->second += run.count;
      return;
    }
  }
  holes_.emplace_hint(after, run.first, run.count);
}

std::int32_t KvSequence::needed(std::size_t count) const {
  if (count == 0)
    return 0;
  const std::int32_t size = pool_->block_size();
  const std::int32_t after = length_ + static_cast<std::int32_t>(count);
  const bool copies = length_ % size != 0 && blocks_.shared();
  return (after + size - 1) / size - static_cast<std::int32_t>(blocks_.size()) + (copies ? 1 : 0);
}

void KvSequence::append(std::size_t count, std::vector<std::int32_t> &slots, std::vector<SlotCopy> &copies) {
  if (count == 0)
    return;
  if (const std::int32_t fresh = needed(count); fresh > pool_->available())
    throw OutOfBlocks(std::to_string(fresh) + " blocks are needed, " + std::to_string(pool_->available()) + " of " +
                      std::to_string(pool_->capacity()) + " are free");
  const std::int32_t size = pool_->block_size();
  if (const std::int32_t filled = length_ % size; filled != 0 && blocks_.shared()) {
    Block fresh(pool_);
    copies.push_back({blocks_.back().id() * size, fresh.id() * size, filled});
    blocks_.pop_back();
    blocks_.push_back(std::move(fresh));
  }
  for (std::size_t i = 0; i < count; ++i, ++length_) {
    if (length_ % size == 0)
      blocks_.push_back(Block(pool_));
    slots.push_back(blocks_.back().id() * size + length_ % size);
  }
}

std::vector<std::int32_t> KvSequence::blocks() const {
  std::vector<std::int32_t> out;
  out.reserve(blocks_.size());
  for (const Block *block : blocks_.since(0))
    out.push_back(block->id());
  return out;
}

} // namespace toolprm
