// Reads JSON values and Python literals, as far as merging equal answers needs it. Private to the core.
#pragma once

#include <string>
#include <string_view>

namespace toolprm {

// Reads the quoted string at text[at], decodes its escapes into out (UTF-8) and moves at behind it.
// Returns false where it is not closed.
bool parse_string(std::string_view text, std::size_t &at, std::string &out);

} // namespace toolprm
