// Errors that say what is wrong and nothing else: torch's own macro puts function, file and line of ours before it.
#pragma once
#include <sstream>
#include <stdexcept>

#define BNB_CHECK(condition, ...)               \
  do {                                          \
    if (!(condition)) ::bnb::fail(__VA_ARGS__); \
  } while (false)

namespace bnb {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace bnb
