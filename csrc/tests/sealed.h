// Serialised grammars that were written by hand, with a head that fits them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

// The head of a serialised grammar: magic and version, then the size and the checksum of what follows.
inline constexpr std::size_t kHead = 20;

// CRC-32 bit by bit, as IEEE 802.3 has it.
inline std::uint32_t crc32(std::span<const std::byte> bytes) {
  std::uint32_t crc = 0xffffffffu;
  for (std::byte b : bytes)
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t in = (static_cast<std::uint32_t>(b) >> i & 1) ^ (crc & 1);
      crc = crc >> 1 ^ (in ? 0xedb88320u : 0);
    }
  return ~crc;
}

// The bytes, of kHead or more, whose head then fits the rest.
inline std::vector<std::byte> sealed(std::vector<std::byte> bytes) {
  const auto set_word = [&](std::size_t at, std::uint32_t value) {
    for (std::size_t i = 0; i < 4; ++i)
      bytes[at + i] = static_cast<std::byte>(value >> (8 * i) & 0xff);
  };
  set_word(12, static_cast<std::uint32_t>(bytes.size() - kHead));
  set_word(16, crc32(std::span(bytes).subspan(kHead)));
  return bytes;
}
