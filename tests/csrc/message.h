// What errors say, for the tests.
#pragma once
#include <gtest/gtest.h>

#include <exception>
#include <initializer_list>
#include <string>

namespace isentrope {

// The message of what action throws, or "no error".
template <class Error = std::exception, class Action>
std::string message(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

inline void expect_all(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts) EXPECT_NE(text.find(part), std::string::npos) << text << " lacks " << part;
}

}  // namespace isentrope
